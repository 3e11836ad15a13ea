//! Files with holes: which parts of a file are data, reading it without touching its holes, and the map that GNU tar's
//! sparse format 1.0 puts before the data of such a file.
//!
//! Volumes use that format, for both ends are ours. Layers do not: containerd would fill the holes anyway, and tools
//! that rebuild layers (tar-split, in podman and Docker) lose the layer's digest over it. There a hole is zeros, which
//! zstd makes nothing of.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// A part of a file that is data: `(offset, length)`.
pub(crate) type Extent = (u64, u64);

/// More extents than this in a map that is read are refused.
const MAX_EXTENTS: u64 = 1 << 20;

/// The data of a file up to `size` (lseek(2), SEEK_DATA); all of it where the file system does not know.
pub(crate) fn extents(file: &File, size: u64) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut offset = 0;
    while offset < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // No data after here.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(0, size)]),
            Err(e) => return Err(e.into()),
        };
        if start >= size {
            break;
        }
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        if end <= start {
            break;
        }
        extents.push((start, end - start));
        offset = end;
    }
    Ok(extents)
}

/// Reads a file from its extents. With `holes` they read as zeros, else the extents follow each other.
#[derive(Debug)]
pub(crate) struct Content<'f> {
    file: &'f File,
    extents: Vec<Extent>,
    next: usize,
    current: Extent,
    zeros: u64,
    /// Where the last extent ended.
    position: u64,
    size: u64,
    holes: bool,
    /// Why reading failed, to tell it from a failure to write.
    pub(crate) failed: Option<io::Error>,
}

impl<'f> Content<'f> {
    pub(crate) fn new(file: &'f File, extents: &[Extent], size: u64, holes: bool) -> Self {
        Self {
            file,
            extents: extents.to_vec(),
            next: 0,
            current: (0, 0),
            zeros: 0,
            position: 0,
            size,
            holes,
            failed: None,
        }
    }

    /// Goes to the next extent; `false` at the end.
    fn advance(&mut self) -> bool {
        let next = self.extents.get(self.next).copied();
        self.next += 1;
        let (start, length) = next.unwrap_or((self.size, 0));
        if self.holes {
            self.zeros = start.saturating_sub(self.position);
        }
        self.current = (start, length);
        self.position = start + length;
        next.is_some() || self.zeros > 0
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.zeros == 0 && self.current.1 == 0 {
            if !self.advance() {
                return Ok(0);
            }
        }
        if self.zeros > 0 {
            let most = self.zeros.min(buffer.len() as u64) as usize;
            buffer[..most].fill(0);
            self.zeros -= most as u64;
            return Ok(most);
        }
        let most = self.current.1.min(buffer.len() as u64) as usize;
        let read = match self.file.read_at(&mut buffer[..most], self.current.0) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                self.failed = Some(io::Error::new(e.kind(), e.to_string()));
                return Err(e);
            }
            result => result?,
        };
        self.current = (self.current.0 + read as u64, self.current.1 - read as u64);
        Ok(read)
    }
}

/// The map: how many extents, then offset and length of each, a line a number, padded to tar's blocks. A file that
/// ends in a hole has an empty extent at its end, as GNU tar writes it.
pub(crate) fn map(extents: &[Extent], size: u64) -> Vec<u8> {
    let ends_in_hole = extents.last().is_none_or(|(offset, length)| offset + length < size);
    let all: Vec<Extent> = extents.iter().copied().chain(ends_in_hole.then_some((size, 0))).collect();
    let mut map = format!("{}\n", all.len());
    for (offset, length) in all {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

/// Reads a map and its padding, and checks that its extents ascend and end within `size`.
pub(crate) fn read_map(reader: &mut impl BufRead, size: u64) -> io::Result<Vec<Extent>> {
    let mut read = 0;
    let count = read_number(reader, &mut read)?;
    if count > MAX_EXTENTS {
        return Err(invalid("a sparse file has too many extents"));
    }
    let mut extents = Vec::new();
    let mut position = 0;
    for _ in 0..count {
        let offset = read_number(reader, &mut read)?;
        let length = read_number(reader, &mut read)?;
        let end = offset.checked_add(length).filter(|end| offset >= position && *end <= size);
        position = end.ok_or_else(|| invalid("the extents of a sparse file are out of order or too long"))?;
        extents.push((offset, length));
    }
    let padding = read.next_multiple_of(512) - read;
    io::copy(&mut reader.take(padding), &mut io::sink())?;
    Ok(extents)
}

fn read_number(reader: &mut impl BufRead, read: &mut u64) -> io::Result<u64> {
    let mut line = Vec::new();
    *read += reader.take(24).read_until(b'\n', &mut line)? as u64;
    let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid("the map of a sparse file is not made of numbers"))
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse_file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.write_all_at(b"middle", 1 << 20).unwrap();
        file.set_len(4 << 20).unwrap();
        file
    }

    #[test]
    fn holes_are_found_and_read_as_zeros() {
        let file = sparse_file();
        let found = extents(&file, 4 << 20).unwrap();
        assert!(found.iter().map(|e| e.1).sum::<u64>() < 1 << 20, "{found:?}");
        let mut whole = Vec::new();
        Content::new(&file, &found, 4 << 20, true).read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len(), 4 << 20);
        assert_eq!(&whole[..4], b"head");
        assert_eq!(&whole[1 << 20..][..6], b"middle");
        assert!(whole[(1 << 20) + 4096..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_map_is_read_back() {
        for found in [vec![(0, 4096), (1 << 20, 4096)], vec![], vec![(0, 1 << 21)]] {
            let bytes = map(&found, 1 << 21);
            assert_eq!(bytes.len() % 512, 0);
            let mut read = read_map(&mut bytes.as_slice(), 1 << 21).unwrap();
            read.retain(|extent| extent.1 > 0);
            assert_eq!(read, found);
        }
    }

    #[test]
    fn a_hostile_map_is_refused() {
        for bytes in
            [&b"99999999\n"[..], b"1\n0\n5000\n", b"2\n10\n5\n0\n5\n", b"1\n18446744073709551615\n2\n", b"x"]
        {
            read_map(&mut &bytes[..], 4096).unwrap_err();
        }
    }
}
