//! Progress of what is read.

use std::io::{self, Read};

/// A reader that tells how far it is.
#[derive(Debug)]
pub(crate) struct Counting<R, P> {
    reader: R,
    progress: P,
    /// Bytes so far.
    pub(crate) read: u64,
}

impl<R: Read, P: FnMut(u64)> Counting<R, P> {
    pub(crate) fn new(reader: R, progress: P) -> Self {
        Self { reader, progress, read: 0 }
    }
}

impl<R: Read, P: FnMut(u64)> Read for Counting<R, P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.read += read as u64;
        (self.progress)(self.read);
        Ok(read)
    }
}
