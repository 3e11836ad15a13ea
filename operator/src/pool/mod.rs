//! WarmPools: as many pods as are wanted, from the newest images of a Checkpoint.
//!
//! ```text
//!   observe (stores) ─► release claimed pods ─► plan (pure) ─► apply ─► keep awake ─► resize ─► status, Events
//!                       desired (pure) ────────────┘             sleep (pure) ─┘       │
//!                                                             requests (pure) ─────────┘
//! ```
//!
//! A pool's pods are those that name it as their owner and carry its label. Who takes the label away has claimed the pod:
//! it is released and replaced. The rule by which pods are made and go is in [`plan`].

mod apply;
mod desired;
mod observe;
mod plan;
mod requests;
mod resize;
mod resized;
mod sleep;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::runtime::controller::Action;
use woodfrog_api::{Standby, WarmPool};

use self::observe::Observed;
use self::plan::Wanted;
use self::requests::Resize;
pub(crate) use self::resize::Resizing;
pub(crate) use self::resized::{IN_PROGRESS as RESIZE_IN_PROGRESS, PENDING as RESIZE_PENDING};
use crate::Context;

/// Why a pool is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// A pod was not made, by no fault of its own.
    #[error("cannot make pod {name}: {source}")]
    Make {
        /// The pod.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// A pod was not deleted.
    #[error("cannot delete pod {name}: {source}")]
    Delete {
        /// The pod.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// A pod that somebody has claimed still names the pool as its owner.
    #[error("cannot release pod {name}: {source}")]
    Release {
        /// The pod.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// A pod was not told whether to stay awake.
    #[error("cannot tell pod {name} whether to stay awake: {source}")]
    KeepAwake {
        /// The pod.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// A pod's requests were not changed.
    #[error("cannot change what pod {name} requests: {source}")]
    Resize {
        /// The pod.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// The status was not written.
    #[error("cannot write the status: {0}")]
    Status(#[source] kube::Error),
    /// The pods are not such that the API server takes them; the condition says so.
    #[error("{0}")]
    Refused(String),
}

/// Looks at a WarmPool.
///
/// # Errors
/// The API server's; and that it refuses the pods, so that this is tried again later and later.
pub async fn reconcile(pool: Arc<WarmPool>, context: Arc<Context>) -> Result<Action, PoolError> {
    let now = Timestamp::now();
    let mut observed = Observed::of(&pool, &context.stores, now);
    let mut restored = Ok(());
    for pod in &observed.pods.claimed {
        // It leaves with its own requests; nothing else waits for that.
        match resize::restore(&context, &pool, pod).await {
            Ok(()) => {
                apply::release(&context, &pool, pod).await?;
                context.stores.released(pod);
            }
            Err(e) => restored = Err(e),
        }
    }
    if pool.metadata.deletion_timestamp.is_some() {
        // Its pods go with it.
        context.resizing.forget(&pool);
        return Ok(Action::await_change());
    }
    let plan = plan::plan(&observed.pods.members, wanted(&pool, &observed));
    let applied = match apply::apply(&context, &pool, &observed, &plan).await {
        Err(PoolError::Make { source, .. })
            if context.failures.is_repeated(pool.metadata.uid.as_deref().unwrap_or_default()) =>
        {
            let message = format!("the API server fails to make the pods, and is asked again: {source}");
            apply::Applied { refused: Some(message) }
        }
        applied => applied?,
    };
    let stay: Vec<_> = observed.pods.members.iter().filter(|member| plan.leaves(member)).collect();
    for keep in sleep::keep(&stay, kept_awake(&pool), wanted(&pool, &observed).revision) {
        apply::keep_awake(&context, &pool, &keep).await?;
    }
    let stays = |resize: &&Resize| plan.delete.iter().all(|gone| gone.uid != resize.uid);
    let resized =
        restored.and(resize::apply(&context, &pool, observed.pods.resizes.iter().filter(stays)).await);
    observed.unserved = context.resizing.is_unserved(&pool);
    let status = status::status(&pool, &observed, &plan, applied.refused.as_deref(), now);
    if status::is_progress(&pool, &status)
        && let Some(wait) = context.pace.wait(&*pool)
    {
        return Ok(Action::requeue(wait));
    }
    report(&context, &pool, &status).await?;
    match applied.refused {
        Some(message) => Err(PoolError::Refused(message)),
        None => {
            let again = observed.pods.again.into_iter().chain(resized?).min();
            Ok(again.map_or_else(Action::await_change, Action::requeue))
        }
    }
}

/// How many pods are kept awake that would sleep otherwise.
fn kept_awake(pool: &WarmPool) -> usize {
    let sleeps = pool.spec.standby != Standby::Awake;
    pool.spec.min_awake.filter(|_| sleeps).and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
}

fn wanted<'a>(pool: &WarmPool, observed: &'a Observed) -> Wanted<'a> {
    Wanted {
        replicas: usize::try_from(pool.spec.replicas).unwrap_or(0),
        max_surge: usize::try_from(pool.spec.max_surge).unwrap_or(0).max(1),
        revision: observed.desired.as_ref().ok().map(|desired| desired.revision.as_str()),
    }
}

async fn report(
    context: &Context,
    pool: &WarmPool,
    status: &woodfrog_api::WarmPoolStatus,
) -> Result<(), PoolError> {
    if pool.status.as_ref() != Some(status) {
        status::write(&context.client, pool, status).await.map_err(PoolError::Status)?;
        context.mismatches.written(pool, status::conditions(pool));
        context.pace.note(pool);
    }
    for note in status::notes(pool, status) {
        context.events.say(&pool.object_ref(&()), &note).await;
    }
    Ok(())
}
