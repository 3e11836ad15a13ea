//! The Checkpoint reconciler: observe, plan, apply.

mod apply;
pub(crate) mod conditions;
mod observe;
pub mod plan;
pub mod pod;
mod words;

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::runtime::controller::Action;
use woodfrog_api::Checkpoint;

use crate::Context;
use crate::template::Template;
use plan::Attempt;

/// How long to wait at most for a store that does not show yet what we have written.
const BEHIND: Duration = Duration::from_secs(5);

/// Why a Checkpoint could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A request failed.
    #[error("cannot {what}: {source}")]
    Request {
        /// What was tried.
        what: &'static str,
        /// What the API server says.
        source: Box<kube::Error>,
    },
}

fn failed(what: &'static str) -> impl FnOnce(kube::Error) -> CheckpointError {
    move |source| CheckpointError::Request { what, source: Box::new(source) }
}

/// Looks at a Checkpoint, and does what is to be done.
///
/// # Errors
/// The API server's; it is looked at again later.
pub async fn reconcile(
    checkpoint: Arc<Checkpoint>,
    context: Arc<Context>,
) -> Result<Action, CheckpointError> {
    if context.written.outdates(&*checkpoint) {
        return Ok(Action::requeue(BEHIND));
    }
    if checkpoint.metadata.deletion_timestamp.is_some() {
        apply::clean_up(&context, &checkpoint).await?;
        return Ok(Action::await_change());
    }
    let template = Template::of(&checkpoint, &context.stores);
    let attempt = Attempt::due(&checkpoint, template.as_ref().ok().and_then(Option::as_ref));
    let seen = observe::observe(&context, &checkpoint, template, &attempt).await?;
    let plan = plan::plan(&checkpoint, &attempt, &seen);
    let plan = match apply::before(&context, &checkpoint, &plan).await? {
        apply::Made::Well => plan,
        apply::Made::Refused(why) => plan::refused(&checkpoint, &attempt, &seen, &why),
    };
    apply::status(&context, &checkpoint, &plan).await?;
    apply::after(&context, &checkpoint, &plan).await?;
    if let Some(outcome) = &plan.outcome {
        context.metrics.attempted(outcome);
        tracing::info!(
            "Checkpoint {}/{}: {outcome}",
            checkpoint.namespace().unwrap_or_default(),
            checkpoint.name_any()
        );
    }
    Ok(plan.next.map_or_else(Action::await_change, Action::requeue))
}
