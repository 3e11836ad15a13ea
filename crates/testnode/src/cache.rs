//! Where finished layers are kept, `/var/cache/woodfrog`, each under a key that changes when its recipe does.
//!
//! A layer is built in `tmp/` and renamed to `layers/KEY` when whole, so a key that exists is complete. One build runs at a
//! time, under a lock that the kernel drops with its holder; what a killed builder left in `tmp/` the next one removes.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use crate::{Error, error::At as _};

/// The cache of layers on this machine.
pub(crate) const CACHE: &str = "/var/cache/woodfrog";

/// A lock on a file that ends with its process.
pub(crate) struct Lock(#[expect(dead_code, reason = "closing it is what unlocks")] File);

impl Lock {
    /// Waits until nobody else holds the lock at `path`. The descriptor is close-on-exec, so no child keeps it.
    pub(crate) fn wait(path: &Path) -> Result<Self, Error> {
        let file = File::options().create(true).truncate(false).write(true).open(path).at("open", path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).at("lock", path)?;
        Ok(Self(file))
    }
}

/// The hexadecimal SHA-256 of `parts`, each with its length so that no two lists look alike, cut to 16 digits.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())[..16].to_owned()
}

/// `bytes` in lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns `layers/KEY`, built by `build` in an empty directory of the same file system if it is not there yet.
pub(crate) fn layer(key: &str, build: impl FnOnce(&Path) -> Result<(), Error>) -> Result<PathBuf, Error> {
    let cache = Path::new(CACHE);
    let done = cache.join("layers").join(key);
    if done.is_dir() {
        return Ok(done);
    }
    fs::create_dir_all(cache.join("layers")).at("create", cache.join("layers"))?;
    let _lock = Lock::wait(&cache.join("lock"))?;
    if done.is_dir() {
        return Ok(done);
    }
    let tmp = cache.join("tmp");
    remove(&tmp)?;
    let dir = tmp.join(key);
    fs::create_dir_all(&dir).at("create", &dir)?;
    build(&dir)?;
    fs::rename(&dir, &done).at("rename", &dir)?;
    Ok(done)
}

/// Removes a directory and all in it, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.at("remove", path),
    }
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn a_key_depends_on_every_part_and_on_where_parts_end() {
        let keys = [key(&[b"ab", b"c"]), key(&[b"a", b"bc"]), key(&[b"abc"]), key(&[b"abc", b""])];
        for (i, a) in keys.iter().enumerate() {
            assert_eq!(a.len(), 16);
            assert!(keys[i + 1..].iter().all(|b| a != b), "{keys:?}");
        }
    }
}
