//! Carries a plan out.
//!
//! Pods are made before others are deleted, and it ends when the store has seen both: what is planned next builds on it,
//! so no pod is made or deleted twice. Where the store is too slow for that, or the operator is another one, names do the
//! same: a pod's number is the smallest that is free, so a pod that is only not known yet is in the way of its double. In
//! the same way a pod is found that has lost the labels by which pods are watched while there was no operator: it is in the way
//! of its successor.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;
use woodfrog_api::{WarmPool, names};

use super::PoolError;
use super::desired::Desired;
use super::observe::{Observed, is_lost, is_member};
use super::plan::{Member, Plan};
use super::resize;
use super::sleep::Keep;
use crate::Context;
use crate::agents::avoid;
use crate::stores::Stores;

/// What became of a plan.
#[derive(Debug, Default)]
pub(super) struct Applied {
    /// Why the API server does not take the pods.
    pub(super) refused: Option<String>,
}

/// Makes and deletes pods.
///
/// # Errors
/// The API server does not do as it should; that it refuses a pod is none.
pub(super) async fn apply(
    context: &Context,
    pool: &WarmPool,
    observed: &Observed,
    plan: &Plan,
) -> Result<Applied, PoolError> {
    let namespace = pool.namespace().unwrap_or_default();
    let pods: Api<Pod> = context.api(&namespace);
    let mut applied = Applied::default();
    let mut made = Vec::new();
    if let (Ok(desired), 1..) = (&observed.desired, plan.make) {
        let is_free =
            |name: &String| context.stores.pods.get(&ObjectRef::new(name).within(&namespace)).is_none();
        let mut free = (0..).map(|number| desired.name(pool, number)).filter(is_free);
        let silent = context.stores.agents.silent();
        while made.len() < plan.make {
            let Some(mut pod) = free.next().map(|name| desired.pod(name)) else { break };
            avoid(pod.spec.get_or_insert_default(), &silent);
            match make(&pods, pool, &pod, desired).await? {
                Made::New | Made::Before => made.push(pod.name_any()),
                Made::NameTaken => {}
                Made::Lost(pod) => {
                    resize::restore(context, pool, &pod).await?;
                    release(context, pool, &pod).await?;
                }
                Made::Refused(message) => {
                    applied.refused = Some(message);
                    break;
                }
            }
        }
    }
    for member in &plan.delete {
        delete(&pods, member).await?;
    }
    seen(context, pool, &made, &plan.delete).await;
    Ok(applied)
}

enum Made {
    New,
    /// It is ours, but the store does not know it yet.
    Before,
    /// It is somebody else's, or about to go.
    NameTaken,
    /// It was ours until somebody took the labels away by which we would see it.
    Lost(Box<Pod>),
    Refused(String),
}

async fn make(pods: &Api<Pod>, pool: &WarmPool, pod: &Pod, desired: &Desired) -> Result<Made, PoolError> {
    let name = pod.name_any();
    let params = PostParams { field_manager: Some(names::OPERATOR.to_owned()), ..PostParams::default() };
    let failed = |source| PoolError::Make { name: name.clone(), source };
    match pods.create(&params, pod).await {
        Ok(_) => Ok(Made::New),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let found = pods.get_opt(&name).await.map_err(failed)?;
            Ok(match found {
                Some(found) if is_lost(&found, pool) => Made::Lost(Box::new(found)),
                Some(found)
                    if is_member(&found, pool)
                        && found.labels().get(names::REVISION_LABEL) == Some(&desired.revision) =>
                {
                    Made::Before
                }
                _ => Made::NameTaken,
            })
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
            Ok(Made::Refused(format!("the API server refuses the pods: {}", status.message)))
        }
        Err(e) => Err(failed(e)),
    }
}

/// Only as it was seen: a pod that somebody has taken since then stays.
async fn delete(pods: &Api<Pod>, member: &Member) -> Result<(), PoolError> {
    let preconditions =
        Preconditions { uid: Some(member.uid.clone()), resource_version: member.resource_version.clone() };
    match pods.delete(&member.name, &DeleteParams::default().preconditions(preconditions)).await {
        // What has changed is looked at again when the change comes in.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        result => result.map(drop).map_err(|source| PoolError::Delete { name: member.name.clone(), source }),
    }
}

/// Waits until the store shows what was done.
async fn seen(context: &Context, pool: &WarmPool, made: &[String], deleted: &[Member]) {
    let namespace = pool.namespace().unwrap_or_default();
    let find = |stores: &Stores, name: &str| stores.pods.get(&ObjectRef::new(name).within(&namespace));
    let as_before = |stores: &Stores, member: &Member| {
        find(stores, &member.name).is_some_and(|pod| {
            pod.metadata.uid.as_ref() == Some(&member.uid)
                && pod.metadata.resource_version == member.resource_version
        })
    };
    let done = |stores: &Stores| {
        made.iter().all(|name| find(stores, name).is_some())
            && !deleted.iter().any(|member| as_before(stores, member))
    };
    context.stores.show(done).await;
}

/// Lets a pod go that somebody has taken: it no longer goes when the pool does.
///
/// # Errors
/// The API server's.
pub(super) async fn release(context: &Context, pool: &WarmPool, pod: &Pod) -> Result<(), PoolError> {
    let pods: Api<Pod> = context.api(&pool.namespace().unwrap_or_default());
    let owner = json!({"$patch": "delete", "uid": pool.metadata.uid});
    // What only the pool wanted ends with it.
    let annotations = json!({names::KEEP_AWAKE_ANNOTATION: null});
    let patch = json!({
        "metadata": {"uid": pod.metadata.uid, "ownerReferences": [owner], "annotations": annotations},
    });
    match pods.patch(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await {
        // It is gone, or another one has its name (422: a UID cannot be changed).
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        result => result.map(drop).map_err(|source| PoolError::Release { name: pod.name_any(), source }),
    }
}

/// Has a pod kept awake by its agent, or no longer.
///
/// # Errors
/// The API server's.
pub(super) async fn keep_awake(context: &Context, pool: &WarmPool, keep: &Keep) -> Result<(), PoolError> {
    let pods: Api<Pod> = context.api(&pool.namespace().unwrap_or_default());
    let annotations = json!({names::KEEP_AWAKE_ANNOTATION: keep.awake.then_some("true")});
    let patch = json!({"metadata": {"uid": keep.uid, "annotations": annotations}});
    match pods.patch(&keep.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        // As above; its successor is looked at when it is known.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(()),
        result => result.map(drop).map_err(|source| PoolError::KeepAwake { name: keep.name.clone(), source }),
    }
}
