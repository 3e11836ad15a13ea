//! What this node's CRIU is, and its cache of what this kernel can do.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::exchange::Exchange;
use crate::failure::{CriuError, Operation};
use crate::rpc::{self, Kind, Request};
use crate::toolchain::{Toolchain, ToolchainError};
use crate::worker::Worker;

/// How CRIU's cache of kernel features was found; whichever it was, there is a valid one now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kdat {
    /// It was there.
    Valid,
    /// It was there, and of another kernel or CRIU. Containers that have the old one mounted probe at each run.
    Stale,
    /// There was none.
    Missing,
}

/// What CRIU can do on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Changed pages can be told (soft-dirty or PAGEMAP_SCAN): pre-dumps work.
    pub track_memory: bool,
    /// Memory can be left to a page server (userfaultfd).
    pub lazy_pages: bool,
    /// PIDs that were used again can be told by pidfds.
    pub pidfd_store: bool,
}

impl Worker {
    /// Asks for the features of CRIU and this kernel.
    ///
    /// # Errors
    /// CRIU cannot be spoken to, or cannot tell.
    pub async fn features(self) -> Result<Features, CriuError> {
        let all = Some(true);
        let features = Some(rpc::Features { mem_track: all, lazy_pages: all, pidfd_store: all });
        let request = Request { kind: Kind::FeatureCheck.into(), features, ..Request::default() };
        let response = Exchange::ask(self, Operation::Probe, request).await?;
        let features = response.features.unwrap_or_default();
        Ok(Features {
            track_memory: features.mem_track(),
            lazy_pages: features.lazy_pages(),
            pidfd_store: features.pidfd_store(),
        })
    }
}

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
    pub fn ensure_kdat(&self, path: &Path) -> Result<Kdat, ToolchainError> {
        // CRIU writes a new file and renames it when there is none or when it does not fit.
        let inode = || std::fs::metadata(path).ok().map(|metadata| metadata.ino());
        let before = inode();
        let output = self.run("check")?;
        match (output.status.success(), before, inode()) {
            (true, Some(before), Some(after)) if before == after => Ok(Kdat::Valid),
            (true, Some(_), Some(_)) => Ok(Kdat::Stale),
            (true, None, Some(_)) => Ok(Kdat::Missing),
            _ => Err(self.unusable("check", &output)),
        }
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
