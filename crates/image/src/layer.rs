//! One layer: a tar stream, hashed, compressed and hashed again on its way into the blob store.
//!
//! ```text
//!   files ──► tar ──► blocks of 1 MiB ──┬──► sha256 (diff_id)          one thread
//!                                       └──► zstd, a thread a core ──► sha256 (digest), one thread ──► file
//! ```
//!
//! Nothing uncompressed is ever written. The compressed bytes depend on the input, the level and the version
//! of zstd, not on the number of threads, so the same input gives the same digest on every node.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use tempfile::NamedTempFile;

use crate::archive::Archive;
use crate::digest::HashThread;
use crate::labels;
use crate::store::{BlobStore, StoreError};

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    /// zstd's level. On 490 MB of a JVM level 1 left 16 %; level 3 no less, for half as much work again; the
    /// levels below zero a tenth more, for no less work once everything is hashed as well.
    pub level: i32,
    /// Threads for zstd, at least 1. The result does not depend on it.
    pub threads: u32,
}

impl Default for Compression {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        Self { level: 1, threads }
    }
}

/// A layer in the blob store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the compressed bytes: the blob's name.
    pub digest: String,
    /// Bytes, compressed.
    pub size: u64,
    /// Digest of the tar stream: the layer's name in the config.
    pub diff_id: String,
    /// Bytes of the tar stream.
    pub uncompressed: u64,
    /// What the layer is: a value of [`labels::ROLE`].
    pub role: &'static str,
}

/// Writes what `fill` appends as one layer, and returns what `fill` returned. On an error nothing is kept.
pub(crate) fn write<T, E>(
    store: &BlobStore,
    compression: Compression,
    role: &'static str,
    fill: impl FnOnce(&mut Archive<Sink>) -> Result<T, E>,
) -> Result<(Layer, T), E>
where
    E: From<StoreError>,
{
    let failed = |e| StoreError::io("write a layer to", store.root(), e);
    let mut archive = Archive::new(Sink::new(store, compression)?);
    let value = fill(&mut archive)?;
    let sink = archive.finish().map_err(failed)?;
    let written = sink.finish().map_err(failed)?;
    store.keep(written.file, &written.digest)?;
    let layer = Layer {
        digest: written.digest,
        size: written.size,
        diff_id: written.diff_id,
        uncompressed: written.uncompressed,
        role,
    };
    Ok((layer, value))
}

impl Layer {
    /// The layer's media type.
    pub fn media_type(&self) -> &'static str {
        labels::LAYER_MEDIA_TYPE
    }
}

/// Bytes that travel together between threads.
const BLOCK: usize = 1 << 20;

/// Where a layer's tar stream goes.
#[derive(Debug)]
pub(crate) struct Sink {
    pending: Vec<u8>,
    uncompressed: u64,
    hash: HashThread,
    zstd: Zstd,
}

/// `zstd::Encoder` has no `Debug`.
struct Zstd(zstd::Encoder<'static, Hashed>);

impl std::fmt::Debug for Zstd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Zstd").finish_non_exhaustive()
    }
}

struct Written {
    file: NamedTempFile,
    digest: String,
    size: u64,
    diff_id: String,
    uncompressed: u64,
}

impl Sink {
    fn new(store: &BlobStore, compression: Compression) -> Result<Self, StoreError> {
        let setup = |e| StoreError::io("set up zstd for", store.root(), e);
        let out = Hashed::new(store.temporary()?);
        let mut encoder = zstd::Encoder::new(out, compression.level).map_err(setup)?;
        encoder.multithread(compression.threads.max(1)).map_err(setup)?;
        encoder.include_checksum(true).map_err(setup)?;
        Ok(Self {
            pending: Vec::with_capacity(BLOCK),
            uncompressed: 0,
            hash: HashThread::start(),
            zstd: Zstd(encoder),
        })
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let block = Arc::new(std::mem::replace(&mut self.pending, Vec::with_capacity(BLOCK)));
        self.uncompressed += block.len() as u64;
        self.hash.update(Arc::clone(&block));
        self.zstd.0.write_all(&block)
    }

