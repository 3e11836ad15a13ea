//! Frames of zstd: what is compressed on its own. One behind the other, readers take them for one stream (RFC 8878, section 3.1),
//! so the parts of a layer can be compressed in any order, by any number of threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use zstd::bulk::Compressor;
use zstd::zstd_safe::{self, CParameter};

use crate::sparse::Extent;

/// Bytes of a page file that become one frame, less what is left out of them. The digests of layers depend on it. Frames of half as much
/// are a percent larger in all, those of twice as much are no smaller.
pub(crate) const BLOCK: u64 = 2 << 20;

/// Makes frames, all with the buffers of the first.
pub(crate) struct Framer {
    compressor: Compressor<'static>,
    content: Vec<u8>,
    out: Vec<u8>,
}

impl Framer {
    /// # Errors
    /// zstd does not know the level.
    pub(crate) fn new(level: i32) -> io::Result<Self> {
        let mut compressor = Compressor::new(level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(Self { compressor, content: Vec::new(), out: Vec::new() })
    }

    /// A frame of some bytes.
    ///
    /// # Errors
    /// zstd has no memory.
    pub(crate) fn of(&mut self, content: &[u8]) -> io::Result<Vec<u8>> {
        Self::compress(&mut self.compressor, &mut self.out, content)
    }

    /// A frame of parts of a file, one behind the other.
    ///
    /// # Errors
    /// The file cannot be read, or is shorter.
    pub(crate) fn of_file(&mut self, file: &File, parts: &[Extent]) -> io::Result<Vec<u8>> {
        let length = parts.iter().map(|part| part.1).sum::<u64>() as usize;
        if self.content.len() < length {
            self.content.resize(length, 0);
        }
        let mut at = 0;
        for &(offset, length) in parts {
            let end = at + length as usize;
            file.read_exact_at(&mut self.content[at..end], offset)?;
            at = end;
        }
        Self::compress(&mut self.compressor, &mut self.out, &self.content[..length])
    }

    fn compress(compressor: &mut Compressor<'_>, out: &mut Vec<u8>, content: &[u8]) -> io::Result<Vec<u8>> {
        let bound = zstd_safe::compress_bound(content.len());
        if out.len() < bound {
            out.resize(bound, 0);
        }
        let length = compressor.compress_to_buffer(content, &mut out[..])?;
        Ok(out[..length].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_does_not_depend_on_those_before_it() {
        let content: Vec<u8> =
            (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content, 0).unwrap();
        let parts = [(4096, 1_000_000), (2_000_000, 500_000)];
        let mut used = Framer::new(1).unwrap();
        used.of(&content).unwrap();
        used.of_file(&file, &[(7, 70_000)]).unwrap();
        let frame = used.of_file(&file, &parts).unwrap();
        assert_eq!(frame, Framer::new(1).unwrap().of_file(&file, &parts).unwrap());
        let back = zstd::decode_all(frame.as_slice()).unwrap();
        assert!(back == [&content[4096..1_004_096], &content[2_000_000..2_500_000]].concat());
    }
}
