//! Which pages of shared memory an application writes to first. They become its own then, and cost less if they are its own at once.

use std::collections::BTreeSet;

use procfs::ProcResult;
use procfs::process::{MemoryPageFlags, PageInfo, Process};
use woodfrog_criu::images::PAGE_SIZE;
use woodfrog_protocol::pager::{Span, Wanted};

use super::spans::merged;
use super::tree;

/// Adds to what the processes of an application wanted which pages are not shared any more, of these and of those that were known (`before`).
/// `application` is its PID inside the container of this `init`.
///
/// # Errors
/// It has ended. A process of it that ends meanwhile is left out.
pub(super) fn note(init: i32, application: i32, before: &[Wanted], wanted: &mut [Wanted]) -> ProcResult<()> {
    for pid in tree::pids(init, application)? {
        let Ok(process) = Process::new(pid) else { continue };
        let inside = process.status().ok().and_then(|status| status.nspid?.last().copied());
        let Some(one) = wanted.iter_mut().find(|wanted| Some(wanted.pid) == inside) else { continue };
        let known = before.iter().filter(|known| known.pid == one.pid).flat_map(spans);
        one.written = own(&process, known.chain(spans(one))).unwrap_or_default();
    }
    Ok(())
}

fn spans(wanted: &Wanted) -> impl Iterator<Item = &Span> {
    wanted.first.iter().chain(&wanted.then)
}

/// The pages among these that are the process's own, in as few spans as can be.
fn own<'a>(process: &Process, spans: impl Iterator<Item = &'a Span>) -> ProcResult<Vec<Span>> {
    let mut pagemap = process.pagemap()?;
    let mut own = BTreeSet::new();
    for Span { start, length } in spans {
        let (first, end) = (start / PAGE_SIZE, (start + length) / PAGE_SIZE);
        let pages = pagemap.get_range_info(first as usize..end as usize)?;
        let is_own = |info: &PageInfo| {
            matches!(info, PageInfo::MemoryPage(flags)
                if flags.contains(MemoryPageFlags::PRESENT) && !flags.contains(MemoryPageFlags::FILE))
        };
        own.extend((first..end).zip(pages).filter(|(_, info)| is_own(info)).map(|(page, _)| page));
    }
    Ok(merged(own.into_iter().map(|page| Span { start: page * PAGE_SIZE, length: PAGE_SIZE }).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, length: u64) -> Span {
        Span { start, length }
    }

    #[test]
    fn a_page_is_its_own_once_it_was_written_to() {
        let heap = vec![1_u8; 3 * PAGE_SIZE as usize];
        let heap = (heap.as_ptr() as u64).next_multiple_of(PAGE_SIZE);
        let code = merged as *const () as u64 / PAGE_SIZE * PAGE_SIZE;
        let spans = [span(heap, 2 * PAGE_SIZE), span(code, PAGE_SIZE)];
        assert_eq!(own(&Process::myself().unwrap(), spans.iter()).unwrap(), [span(heap, 2 * PAGE_SIZE)]);
    }
}
