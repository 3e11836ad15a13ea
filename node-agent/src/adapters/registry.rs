//! The engine's [`Publisher`] on registries, and the deletion of what it published.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use woodfrog_image::BuiltImage;
use woodfrog_image::Credentials;
use woodfrog_image::{BlobSource, PushProgress, Reference, Registry, RegistryOptions, RepositorySource};

use crate::engine::publish::{Destination, PublishError, Publisher};

/// Pushes to registries, and deletes there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registries;

#[async_trait]
impl Publisher for Registries {
    fn check(&self, to: &Destination) -> Result<(), PublishError> {
        parse(&to.reference)?;
        credentials(to)?;
        Ok(())
    }

    async fn publish(
        &self,
        image: &BuiltImage,
        to: &Destination,
        base: &str,
        mut sources: Vec<Arc<dyn BlobSource>>,
        progress: &dyn PushProgress,
    ) -> Result<(), PublishError> {
        let reference = parse(&to.reference)?;
        let base = parse(base).ok();
        let registries = base.iter().chain([&reference]).map(|r| r.resolve_registry().to_owned());
        let options = RegistryOptions {
            plain_http: registries.filter(|r| is_loopback(r)).chain(to.plain_http.iter().cloned()).collect(),
            credentials: credentials(to)?,
            ..RegistryOptions::default()
        };
        let registry = Registry::new(options)?;
        if let Some(image) = base.clone() {
            sources.push(Arc::new(RepositorySource { registry: registry.clone(), image }));
        }
        registry.push(image, &reference, base.as_ref(), &sources, progress).await?;
        Ok(())
    }
}

impl Registries {
    /// Deletes the manifest with this digest from a repository. One that is not there is as good as deleted.
    ///
    /// # Errors
    /// The registry's, or the reference or the credentials make no sense.
    pub async fn delete(&self, from: &Destination, digest: &str) -> Result<(), PublishError> {
        let reference = parse(&from.reference)?;
        let registry = reference.resolve_registry().to_owned();
        let loopback = is_loopback(&registry).then_some(registry);
        let options = RegistryOptions {
            plain_http: loopback.into_iter().chain(from.plain_http.iter().cloned()).collect(),
            credentials: credentials(from)?,
            ..RegistryOptions::default()
        };
        Registry::new(options)?.delete(&reference, digest).await?;
        Ok(())
    }
}

fn parse(reference: &str) -> Result<Reference, PublishError> {
    reference.parse().map_err(|e| {
        PublishError::Destination(format!(
            "{reference:?} is no image reference ({e}): write registry/repository:tag"
        ))
    })
}

fn credentials(to: &Destination) -> Result<Credentials, PublishError> {
    if to.docker_config.is_empty() {
        return Ok(Credentials::default());
    }
    Credentials::from_docker_config(to.docker_config.as_bytes())
        .map_err(|e| PublishError::Destination(format!("the docker config cannot be used: {e}")))
}

/// Registries on loopback may speak plain HTTP: there is no network to listen on.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        assert!(is_loopback("127.0.0.1:5000"));
        assert!(is_loopback("localhost:5000"));
        assert!(is_loopback("[::1]:5000"));
        assert!(!is_loopback("registry.example"));
        assert!(!is_loopback("10.0.0.1:5000"));
    }

    #[test]
    fn a_bad_reference_is_named_with_the_right_form() {
        let to =
            Destination { reference: "UPPER CASE".into(), plain_http: vec![], docker_config: String::new() };
        let error = Registries.check(&to).unwrap_err().to_string();
        assert!(error.contains("UPPER CASE") && error.contains("registry/repository:tag"), "{error}");
    }
}
