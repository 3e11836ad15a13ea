//! Checkpoints.

use std::sync::Arc;

use kube::runtime::controller::Action;
use woodfrog_api::Checkpoint;

use crate::Context;

/// Looks at a Checkpoint.
///
/// # Errors
/// The API server's.
pub async fn reconcile(_checkpoint: Arc<Checkpoint>, _context: Arc<Context>) -> Result<Action, kube::Error> {
    Ok(Action::await_change())
}
