//! Memory that need not be in an image: pages of zeros, which private anonymous memory has by itself where nothing is restored.
//!
//! ```text
//!   pagemap   │ run of 5 pages │ run of 2 │          │ run │ run │ run of 2 │      rewritten
//!   pages     │ a  0  0  0  b  │ c  d     │   ──►    │ a   │ b   │ c  d     │      extents that are kept
//! ```
//!
//! A heap that was touched and never used, or that huge pages back, consists of them. Who calls it: a freeze, between the dump
//! and the build of the image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;

use rustix::fs::{Mode, OFlags, openat};
use woodfrog_sys::mapping::Mapping;

use super::dir::ImageDir;
use super::error::ImageError;
use super::frame::{self, Frames};
use super::messages::memory::{Pagemap, PagemapHead};
use super::name::ImageName;
use super::strict::decode;
use super::{PAGE_SIZE, PagesFile};

/// Shorter stretches of zeros stay: each that goes makes an entry more, and at a restore a system call more.
const FEWEST: u64 = 8;
/// Bytes that are looked at in one go.
const PIECE: u64 = 1 << 20;
const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
/// Most bytes of a page map.
const MAX_PAGEMAP: u64 = 32 << 20;

/// Of each page file that has zeros, what is kept: offsets and lengths in bytes, ascending.
pub type Kept = BTreeMap<String, Vec<(u64, u64)>>;

/// Takes zeros out of the page maps of a dump, and tells what of the page files they describe from then on.
///
/// # Errors
/// A page map cannot be read or written, or describes more than there is.
pub fn leave_out(dir: &ImageDir) -> Result<Kept, ImageError> {
    let mut kept = Kept::new();
    for name in dir.names()? {
        let kind @ ImageName::Pagemap(_) = ImageName::parse(&name) else { continue };
        let pages = read(dir, &kind, &name)?;
        let failed = |operation| {
            let file = pages.file_name();
            move |source| ImageError::Io { operation, file, source }
        };
        let length = dir.length(&pages.file_name())?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, pages.file_name(), flags, Mode::empty())
            .map_err(|errno| failed("open")(errno.into()))?;
        let mapping = Mapping::new(file, length as usize).map_err(|errno| failed("map")(errno.into()))?;
        let Trimmed { runs, extents } = trim(&pages.runs, |offset, length| mapping.read(offset, length))
            .ok_or_else(|| ImageError::inconsistent(&name, "describes more pages than there are"))?;
        if runs.len() > pages.runs.len() || extents.iter().map(|extent| extent.1).sum::<u64>() < length {
            write(dir, &kind, &name, pages.pages_id, &runs)?;
            kept.insert(pages.file_name(), extents);
        }
    }
    Ok(kept)
}

fn read(dir: &ImageDir, kind: &ImageName, name: &str) -> Result<PagesFile, ImageError> {
    let bytes = dir.read(name, MAX_PAGEMAP)?;
    let mut frames = Frames::new(name, kind, &bytes)?;
    let Some((_, head)) = frames.next_entry()? else {
        return Err(ImageError::inconsistent(name, "is empty"));
    };
    let head: PagemapHead = decode(name, 0, "pagemap_head", head)?;
    let mut runs = Vec::new();
    while let Some((number, entry)) = frames.next_entry()? {
        runs.push(decode(name, number, "pagemap_entry", entry)?);
    }
    Ok(PagesFile { pages_id: head.pages_id, runs })
}

fn write(dir: &ImageDir, kind: &ImageName, name: &str, id: u32, runs: &[Pagemap]) -> Result<(), ImageError> {
    let mut bytes = frame::begin(kind);
    frame::push(&mut bytes, &PagemapHead { pages_id: id });
    for run in runs {
        frame::push(&mut bytes, run);
    }
    let failed = |source| ImageError::Io { operation: "write", file: name.into(), source };
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = openat(dir, name, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    File::from(fd).write_all(&bytes).map_err(failed)
}

/// The runs without zeros, and where in the page file they are; none if `content` ends before them.
fn trim<'c>(runs: &[Pagemap], content: impl Fn(u64, u64) -> Option<&'c [u8]>) -> Option<Trimmed> {
    let mut trimmed = Trimmed::default();
    let mut offset = 0u64;
    for run in runs {
        let length = run.pages().checked_mul(PAGE_SIZE)?;
        // Only such memory can come later, and it is private and anonymous: in other memory, a page that is left out is the file's.
        let may_go = run.flags.unwrap_or(0) & Pagemap::LAZY != 0;
        let mut at = 0;
        // The page from which on there have been zeros.
        let mut zeros = None;
        let mut from = 0;
        while may_go && at < length {
            let piece = content(offset + at, PIECE.min(length - at))?;
            for page in piece.chunks(PAGE_SIZE as usize) {
                if page == ZEROS {
                    zeros.get_or_insert(at);
                } else if let Some(first) = zeros.take().filter(|first| at - first >= FEWEST * PAGE_SIZE) {
                    trimmed.keep(run, offset, from, first);
                    from = at;
                }
                at += PAGE_SIZE;
            }
        }
        let end = zeros.filter(|first| length - first >= FEWEST * PAGE_SIZE).unwrap_or(length);
        trimmed.keep(run, offset, from, end);
        offset += length;
    }
    Some(trimmed)
}

