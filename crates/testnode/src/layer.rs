//! Layers of Debian packages and files: what nodes and images are stacked from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Error, cache, error::At as _, mirror, progress::step};

const SUITE: &str = "forky";
const DEBIAN: &str = include_str!("../scripts/debian.sh");
const LAYER: &str = include_str!("../scripts/layer.sh");

/// What a node runs. `systemd-standalone-*` keeps systemd itself out, which docker-registry would bring otherwise.
const NODE_PACKAGES: &str = "ca-certificates catatonit containerd containernetworking-plugins criu crun curl docker-registry iproute2 iptables \
    nftables procps runc systemd-standalone-sysusers systemd-standalone-tmpfiles";

/// A finished layer over the ones below it.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// The cache's key, which depends on all layers below too.
    pub(crate) key: String,
    /// Its directory in the cache; the tree is in `fs`.
    pub(crate) dir: PathBuf,
    /// The layers below, topmost first.
    pub(crate) below: Vec<PathBuf>,
}

impl Layer {
    /// Debian with next to nothing in it.
    pub(crate) fn debian() -> Result<Self, Error> {
        let key = cache::key(&[SUITE.as_bytes(), DEBIAN.as_bytes()]);
        let dir = cache::layer(&key, |dir| {
            step(&format!("make a Debian {SUITE} tree"), || {
                let mut command = namespaced(dir, DEBIAN, "debian.sh");
                command.arg(SUITE).arg(dir.join("fs")).arg(mirror::configured().unwrap_or_default());
                run(command, dir, "debootstrap")
            })
        })?;
        Ok(Self { key, dir, below: Vec::new() })
    }

    /// What a node's overlay lies on.
    pub(crate) fn node() -> Result<Self, Error> {
        Self::debian()?.with("the node's packages", NODE_PACKAGES, None)
    }

    /// This layer with packages and the files of a directory (at `/srv/app`) above it.
    pub(crate) fn with(&self, what: &str, packages: &str, files: Option<&Path>) -> Result<Self, Error> {
        let content = files.map(content).transpose()?.unwrap_or_default();
        let key = cache::key(&[self.key.as_bytes(), LAYER.as_bytes(), packages.as_bytes(), &content]);
        let dir = cache::layer(&key, |dir| {
            step(&format!("install {what}"), || {
                for name in ["fs", "work", "root"] {
                    fs::create_dir(dir.join(name)).at("create", dir.join(name))?;
                }
                let mut command = namespaced(dir, LAYER, "layer.sh");
                command
                    .env("LOWER", colons(&self.stack()))
                    .env("BUILD", dir)
                    .env("APT", Path::new(cache::CACHE).join("apt"))
                    .env("SUITE", SUITE)
                    .env("MIRROR", mirror::configured().unwrap_or_else(|| mirror::DEFAULT.into()))
                    .env("PACKAGES", packages)
                    .env("FILES", files.unwrap_or(Path::new("")));
                run(command, dir, what)?;
                cache::remove(&dir.join("work"))?;
                fs::remove_dir(dir.join("root")).at("remove", dir.join("root"))
            })
        })?;
        Ok(Self { key, dir, below: self.stack() })
    }

    /// The trees of this layer and those below, topmost first.
    pub(crate) fn stack(&self) -> Vec<PathBuf> {
        let mut stack = vec![self.dir.join("fs")];
        stack.extend(self.below.iter().cloned());
        stack
    }
}

/// A directory in the cache that a script made of the files of another: built once for each content of both. `what` names it on the
/// screen and in errors. The script runs with bash, as root, in mount and PID namespaces of its own, with three variables: the
/// new directory `BUILD`, where it leaves what is to be kept and nothing mounted; `SOURCES`; and Debian's `MIRROR`.
///
/// # Errors
/// The script failed; the end of its output is in the error.
pub fn cached(what: &str, script: &str, sources: &Path) -> Result<PathBuf, Error> {
    let key = cache::key(&[script.as_bytes(), &content(sources)?]);
    cache::layer(&key, |dir| {
        step(what, || {
            let mut command = namespaced(dir, script, "build.sh");
            let mirror = mirror::configured().unwrap_or_else(|| mirror::DEFAULT.into());
            command.env("BUILD", dir).env("SOURCES", sources).env("MIRROR", mirror);
            run(command, dir, what)
        })
    })
}

/// Paths as overlayfs takes its lower directories.
pub(crate) fn colons(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

/// A script in mount and PID namespaces that end with us, so that a killed builder leaves no mount and no process.
fn namespaced(dir: &Path, script: &str, name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"]);
    command.args(["bash", "-c", script, name]).stdin(Stdio::null()).current_dir(dir);
    command
}

/// Runs a builder with its output in `DIR/log`, whose end becomes the error.
fn run(mut command: Command, dir: &Path, what: &str) -> Result<(), Error> {
    let log = dir.join("log");
    let file = fs::File::create(&log).at("create", &log)?;
    let both = file.try_clone().at("duplicate", &log)?;
    let status = command.stdout(file).stderr(both).status().map_err(|source| Error::Program {
        program: "setpriv".into(),
        package: "util-linux",
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(&log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(30)..].join("\n");
    Err(Error::Failed { what: what.to_owned(), status: status.to_string(), output: end })
}

/// Names, modes and bytes of all files in a directory, in a fixed order.
fn content(dir: &Path) -> Result<Vec<u8>, Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut bytes = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(dir).at("read", dir)?.collect::<Result<_, _>>().at("read", dir)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let data = if path.is_dir() { content(&path)? } else { fs::read(&path).at("read", &path)? };
        let mode = fs::metadata(&path).at("read", &path)?.permissions().mode();
        bytes.extend(format!("{:?} {mode:o} {}\n", entry.file_name(), data.len()).into_bytes());
        bytes.extend(data);
    }
    Ok(bytes)
}
