//! Why a dump or restore failed: CRIU's answer, the lines of its log that explain it, and the cause if it is known.

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::cause::Cause;
use crate::connection;
use crate::log::{self, Line};
use crate::worker::WorkerError;

/// What CRIU was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Dump the tree of a process of the container.
    Dump {
        /// PID of its root in the container.
        pid: i32,
    },
    /// Restore a tree.
    Restore,
    /// Tell its version and features.
    Probe,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dump { pid } => write!(f, "dump of process {pid}"),
            Self::Restore => f.write_str("restore"),
            Self::Probe => f.write_str("probe"),
        }
    }
}

/// A dump or restore that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// CRIU tried and failed.
    #[error(transparent)]
    Failed(Box<Failure>),
    /// CRIU could not be started or spoken to.
    #[error("{operation} failed: {source}")]
    Worker {
        /// What was asked for.
        operation: Operation,
        /// What went wrong.
        source: WorkerError,
    },
}

/// What is known of a failure in CRIU itself.
#[derive(Debug)]
pub struct Failure {
    /// What was asked for.
    pub operation: Operation,
    /// How CRIU ended.
    pub end: End,
    /// The cause, translated where it is known.
    pub cause: Cause,
    /// The error lines of CRIU's log, and what leads up to the first.
    pub lines: Vec<String>,
}

/// How CRIU told of its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By an answer, with an errno if it knew one.
    Answered(Option<i32>),
    /// It was killed by a signal.
    Killed(i32),
    /// It exited without an answer.
    Exited(i32),
    /// It answered in a way that it should not.
    Unexpected(&'static str),
}

impl CriuError {
    /// CRIU has answered that it failed. `container` is PID 1's pidfd: what its log leaves open is looked up there.
    pub(crate) fn failed(
        operation: Operation,
        errno: Option<i32>,
        message: Option<&str>,
        log: &str,
        container: Option<BorrowedFd<'_>>,
    ) -> Self {
        let mut cause = Cause::find(message, log);
        if let (Cause::Connection { inode, addresses }, Some(container)) = (&mut cause, container) {
            *addresses = connection::addresses(container, *inode);
        }
        let lines = log::explaining(message, log);
        Self::Failed(Box::new(Failure { operation, end: End::Answered(errno), cause, lines }))
    }

    /// CRIU has ended without an answer.
    pub(crate) fn died(operation: Operation, signal: Option<i32>, exit: Option<i32>, log: &str) -> Self {
        let end = signal.map_or(End::Exited(exit.unwrap_or_default()), End::Killed);
        let lines = log::explaining(None, log);
        Self::Failed(Box::new(Failure { operation, end, cause: Cause::find(None, log), lines }))
    }

    /// CRIU has done something that it should not.
    pub(crate) fn unexpected(operation: Operation, what: &'static str) -> Self {
        let (cause, lines) = (Cause::Unknown, Vec::new());
        Self::Failed(Box::new(Failure { operation, end: End::Unexpected(what), cause, lines }))
    }

    /// The failure, if CRIU got as far as to have one.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Worker { .. } => None,
        }
    }

    /// A short word for metrics and events, out of a fixed set.
    pub fn category(&self) -> &'static str {
        self.failure().map_or("criu-unavailable", |failure| failure.cause.category())
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: ", self.operation)?;
        if self.cause == Cause::Unknown {
            match self.end {
                End::Answered(Some(errno)) => {
                    write!(f, "criu says {}", std::io::Error::from_raw_os_error(errno))?;
                }
                End::Answered(None) => f.write_str("criu gives no errno")?,
                End::Killed(signal) => write!(f, "criu was killed by signal {signal}")?,
                End::Exited(status) => write!(f, "criu exited with status {status} and no answer")?,
                End::Unexpected(what) => write!(f, "criu misbehaved: {what}")?,
            }
        } else {
            write!(f, "{}", self.cause)?;
        }
        // A known cause says it better than the lines that it was found in.
        let shown = if self.cause == Cause::Unknown { 3 } else { 0 };
        for line in self.lines.iter().filter(|line| log::is_error(line)).take(shown) {
            write!(f, "; criu: {}", Line::parse(line).text)?;
        }
        Ok(())
    }
}
