//! One of CRIU's page files, as the content of a layer that is to be written: what of it is kept, in blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::ahead::Frames;
use crate::archive::{self, Entry};
use crate::build::BuildError;
use crate::digest::Hash;
use crate::frame::{BLOCK, Framer};
use crate::sparse::Extent;

/// Bytes that are hashed at a time: they fit into a core's cache.
const PIECE: u64 = 256 << 10;

/// Whether one of CRIU's files is a page file.
pub(crate) fn is_memory(name: &str) -> bool {
    name.starts_with("pages-")
}

/// A page file.
#[derive(Debug)]
pub(crate) struct PageFile {
    path: PathBuf,
    file: File,
    /// What is kept of it.
    extents: Vec<Extent>,
    /// The same, by block.
    blocks: Vec<(u64, Vec<Extent>)>,
    /// What comes before and after it in its layer.
    pub(crate) head: Vec<u8>,
    pub(crate) tail: Vec<u8>,
}

impl PageFile {
    /// Opens one, of which `kept` is taken; all of it without that. `entry` says what it is in its layer, for a size, and which directories
    /// come before it.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(
        path: &Path,
        kept: Option<Vec<Extent>>,
        entry: impl FnOnce(u64) -> (Vec<Entry>, Entry),
    ) -> Result<Self, BuildError> {
        let failed = |source| BuildError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let extents = kept.unwrap_or_else(|| vec![(0, length)]);
        let (directories, entry) = entry(extents.iter().map(|extent| extent.1).sum());
        let (head, tail) = archive::around(&directories, &entry).map_err(failed)?;
        let blocks = in_blocks(&extents);
        Ok(Self { path: path.to_owned(), file, extents, blocks, head, tail })
    }

    /// Bytes that are kept of it.
    pub(crate) fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.1).sum()
    }

    /// Of how many blocks something is kept.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes that are kept of one of those blocks.
    pub(crate) fn size_of(&self, block: usize) -> u64 {
        self.blocks[block].1.iter().map(|part| part.1).sum()
    }

    /// What can be taken of frames of its blocks: those of blocks that are kept whole, numbered as they are here.
    pub(crate) fn of_use(&self, mut frames: Frames) -> impl Iterator<Item = (usize, Vec<u8>)> {
        self.blocks.iter().enumerate().filter_map(move |(number, (block, parts))| {
            let whole = parts.as_slice() == [(block * BLOCK, BLOCK)];
            frames.remove(block).filter(|_| whole).map(|frame| (number, frame))
        })
    }

    /// The frame of one of its blocks.
    ///
    /// # Errors
    /// It cannot be read, or is shorter.
    pub(crate) fn frame(&self, block: usize, framer: &mut Framer) -> Result<Vec<u8>, BuildError> {
        framer.of_file(&self.file, &self.blocks[block].1).map_err(|e| self.failed(e))
    }

    /// The digest of its layer before compression.
    ///
    /// # Errors
    /// It cannot be read, or is shorter.
    pub(crate) fn hash(&self) -> Result<String, BuildError> {
        let mut hash = Hash::new();
        hash.update(&self.head);
        let mut buffer = vec![0; PIECE as usize];
        for &(offset, length) in &self.extents {
            for at in (0..length).step_by(PIECE as usize) {
                let piece = &mut buffer[..PIECE.min(length - at) as usize];
                self.file.read_exact_at(piece, offset + at).map_err(|e| self.failed(e))?;
                hash.update(piece);
            }
        }
        hash.update(&self.tail);
        Ok(hash.finish())
    }

    fn failed(&self, source: io::Error) -> BuildError {
        match source.kind() {
            io::ErrorKind::UnexpectedEof => BuildError::Changed { path: self.path.clone() },
            _ => BuildError::Read { path: self.path.clone(), source },
        }
    }
}

/// Cuts extents at the borders of blocks.
fn in_blocks(extents: &[Extent]) -> Vec<(u64, Vec<Extent>)> {
    let mut blocks: Vec<(u64, Vec<Extent>)> = Vec::new();
    for &(offset, length) in extents {
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let block = at / BLOCK;
            let part = (at, end.min((block + 1) * BLOCK) - at);
            match blocks.last_mut() {
                Some((last, parts)) if *last == block => parts.push(part),
                _ => blocks.push((block, vec![part])),
            }
            at += part.1;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_at_the_borders_of_blocks() {
        let extents = [(0, 10), (20, BLOCK), (3 * BLOCK, 2 * BLOCK)];
        let expected = [
            (0, vec![(0, 10), (20, BLOCK - 20)]),
            (1, vec![(BLOCK, 20)]),
            (3, vec![(3 * BLOCK, BLOCK)]),
            (4, vec![(4 * BLOCK, BLOCK)]),
        ];
        assert_eq!(in_blocks(&extents), expected);
    }
}
