//! The programs on the host: a directory a version that never changes, and a link to the one in use.

use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use crate::error::Error;
use crate::{CURRENT, OPT_DIR, Root};

/// What is installed.
pub const PROGRAMS: &[&str] = &["node-agent", "woodfrog", "woodfrog-init", "woodfrog-pager"];

/// Left free on the disk besides the binaries, in bytes.
const RESERVE: u64 = 64 << 20;

/// Binaries to install.
#[derive(Debug)]
pub(crate) struct Release {
    from: PathBuf,
    /// Name of their directory: `VERSION+DIGEST`, so that two builds of one version do not get in each other's way.
    pub(crate) name: String,
    bytes: u64,
}

impl Release {
    /// Those in `from`.
    pub(crate) fn open(from: &Path, version: &str) -> Result<Self, Error> {
        let (digest, bytes) = digest(from)?;
        Ok(Self { from: from.to_owned(), name: format!("{version}+{digest}"), bytes })
    }

    /// Their directory on the host.
    pub(crate) fn dir(&self) -> PathBuf {
        Path::new(OPT_DIR).join(&self.name)
    }

    /// Whether they are on the host, whole.
    pub(crate) fn is_placed(&self, root: &Root) -> bool {
        digest(&root.path(self.dir())).is_ok_and(|(digest, _)| self.name.ends_with(&format!("+{digest}")))
    }

    /// Fails unless there is room for them.
    pub(crate) fn check_space(&self, root: &Root) -> Result<(), Error> {
        let path = root.path(OPT_DIR);
        let there = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(root.dir());
        let stat = rustix::fs::statvfs(there).map_err(|e| Error::io("look at", there)(e.into()))?;
        let (free, needed) = (stat.f_bavail * stat.f_frsize, self.bytes + RESERVE);
        if free < needed { Err(Error::NoSpace { path: there.to_owned(), free, needed }) } else { Ok(()) }
    }

    /// Copies them to the host: the directory appears when it is complete.
    pub(crate) fn place(&self, root: &Root) -> Result<(), Error> {
        let opt = root.path(OPT_DIR);
        let fresh = opt.join(format!(".{}.woodfrog-new", self.name));
        let placed = root.path(self.dir());
        _ = fs::remove_dir_all(&fresh);
        let copied = self.copy(&fresh).and_then(|()| {
            // Not whole, or we would not be here.
            _ = fs::remove_dir_all(&placed);
            fs::rename(&fresh, &placed).map_err(Error::io("replace", &placed))
        });
        if copied.is_err() {
            _ = fs::remove_dir_all(&fresh);
        }
        copied
    }

    fn copy(&self, to: &Path) -> Result<(), Error> {
        fs::create_dir_all(to).map_err(Error::io("create", to))?;
        for program in PROGRAMS {
            let target = to.join(program);
            let copied = fs::copy(self.from.join(program), &target).and_then(|_| {
                let file = File::open(&target)?;
                file.set_permissions(Permissions::from_mode(0o755))?;
                file.sync_all()
            });
            copied.map_err(Error::io("write", &target))?;
        }
        Ok(())
    }
}

/// First digits of the digest of all programs in a directory, and their size in bytes.
fn digest(dir: &Path) -> Result<(String, u64), Error> {
    let mut hasher = Context::new(&SHA256);
    let mut bytes = 0;
    for program in PROGRAMS {
        let path = dir.join(program);
        let mut file = File::open(&path).map_err(|_| Error::NoBinary { path: path.clone() })?;
        let size = hash(&mut file, &mut hasher).map_err(Error::io("read", path))?;
        hasher.update(&size.to_le_bytes());
        bytes += size;
    }
    let digest = hasher.finish().as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    Ok((digest, bytes))
}

fn hash(file: &mut File, hasher: &mut Context) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(size),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}

/// Name of the version that the service runs, by the link.
pub(crate) fn current(root: &Root) -> Option<String> {
    let target = root.link(CURRENT)?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// Removes versions that no process runs, but for those named; what stays because it is in use.
pub(crate) fn sweep(root: &Root, keep: &[&str]) -> Result<Vec<String>, Error> {
    let opt = root.path(OPT_DIR);
    let entries = match fs::read_dir(&opt) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", opt)(e)),
    };
    let running = running(root);
    let mut used = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_dir || keep.contains(&name.as_str()) || !entry.path().join("woodfrog-init").is_file() {
            continue;
        }
        if PROGRAMS
            .iter()
            .any(|program| identity(&entry.path().join(program)).is_some_and(|id| running.contains(&id)))
        {
            used.push(name);
            continue;
        }
        fs::remove_dir_all(entry.path()).map_err(Error::io("remove", entry.path()))?;
    }
    // Only if it is empty.
    _ = fs::remove_dir(&opt);
    used.sort();
    Ok(used)
}

/// Executables of all processes, by device and inode: an init's path is that in its container.
fn running(root: &Root) -> HashSet<(u64, u64)> {
    let Ok(entries) = fs::read_dir(root.path("/proc")) else { return HashSet::new() };
    entries.flatten().filter_map(|entry| identity(&entry.path().join("exe"))).collect()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
