//! What can go wrong between us and a registry, in terms that a user can act upon.

use std::error::Error;
use std::io;
use std::time::Duration;

use oci_client::Reference;
use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::credentials::Credentials;
use crate::store::StoreError;

/// Why an image could not be pushed, pulled or deleted.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The client itself could not be made.
    #[error("cannot set up TLS: does the system have CA certificates (package ca-certificates)?")]
    Setup(#[source] reqwest::Error),
    /// Nobody answers there.
    #[error(
        "cannot reach the registry {registry} to {operation} {repository}: is it up, and is its name right?"
    )]
    Unreachable {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It answers, but not in time.
    #[error(
        "the registry {registry} did not go on for {} s when asked to {operation} {repository}",
        waited.as_secs_f32()
    )]
    Slow {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// What was tried.
        operation: &'static str,
        /// How long we waited.
        waited: Duration,
    },
    /// 401 or 403.
    #[error(
        "the registry {registry} refuses to {operation} {repository} (status {status}): {}",
        if *logged_in {
            "the credentials for it were not accepted; renew them, or ask for the permission"
        } else {
            "there are no credentials for it; name a pull secret, or log in with docker"
        }
    )]
    Unauthorized {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// What was tried.
        operation: &'static str,
        /// 401 or 403.
        status: u16,
        /// Whether we had credentials for it.
        logged_in: bool,
    },
    /// 404.
    #[error("the registry {registry} has no {what} in {repository} (status 404)")]
    NotFound {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// The tag, digest or blob.
        what: String,
    },
    /// It deletes nothing, or not by digest.
    #[error(
        "the registry {registry} does not let manifests of {repository} be deleted (status {status}): allow it there \
         (with Docker's registry, REGISTRY_STORAGE_DELETE_ENABLED=true), or delete them by its own means"
    )]
    DeletionUnsupported {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// The HTTP status.
        status: u16,
    },
    /// Any other status.
    #[error(
        "the registry {registry} answered status {status} when asked to {operation} {repository}: {message}"
    )]
    Status {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// What was tried.
        operation: &'static str,
        /// The HTTP status.
        status: u16,
        /// The beginning of what it said.
        message: String,
    },
    /// An answer that the protocol does not know.
    #[error("the registry {registry} answered what it must not when asked to {operation} {repository}")]
    Protocol {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// What was tried.
        operation: &'static str,
        /// What was wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A layer is neither in the registry nor on the node.
    #[error(
        "the layer {digest} is neither in {repository} of {registry} nor on this node: pull the base image again, \
         or push it there"
    )]
    MissingLayer {
        /// `HOST[:PORT]`.
        registry: String,
        /// The repository there.
        repository: String,
        /// The layer.
        digest: String,
    },
    /// A layer ended too early or went on too long while it was read.
    #[error(
        "the layer {digest} has {found} bytes where its descriptor says {expected}: it is damaged on this node"
    )]
    Length {
        /// The layer.
        digest: String,
        /// In its descriptor.
        expected: u64,
        /// Bytes that were read, one more than expected if there are more.
        found: u64,
    },
    /// A layer cannot be read.
    #[error("cannot read the layer {digest} from {from}")]
    Source {
        /// The layer.
        digest: String,
        /// From where.
        from: String,
        /// Why.
        source: io::Error,
    },
    /// The node's blob store, full disk included.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An image that is not for us.
    #[error("the image {image} cannot be used: {why}")]
    Image {
        /// The image.
        image: String,
        /// Why not.
        why: String,
    },
}

/// What a request can fail with.
#[derive(Debug)]
pub(super) enum Cause {
    Client(OciDistributionError),
    Http(reqwest::Error),
    Status(u16, String),
    Io(io::Error),
}

impl From<OciDistributionError> for Cause {
    fn from(error: OciDistributionError) -> Self {
        Self::Client(error)
    }
}

impl From<reqwest::Error> for Cause {
    fn from(error: reqwest::Error) -> Self {
        Self::Http(error)
    }
}

impl RegistryError {
    pub(super) fn setup(error: OciDistributionError) -> Self {
        match error {
            OciDistributionError::RequestError(error) => Self::Setup(error),
            other => Self::Image { image: String::new(), why: other.to_string() },
        }
    }

