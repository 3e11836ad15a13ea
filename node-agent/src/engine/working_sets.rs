//! Which memory the processes of an image want first, as their first thaw on this node has shown.
//!
//! Addresses are those of one capture, so a set belongs to the digest of an image. A set that is missing or of no use costs time,
//! never a wrong byte: it only says in which order pages are brought.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use prost::Message;
use woodfrog_protocol::pager::{Wanted, WorkingSet};

/// The most that is read of one.
const MAX_BYTES: u64 = 16 << 20;
/// How many are kept; the ones that were used longest ago go.
const MAX_SETS: usize = 256;

/// The working sets of a node, a file each.
#[derive(Debug)]
pub struct WorkingSets {
    dir: PathBuf,
}

impl WorkingSets {
    /// Those in a directory of the agent's own, which is made if it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// What the processes of the image with this digest want first; none if that is not known.
    pub fn get(&self, digest: &str) -> Option<Vec<Wanted>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(digest)?).ok()?;
        // When it was last of use.
        let _ = file.set_modified(SystemTime::now());
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        Some(WorkingSet::decode(&*bytes).ok()?.processes)
    }

    /// Keeps what the processes of an image wanted first.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put(&self, digest: &str, processes: Vec<Wanted>) -> io::Result<()> {
        let Some(path) = self.path(digest) else { return Ok(()) };
        let file = tempfile::NamedTempFile::new_in(&self.dir)?;
        fs::write(file.path(), WorkingSet { processes }.encode_to_vec())?;
        file.persist(path).map_err(|e| e.error)?;
        self.forget_old()
    }

    fn path(&self, digest: &str) -> Option<PathBuf> {
        let hex = digest.strip_prefix("sha256:")?;
        let is_hex = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        is_hex.then(|| self.dir.join(hex))
    }

    fn forget_old(&self) -> io::Result<()> {
        let age = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        let paths = fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path()));
        let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
        paths.sort_by_cached_key(|path| age(path));
        for path in paths.iter().take(paths.len().saturating_sub(MAX_SETS)) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use woodfrog_protocol::pager::Span;

    use super::*;

    fn digest(n: u64) -> String {
        format!("sha256:{n:064x}")
    }

    #[test]
    fn a_set_is_found_again_by_the_digest_of_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let sets = WorkingSets::open(dir.path().join("sets")).unwrap();
        assert_eq!(sets.get(&digest(1)), None);
        let wanted = vec![Wanted { pid: 300, spans: vec![Span { start: 4096, length: 8192 }] }];
        sets.put(&digest(1), wanted.clone()).unwrap();
        assert_eq!(sets.get(&digest(1)), Some(wanted));
        assert_eq!(sets.get(&digest(2)), None);
    }

    #[test]
    fn a_digest_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let sets = WorkingSets::open(dir.path().join("sets")).unwrap();
        sets.put("sha256:../escaped", Vec::new()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path().join("sets")).unwrap().count(), 0);
    }

    #[test]
    fn the_sets_that_were_used_longest_ago_go() {
        let dir = tempfile::tempdir().unwrap();
        let sets = WorkingSets::open(dir.path().to_owned()).unwrap();
        for n in 0..MAX_SETS as u64 + 2 {
            sets.put(&digest(n), Vec::new()).unwrap();
            let file = File::open(dir.path().join(format!("{n:064x}"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n)).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MAX_SETS);
        assert!(sets.get(&digest(1)).is_none() && sets.get(&digest(2)).is_some());
    }
}
