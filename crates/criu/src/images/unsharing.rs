//! Shared memory as anonymous memory again, in what was dumped of a process that had been restored with it.
//!
//! ```text
//!   dumped   VMA private of file[…], an external file    pages: only those that the process has written to
//!   image    where the process still has the file's      (the page server knows)
//!   after    VMA anonymous, private                      pages: both
//! ```

use std::collections::BTreeSet;
use std::ops::Range;

use prost::Message;

use super::messages::memory::{Mm, Pagemap, Vma, map, status};
use super::messages::task::Core;
use super::task::Task;
use super::{PAGE_SIZE, PagesFile};

/// Where a part of a new page file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The external file, or else the page file that was dumped.
    pub external: bool,
    /// Where it begins there.
    pub offset: u64,
    /// Bytes, whole pages.
    pub length: u64,
}

/// A process's new page map, and of what its new page file consists.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) runs: Vec<Pagemap>,
    pub(super) pieces: Vec<Piece>,
}

/// Turns mappings of the files with these ids back; `image` are the addresses, ascending, that still have the file's contents.
pub(super) fn unshare(
    task: &Task,
    mm: &mut Mm,
    pages: &PagesFile,
    files: &BTreeSet<u64>,
    image: &[Range<u64>],
) -> Merged {
    let heap = mm.mm_start_brk..mm.mm_brk;
    let shared: Vec<Vma> = mm.vmas.iter().filter(|vma| is_mapping(vma, files)).copied().collect();
    for vma in mm.vmas.iter_mut().filter(|vma| is_mapping(vma, files)) {
        (vma.pgoff, vma.shmid, vma.fdflags) = (0, 0, None);
        vma.flags |= map::ANONYMOUS;
        vma.status = vma.status & !status::FILE_PRIVATE | status::ANON_PRIVATE;
        if vma.start < heap.end && heap.start < vma.end {
            vma.status |= status::HEAP;
        }
    }
    merge(pages, &shared, image, &stack_pages(task))
}

pub(super) fn is_mapping(vma: &Vma, files: &BTreeSet<u64>) -> bool {
    vma.status & status::FILE_PRIVATE != 0 && files.contains(&vma.shmid)
}

/// All pages by address: those that were dumped, and between them those of the file.
fn merge(pages: &PagesFile, shared: &[Vma], image: &[Range<u64>], stacks: &BTreeSet<u64>) -> Merged {
    let mut merged = Merged::default();
    let mut offset = 0;
    // Up to where the file's pages have been taken.
    let mut at = 0;
    for run in &pages.runs {
        let end = run.end();
        merged.add_file(shared, image, at..run.vaddr);
        merged.add_dumped(shared, run, offset, stacks);
        offset += run.pages() * PAGE_SIZE;
        at = end;
    }
    merged.add_file(shared, image, at..u64::MAX);
    merged
}

impl Merged {
    /// The file's pages within these addresses.
    fn add_file(&mut self, shared: &[Vma], image: &[Range<u64>], within: Range<u64>) {
        let first = shared.partition_point(|vma| vma.end <= within.start);
        for vma in shared[first..].iter().take_while(|vma| vma.start < within.end) {
            let from = image.partition_point(|span| span.end <= vma.start.max(within.start));
            for span in image[from..].iter().take_while(|span| span.start < vma.end.min(within.end)) {
                let start = span.start.max(vma.start).max(within.start);
                let end = span.end.min(vma.end).min(within.end);
                let piece =
                    Piece { external: true, offset: vma.pgoff + (start - vma.start), length: end - start };
                self.add(start, Pagemap::PRESENT | Pagemap::LAZY, piece);
            }
        }
    }

