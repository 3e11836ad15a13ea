//! What can go wrong with an API server for tests.

use std::io;
use std::path::PathBuf;

/// Why there is no API server, or why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read, written or made.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The test server could not be built.
    #[error("cannot build the test API server: {0}")]
    Build(#[from] woodfrog_testnode::Error),
    /// The server did not come up.
    #[error("the API server in {dir} did not get ready within {seconds} s: {reason}\n{logs}")]
    NotReady {
        /// Its directory.
        dir: PathBuf,
        /// How long was waited, in seconds.
        seconds: u64,
        /// What it answered last.
        reason: String,
        /// The ends of its logs.
        logs: String,
    },
    /// A kubeconfig could not be read or used.
    #[error("cannot use the kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server refused something.
    #[error("the API server refused to {action}: {source}")]
    Api {
        /// What was tried.
        action: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// A definition was not accepted.
    #[error("the CRD {name} was not established within {seconds} s: {conditions}")]
    NotEstablished {
        /// Its name.
        name: String,
        /// How long was waited, in seconds.
        seconds: u64,
        /// Its conditions.
        conditions: String,
    },
    /// There is no credential for such a user.
    #[error(
        "a real API server has tokens for service accounts alone, not for {0}: use `client`, which impersonates"
    )]
    NoToken(String),
    /// A key could not be made, or a header could not be written.
    #[error("cannot make credentials: {0}")]
    Credentials(String),
}

/// Adds what was tried to an error.
pub(crate) trait Context<T> {
    fn file(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>
    where
        Self: Sized;
}

impl<T> Context<T> for io::Result<T> {
    fn file(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::File { action, path: path.into(), source })
    }
}

/// The same for an answer of the API server.
pub(crate) fn refused(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let action = action.into();
    |source| Error::Api { action, source: Box::new(source) }
}
