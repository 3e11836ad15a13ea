//! The credentials for a registry, from the one secret that the operator lets agents read for as long as there is work.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::time::{Instant, sleep};
use woodfrog_api::LocalReference;

/// Key of a `kubernetes.io/dockerconfigjson` secret.
const DOCKER_CONFIG: &str = ".dockerconfigjson";
/// How long the right to read a secret may take to be there once the operator has granted it.
const GRANT: Duration = Duration::from_secs(20);

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
#[error("secret {secret}: {why}")]
pub(super) struct SecretError {
    secret: String,
    why: String,
}

/// A docker `config.json`. Waits for the right to read it.
pub(super) async fn docker_config(
    client: &Client,
    namespace: &str,
    reference: &LocalReference,
) -> Result<String, SecretError> {
    let failed = |why: String| SecretError { secret: reference.name.clone(), why };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + GRANT;
    let secret = loop {
        match secrets.get(&reference.name).await {
            Ok(secret) => break secret,
            Err(kube::Error::Api(status)) if status.code == 403 && Instant::now() < deadline => {
                sleep(Duration::from_millis(500)).await;
            }
            Err(e) => return Err(failed(e.to_string())),
        }
    };
    let config = secret.data.unwrap_or_default().remove(DOCKER_CONFIG);
    let config = config.ok_or_else(|| failed(format!("it has no key {DOCKER_CONFIG}")))?;
    String::from_utf8(config.0).map_err(|_| failed(format!("{DOCKER_CONFIG} is not text")))
}
