//! What can go wrong with a test node.

use std::{io, path::PathBuf};

/// Why a node or an image could not be made, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read, written or removed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {source} (install it: {package})")]
    Program {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{what} failed ({status}):\n{output}")]
    Failed {
        /// What the program was to do.
        what: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// The machine lacks something.
    #[error("a test node needs {0}")]
    Need(String),
    /// The name cannot be a node's.
    #[error(
        "{0:?} is no name for a node: use 1 to 32 lower-case letters, digits and dashes, beginning with a letter"
    )]
    Name(String),
    /// No node of that name is up.
    #[error("node {0} is not up: start it with `cargo xtask node up --name {0}`")]
    NotUp(String),
    /// All addresses are taken.
    #[error("there are {0} nodes already: take some down")]
    TooMany(usize),
    /// Something did not happen in time.
    #[error("{what} did not happen within {seconds} s\n{detail}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        seconds: u64,
        /// What is known of the reason.
        detail: String,
    },
    /// A file of ours does not say what it should.
    #[error("cannot understand {path}: {source}; take the node down and up again")]
    Format {
        /// The file.
        path: PathBuf,
        /// The parser's answer.
        source: serde_json::Error,
    },
}

/// Adds the path and the verb to an error of the file system.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::File { action, path: path.into(), source: source.into() })
    }
}
