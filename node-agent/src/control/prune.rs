//! Deletes images that a Checkpoint does not keep, and says in `status.pruned` what came of each.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::time::{interval, sleep};
use tracing::{info, warn};
use woodfrog_api::{Checkpoint, PruneOutcome, Pruned, PrunedImage, Pruning, SurplusImage, names};
use woodfrog_image::RegistryError;

use super::{Context, report, secret};
use crate::adapters::registry::Registries;
use crate::engine::publish::{Destination, PublishError};

/// The longest silence while there is work.
const HEARTBEAT: Duration = Duration::from_secs(8);
/// How long to wait after a report that was not taken.
const AGAIN: Duration = Duration::from_secs(2);

/// Carries it out, and ends when the final report is in the API server or the object is gone.
pub(super) async fn carry_out(context: Context, checkpoint: Checkpoint, pruning: Pruning) {
    let mut said = Pruned {
        node: context.node.clone(),
        number: pruning.number,
        done: false,
        heartbeat: None,
        images: Vec::new(),
    };
    let namespace = checkpoint.namespace().unwrap_or_default();
    let docker_config = match &pruning.push_secret_ref {
        None => Ok(String::new()),
        Some(reference) => secret::docker_config(&context.client, &namespace, reference).await,
    };
    let mut ticks = interval(HEARTBEAT);
    for image in &pruning.images {
        let deleted = async {
            match &docker_config {
                Ok(docker_config) => outcome(delete(image, &pruning, docker_config).await),
                Err(e) => (PruneOutcome::Failed, Some(e.to_string())),
            }
        };
        tokio::pin!(deleted);
        let (outcome, message) = loop {
            tokio::select! {
                outcome = &mut deleted => break outcome,
                // The next report, or the one after it, says the same and more.
                _ = ticks.tick() => drop(report(&context, &checkpoint, &said).await),
            }
        };
        let (what, digest) = (&image.image, &image.digest);
        info!(checkpoint = %report::name(&checkpoint), image = %what, %digest, ?outcome, "pruned");
        said.images.push(PrunedImage { digest: digest.clone(), outcome, message });
    }
    said.done = true;
    while let Err(e) = report(&context, &checkpoint, &said).await {
        if report::is_gone(&e) {
            return;
        }
        warn!(checkpoint = %report::name(&checkpoint), "cannot report: {e}");
        sleep(AGAIN).await;
    }
}

async fn delete(image: &SurplusImage, pruning: &Pruning, docker_config: &str) -> Result<(), PublishError> {
    let from = Destination {
        reference: image.image.clone(),
        plain_http: pruning.plain_http.clone(),
        docker_config: docker_config.to_owned(),
    };
    Registries.delete(&from, &image.digest).await
}

fn outcome(result: Result<(), PublishError>) -> (PruneOutcome, Option<String>) {
    match result {
        Ok(()) => (PruneOutcome::Deleted, None),
        Err(e @ PublishError::Registry(RegistryError::DeletionUnsupported { .. })) => {
            (PruneOutcome::Unsupported, Some(e.to_string()))
        }
        Err(e) => (PruneOutcome::Failed, Some(e.to_string())),
    }
}

async fn report(context: &Context, checkpoint: &Checkpoint, said: &Pruned) -> kube::Result<()> {
    let namespace = checkpoint.namespace().unwrap_or_default();
    let checkpoints: Api<Checkpoint> = Api::namespaced(context.client.clone(), &namespace);
    let said = Pruned { heartbeat: Some(Time(Timestamp::now())), ..said.clone() };
    let patch = json!({
        "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
        "kind": "Checkpoint",
        // The UID makes this fail for another object of the same name.
        "metadata": { "name": checkpoint.name_any(), "uid": checkpoint.uid() },
        "status": { "pruned": said },
    });
    let parameters = PatchParams::apply(names::PRUNER).force();
    checkpoints.patch_status(&checkpoint.name_any(), &parameters, &Patch::Apply(&patch)).await.map(drop)
}
