//! Puts images into the registry by writing its storage, which costs a hard link a blob instead of a transfer.
//!
//! The layout is that of distribution's filesystem driver ("path.go" of its storage package describes it):
//!
//! ```text
//! docker/registry/v2/blobs/sha256/AB/ABCDEF.../data
//! docker/registry/v2/repositories/NAME/_layers/sha256/ABCDEF.../link
//!                                     /_manifests/revisions/sha256/ABCDEF.../link
//!                                     /_manifests/tags/TAG/current/link
//!                                     /_manifests/tags/TAG/index/sha256/ABCDEF.../link
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Error, error::At as _, image::Image};

/// Where every node reaches the registry.
pub(crate) const ADDRESS: &str = "127.0.0.1:5000";

/// Stores an image under `repository:tag` in the registry whose content is at `storage`.
pub(crate) fn store(storage: &Path, repository: &str, tag: &str, image: &Image) -> Result<(), Error> {
    let registry = storage.join("docker/registry/v2");
    let repository = registry.join("repositories").join(repository);
    for blob in &image.layers {
        let path = blob_path(&registry, &blob.digest);
        link(&blob.path, &path)?;
        write_link(&repository.join("_layers"), &blob.digest)?;
    }
    for (digest, bytes) in [&image.config, &image.manifest] {
        write(&blob_path(&registry, digest), bytes)?;
    }
    write_link(&repository.join("_layers"), &image.config.0)?;
    write_link(&repository.join("_manifests/revisions"), &image.manifest.0)?;
    let tag = repository.join("_manifests/tags").join(tag);
    write_link(&tag.join("index"), &image.manifest.0)?;
    write(&tag.join("current/link"), image.manifest.0.as_bytes())
}

fn blob_path(registry: &Path, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    registry.join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

fn write_link(dir: &Path, digest: &str) -> Result<(), Error> {
    let hex = digest.trim_start_matches("sha256:");
    write(&dir.join("sha256").join(hex).join("link"), digest.as_bytes())
}

/// Readers see the old content or the new.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).at("create", dir)?;
    let new = path.with_extension("new");
    fs::write(&new, bytes).at("write", &new)?;
    fs::rename(&new, path).at("rename", new)
}

/// A hard link, or a copy where the cache is on another file system.
fn link(from: &Path, to: &Path) -> Result<(), Error> {
    let dir = to.parent().unwrap_or(to);
    fs::create_dir_all(dir).at("create", dir)?;
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let new = to.with_extension("new");
            fs::copy(from, &new).at("copy", from)?;
            fs::rename(&new, to).at("rename", new)
        }
        result => result.at("link", to),
    }
}
