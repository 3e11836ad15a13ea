//! WarmPools.

use std::sync::Arc;

use kube::runtime::controller::Action;
use woodfrog_api::WarmPool;

use crate::Context;

/// Looks at a WarmPool.
///
/// # Errors
/// The API server's.
pub async fn reconcile(_pool: Arc<WarmPool>, _context: Arc<Context>) -> Result<Action, kube::Error> {
    Ok(Action::await_change())
}
