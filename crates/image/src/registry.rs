//! Registries: pushing a built image, reading what is needed of one without a node, and deleting one.
//!
//! `oci-client` speaks the distribution protocol. What it lacks is here: tokens for two repositories at once (to mount
//! a blob of the one in the other) and from refresh tokens in [`auth`], limits on time that know progress from silence and
//! repeated attempts in [`Registry`], and errors that say which registry, which repository and what to do in [`error`].

mod auth;
mod delete;
mod error;
mod pull;
mod push;
mod source;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use oci_client::Reference;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};

pub use delete::Deletion;
pub use error::RegistryError;
pub use pull::PulledImage;
pub use push::{BlobOutcome, NoProgress, PushProgress, Pushed};
pub use source::{BlobReader, BlobSource, RepositorySource};

use crate::credentials::Credentials;

/// How to reach registries.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Registries (`HOST[:PORT]`) that speak plain HTTP. All others must speak TLS.
    pub plain_http: Vec<String>,
    /// PEM certificates to trust beside the system's.
    pub certificates: Vec<Vec<u8>>,
    /// Who we are there.
    pub credentials: Credentials,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// How often a step is tried before it fails, at least once.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles with each further one.
    pub backoff: Duration,
    /// Layers that are uploaded at the same time.
    pub uploads: usize,
}

/// How long to wait for a registry.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the answer to a request without much content.
    pub request: Duration,
    /// While a blob is on its way: for the next bytes to move. After the last one the registry also has a second for
    /// each 16 MiB, since many copy a blob before they answer.
    pub stall: Duration,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            certificates: Vec::new(),
            credentials: Credentials::default(),
            timeouts: Timeouts::default(),
            attempts: 4,
            backoff: Duration::from_millis(300),
            uploads: 3,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(30),
            stall: Duration::from_secs(30),
        }
    }
}

/// A client of registries. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Registry {
    client: oci_client::Client,
    http: reqwest::Client,
    options: Arc<RegistryOptions>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Registry {
    /// Makes a client. Nothing is connected yet.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        // Fails only if somebody chose a provider before, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Without any CA certificate no client can be made, and oci-client would panic over it.
        reqwest::Client::builder().build().map_err(RegistryError::Setup)?;
        let mut http = reqwest::Client::builder().connect_timeout(options.timeouts.connect);
        let mut extra_root_certificates = Vec::new();
        for pem in &options.certificates {
            http = http.tls_certs_merge([reqwest::Certificate::from_pem(pem).map_err(RegistryError::Setup)?]);
            extra_root_certificates
                .push(Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() });
        }
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(options.plain_http.clone()),
            extra_root_certificates,
            // One request a blob, as containerd does it; registries differ more over chunks.
            use_monolithic_push: true,
            connect_timeout: Some(options.timeouts.connect),
            user_agent: concat!("woodfrog/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).map_err(RegistryError::setup)?;
        let http = http.build().map_err(RegistryError::Setup)?;
        Ok(Self { client, http, options: Arc::new(options) })
    }

    /// Runs one request with the time limit for requests.
    async fn request<T, E>(
        &self,
        image: &Reference,
        operation: &'static str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, RegistryError>
    where
        E: Into<error::Cause>,
    {
        let limit = self.options.timeouts.request;
        match tokio::time::timeout(limit, request).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(cause)) => {
                Err(RegistryError::of(image, operation, cause.into(), &self.options.credentials))
            }
            Err(_) => Err(RegistryError::slow(image, operation, limit)),
        }
    }

    /// Tries until it works, until the error is one that stays, or until the attempts are used up. A new token is fetched
    /// before each further attempt, for the old one may have expired.
    async fn retry<T, F>(
        &self,
        scope: &auth::Scope<'_>,
        mut step: impl FnMut() -> F,
    ) -> Result<T, RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let mut wait = self.options.backoff;
        let mut renewed = false;
        let mut attempts = self.options.attempts.max(1);
        loop {
            let error = match step().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let expired = matches!(error, RegistryError::Unauthorized { status: 401, .. }) && !renewed;
            attempts -= 1;
            if attempts == 0 || !(expired || error.may_pass()) {
                return Err(error);
            }
            tracing::warn!(%error, attempts, "the registry failed, trying again");
            if expired {
                renewed = true;
            } else {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            match self.authorize(scope).await {
                Err(error) if !error.may_pass() => return Err(error),
                _ => {}
            }
        }
    }
}
