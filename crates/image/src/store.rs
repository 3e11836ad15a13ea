//! The node's blob store: files named by their digest, where layers are written before they are pushed or
//! handed to the runtime. Laid out as the `blobs` of an OCI image layout.
//!
//! A blob appears by rename, so a reader never sees half of one. Nothing is synced: after a power cut a blob
//! can be shorter than it was, so whoever asks for one says how long it is, and a short one counts as missing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::digest;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system is full, or a quota is used up.
    #[error("no space left in the blob store {path}: free space there or put the store on a larger disk")]
    Full {
        /// The store's directory.
        path: PathBuf,
    },
    /// Anything else the file system says.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A digest that is no sha256 digest.
    #[error("{digest:?} is not a sha256 digest")]
    NotADigest {
        /// What was given.
        digest: String,
    },
    /// A blob is not what its name says.
    #[error("the blob {expected} came as {found}: it was damaged or tampered with on its way")]
    WrongDigest {
        /// The digest that was asked for.
        expected: String,
        /// The digest of what came.
        found: String,
    },
}

impl StoreError {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path: path.to_owned() },
            _ => Self::Io { operation, path: path.to_owned(), source },
        }
    }
}

/// A directory of blobs, readable by root alone, since they hold memory.
#[derive(Debug, Clone)]
pub struct BlobStore {
    root: PathBuf,
}

impl BlobStore {
    /// Opens a store, and makes it where there is none.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        for directory in [root.join("blobs/sha256"), root.join("temporary")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|e| StoreError::io("create", &directory, e))?;
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o700))
            .map_err(|e| StoreError::io("protect", &root, e))?;
        Ok(Self { root })
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of a blob, present or not.
    pub fn path(&self, digest: &str) -> Result<PathBuf, StoreError> {
        if !digest::is_sha256(digest) {
            return Err(StoreError::NotADigest { digest: digest.to_owned() });
        }
        Ok(self.root.join("blobs/sha256").join(&digest["sha256:".len()..]))
    }

    /// Opens a blob; `None` if it is not there, or not as long as it should be.
    pub fn get(&self, digest: &str, size: u64) -> Result<Option<File>, StoreError> {
        let path = self.path(digest)?;
        match File::open(&path) {
            Ok(file) => {
                let length = file.metadata().map_err(|e| StoreError::io("examine", &path, e))?.len();
                Ok((length == size).then_some(file))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("open", &path, e)),
        }
    }

    /// Stores some bytes and returns their digest.
    pub fn put(&self, bytes: &[u8]) -> Result<String, StoreError> {
        let digest = digest::sha256(bytes);
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(|e| StoreError::io("write", &self.root, e))?;
        self.keep(file, &digest)?;
        Ok(digest)
    }

    /// Removes a blob; no error if it is not there.
    pub fn remove(&self, digest: &str) -> Result<(), StoreError> {
        let path = self.path(digest)?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// Removes what writers that were killed left behind. Only for when nothing writes, as at the start.
    pub fn remove_leftovers(&self) -> Result<(), StoreError> {
        let directory = self.root.join("temporary");
        let failed = |e| StoreError::io("empty", &directory, e);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    /// A file that vanishes unless it is kept.
    pub(crate) fn temporary(&self) -> Result<NamedTempFile, StoreError> {
        let directory = self.root.join("temporary");
        NamedTempFile::new_in(&directory).map_err(|e| StoreError::io("create a file in", &directory, e))
    }

    /// Names a written file by its digest.
    pub(crate) fn keep(&self, file: NamedTempFile, digest: &str) -> Result<(), StoreError> {
        let path = self.path(digest)?;
        file.persist(&path).map_err(|e| StoreError::io("store", &path, e.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_found_by_its_digest_and_only_at_its_full_length() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path().join("store")).unwrap();
        let digest = store.put(b"frozen").unwrap();
        assert!(store.get(&digest, 6).unwrap().is_some());
        fs::write(store.path(&digest).unwrap(), b"fro").unwrap();
        assert!(store.get(&digest, 6).unwrap().is_none());
        assert!(store.get(&digest::sha256(b"other"), 5).unwrap().is_none());
    }

    #[test]
    fn nobody_but_the_owner_reads_a_store() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path().join("store")).unwrap();
        let digest = store.put(b"secret").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(store.root()), 0o700);
        assert_eq!(mode(&store.path(&digest).unwrap()), 0o600);
    }

    #[test]
    fn leftovers_of_a_killed_writer_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let leftover = store.temporary().unwrap().keep().unwrap().1;
        store.remove_leftovers().unwrap();
        assert!(!leftover.exists());
    }
}