    fn finish(mut self) -> io::Result<Written> {
        self.pass_on()?;
        let (file, digest, size) = self.zstd.0.finish()?.finish()?;
        Ok(Written { file, digest, size, diff_id: self.hash.finish(), uncompressed: self.uncompressed })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == BLOCK {
            self.pass_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file whose bytes are hashed as they are written.
#[derive(Debug)]
struct Hashed {
    file: NamedTempFile,
    pending: Vec<u8>,
    hash: HashThread,
    size: u64,
}

impl Hashed {
    fn new(file: NamedTempFile) -> Self {
        Self { file, pending: Vec::with_capacity(BLOCK), hash: HashThread::start(), size: 0 }
    }

    fn pass_on(&mut self) -> io::Result<()> {
        let block = Arc::new(std::mem::replace(&mut self.pending, Vec::with_capacity(BLOCK)));
        self.size += block.len() as u64;
        self.hash.update(Arc::clone(&block));
        self.file.write_all(&block)
    }

    fn finish(mut self) -> io::Result<(NamedTempFile, String, u64)> {
        self.pass_on()?;
        Ok((self.file, self.hash.finish(), self.size))
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.pending.len());
        self.pending.extend_from_slice(&bytes[..taken]);
        if self.pending.len() == BLOCK {
            self.pass_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the tar stream of a layer that was written here.
pub(crate) fn read(blob: File) -> io::Result<tar::Archive<zstd::Decoder<'static, io::BufReader<File>>>> {
    Ok(tar::Archive::new(zstd::Decoder::new(blob)?))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::archive::{Entry, Kind, Time};
    use crate::digest;

    fn layer_of(store: &BlobStore, threads: u32, content: &[u8]) -> Layer {
        let entry = Entry::of_root(
            *b"pages-1.img",
            Kind::File { size: content.len() as u64 },
            0o600,
            Time { seconds: 0, nanoseconds: 0 },
        );
        let compression = Compression { threads, ..Compression::default() };
        let fill = |archive: &mut Archive<Sink>| -> Result<_, StoreError> {
            Ok(archive.append_file(&entry, content).unwrap())
        };
        write(store, compression, labels::ROLE_MEMORY, fill).unwrap().0
    }

    fn content() -> Vec<u8> {
        (0..5_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8).collect()
    }

    #[test]
    fn a_layer_is_named_by_its_compressed_and_by_its_uncompressed_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let layer = layer_of(&store, 2, &content());
        let blob = std::fs::read(store.path(&layer.digest).unwrap()).unwrap();
        assert_eq!(digest::sha256(&blob), layer.digest);
        assert_eq!(blob.len() as u64, layer.size);
        let tar = zstd::decode_all(blob.as_slice()).unwrap();
        assert_eq!(digest::sha256(&tar), layer.diff_id);
        assert_eq!(tar.len() as u64, layer.uncompressed);
    }

    #[test]
    fn the_number_of_threads_does_not_change_the_digest() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        assert_eq!(layer_of(&store, 1, &content()), layer_of(&store, 4, &content()));
    }

    #[test]
    fn what_goes_in_comes_out() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let layer = layer_of(&store, 2, &content());
        let blob = store.get(&layer.digest, layer.size).unwrap().unwrap();
        let mut archive = read(blob).unwrap();
        let mut found = Vec::new();
        archive.entries().unwrap().next().unwrap().unwrap().read_to_end(&mut found).unwrap();
        assert!(found == content());
    }

    #[test]
    fn a_layer_that_fails_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let store = BlobStore::open(directory.path()).unwrap();
        let failed: Result<(Layer, ()), StoreError> =
            write(&store, Compression::default(), labels::ROLE_DIFF, |_| {
                Err(StoreError::NotADigest { digest: String::new() })
            });
        failed.unwrap_err();
        assert_eq!(std::fs::read_dir(directory.path().join("temporary")).unwrap().count(), 0);
    }
}
