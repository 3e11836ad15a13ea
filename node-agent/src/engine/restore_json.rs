//! The control file `restore.json`: what a thawed application needs to know of its new life.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

/// Contents of `/run/woodfrog/restore.json`. A program that must not be a mere copy of another (tokens, random
/// generators, node names) reads it when `generation` or `id` is not what it knew.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreFile {
    /// How many thaws lie between this process and the start of its ancestor; at least 1.
    pub generation: u64,
    /// Unique to this thaw: 32 hexadecimal digits.
    pub id: String,
    /// The image's reference, as the pod asks for it.
    pub image: String,
    /// Digest of the image's manifest.
    pub image_digest: String,
    /// Who the process is now.
    pub identity: Identity,
    /// Environment that the container would have started with now; the process itself still has its old one.
    pub environment: BTreeMap<String, String>,
}

/// The pod that a thawed process finds itself in.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the container.
    pub container: String,
    /// Host name of the pod.
    pub hostname: String,
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
}

impl RestoreFile {
    /// Writes it, so that a reader sees the old file or the new one.
    ///
    /// # Errors
    /// The control directory cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, path)
    }
}

/// The environment of a process, as the runtime gave it.
///
/// # Errors
/// The process has ended.
pub fn environment(pid: i32) -> io::Result<BTreeMap<String, String>> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ"))?;
    Ok(String::from_utf8_lossy(&bytes)
        .split('\0')
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}
