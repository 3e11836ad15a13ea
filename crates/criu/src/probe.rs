//! What this node's CRIU is, and its cache of what this kernel can do.

use std::path::Path;
use std::process::{Command, Output};

use crate::toolchain::{Toolchain, ToolchainError};

impl Toolchain {
    /// CRIU's version, `MAJOR.MINOR.PATCH`. Blocks for some milliseconds.
    ///
    /// # Errors
    /// It does not run, or says something else.
    pub fn version(&self) -> Result<String, ToolchainError> {
        let output = self.run("--version")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.lines().find_map(|line| line.strip_prefix("Version:"));
        version.map(|version| version.trim().to_owned()).ok_or_else(|| self.unusable("--version", &output))
    }

    /// Makes CRIU's cache of kernel features (`kdat`), which spares each later run 100 ms of probing. CRIU keeps it at
    /// `path` (fixed when it was built, on a tmpfs) and makes it anew when kernel or CRIU have changed.
    ///
    /// # Errors
    /// CRIU does not work on this kernel, or `path` is not where this CRIU keeps its cache.
    pub fn ensure_kdat(&self, path: &Path) -> Result<(), ToolchainError> {
        let output = self.run("check")?;
        if output.status.success() && path.exists() { Ok(()) } else { Err(self.unusable("check", &output)) }
    }

    fn run(&self, argument: &str) -> Result<Output, ToolchainError> {
        let output = Command::new(self.path()).arg(argument).output();
        output.map_err(|source| ToolchainError::Open { path: self.path().to_owned(), source })
    }

    fn unusable(&self, argument: &str, output: &Output) -> ToolchainError {
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        ToolchainError::Unusable {
            command: format!("{} {argument}", self.path().display()),
            said: String::from_utf8_lossy(&said).trim().replace('\n', "; "),
        }
    }
}
