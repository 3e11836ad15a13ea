//! Why a dump or restore failed: CRIU's answer, the lines of its log that explain it, and the cause if it is known.

use std::fmt;

use crate::cause::Cause;
use crate::log;
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
    pub(crate) fn failed(operation: Operation, errno: Option<i32>, message: Option<&str>, log: &str) -> Self {
        Self::new(operation, End::Answered(errno), message, log)
    }

    pub(crate) fn died(operation: Operation, signal: Option<i32>, exit: Option<i32>, log: &str) -> Self {
        let end = signal.map_or(End::Exited(exit.unwrap_or_default()), End::Killed);
        Self::new(operation, end, None, log)
    }

    pub(crate) fn unexpected(operation: Operation, what: &'static str) -> Self {
        Self::new(operation, End::Unexpected(what), None, "")
    }

    fn new(operation: Operation, end: End, message: Option<&str>, log: &str) -> Self {
        let cause = Cause::find(operation, message, log);
        let lines = log::explaining(message, log);
        Self::Failed(Box::new(Failure { operation, end, cause, lines }))
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
        for line in self.lines.iter().filter(|line| line.contains("Error")).take(3) {
            write!(f, "; criu: {}", log::text(line))?;
        }
        Ok(())
    }
}
