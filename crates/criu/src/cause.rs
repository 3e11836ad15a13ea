//! Known causes of failures.

use crate::failure::Operation;

/// A cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Not known.
    Unknown,
}

impl Cause {
    pub(crate) fn find(_operation: Operation, _message: Option<&str>, _log: &str) -> Self {
        Self::Unknown
    }
    /// Word.
    pub fn category(&self) -> &'static str {
        "unknown"
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("unknown")
    }
}
