//! Reading a file into a layer while its own digest is made.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use crate::digest::HashThread;

/// A reader whose bytes are hashed as they pass, and whose own errors are told from the writer's.
#[derive(Debug)]
pub(crate) struct Hashing {
    file: File,
    pending: Vec<u8>,
    hash: HashThread,
    read: u64,
    /// Why reading failed.
    pub(crate) failed: Option<io::Error>,
}

impl Hashing {
    const BLOCK: usize = 1 << 20;

    pub(crate) fn new(file: File) -> Self {
        let pending = Vec::with_capacity(Self::BLOCK);
        Self { file, pending, hash: HashThread::start(), read: 0, failed: None }
    }

    fn pass_on(&mut self) {
        let block = std::mem::replace(&mut self.pending, Vec::with_capacity(Self::BLOCK));
        self.hash.update(Arc::new(block));
    }

    /// The digest of what was read, and how much it was.
    pub(crate) fn finish(mut self) -> (String, u64) {
        self.pass_on();
        (self.hash.finish(), self.read)
    }
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read(buffer) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(io::Error::new(e.kind(), e.to_string()));
                return Err(e);
            }
            result => result?,
        };
        self.pending.extend_from_slice(&buffer[..read]);
        self.read += read as u64;
        if self.pending.len() >= Self::BLOCK {
            self.pass_on();
        }
        Ok(read)
    }
}
