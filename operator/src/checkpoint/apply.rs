//! What a plan asks for, done. Everything here can be done twice.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use woodfrog_api::{Checkpoint, CheckpointStatus, names};

use super::plan::Plan;
use super::{CheckpointError, failed};
use crate::Context;

/// What came of a pod.
pub(super) enum Made {
    /// It is there, or there was none to make.
    Well,
    /// The API server does not take it.
    Refused(String),
    /// The API server, or an admission webhook behind it, fails.
    Failing(kube::Error),
}

/// Whether the API server knows the object otherwise than we do: what was not heard of may only not have come to our store.
pub(super) async fn is_outdated(context: &Context, checkpoint: &Checkpoint) -> Result<bool, CheckpointError> {
    let checkpoints: Api<Checkpoint> = context.api(&checkpoint.namespace().unwrap_or_default());
    let now = checkpoints.get_metadata_opt(&checkpoint.name_any()).await;
    let now = now.map_err(failed("look at the Checkpoint once more"))?;
    Ok(now.is_none_or(|now| now.resource_version() != checkpoint.resource_version()))
}

/// Everything that the status speaks of: finalizer, label, grant, pod. Done before it, so that what an operator leaves
/// undone that is killed in between is still to be seen in the status.
pub(super) async fn before(
    context: &Context,
    checkpoint: &Checkpoint,
    plan: &Plan,
) -> Result<Made, CheckpointError> {
    let namespace = checkpoint.namespace().unwrap_or_default();
    mark(context, checkpoint, plan.node.as_deref()).await?;
    match (is_granted(checkpoint), plan.grant) {
        (false, true) => grant(context, checkpoint).await?,
        (true, false) => revoke(context, checkpoint).await?,
        _ => {}
    }
    let Some(pod) = &plan.create else { return Ok(Made::Well) };
    let pods: Api<Pod> = context.api(&namespace);
    match pods.create(&PostParams::default(), pod).await {
        Ok(made) => {
            context.stores.show(|stores| stores.pods.get(&ObjectRef::from_obj(&made)).is_some()).await;
            Ok(Made::Well)
        }
        // Made by an earlier look whose store was behind.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Made::Well),
        Err(kube::Error::Api(status)) if [400, 403, 422].contains(&status.code) => {
            Ok(Made::Refused(status.message))
        }
        Err(e) => Ok(Made::Failing(e)),
    }
}

/// The operator's part of the status, if it is to change.
pub(super) async fn status(
    context: &Context,
    checkpoint: &Checkpoint,
    plan: &Plan,
) -> Result<(), CheckpointError> {
    let now = CheckpointStatus { agent: None, pruned: None, ..checkpoint.status.clone().unwrap_or_default() };
    if now == plan.status {
        return Ok(());
    }
    let checkpoints: Api<Checkpoint> = context.api(&checkpoint.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": Checkpoint::api_version(&()),
        "kind": Checkpoint::kind(&()),
        "metadata": { "name": checkpoint.name_any(), "uid": checkpoint.uid() },
        "status": plan.status,
    });
    checkpoints
        .patch_status(&checkpoint.name_any(), &manager(), &Patch::Apply(&patch))
        .await
        .map(|written| {
            context.written.note(&written);
            context.pace.note(&written);
            context.mismatches.written(checkpoint, &now.conditions);
        })
        .or_else(unless_gone)
        .map_err(failed("write the status"))
}

/// What may go once the status tells what came of it: pods. And what users hear of.
pub(super) async fn after(
    context: &Context,
    checkpoint: &Checkpoint,
    plan: &Plan,
) -> Result<(), CheckpointError> {
    remove(context, &plan.delete).await?;
    for note in &plan.notes {
        context.events.say(&checkpoint.object_ref(&()), note).await;
    }
    Ok(())
}

/// Removes everything that a Checkpoint has, then lets it go.
pub(super) async fn clean_up(context: &Context, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    if !checkpoint.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER) {
        return Ok(());
    }
    let (name, uid) = (checkpoint.name_any(), checkpoint.uid());
    let pods = context.stores.pods_of(uid.as_deref().unwrap_or_default());
    let ours = pods.iter().filter(|pod| pod.labels().get(names::CHECKPOINT_LABEL) == Some(&name));
    let ours: Vec<Pod> = ours.map(|pod| Pod::clone(pod)).collect();
    remove(context, &ours).await?;
    revoke(context, checkpoint).await?;
    let checkpoints: Api<Checkpoint> = context.api(&checkpoint.namespace().unwrap_or_default());
    // What its manager no longer names goes away: the finalizer, and the label.
    let patch = json!({
        "apiVersion": Checkpoint::api_version(&()),
        "kind": Checkpoint::kind(&()),
        "metadata": { "name": name, "uid": uid },
    });
    checkpoints
        .patch(&name, &manager(), &Patch::Apply(&patch))
        .await
        .map(drop)
        .or_else(unless_gone)
        .map_err(failed("take the finalizer away"))
}

