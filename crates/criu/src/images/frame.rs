//! The framing of image files: two magic numbers, then entries of a 32-bit length and that many bytes.
//!
//! ```text
//!  ┌──────────────┬───────────────┬────────┬─────────┬────────┬─────────┬┄┄┄┐
//!  │ common magic │ magic of kind │ length │ entry 0 │ length │ entry 1 │   │  (numbers little-endian)
//!  └──────────────┴───────────────┴────────┴─────────┴────────┴─────────┴┄┄┄┘
//!   the inventory has only its own magic
//! ```

use super::error::ImageError;
use super::name::{COMMON_MAGIC, ImageName};

/// The entries of one image file in memory. Yields slices of it; a length that the file does not hold is an error.
#[derive(Debug)]
pub struct Frames<'a> {
    file: &'a str,
    bytes: &'a [u8],
    offset: usize,
    entry: usize,
}

impl<'a> Frames<'a> {
    /// Checks the magic numbers of `bytes`, which are the file called `file`.
    pub fn new(file: &'a str, name: &ImageName, bytes: &'a [u8]) -> Result<Self, ImageError> {
        let (magic, _) =
            name.format().ok_or_else(|| ImageError::inconsistent(file, "not a file of entries"))?;
        let mut frames = Self { file, bytes, offset: 0, entry: 0 };
        let expected: &[u32] = if *name == ImageName::Inventory { &[magic] } else { &[COMMON_MAGIC, magic] };
        for number in expected {
            let found = frames.number()?;
            if found != *number {
                return Err(ImageError::Magic {
                    file: file.into(),
                    kind: kind_name(name),
                    found: found.into(),
                });
            }
        }
        Ok(frames)
    }

    /// The name of the file, for messages.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// The next entry and its number.
    pub fn next_entry(&mut self) -> Result<Option<(usize, &'a [u8])>, ImageError> {
        if self.offset == self.bytes.len() {
            return Ok(None);
        }
        let length = self.number()? as usize;
        let bytes = self.take(length)?;
        self.entry += 1;
        Ok(Some((self.entry - 1, bytes)))
    }

    fn number(&mut self) -> Result<u32, ImageError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ImageError> {
        let rest = &self.bytes[self.offset..];
        let bytes = rest.get(..length).ok_or_else(|| ImageError::Truncated {
            file: self.file.into(),
            entry: self.entry,
            offset: self.bytes.len(),
        })?;
        self.offset += length;
        Ok(bytes)
    }
}

/// Begins a file of that kind: the magic numbers.
pub(crate) fn begin(name: &ImageName) -> Vec<u8> {
    let (magic, _) = name.format().expect("only files of entries are rewritten");
    let mut bytes = Vec::with_capacity(4096);
    if *name != ImageName::Inventory {
        bytes.extend_from_slice(&COMMON_MAGIC.to_le_bytes());
    }
    bytes.extend_from_slice(&magic.to_le_bytes());
    bytes
}

/// Appends an entry.
pub(crate) fn push(bytes: &mut Vec<u8>, entry: &impl prost::Message) {
    bytes.extend_from_slice(&(entry.encoded_len() as u32).to_le_bytes());
    entry.encode(bytes).expect("a vector takes any length");
}

fn kind_name(name: &ImageName) -> &'static str {
    match name {
        ImageName::Inventory => "inventory",
        ImageName::Pstree => "process tree",
        ImageName::Core(_) => "core",
        ImageName::Ids(_) => "ids",
        ImageName::Mm(_) => "address space",
        ImageName::Fs(_) => "fs",
        ImageName::Pagemap(_) | ImageName::PagemapShmem(_) => "page map",
        ImageName::Files => "files",
        ImageName::Fdinfo(_) => "descriptor table",
        ImageName::Seccomp => "seccomp",
        ImageName::Timens(_) => "time namespace",
        ImageName::RemapFpath => "remap",
        ImageName::GhostFile(_) => "ghost file",
        ImageName::Memfd => "memfd",
        ImageName::TtyInfo => "terminal",
        ImageName::TcpStream(_) => "tcp stream",
        ImageName::Filelocks => "file lock",
        _ => "image",
    }
}