#[derive(Debug, Default)]
struct Trimmed {
    /// What is left of the page map.
    runs: Vec<Pagemap>,
    /// Where in the page file that is.
    extents: Vec<(u64, u64)>,
}

impl Trimmed {
    /// Keeps the bytes `from..to` of a run that begins at `offset` of the file.
    fn keep(&mut self, run: &Pagemap, offset: u64, from: u64, to: u64) {
        if from == to {
            return;
        }
        let pages = (to - from) / PAGE_SIZE;
        let vaddr = run.vaddr + from;
        if pages == run.pages() {
            self.runs.push(*run);
        } else {
            // CRIU looks at the older field only where the newer one is not.
            let nr_pages = run.nr_pages.map(|_| pages);
            self.runs.push(Pagemap { vaddr, compat_nr_pages: pages as u32, nr_pages, ..*run });
        }
        match self.extents.last_mut() {
            Some((start, length)) if *start + *length == offset + from => *length += to - from,
            _ => self.extents.push((offset + from, to - from)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAZY: u32 = Pagemap::PRESENT | Pagemap::LAZY;

    fn run(vaddr: u64, pages: u64, flags: u32) -> Pagemap {
        Pagemap {
            vaddr: vaddr * PAGE_SIZE,
            compat_nr_pages: pages as u32,
            in_parent: None,
            flags: Some(flags),
            nr_pages: Some(pages),
        }
    }

    /// A file of pages that are zeros or not.
    fn file(pages: &[(u64, u8)]) -> Vec<u8> {
        pages.iter().flat_map(|(count, byte)| vec![*byte; (count * PAGE_SIZE) as usize]).collect()
    }

    fn trimmed(runs: &[Pagemap], file: &[u8]) -> (Vec<Pagemap>, Vec<(u64, u64)>) {
        let content = |offset: u64, length: u64| file.get(offset as usize..(offset + length) as usize);
        let Trimmed { runs, extents } = trim(runs, content).unwrap();
        (runs, extents.into_iter().map(|(at, length)| (at / PAGE_SIZE, length / PAGE_SIZE)).collect())
    }

    #[test]
    fn zeros_go_from_anywhere_in_a_run() {
        let file = file(&[(10, 0), (2, 7), (9, 0), (1, 8), (300, 0)]);
        let (runs, extents) = trimmed(&[run(100, 322, LAZY)], &file);
        assert_eq!(runs, [run(110, 2, LAZY), run(121, 1, LAZY)]);
        assert_eq!(extents, [(10, 2), (21, 1)]);
    }

    #[test]
    fn few_zeros_and_those_of_other_memory_stay() {
        let file = file(&[(1, 1), (7, 0), (1, 1), (20, 0)]);
        let runs = [run(0, 9, LAZY), run(50, 20, Pagemap::PRESENT)];
        assert_eq!(trimmed(&runs, &file), (runs.to_vec(), vec![(0, 29)]));
    }

    #[test]
    fn a_run_of_nothing_but_zeros_is_gone() {
        let file = file(&[(600, 0), (1, 1)]);
        let (runs, extents) = trimmed(&[run(0, 600, LAZY), run(700, 1, LAZY)], &file);
        assert_eq!((runs, extents), (vec![run(700, 1, LAZY)], vec![(600, 1)]));
    }

    #[test]
    fn runs_beyond_the_file_are_refused() {
        assert!(trim(&[run(0, 2, LAZY)], |_, _| None).is_none());
    }
}
