//! Why the command failed, and the exit codes that scripts can rely on.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use woodfrog_protocol::agent;
use woodfrog_protocol::frame::FrameError;

/// Exit code when something was tried and failed.
pub(crate) const FAILED: u8 = 1;
/// Exit code of a command line that makes no sense (clap's own too).
pub(crate) const USAGE: u8 = 2;
/// Exit code of a check that found reasons against a freeze.
pub(crate) const FOUND: u8 = 3;
/// Exit code when the agent cannot be reached.
pub(crate) const UNREACHABLE: u8 = 4;

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(
        "no node agent at {}: {source}; is its pod running on this node? (kubectl get pods -A -l \
         app.kubernetes.io/name=woodfrog -o wide); name another socket with --agent-socket or \
         WOODFROG_AGENT_SOCKET", path.display()
    )]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("{} may be used by root only: {source}; run woodfrog as root", path.display())]
    Forbidden { path: PathBuf, source: io::Error },
    #[error("the connection to the node agent at {} broke: {source}; what it was doing may still go on, see woodfrog logs", path.display())]
    Broken { path: PathBuf, source: io::Error },
    #[error("the node agent at {} does not speak our language: {source}", path.display())]
    Frame { path: PathBuf, source: FrameError },
    #[error("the node agent at {} answered something else than was asked; use binaries of one release on a node", path.display())]
    Answer { path: PathBuf },
    #[error("{}", .0.message)]
    Agent(agent::Error),
    #[error("{0}")]
    Usage(String),
    #[error("reading {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Image(String),
    #[error("{0}")]
    Node(#[from] woodfrog_installer::Error),
    #[error("{0}")]
    Cluster(String),
    #[error("writing the result: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// Tells people on standard error, and scripts by the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        eprintln!("woodfrog: {self}");
        if let Self::Agent(error) = self {
            for detail in &error.details {
                eprintln!("  {detail}");
            }
        }
        ExitCode::from(self.exit_code())
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::Forbidden { .. } => UNREACHABLE,
            Self::Usage(_) => USAGE,
            _ => FAILED,
        }
    }
}
