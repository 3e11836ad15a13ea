//! The Checkpoint reconciler: observe, plan, apply; and what becomes of images that are not kept.

mod apply;
pub(crate) mod conditions;
mod observe;
pub mod plan;
pub mod pod;
mod retention;
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
    let mut plan = plan::plan(&checkpoint, &attempt, &seen);
    let used = || observe::images_in_use(&context, &checkpoint, seen.now);
    let surplus = retention::review(&checkpoint, &mut plan, used, seen.now);
    if !surplus.is_empty() {
        let nodes = observe::nodes_with_an_agent(&context).await?;
        retention::begin(&checkpoint, &mut plan, surplus, &nodes, &context.plain_http, seen.now);
    }
    if plan.is_progress(&checkpoint)
        && let Some(wait) = context.pace.wait(&*checkpoint)
    {
        return Ok(Action::requeue(wait));
    }
    if plan.is_silent() && apply::is_outdated(&context, &checkpoint).await? {
        return Ok(Action::requeue(BEHIND));
    }
    let plan = match apply::before(&context, &checkpoint, &plan).await? {
        apply::Made::Well => plan,
        apply::Made::Refused(why) => plan::refused(&checkpoint, &attempt, &seen, &why),
        apply::Made::Failing(error) => {
            if context.failures.is_repeated(&checkpoint.uid().unwrap_or_default()) {
                let plan = plan::failing(&checkpoint, &attempt, &seen, &error.to_string());
                apply::status(&context, &checkpoint, &plan).await?;
                apply::after(&context, &checkpoint, &plan).await?;
            }
            return Err(failed("create the warm-up pod")(error));
        }
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
