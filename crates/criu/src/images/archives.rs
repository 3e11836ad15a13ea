//! A JVM's archive of class data, as memory that can come late.
//!
//! The JVM maps its archive privately and relocates it at each start, 11 MB of it. No userfaultfd serves private mappings of files, so that CRIU
//! would have to read all of that before the process runs. So what was written to becomes anonymous memory, and the rest stays the file's:
//!
//! ```text
//!   dumped   VMA private of classes.jsa                  pages:  ███████ █ ███████
//!   after    │ anonymous │ private of the file │ anonymous │     lazy  │ as it was │ lazy
//! ```
//!
//! The difference would show to a process that gives such pages up (`MADV_DONTNEED`) and expects the file's again. A JVM does not, and would
//! find there what is not relocated; of other mappings of files nobody knows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::PAGE_SIZE;
use super::messages::file::File;
use super::messages::memory::{Mm, Pagemap, Vma, map, prot, status};

/// What is written of an archive in fewer pages next to each other is left to CRIU: each part is a mapping more.
const LEAST_PAGES: u64 = 16;

/// Lets the archives of a process come late. Runs and mappings ascend. Tells whether it has any.
pub(super) fn release(mm: &mut Mm, runs: &mut Vec<Pagemap>, files: &BTreeMap<u32, File>) -> bool {
    let archives = mm.vmas.iter().filter(|vma| is_archive(vma, files));
    let parts: Vec<Range<u64>> = archives.flat_map(|vma| written(vma, runs)).collect();
    if parts.is_empty() {
        return false;
    }
    mm.vmas = mm.vmas.iter().flat_map(|vma| divide(vma, &parts)).collect();
    *runs = runs.iter().flat_map(|run| mark(run, &parts)).collect();
    true
}

fn is_archive(vma: &Vma, files: &BTreeMap<u32, File>) -> bool {
    let name = || files.get(&u32::try_from(vma.shmid).ok()?)?.reg.as_ref().map(|reg| reg.name.as_str());
    vma.status == status::REGULAR | status::FILE_PRIVATE
        && vma.flags & !map::NORESERVE == map::PRIVATE
        && vma.prot & prot::WRITE != 0
        && name().is_some_and(|name| name.ends_with(".jsa") || name.ends_with(".aot"))
}

/// Where at least [`LEAST_PAGES`] next to each other were written to.
fn written(vma: &Vma, runs: &[Pagemap]) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    let first = runs.partition_point(|run| run.end() <= vma.start);
    for run in runs[first..].iter().take_while(|run| run.vaddr < vma.end) {
        let (start, end) = (run.vaddr.max(vma.start), run.end().min(vma.end));
        match parts.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => parts.push(start..end),
        }
    }
    parts.retain(|part| part.end - part.start >= LEAST_PAGES * PAGE_SIZE);
    parts
}

/// A mapping with its parts made anonymous.
fn divide(vma: &Vma, parts: &[Range<u64>]) -> Vec<Vma> {
    let mut divided = Vec::new();
    let mut at = vma.start;
    let of_file = |start, end| Vma { start, end, pgoff: vma.pgoff + (start - vma.start), ..*vma };
    for part in within(vma.start, vma.end, parts) {
        if at < part.start {
            divided.push(of_file(at, part.start));
        }
        divided.push(Vma {
            pgoff: 0,
            shmid: 0,
            flags: vma.flags | map::ANONYMOUS,
            status: status::REGULAR | status::ANON_PRIVATE,
            fdflags: None,
            ..of_file(part.start, part.end)
        });
        at = part.end;
    }
    if at < vma.end {
        divided.push(of_file(at, vma.end));
    }
    divided
}

