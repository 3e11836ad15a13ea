//! Changes what pods request, through their subresource `resize`, which Kubernetes serves from 1.33 on.
//!
//! Nothing waits for it: a pod that wakes answers before it has its requests back. That requests cannot be lowered is no failure of the
//! pool: it is said once, and the pool goes on without.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::core::Status;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};
use woodfrog_api::{WarmPool, names};

use super::PoolError;
use super::requests::{self, Resize};
use crate::Context;
use crate::events::Note;

/// When a pod that was refused its own requests is asked for again: a quota may have room then.
const AGAIN: Duration = Duration::from_secs(60);

/// The pools, by their UIDs, for which there is no `pods/resize` on this API server, as they have been told.
#[derive(Debug, Default)]
pub(crate) struct Resizing(Mutex<HashSet<String>>);

impl Resizing {
    /// Whether there is none for this pool.
    pub(super) fn is_unserved(&self, pool: &WarmPool) -> bool {
        let unserved = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.metadata.uid.as_ref().is_some_and(|uid| unserved.contains(uid))
    }

    fn unserved(&self, pool: &WarmPool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(pool.uid());
    }

    /// The pool is about to go.
    pub(super) fn forget(&self, pool: &WarmPool) {
        pool.uid().map(|uid| self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid));
    }
}

/// What the API server makes of a resize.
enum Answer {
    /// It is done, or the pod has gone.
    Done,
    /// The server does not know the subresource.
    Unserved,
    /// Why it will not do it.
    Refused(String),
}

/// Changes requests of the pool's pods. Returns when to try again what was refused.
///
/// # Errors
/// The API server does not do as it should, for one pod at least; that it refuses is none.
pub(super) async fn apply(
    context: &Context,
    pool: &WarmPool,
    resizes: impl Iterator<Item = &Resize>,
) -> Result<Option<Duration>, PoolError> {
    let pods: Api<Pod> = context.api(&pool.namespace().unwrap_or_default());
    let mut done = Ok(None);
    for resize in resizes {
        if context.resizing.is_unserved(pool) {
            break;
        }
        match change(context, pool, &pods, resize).await {
            Ok(again) => done = done.map(|before| again.or(before)),
            Err(source) => done = Err(PoolError::Resize { name: resize.name.clone(), source }),
        }
    }
    done
}

async fn change(
    context: &Context,
    pool: &WarmPool,
    pods: &Api<Pod>,
    resize: &Resize,
) -> kube::Result<Option<Duration>> {
    let say = async |reason: &str, text: String| {
        let note = Note { warning: true, reason: reason.to_owned(), text };
        context.events.say(&pool.object_ref(&()), &note).await;
    };
    if let Some(why) = &resize.gives_up {
        // Its pool says so by its condition.
        mark(pods, resize, why).await?;
    }
    match ask(pods, resize).await? {
        Answer::Done => Ok(None),
        Answer::Unserved => {
            context.resizing.unserved(pool);
            let why = "the API server does not serve pods/resize";
            say("ResizeUnsupported", format!("requests of pods that sleep stay as they are: {why}")).await;
            Ok(None)
        }
        Answer::Refused(why) if resize.lowers => {
            mark(pods, resize, &why).await?;
            say("ResizeRefused", format!("requests of pods that sleep stay as they are: {why}")).await;
            Ok(None)
        }
        Answer::Refused(why) => {
            say("ResizeRefused", format!("pods do not get their requests back yet: {why}")).await;
            Ok(Some(AGAIN))
        }
    }
}

/// Puts requests of a pod back that is about to leave its pool. Where that is refused it leaves as it is.
///
/// # Errors
/// The API server does not do as it should.
pub(super) async fn restore(context: &Context, pool: &WarmPool, pod: &Pod) -> Result<(), PoolError> {
    apply(context, pool, requests::resize(pod, None).iter()).await.map(drop)
}

async fn ask(pods: &Api<Pod>, resize: &Resize) -> kube::Result<Answer> {
    let patch = Patch::Strategic(patch(resize));
    match pods.patch_resize(&resize.name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(Answer::Done),
        Err(kube::Error::Api(status)) if status.code == 409 || is_another(&status) => Ok(Answer::Done),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => {
            // Either the pod is not there, or what we ask of it.
            let found = pods.get_metadata_opt(&resize.name).await?;
            let lives = found.is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&resize.uid));
            Ok(if lives { Answer::Unserved } else { Answer::Done })
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            Ok(Answer::Refused(status.message.clone()))
        }
        Err(e) => Err(e),
    }
}

/// A patch by the containers' names; the UID makes it fail for another pod of the same name.
fn patch(resize: &Resize) -> Value {
    let containers = resize.requests.iter();
    let containers =
        containers.map(|(name, requests)| json!({"name": name, "resources": {"requests": requests}}));
    json!({"metadata": {"uid": resize.uid}, "spec": {"containers": containers.collect::<Vec<_>>()}})
}

/// Whether a patch was refused since the pod of this name is another one by now.
fn is_another(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.field == "metadata.uid")
}

/// Has nobody try again to lower the requests of this pod.
async fn mark(pods: &Api<Pod>, resize: &Resize, why: &str) -> kube::Result<()> {
    let annotations = json!({names::RESIZE_REFUSED_ANNOTATION: why});
    let patch = json!({"metadata": {"uid": resize.uid, "annotations": annotations}});
    match pods.patch(&resize.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        // It is gone, or another one has its name.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        result => result.map(drop),
    }
}
