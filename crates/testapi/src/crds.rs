//! Woodfrog's resources on an API server.

use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};

use crate::Error;
use crate::error::refused;

/// How long the server may take to serve a new resource.
const PATIENCE: Duration = Duration::from_secs(30);

/// Installs the resources of `woodfrog.dev` and waits until they are served.
///
/// # Errors
/// The server refuses them or does not establish them in time.
pub async fn install_crds(client: &Client) -> Result<(), Error> {
    let crds: Vec<_> = woodfrog_api::crds::all().into_iter().map(|(_, crd)| crd).collect();
    install(client, &crds).await
}

/// The same for any definitions, such as older ones of ours.
///
/// # Errors
/// As [`install_crds`].
pub async fn install(client: &Client, crds: &[CustomResourceDefinition]) -> Result<(), Error> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let params = PatchParams::apply("woodfrog-tests").force();
    for crd in crds {
        let name = crd.name_any();
        api.patch(&name, &params, &Patch::Apply(crd)).await.map_err(refused(format!("install {name}")))?;
    }
    for crd in crds {
        established(client, &api, &crd.name_any()).await?;
    }
    Ok(())
}

async fn established(client: &Client, api: &Api<CustomResourceDefinition>, name: &str) -> Result<(), Error> {
    let start = Instant::now();
    loop {
        let crd = api.get(name).await.map_err(refused(format!("get {name}")))?;
        let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
            && served(client, &crd.spec.group, &crd.spec.versions[0].name, &crd.spec.names.plural).await
        {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            let conditions = conditions
                .iter()
                .map(|c| format!("{}={}: {}", c.type_, c.status, c.message.as_deref().unwrap_or_default()));
            return Err(Error::NotEstablished {
                name: name.to_owned(),
                seconds: PATIENCE.as_secs(),
                conditions: conditions.collect::<Vec<_>>().join("; "),
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The handler is a moment later than the condition.
async fn served(client: &Client, group: &str, version: &str, plural: &str) -> bool {
    let Ok(request) =
        http::Request::get(format!("/apis/{group}/{version}/{plural}?limit=1")).body(Vec::new())
    else {
        return false;
    };
    client.request_text(request).await.is_ok()
}
