//! The host's file system, wherever it is mounted: links are followed as the host would, files change atomically.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use crate::error::Error;

/// Links that are followed before we assume a circle; the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The root directory of a host.
#[derive(Clone, Debug)]
pub struct Root {
    dir: PathBuf,
}

/// A file as it was, to be put back.
#[derive(Debug)]
pub(crate) struct Saved {
    path: String,
    /// Contents and mode; None: it was not there.
    was: Option<(Vec<u8>, u32)>,
}

impl Root {
    /// `dir` is `/`, or where the host's root is mounted.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where an absolute path of the host is for us. Symbolic links are followed within the root, but for one at the very end.
    pub fn path(&self, host: impl AsRef<Path>) -> PathBuf {
        let mut todo: Vec<OsString> = parts(host.as_ref());
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == ".." {
                done.pop();
                continue;
            }
            let here = done.join(&part);
            match fs::read_link(self.dir.join(&here)) {
                Ok(target) if !todo.is_empty() && links < MAX_LINKS => {
                    links += 1;
                    if target.is_absolute() {
                        done = PathBuf::new();
                    }
                    todo.extend(parts(&target));
                }
                _ => done = here,
            }
        }
        self.dir.join(done)
    }

    /// A text file; None if it is not there.
    pub(crate) fn read(&self, host: &str) -> Result<Option<String>, Error> {
        let path = self.path(host);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(Error::io("read", path)(e)),
        }
    }

    /// Whether something is at this path.
    pub(crate) fn exists(&self, host: &str) -> bool {
        fs::symlink_metadata(self.path(host)).is_ok()
    }

    /// A file as it is, to put it back later.
    pub(crate) fn save(&self, host: &str) -> Result<Saved, Error> {
        let path = self.path(host);
        let was = match fs::read(&path) {
            Ok(bytes) => {
                let mode = fs::metadata(&path).map_err(Error::io("look at", &path))?.permissions().mode();
                Some((bytes, mode & 0o7777))
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        Ok(Saved { path: host.to_owned(), was })
    }

    /// Puts a file back, if it was changed.
    pub(crate) fn put_back(&self, saved: &Saved) -> Result<(), Error> {
        match &saved.was {
            was if self.save(&saved.path).is_ok_and(|now| now.was == *was) => Ok(()),
            Some((bytes, mode)) => self.write(&saved.path, bytes, *mode),
            None => self.remove(&saved.path),
        }
    }

    /// Replaces a file in one step; its directory is made if need be. A link at the end is followed.
    pub(crate) fn write(&self, host: &str, bytes: &[u8], mode: u32) -> Result<(), Error> {
        let mut path = self.path(host);
        for _ in 0..MAX_LINKS {
            let Ok(target) = fs::read_link(&path) else { break };
            let base =
                Path::new("/").join(path.parent().unwrap_or(&path).strip_prefix(&self.dir).unwrap_or(&path));
            path = self.path(base.join(target));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".woodfrog-new");
        let fresh = PathBuf::from(name);
        let written = File::create(&fresh).and_then(|mut file| {
            file.set_permissions(Permissions::from_mode(mode))?;
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(Error::io("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(|e| {
            _ = fs::remove_file(&fresh);
            Error::io("replace", path)(e)
        })
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, host: &str) -> Result<(), Error> {
        let path = self.path(host);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
            _ => Ok(()),
        }
    }

    /// Where a link of the host points; None if there is none.
    pub(crate) fn link(&self, host: &str) -> Option<PathBuf> {
        fs::read_link(self.path(host)).ok()
    }

    /// Points a link elsewhere in one step; None removes it.
    pub(crate) fn relink(&self, host: &str, target: Option<&Path>) -> Result<(), Error> {
        let Some(target) = target else { return self.remove(host) };
        let path = self.path(host);
        let fresh = path.with_extension("woodfrog-new");
        _ = fs::remove_file(&fresh);
        std::os::unix::fs::symlink(target, &fresh).map_err(Error::io("link", &fresh))?;
        fs::rename(&fresh, &path).map_err(|e| {
            _ = fs::remove_file(&fresh);
            Error::io("replace", path)(e)
        })
    }
}

/// The names in a path, last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let names = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    names.rev().map(|c| c.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_link_of_the_host_stays_within_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(dir.path().join("data/kubelet")).unwrap();
        fs::create_dir_all(dir.path().join("var/lib")).unwrap();
        std::os::unix::fs::symlink("/data/kubelet", dir.path().join("var/lib/kubelet")).unwrap();
        std::os::unix::fs::symlink("../../../..", dir.path().join("var/up")).unwrap();
        assert_eq!(root.path("/var/lib/kubelet/config.yaml"), dir.path().join("data/kubelet/config.yaml"));
        assert_eq!(root.path("/var/up/etc"), dir.path().join("etc"));
        assert_eq!(Root::new("/").path("/etc/x"), Path::new("/etc/x"));
    }

    #[test]
    fn writing_through_a_link_keeps_the_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/real"), "old").unwrap();
        std::os::unix::fs::symlink("/etc/real", dir.path().join("etc/config")).unwrap();
        root.write("/etc/config", b"new", 0o640).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etc/real")).unwrap(), "new");
        assert!(dir.path().join("etc/config").is_symlink());
    }

    #[test]
    fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/a", dir.path().join("a")).unwrap();
        Root::new(dir.path()).path("/a/b/c");
    }
}
