//! OCI images from layers of the cache: Debian, the application's packages, its files.
//!
//! The blob of a layer is made once and kept beside it; config and manifest are small and made each time.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{Error, cache, error::At as _, layer::Layer, progress::step};

/// The image of pods' sandboxes.
pub(crate) const PAUSE: &str = "127.0.0.1:5000/pause:1";

/// A compressed layer in the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Blob {
    /// Digest of the compressed tar.
    pub(crate) digest: String,
    /// Digest of the tar itself.
    pub(crate) diff_id: String,
    /// Size of the compressed tar, in bytes.
    pub(crate) size: u64,
    /// The file.
    pub(crate) path: PathBuf,
}

/// An image, ready to be stored in a registry.
pub(crate) struct Image {
    /// Layers, lowest first.
    pub(crate) layers: Vec<Blob>,
    /// Digest and bytes of the config.
    pub(crate) config: (String, Vec<u8>),
    /// Digest and bytes of the manifest.
    pub(crate) manifest: (String, Vec<u8>),
}

impl Image {
    /// An image of these layers (lowest first) that runs `entrypoint`.
    pub(crate) fn new(layers: Vec<Blob>, entrypoint: &[&str], workdir: &str) -> Self {
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/tmp"],
                "Entrypoint": entrypoint,
                "WorkingDir": workdir,
                "ExposedPorts": { "8080/tcp": {} },
            },
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() },
        });
        let config = digested(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config.0, config.1.len() as u64),
            "layers": layers.iter()
                .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+zstd", &layer.digest, layer.size))
                .collect::<Vec<_>>(),
        });
        let manifest = digested(&manifest);
        Self { layers, config, manifest }
    }
}

/// The blob of a layer, made now if it never was.
pub(crate) fn blob(layer: &Layer, what: &str) -> Result<Blob, Error> {
    let key = cache::key(&[b"blob", layer.key.as_bytes()]);
    let dir = cache::layer(&key, |dir| {
        step(&format!("pack {what}"), || {
            let tree = layer.dir.join("fs");
            mark_deletions(&tree)?;
            pack(&tree, dir)
        })
    })?;
    read(&dir)
}

/// The blob of a sandbox image: a program that sleeps and reaps, nothing else.
pub(crate) fn pause_blob(node: &Layer) -> Result<Blob, Error> {
    let key = cache::key(&[b"pause", node.key.as_bytes()]);
    let dir = cache::layer(&key, |dir| {
        let (tree, program) = (dir.join("fs"), node.dir.join("fs/usr/bin/catatonit"));
        fs::create_dir(&tree).at("create", &tree)?;
        fs::copy(&program, tree.join("pause")).at("copy", program)?;
        pack(&tree, dir)
    })?;
    read(&dir)
}

fn read(dir: &Path) -> Result<Blob, Error> {
    let path = dir.join("blob.json");
    let bytes = fs::read(&path).at("read", &path)?;
    let mut blob: Blob = serde_json::from_slice(&bytes).map_err(|source| Error::Format { path, source })?;
    blob.path = dir.join("blob");
    Ok(blob)
}

/// Overlayfs marks a deleted file by a device 0:0, image layers by a file `.wh.NAME` (OCI image spec, "Whiteouts").
fn mark_deletions(tree: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(tree).at("read", tree)? {
        let entry = entry.at("read", tree)?;
        let (path, kind) = (entry.path(), entry.file_type().at("read", entry.path())?);
        if kind.is_dir() {
            let mut value = [0; 1];
            if rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value)
                .is_ok_and(|length| value[..length] == *b"y")
            {
                fs::write(path.join(".wh..wh..opq"), "").at("write", &path)?;
            }
            mark_deletions(&path)?;
        } else if kind.is_char_device() && fs::symlink_metadata(&path).at("read", &path)?.rdev() == 0 {
            let mark = path.with_file_name(format!(".wh.{}", entry.file_name().display()));
            fs::write(&mark, "").at("write", mark)?;
            fs::remove_file(&path).at("remove", path)?;
        }
    }
    Ok(())
}

/// Writes `DIR/blob` and `DIR/blob.json` from a tree. Devices are left out: every runtime makes its own `/dev`.
fn pack(tree: &Path, dir: &Path) -> Result<(), Error> {
    let program =
        |program: &str, package, source| Error::Program { program: program.into(), package, source };
    let path = dir.join("blob");
    let file = fs::File::create(&path).at("create", &path)?;
    let mut tar = Command::new("tar")
        .args(["--create", "--sort=name", "--numeric-owner", "--format=posix", "--exclude=./dev/*"])
        .args([
            "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
            "--xattrs",
            "--xattrs-include=security.*",
        ])
        .arg("--directory")
        .arg(tree)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| program("tar", "tar", source))?;
    let mut zstd = Command::new("zstd")
        .args(["-3", "-T0", "--quiet", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| program("zstd", "zstd", source))?;
    let (Some(mut plain), Some(mut packed), Some(into)) =
        (tar.stdout.take(), zstd.stdout.take(), zstd.stdin.take())
    else {
        unreachable!("all three were asked for");
    };
    let writer = thread::spawn(move || copy(&mut packed, &mut { file }));
    let (diff_id, _) = copy(&mut plain, &mut { into }).at("pack", tree)?;
    let (digest, size) =
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked"))).at("write", &path)?;
    for (name, child) in [("tar", &mut tar), ("zstd", &mut zstd)] {
        let status = child.wait().at("wait for", name)?;
        if !status.success() {
            let output = String::new();
            return Err(Error::Failed {
                what: format!("{name} of {}", tree.display()),
                status: status.to_string(),
                output,
            });
        }
    }
    let blob = Blob { digest, diff_id, size, path };
    let json =
        serde_json::to_vec(&blob).map_err(|source| Error::Format { path: dir.join("blob.json"), source })?;
    fs::write(dir.join("blob.json"), json).at("write", dir.join("blob.json"))
}

/// Copies to the end; returns the digest and the number of bytes.
fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<(String, u64)> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok((format!("sha256:{}", cache::hex(&hash.finalize())), size));
        }
        hash.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
        size += length as u64;
    }
}

fn digested(value: &serde_json::Value) -> (String, Vec<u8>) {
    let bytes = value.to_string().into_bytes();
    (format!("sha256:{}", cache::hex(&Sha256::digest(&bytes))), bytes)
}

fn descriptor(kind: &str, digest: &str, size: u64) -> serde_json::Value {
    json!({ "mediaType": kind, "digest": digest, "size": size })
}
