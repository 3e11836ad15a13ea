//! Pages that a process has written to in private mappings of files. They cannot come while it runs: no userfaultfd serves such mappings.
//!
//! ```text
//!   pagemap  │ run in two mappings │ lazy │      CRIU skips what is marked as lazy, whatever it lies in
//!   left out │ lazy │ as it was    │ lazy │      somebody else has to write the first part before the process runs
//! ```

use super::PAGE_SIZE;
use super::messages::memory::{Pagemap, Vma, status};
use super::task::Body;

const PROT_WRITE: u32 = 2;

/// Neighbouring pages, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePages {
    /// Address of the first.
    pub start: u64,
    /// Where it is in the process's page file.
    pub offset: u64,
    /// How much.
    pub length: u64,
}

impl Body {
    /// The pages that were written to in private mappings of files and may be written to still, ascending: what CRIU leaves to others after
    /// [`super::Rewrite::leave_file_pages`].
    pub fn file_pages(&self) -> Vec<FilePages> {
        divide(&self.pages.runs, &self.mm.vmas).1
    }
}

/// The page map in which those pages are marked as lazy, and the pages. Runs and mappings ascend.
pub(super) fn divide(runs: &[Pagemap], vmas: &[Vma]) -> (Vec<Pagemap>, Vec<FilePages>) {
    let (mut divided, mut pages) = (Vec::new(), Vec::new());
    let mut offset = 0;
    for run in runs {
        let flags = run.flags.unwrap_or(Pagemap::PRESENT);
        let end = run.vaddr + run.pages() * PAGE_SIZE;
        let mut at = run.vaddr;
        let first = vmas.partition_point(|vma| vma.end <= at);
        for vma in vmas[first..].iter().take_while(|vma| vma.start < end) {
            if flags & Pagemap::LAZY != 0 || !is_written(vma) {
                continue;
            }
            let (from, to) = (vma.start.max(at), vma.end.min(end));
            push(&mut divided, at, from, flags);
            push(&mut divided, from, to, flags | Pagemap::LAZY);
            pages.push(FilePages { start: from, offset: offset + (from - run.vaddr), length: to - from });
            at = to;
        }
        push(&mut divided, at, end, flags);
        offset += end - run.vaddr;
    }
    (divided, pages)
}

fn is_written(vma: &Vma) -> bool {
    vma.status & !status::HEAP == status::REGULAR | status::FILE_PRIVATE && vma.prot & PROT_WRITE != 0
}

fn push(runs: &mut Vec<Pagemap>, start: u64, end: u64, flags: u32) {
    if start < end {
        let pages = Some((end - start) / PAGE_SIZE);
        runs.push(Pagemap {
            vaddr: start,
            compat_nr_pages: 0,
            in_parent: None,
            flags: Some(flags),
            nr_pages: pages,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRESENT: u32 = Pagemap::PRESENT;
    const LATE: u32 = Pagemap::PRESENT | Pagemap::LAZY;

    fn run(page: u64, pages: u64, flags: u32) -> Pagemap {
        let vaddr = page * PAGE_SIZE;
        Pagemap { vaddr, compat_nr_pages: 0, in_parent: None, flags: Some(flags), nr_pages: Some(pages) }
    }

    fn vma(page: u64, pages: u64, prot: u32, kind: u32) -> Vma {
        let (start, end) = (page * PAGE_SIZE, (page + pages) * PAGE_SIZE);
        Vma { start, end, prot, status: status::REGULAR | kind, ..Vma::default() }
    }

    #[test]
    fn what_was_written_in_private_mappings_of_files_is_left_out() {
        let vmas = [
            vma(10, 10, PROT_WRITE, status::FILE_PRIVATE),
            vma(20, 5, 1, status::FILE_PRIVATE),
            vma(25, 5, PROT_WRITE, status::FILE_PRIVATE),
            vma(30, 10, PROT_WRITE, status::ANON_PRIVATE),
            vma(50, 10, PROT_WRITE, status::FILE_SHARED),
        ];
        let runs = [run(12, 2, PRESENT), run(15, 18, PRESENT), run(34, 2, LATE), run(50, 1, PRESENT)];
        let (divided, pages) = divide(&runs, &vmas);
        let expected = [
            run(12, 2, LATE),
            run(15, 5, LATE),
            run(20, 5, PRESENT),
            run(25, 5, LATE),
            run(30, 3, PRESENT),
            run(34, 2, LATE),
            run(50, 1, PRESENT),
        ];
        assert_eq!(divided, expected);
        let pages: Vec<_> = pages
            .iter()
            .map(|pages| [pages.start, pages.offset, pages.length].map(|bytes| bytes / PAGE_SIZE))
            .collect();
        assert_eq!(pages, [[12, 0, 2], [15, 2, 5], [25, 12, 5]]);
    }

    #[test]
    fn a_page_map_without_any_stays_as_it_is() {
        let vmas = [vma(10, 10, PROT_WRITE, status::ANON_PRIVATE)];
        let runs = [run(12, 2, PRESENT), run(15, 1, LATE), run(40, 1, PRESENT)];
        assert_eq!(divide(&runs, &vmas), (runs.to_vec(), Vec::new()));
    }
}
