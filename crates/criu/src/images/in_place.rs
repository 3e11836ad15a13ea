//! Mappings that CRIU makes where they belong, at once.
//!
//! With lazy pages CRIU makes each private mapping elsewhere, reads into it what is not lazy, and moves it when all is there; in a child it moves
//! its parent's mapping twice. Where it reads nothing, that is work for nothing, and most of what it takes to restore a process with many
//! libraries. What is private it tells by `status`, but what it maps by `flags`:
//!
//! ```text
//!   flags    MAP_PRIVATE, as it was                          one mmap(2), after all moves
//!   status   VMA_FILE_PRIVATE → VMA_FILE_SHARED              opens the file as for a private mapping
//!            VMA_ANON_PRIVATE → neither                      no pages: no userfaultfd has to serve it
//!            + VMA_NO_PROT_WRITE                             with the protection that it has, none to be taken back
//! ```

use super::messages::memory::{Mm, Pagemap, Vma, map, status};

/// Has CRIU make in place what it reads nothing into with this page map. Runs and mappings ascend.
pub(super) fn place(mm: &mut Mm, runs: &[Pagemap]) {
    for vma in mm.vmas.iter_mut().filter(|vma| is_plain(vma)) {
        let first = runs.partition_point(|run| run.end() <= vma.start);
        let mut within = runs[first..].iter().take_while(|run| run.vaddr < vma.end);
        let kind = match vma.status & !status::HEAP {
            kind if kind == status::REGULAR | status::FILE_PRIVATE && within.all(Pagemap::is_lazy) => {
                status::FILE_SHARED
            }
            kind if kind == status::REGULAR | status::ANON_PRIVATE && within.next().is_none() => 0,
            _ => continue,
        };
        vma.status = status::REGULAR | status::NO_PROT_WRITE | kind;
    }
}

/// Nothing about it that CRIU would look at besides.
fn is_plain(vma: &Vma) -> bool {
    let is_anonymous = vma.status & status::ANON_PRIVATE != 0;
    vma.flags & map::TYPE == map::PRIVATE
        && (vma.flags & map::ANONYMOUS != 0) == is_anonymous
        && vma.flags & (map::GROWSDOWN | map::LOCKED | map::HUGETLB) == 0
}

#[cfg(test)]
mod tests {
    use super::super::PAGE_SIZE;
    use super::*;

    const FILE: u32 = status::REGULAR | status::FILE_PRIVATE;
    const ANONYMOUS: u32 = status::REGULAR | status::ANON_PRIVATE;

    fn vma(page: u64, kind: u32, flags: u32) -> Vma {
        let anonymous = if kind & status::ANON_PRIVATE == 0 { 0 } else { map::ANONYMOUS };
        Vma {
            start: page * PAGE_SIZE,
            end: (page + 10) * PAGE_SIZE,
            flags: map::PRIVATE | anonymous | flags,
            status: kind,
            ..Vma::default()
        }
    }

    #[test]
    fn only_what_nothing_is_read_into_is_made_in_place() {
        let given = [
            (vma(0, FILE, 0), None),
            (vma(10, FILE, 0), None),
            (vma(20, FILE, 0), Some(status::FILE_SHARED)),
            (vma(30, ANONYMOUS, 0), None),
            (vma(40, ANONYMOUS, 0), Some(0)),
            (vma(50, ANONYMOUS | status::HEAP, 0), Some(0)),
            (vma(60, ANONYMOUS, map::GROWSDOWN), None),
            (vma(70, ANONYMOUS, map::LOCKED), None),
            (vma(80, FILE | status::MEMFD, 0), None),
            (vma(90, status::REGULAR | status::FILE_SHARED, 0), None),
            (vma(100, status::REGULAR | status::VDSO | status::ANON_PRIVATE, 0), None),
            (vma(110, FILE, map::NORESERVE), Some(status::FILE_SHARED)),
        ];
        let lazy = Pagemap::PRESENT | Pagemap::LAZY;
        let runs = [(9, 2, Pagemap::PRESENT), (21, 1, lazy), (33, 1, lazy), (39, 1, lazy)];
        let runs = runs.map(|(page, pages, flags)| Pagemap::new(page * PAGE_SIZE, pages, flags));
        let mut mm = Mm { vmas: given.iter().map(|(vma, _)| *vma).collect(), ..Mm::default() };
        place(&mut mm, &runs);
        let expected = given.map(|(vma, placed)| {
            let status = placed.map_or(vma.status, |kind| status::REGULAR | status::NO_PROT_WRITE | kind);
            Vma { status, ..vma }
        });
        assert_eq!(mm.vmas, expected);
    }
}