    /// A run that was dumped. In memory that is anonymous again it may come late, but for the pages in which stacks begin (`is_stack` of
    /// `criu/mem.c`).
    fn add_dumped(&mut self, shared: &[Vma], run: &Pagemap, offset: u64, stacks: &BTreeSet<u64>) {
        let end = run.end();
        let flags = run.flags.unwrap_or(Pagemap::PRESENT);
        let mut cuts = BTreeSet::from([run.vaddr, end]);
        cuts.extend(
            shared.iter().flat_map(|vma| [vma.start, vma.end]).filter(|at| (run.vaddr..end).contains(at)),
        );
        let pages = stacks.range(run.vaddr..end).flat_map(|page| [*page, page + PAGE_SIZE]);
        cuts.extend(pages.filter(|at| *at < end));
        let cuts: Vec<u64> = cuts.into_iter().collect();
        for part in cuts.windows(2) {
            let (start, length) = (part[0], part[1] - part[0]);
            let is_shared = shared.iter().any(|vma| vma.start <= start && start < vma.end);
            let flags = match is_shared {
                true if stacks.contains(&start) => flags & !Pagemap::LAZY,
                true => flags | Pagemap::LAZY,
                false => flags,
            };
            self.add(start, flags, Piece { external: false, offset: offset + (start - run.vaddr), length });
        }
    }

    fn add(&mut self, start: u64, flags: u32, piece: Piece) {
        let pages = piece.length / PAGE_SIZE;
        match self.runs.last_mut() {
            Some(last) if last.end() == start && last.flags == Some(flags) => {
                last.nr_pages = Some(last.pages() + pages);
            }
            _ => self.runs.push(Pagemap::new(start, pages, flags)),
        }
        match self.pieces.last_mut() {
            Some(last) if last.external == piece.external && last.offset + last.length == piece.offset => {
                last.length += piece.length;
            }
            _ => self.pieces.push(piece),
        }
    }
}

/// The pages that stack pointers point into.
fn stack_pages(task: &Task) -> BTreeSet<u64> {
    /// `thread_info_x86` of `images/core-x86.proto`, as far as it matters.
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    struct ThreadInfo {
        #[prost(message, optional, tag = "2")]
        registers: Option<Registers>,
    }
    #[derive(Clone, Copy, PartialEq, prost::Message)]
    struct Registers {
        #[prost(uint64, optional, tag = "20")]
        sp: Option<u64>,
    }
    let pointer = |core: &Core| {
        let info = ThreadInfo::decode(core.thread_info.as_deref()?).ok()?;
        Some(info.registers?.sp? & !(PAGE_SIZE - 1))
    };
    let cores = std::iter::once(&task.core).chain(task.threads.iter().map(|thread| &thread.core));
    cores.filter_map(pointer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(page: u64, pages: u64, flags: u32) -> Pagemap {
        Pagemap::new(page * PAGE_SIZE, pages, flags)
    }

    fn vma(page: u64, pages: u64, offset: u64) -> Vma {
        let (start, end) = (page * PAGE_SIZE, (page + pages) * PAGE_SIZE);
        Vma { start, end, pgoff: offset * PAGE_SIZE, ..Vma::default() }
    }

    fn piece(external: bool, offset: u64, pages: u64) -> Piece {
        Piece { external, offset: offset * PAGE_SIZE, length: pages * PAGE_SIZE }
    }

    #[test]
    fn pages_of_the_file_come_between_those_that_were_dumped() {
        const PRESENT: u32 = Pagemap::PRESENT;
        const LATE: u32 = Pagemap::PRESENT | Pagemap::LAZY;
        // A library's page, then a mapping that has been moved from page 1000 to page 100, written to at 102, 103 and 106.
        let dumped = vec![run(10, 1, PRESENT), run(102, 2, PRESENT), run(106, 1, PRESENT)];
        let pages = PagesFile { pages_id: 1, runs: dumped };
        let shared = [vma(100, 10, 1000)];
        let image = [50 * PAGE_SIZE..105 * PAGE_SIZE, 106 * PAGE_SIZE..200 * PAGE_SIZE];
        let merged = merge(&pages, &shared, &image, &BTreeSet::from([103 * PAGE_SIZE]));
        let runs = [
            run(10, 1, PRESENT),
            run(100, 3, LATE),
            run(103, 1, PRESENT),
            run(104, 1, LATE),
            run(106, 4, LATE),
        ];
        assert_eq!(merged.runs, runs);
        let pieces = [
            piece(false, 0, 1),
            piece(true, 1000, 2),
            piece(false, 1, 2),
            piece(true, 1004, 1),
            piece(false, 3, 1),
            piece(true, 1007, 3),
        ];
        assert_eq!(merged.pieces, pieces);
    }
}
