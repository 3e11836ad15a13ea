//! `woodfrog inspect`: what is frozen in an image, read from its registry.
//!
//! ```text
//!   manifest, config ──► state layer ──► woodfrog.json ──► where it thaws
//!                                   └──► CRIU's files ──► processes, memory, descriptors, sockets
//! ```

mod contents;
mod show;
mod state;

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use woodfrog_image::{
    BlobStore, CheckpointRecord, Compatibility, Credentials, Reference, Registry, RegistryOptions,
    record_in_layer,
};

use crate::args::{Format, Inspect};
use crate::failure::Failure;
use crate::freeze::docker_config;
use crate::output;
use contents::Contents;

/// What is known of an image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Inspection {
    /// The image as it was named.
    image: String,
    /// Digest of its manifest.
    digest: String,
    /// Bytes of all its layers, compressed.
    compressed_bytes: u64,
    /// Bytes of memory in it.
    memory_bytes: u64,
    /// Whether this node can thaw it.
    compatible: bool,
    /// All reasons why not.
    incompatibilities: Vec<String>,
    /// What the freeze recorded.
    record: CheckpointRecord,
    /// What CRIU wrote; none if this release cannot read it.
    contents: Option<Contents>,
    /// Why there are no contents.
    #[serde(skip_serializing_if = "Option::is_none")]
    contents_error: Option<String>,
}

/// Shows what is frozen in an image.
pub(crate) fn run(format: Format, inspect: Inspect) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let inspection = runtime.block_on(read(inspect))?;
    match format {
        Format::Json => output::json(&inspection)?,
        Format::Table => show::show(&inspection)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(inspect: Inspect) -> Result<Inspection, Failure> {
    let reference: Reference =
        inspect.image.parse().map_err(|e| Failure::Usage(format!("{:?} is no image: {e}", inspect.image)))?;
    let unusable = |why: &dyn std::fmt::Display| Failure::Image(format!("{reference}: {why}"));
    let registry = Registry::new(options(&inspect, &reference)?).map_err(|e| Failure::Image(chain(&e)))?;
    let pulled = registry.pull(&reference).await.map_err(|e| Failure::Image(chain(&e)))?;
    let Some(labels) = pulled.checkpoint().map_err(|e| unusable(&e))? else {
        return Err(unusable(&"an ordinary image, not a checkpoint: nothing is frozen in it"));
    };
    let layer = labels.state_layer(&pulled.manifest).map_err(|e| unusable(&e))?;

    let scratch = tempfile::tempdir()?;
    let store = BlobStore::open(scratch.path().join("store")).map_err(|e| Failure::Image(chain(&e)))?;
    let blob = registry.fetch(&reference, layer, &store).await.map_err(|e| Failure::Image(chain(&e)))?;
    let record = record_in_layer(blob.try_clone()?).map_err(|e| unusable(&chain(&e)))?;
    let contents =
        state::open(blob, &scratch.path().join("state")).map(|checkpoint| Contents::of(&checkpoint));

    let criu = criu_version().unwrap_or_else(|| record.compatibility.criu.clone());
    let node = Compatibility::of_this_node(&criu).map_err(|e| Failure::Image(chain(&e)))?;
    let reasons = record.compatibility.compatible(&node).err().unwrap_or_default();
    let (contents, contents_error) = match contents {
        Ok(contents) => (Some(contents), None),
        Err(why) => (None, Some(why)),
    };
    Ok(Inspection {
        image: reference.to_string(),
        digest: pulled.digest.clone(),
        compressed_bytes: pulled.compressed_bytes(),
        memory_bytes: record.memory_bytes(),
        compatible: reasons.is_empty(),
        incompatibilities: reasons.iter().map(ToString::to_string).collect(),
        record,
        contents,
        contents_error,
    })
}

fn options(inspect: &Inspect, reference: &Reference) -> Result<RegistryOptions, Failure> {
    let mut plain_http = inspect.registry.plain_http.clone();
    let registry = reference.resolve_registry();
    if is_loopback(registry) {
        plain_http.push(registry.to_owned());
    }
    let credentials = match docker_config(&inspect.registry) {
        Some(path) => credentials(path)?,
        None => Credentials::default(),
    };
    Ok(RegistryOptions { plain_http, credentials, ..RegistryOptions::default() })
}

fn credentials(path: PathBuf) -> Result<Credentials, Failure> {
    let json = std::fs::read(&path).map_err(|source| Failure::File { path: path.clone(), source })?;
    let wrong = |e| Failure::Image(format!("{}: {}", path.display(), chain(&e)));
    Credentials::from_docker_config(&json).map_err(wrong)
}

fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The version of this node's CRIU, if one is in the path; the agent's own is compared at a thaw in any case.
fn criu_version() -> Option<String> {
    let output = std::process::Command::new("criu").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim().to_owned())
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_registries_speak_plain_http_unasked() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.8.0.1", "[::1]:5000"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["docker.io", "localhost.example:5000", "10.0.0.1:5000", "registry.example:443"] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
