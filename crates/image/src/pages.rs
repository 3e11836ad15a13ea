//! Page files become layers: memory, which is most of an image, is read where it lies, and hashed and compressed side by side.
//!
//! ```text
//!   pages-N.img      │ block 0 │ block 1 │ … │ block n │
//!                         │         │             │          one pool of threads for all page files;
//!   sha256 (diff_id)  ◄───┼─────────┼─────────────┤          the hashes first, for none of them can be divided
//!                         ▼         ▼             ▼
//!   layer     head │ frame 0 │ frame 1 │ … │ frame n │ tail ──► sha256 (digest)
//! ```
//!
//! Head and tail are those of a tar archive whose last entry the page file is. A frame that was made while CRIU wrote the file (see
//! [`crate::ahead`]) is taken as it is: it is the same that would be made here.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::NamedTempFile;

use crate::ahead::Frames;
use crate::build::{BuildError, MemoryProgress};
use crate::digest::Hash;
use crate::frame::Framer;
use crate::labels;
use crate::layer::{Compression, Layer};
use crate::page_file::PageFile;
use crate::store::{BlobStore, StoreError};

/// Frames for each thread that may wait for one before them.
const MOST_WAITING: usize = 4;

/// What a thread of the pool does at a time; numbers are of page files and of their blocks.
#[derive(Clone, Copy)]
enum Job {
    Hash(usize),
    Frame(usize, usize),
}

enum Done {
    Hash(usize, String),
    Frame(usize, usize, Vec<u8>),
}

/// Writes each page file as a layer; some of its frames may be there already. `progress` is told how many bytes of memory are in layers.
///
/// # Errors
/// A page file cannot be read, or is shorter than what is kept of it; the store. No layer is kept in that case.
pub(crate) fn write(
    store: &BlobStore,
    compression: Compression,
    files: Vec<(PageFile, Frames)>,
    progress: Option<&MemoryProgress>,
) -> Result<Vec<Layer>, BuildError> {
    let framer = || {
        let made = Framer::new(compression.level);
        made.map_err(|e| StoreError::io("set up zstd for", store.root(), e))
    };
    let mut own = framer()?;
    let (files, frames): (Vec<_>, Vec<_>) = files.into_iter().unzip();
    let mut writers = Vec::new();
    for (file, frames) in files.iter().zip(frames) {
        writers.push(Writer::new(store, file, &mut own, file.of_use(frames).collect())?);
    }
    let threads = compression.threads.max(1) as usize;
    let ready: usize = writers.iter().map(|writer| writer.waiting.len()).sum();
    let mut jobs = jobs(&writers).into_iter();
    std::thread::scope(|scope| {
        let (queue, todo) = channel();
        let (done, finished) = channel();
        let todo = Arc::new(Mutex::new(todo));
        for _ in 0..threads.min(jobs.len()) {
            let (todo, done, files, framer) = (Arc::clone(&todo), done.clone(), files.as_slice(), framer()?);
            scope.spawn(move || work(files, &todo, framer, &done));
        }
        drop(done);
        let mut written = 0;
        let mut tell = |bytes| {
            written += bytes;
            if let Some(progress) = progress {
                progress(written);
            }
        };
        for writer in &mut writers {
            tell(writer.write_on()?);
        }
        let mut under_way = 0;
        loop {
            // A frame that takes long holds up those behind it, which are not to fill the memory meanwhile.
            let waiting: usize = writers.iter().map(|writer| writer.waiting.len()).sum();
            while under_way < 2 * threads && waiting < ready + MOST_WAITING * threads {
                let Some(job) = jobs.next() else { break };
                under_way += 1;
                // Somebody listens as long as this function does.
                let _ = queue.send(job);
            }
            if under_way == 0 {
                return Ok::<_, BuildError>(());
            }
            under_way -= 1;
            match finished.recv().expect("a thread of the pool panicked")? {
                Done::Hash(file, digest) => writers[file].diff_id = digest,
                Done::Frame(file, block, frame) => {
                    writers[file].waiting.insert(block, frame);
                    tell(writers[file].write_on()?);
                }
            }
        }
    })?;
    writers.into_iter().map(|writer| Ok(writer.finish(&mut own)?)).collect()
}

/// All that is left to do.
fn jobs(writers: &[Writer<'_>]) -> Vec<Job> {
    let frames = writers.iter().enumerate().flat_map(|(number, writer)| {
        let missing = (0..writer.file.blocks()).filter(|block| !writer.waiting.contains_key(block));
        missing.map(move |block| Job::Frame(number, block))
    });
    (0..writers.len()).map(Job::Hash).chain(frames).collect()
}

/// A thread of the pool. It ends when nobody has anything to do for it.
fn work(
    files: &[PageFile],
    todo: &Mutex<Receiver<Job>>,
    mut framer: Framer,
    done: &Sender<Result<Done, BuildError>>,
) {
    loop {
        let Ok(job) = todo.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
        let result = match job {
            Job::Hash(file) => files[file].hash().map(|digest| Done::Hash(file, digest)),
            Job::Frame(file, block) => {
                files[file].frame(block, &mut framer).map(|frame| Done::Frame(file, block, frame))
            }
        };
        if done.send(result).is_err() {
            return;
        }
    }
}

/// A layer that is being written.
struct Writer<'a> {
    store: &'a BlobStore,
    file: &'a PageFile,
    out: NamedTempFile,
    hash: Hash,
    size: u64,
    /// The block whose frame is written next.
    next: usize,
    /// Frames that wait for others.
    waiting: BTreeMap<usize, Vec<u8>>,
    diff_id: String,
}

impl<'a> Writer<'a> {
    fn new(
        store: &'a BlobStore,
        file: &'a PageFile,
        framer: &mut Framer,
        waiting: BTreeMap<usize, Vec<u8>>,
    ) -> Result<Self, StoreError> {
        let (out, hash) = (store.temporary()?, Hash::new());
        let mut new = Self { store, file, out, hash, size: 0, next: 0, waiting, diff_id: String::new() };
        new.write(framer.of(&file.head))?;
        Ok(new)
    }

    /// Writes all frames whose turn it is, and tells how many bytes they are of the page file.
    fn write_on(&mut self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        while let Some(frame) = self.waiting.remove(&self.next) {
            self.write(Ok(frame))?;
            bytes += self.file.size_of(self.next);
            self.next += 1;
        }
        Ok(bytes)
    }

    fn finish(mut self, framer: &mut Framer) -> Result<Layer, StoreError> {
        debug_assert_eq!(self.next, self.file.blocks());
        self.write(framer.of(&self.file.tail))?;
        let digest = self.hash.finish();
        self.store.keep(self.out, &digest)?;
        Ok(Layer {
            digest,
            size: self.size,
            diff_id: self.diff_id,
            uncompressed: self.file.head.len() as u64 + self.file.size() + self.file.tail.len() as u64,
            role: labels::ROLE_MEMORY,
        })
    }

    fn write(&mut self, frame: io::Result<Vec<u8>>) -> Result<(), StoreError> {
        let written = frame.and_then(|frame| {
            self.hash.update(&frame);
            self.size += frame.len() as u64;
            self.out.write_all(&frame)
        });
        written.map_err(|e| StoreError::io("write a memory layer to", self.store.root(), e))
    }
}