/// Finalizer, and the label by which the agent of `node` watches it.
async fn mark(context: &Context, checkpoint: &Checkpoint, node: Option<&str>) -> Result<(), CheckpointError> {
    let has_finalizer = checkpoint.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    if has_finalizer && checkpoint.labels().get(names::NODE_LABEL).map(String::as_str) == node {
        return Ok(());
    }
    let checkpoints: Api<Checkpoint> = context.api(&checkpoint.namespace().unwrap_or_default());
    let labels = node.map(|node| json!({ names::NODE_LABEL: node })).unwrap_or_else(|| json!({}));
    let patch = json!({
        "apiVersion": Checkpoint::api_version(&()),
        "kind": Checkpoint::kind(&()),
        "metadata": {
            "name": checkpoint.name_any(),
            "uid": checkpoint.uid(),
            "labels": labels,
            "finalizers": [names::FINALIZER],
        },
    });
    checkpoints
        .patch(&checkpoint.name_any(), &manager(), &Patch::Apply(&patch))
        .await
        .map(|written| context.written.note(&written))
        .or_else(unless_gone)
        .map_err(failed("mark the Checkpoint"))
}

async fn remove(context: &Context, pods: &[Pod]) -> Result<(), CheckpointError> {
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let api: Api<Pod> = context.api(&pod.namespace().unwrap_or_default());
        let preconditions = Preconditions { uid: pod.uid(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        api.delete(&pod.name_any(), &parameters)
            .await
            .map(drop)
            .or_else(unless_gone)
            .map_err(failed("delete the warm-up pod"))?;
    }
    context.stores.show(|stores| !pods.iter().any(|pod| stores.lives(pod))).await;
    Ok(())
}

/// Name of the Role and the RoleBinding by which agents read a Checkpoint's push secret.
fn grant_name(checkpoint: &Checkpoint) -> String {
    format!("woodfrog-push-{}", checkpoint.name_any())
}

/// Whether the status tells that agents may read the secret now.
fn is_granted(checkpoint: &Checkpoint) -> bool {
    let Some(status) = &checkpoint.status else { return false };
    let for_a_push =
        status.instruction.as_ref().is_some_and(|instruction| instruction.push_secret_ref.is_some());
    for_a_push || status.pruning.as_ref().is_some_and(|pruning| pruning.push_secret_ref.is_some())
}

async fn grant(context: &Context, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    let Some(secret) = &checkpoint.spec.push_secret_ref else { return Ok(()) };
    let namespace = checkpoint.namespace().unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(grant_name(checkpoint)),
        owner_references: Some(checkpoint.controller_owner_ref(&()).into_iter().collect()),
        ..ObjectMeta::default()
    };
    let role = Role {
        metadata: metadata.clone(),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".into()]),
            resource_names: Some(vec![secret.name.clone()]),
            verbs: vec!["get".into()],
            ..PolicyRule::default()
        }]),
    };
    let binding = RoleBinding {
        metadata,
        role_ref: RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Role".into(),
            name: grant_name(checkpoint),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: context.agent_service_account.clone(),
            namespace: Some(context.namespace.clone()),
            ..Subject::default()
        }]),
    };
    let roles: Api<Role> = context.api(&namespace);
    let bindings: Api<RoleBinding> = context.api(&namespace);
    let made = roles.create(&PostParams::default(), &role).await.map(drop);
    made.or_else(unless_there).map_err(failed("let agents read the push secret"))?;
    let made = bindings.create(&PostParams::default(), &binding).await.map(drop);
    made.or_else(unless_there).map_err(failed("let agents read the push secret"))
}

async fn revoke(context: &Context, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    if checkpoint.spec.push_secret_ref.is_none() && !is_granted(checkpoint) {
        return Ok(());
    }
    let namespace = checkpoint.namespace().unwrap_or_default();
    let name = grant_name(checkpoint);
    let roles: Api<Role> = context.api(&namespace);
    let bindings: Api<RoleBinding> = context.api(&namespace);
    let gone = bindings.delete(&name, &DeleteParams::default()).await.map(drop);
    gone.or_else(unless_gone).map_err(failed("take the push secret back"))?;
    let gone = roles.delete(&name, &DeleteParams::default()).await.map(drop);
    gone.or_else(unless_gone).map_err(failed("take the push secret back"))
}

fn manager() -> PatchParams {
    PatchParams::apply(names::OPERATOR).force()
}

/// What is gone, or was replaced by another of its name, needs nothing.
fn unless_gone(error: kube::Error) -> Result<(), kube::Error> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        kube::Error::Api(status) if status.code == 409 && status.message.to_lowercase().contains("uid") => {
            Ok(())
        }
        error => Err(error),
    }
}

fn unless_there(error: kube::Error) -> Result<(), kube::Error> {
    match error {
        kube::Error::Api(status) if status.code == 409 => Ok(()),
        error => Err(error),
    }
}