    pub(super) fn slow(image: &Reference, operation: &'static str, waited: Duration) -> Self {
        let (registry, repository) = place(image);
        Self::Slow { registry, repository, operation, waited }
    }

    pub(super) fn of(
        image: &Reference,
        operation: &'static str,
        cause: Cause,
        credentials: &Credentials,
    ) -> Self {
        match cause {
            Cause::Client(error) => Self::of_client(image, operation, error, credentials),
            Cause::Http(error) => Self::of_http(image, operation, error, credentials),
            Cause::Status(status, message) => Self::of_status(image, operation, status, message, credentials),
            Cause::Io(error) => {
                let (registry, repository) = place(image);
                Self::Unreachable { registry, repository, operation, source: error.into() }
            }
        }
    }

    fn of_client(
        image: &Reference,
        operation: &'static str,
        error: OciDistributionError,
        credentials: &Credentials,
    ) -> Self {
        let status = |status, message| Self::of_status(image, operation, status, message, credentials);
        match error {
            OciDistributionError::RequestError(error) => Self::of_http(image, operation, error, credentials),
            OciDistributionError::UnauthorizedError { .. } => status(401, String::new()),
            OciDistributionError::AuthenticationFailure(message) => status(401, message),
            OciDistributionError::ServerError { code, message, .. } => status(code, message),
            OciDistributionError::ImageManifestNotFoundError(message) => status(404, message),
            OciDistributionError::RegistryError { ref envelope, .. } => {
                let code = match envelope.errors.first().map(|error| &error.code) {
                    Some(OciErrorCode::Unauthorized) => 401,
                    Some(OciErrorCode::Denied) => 403,
                    Some(OciErrorCode::Toomanyrequests) => 429,
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::NotFound,
                    ) => 404,
                    _ => 400,
                };
                status(code, error.to_string())
            }
            OciDistributionError::IoError(error) => Self::of(image, operation, Cause::Io(error), credentials),
            other => {
                let (registry, repository) = place(image);
                Self::Protocol { registry, repository, operation, source: other.into() }
            }
        }
    }

    fn of_http(
        image: &Reference,
        operation: &'static str,
        error: reqwest::Error,
        credentials: &Credentials,
    ) -> Self {
        match error.status() {
            Some(status) => {
                Self::of_status(image, operation, status.as_u16(), error.to_string(), credentials)
            }
            None => {
                let (registry, repository) = place(image);
                Self::Unreachable { registry, repository, operation, source: error.into() }
            }
        }
    }

    fn of_status(
        image: &Reference,
        operation: &'static str,
        status: u16,
        message: String,
        credentials: &Credentials,
    ) -> Self {
        let (registry, repository) = place(image);
        match status {
            401 | 403 => {
                let logged_in = credentials.for_repository(image).is_some();
                Self::Unauthorized { registry, repository, operation, status, logged_in }
            }
            404 => Self::NotFound { registry, repository, what: name(image) },
            _ => {
                let message = message.chars().take(300).collect();
                Self::Status { registry, repository, operation, status, message }
            }
        }
    }

    /// Whether it may work later without anybody doing anything.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Slow { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            _ => false,
        }
    }

    /// A word for metrics and events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Setup(_) => "setup",
            Self::Unreachable { .. } => "unreachable",
            Self::Slow { .. } => "slow",
            Self::Unauthorized { .. } => "unauthorized",
            Self::NotFound { .. } => "not-found",
            Self::DeletionUnsupported { .. } => "deletion-unsupported",
            Self::Status { .. } => "status",
            Self::Protocol { .. } => "protocol",
            Self::MissingLayer { .. } => "missing-layer",
            Self::Length { .. } | Self::Source { .. } => "source",
            Self::Store(StoreError::Full { .. }) => "disk-full",
            Self::Store(_) => "store",
            Self::Image { .. } => "image",
        }
    }
}

/// Registry and repository of an image.
pub(super) fn place(image: &Reference) -> (String, String) {
    (image.resolve_registry().to_owned(), image.repository().to_owned())
}

fn name(image: &Reference) -> String {
    image.digest().or(image.tag()).unwrap_or("latest").to_owned()
}
