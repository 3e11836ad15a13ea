//! Which memory the processes of an image want first, as their first thaws on this node have shown.
//!
//! Addresses are those of one capture, so a set belongs to the digest of an image. A set that is missing or of no use costs time,
//! never a wrong byte: it only says in which order pages are brought.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use prost::Message;
use woodfrog_protocol::pager::{Wanted, WorkingSet};

use super::spans::without;

/// The most that is read of one.
const MAX_BYTES: u64 = 16 << 20;
/// How many thaws a set is recorded in: each may be asked for something else.
pub const RUNS: u32 = 3;
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

    /// What the processes of the image with this digest want first; nothing if that is not known.
    pub fn get(&self, digest: &str) -> WorkingSet {
        self.path(digest).and_then(|path| read(&path)).unwrap_or_default()
    }

    /// Adds what the processes of an image wanted first in another thaw.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&self, digest: &str, wanted: Vec<Wanted>) -> io::Result<()> {
        let Some(path) = self.path(digest) else { return Ok(()) };
        let mut set = self.get(digest);
        set.runs += 1;
        merge(&mut set.processes, wanted);
        let file = tempfile::NamedTempFile::new_in(&self.dir)?;
        fs::write(file.path(), set.encode_to_vec())?;
        file.persist(path).map_err(|e| e.error)?;
        self.forget_old()
    }

    /// Takes away what is known of an image.
    pub fn take(&self, digest: &str) -> WorkingSet {
        let set = self.get(digest);
        if let Some(path) = self.path(digest) {
            let _ = fs::remove_file(path);
        }
        set
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

/// Adds to what is known of processes what has been found out later.
pub(super) fn merge(known: &mut Vec<Wanted>, found: Vec<Wanted>) {
    for more in found {
        match known.iter_mut().find(|known| known.pid == more.pid) {
            Some(known) => {
                known.first.extend(without(&more.first, &known.first));
                known.then.extend(without(&more.then, &known.then));
                known.written.extend(more.written);
            }
            None => known.push(more),
        }
    }
}

fn read(path: &Path) -> Option<WorkingSet> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    // When it was last of use.
    let _ = file.set_modified(SystemTime::now());
    file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    WorkingSet::decode(&*bytes).ok()
}

#[cfg(test)]
mod tests {
    use woodfrog_protocol::pager::Span;

    use super::*;

    fn digest(n: u64) -> String {
        format!("sha256:{n:064x}")
    }

    #[test]
    fn a_set_grows_with_each_thaw_and_is_found_again_by_the_digest_of_its_image() {
        let dir = tempfile::tempdir().unwrap();
        let sets = WorkingSets::open(dir.path().join("sets")).unwrap();
        assert_eq!(sets.get(&digest(1)), WorkingSet::default());
        let wanted =
            |pid, start| Wanted { pid, first: vec![Span { start, length: 8192 }], ..Wanted::default() };
        sets.add(&digest(1), vec![wanted(300, 4096)]).unwrap();
        sets.add(&digest(1), vec![wanted(300, 65536), wanted(301, 4096)]).unwrap();
        let WorkingSet { processes, runs } = sets.get(&digest(1));
        assert_eq!((runs, processes[0].first.len()), (2, 2));
        assert_eq!((processes[0].first[1].start, processes[1].pid), (65536, 301));
        assert_eq!(sets.get(&digest(2)), WorkingSet::default());
        assert_eq!((sets.take(&digest(1)).runs, sets.get(&digest(1)).runs), (2, 0));
    }

    #[test]
    fn a_digest_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let sets = WorkingSets::open(dir.path().join("sets")).unwrap();
        sets.add("sha256:../escaped", Vec::new()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path().join("sets")).unwrap().count(), 0);
    }

    #[test]
    fn the_sets_that_were_used_longest_ago_go() {
        let dir = tempfile::tempdir().unwrap();
        let sets = WorkingSets::open(dir.path().to_owned()).unwrap();
        for n in 0..MAX_SETS as u64 + 2 {
            sets.add(&digest(n), Vec::new()).unwrap();
            let file = File::open(dir.path().join(format!("{n:064x}"))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n)).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MAX_SETS);
        assert!(sets.get(&digest(1)).runs == 0 && sets.get(&digest(2)).runs == 1);
    }
}