/// A run with its pages in the parts made lazy.
fn mark(run: &Pagemap, parts: &[Range<u64>]) -> Vec<Pagemap> {
    let flags = run.flags.unwrap_or(Pagemap::PRESENT);
    let mut marked = Vec::new();
    let mut at = run.vaddr;
    for part in within(run.vaddr, run.end(), parts) {
        let (start, end) = (part.start.max(at), part.end.min(run.end()));
        marked.extend(Pagemap::between(at, start, flags));
        marked.extend(Pagemap::between(start, end, flags | Pagemap::LAZY));
        at = end;
    }
    marked.extend(Pagemap::between(at, run.end(), flags));
    marked
}

/// The parts that overlap.
fn within(start: u64, end: u64, parts: &[Range<u64>]) -> impl Iterator<Item = &Range<u64>> {
    let first = parts.partition_point(|part| part.end <= start);
    parts[first..].iter().take_while(move |part| part.start < end)
}

#[cfg(test)]
mod tests {
    use super::super::messages::file::RegFile;
    use super::*;

    const PRESENT: u32 = Pagemap::PRESENT;
    const LATE: u32 = Pagemap::PRESENT | Pagemap::LAZY;

    fn run(page: u64, pages: u64, flags: u32) -> Pagemap {
        Pagemap::new(page * PAGE_SIZE, pages, flags)
    }

    fn vma(page: u64, pages: u64, file: u64, prot: u32) -> Vma {
        Vma {
            start: page * PAGE_SIZE,
            end: (page + pages) * PAGE_SIZE,
            pgoff: 7 * PAGE_SIZE,
            shmid: file,
            prot,
            flags: map::PRIVATE,
            status: status::REGULAR | status::FILE_PRIVATE,
            fdflags: Some(0),
            fd: -1,
            madv: None,
        }
    }

    fn files() -> BTreeMap<u32, File> {
        let file = |id, name: &str| {
            let reg = RegFile { id, name: name.into(), ..RegFile::default() };
            (id, File { id, reg: Some(Box::new(reg)), ..File::default() })
        };
        [file(1, "/usr/lib/jvm/lib/server/classes.jsa"), file(2, "/usr/lib/libc.so.6")].into()
    }

    #[test]
    fn what_was_written_of_an_archive_is_anonymous_and_may_come_late() {
        let archive = vma(100, 100, 1, 3);
        let mut runs =
            vec![run(98, 3, PRESENT), run(110, 20, PRESENT), run(130, 5, PRESENT), run(180, 40, PRESENT)];
        let mut mm = Mm { vmas: vec![vma(90, 10, 2, 3), archive, vma(200, 20, 2, 3)], ..Mm::default() };
        assert!(release(&mut mm, &mut runs, &files()));
        let kinds: Vec<_> = mm
            .vmas
            .iter()
            .map(|vma| {
                (vma.start / PAGE_SIZE, vma.end / PAGE_SIZE, vma.shmid, vma.pgoff / PAGE_SIZE, vma.flags)
            })
            .collect();
        let (private, anonymous) = (map::PRIVATE, map::PRIVATE | map::ANONYMOUS);
        let expected = [
            (90, 100, 2, 7, private),
            (100, 110, 1, 7, private),
            (110, 135, 0, 0, anonymous),
            (135, 180, 1, 42, private),
            (180, 200, 0, 0, anonymous),
            (200, 220, 2, 7, private),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(mm.vmas[2].status, status::REGULAR | status::ANON_PRIVATE);
        let expected = [
            run(98, 3, PRESENT),
            run(110, 20, LATE),
            run(130, 5, LATE),
            run(180, 20, LATE),
            run(200, 20, PRESENT),
        ];
        assert_eq!(runs, expected);
    }

    #[test]
    fn other_mappings_of_files_stay_as_they_are() {
        let vmas = vec![vma(100, 50, 2, 3), vma(150, 50, 1, 1), vma(200, 50, 1, 3)];
        let mut mm = Mm { vmas, ..Mm::default() };
        let mut runs = vec![run(100, 40, PRESENT), run(160, 30, PRESENT), run(210, 15, PRESENT)];
        let before = (mm.clone(), runs.clone());
        assert!(!release(&mut mm, &mut runs, &files()));
        assert_eq!((mm, runs), before);
    }
}
