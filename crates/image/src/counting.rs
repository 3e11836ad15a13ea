//! Reading a page file into its layer, with its progress.

use std::fs::File;
use std::io::{self, Read};

/// A reader that tells how far it is, and whose own errors are told from the writer's.
#[derive(Debug)]
pub(crate) struct Counting<P> {
    file: File,
    progress: P,
    /// Bytes so far.
    pub(crate) read: u64,
    /// Why reading failed.
    pub(crate) failed: Option<io::Error>,
}

impl<P: FnMut(u64)> Counting<P> {
    pub(crate) fn new(file: File, progress: P) -> Self {
        Self { file, progress, read: 0, failed: None }
    }
}

impl<P: FnMut(u64)> Read for Counting<P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.file.read(buffer) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(io::Error::new(e.kind(), e.to_string()));
                return Err(e);
            }
            result => result?,
        };
        self.read += read as u64;
        (self.progress)(self.read);
        Ok(read)
    }
}
