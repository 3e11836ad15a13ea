//! What of an image's memory comes while the application runs, and in which order.

use std::collections::HashMap;

use woodfrog_criu::images::messages::memory::{Pagemap, Vma, status};
use woodfrog_criu::images::{Checkpoint, PAGE_SIZE};
use woodfrog_protocol::pager::{Plan, Process, Run, Span, WorkingSet};

use super::spans::{merged, without};
use super::working_sets;

/// What of each process's memory CRIU leaves to a page server: the runs that the dump marked as such. What can be shared is, if that is
/// asked for.
pub(super) fn plan(images: &Checkpoint, wanted: WorkingSet, share: bool) -> Plan {
    let mut plan = Plan { processes: Vec::new(), record: wanted.runs < working_sets::RUNS };
    let parents =
        images.tasks.iter().filter_map(|task| Some((i32::try_from(task.pid()).ok()?, task.entry.ppid)));
    let of_siblings = of_siblings(&wanted, &parents.collect());
    for task in &images.tasks {
        let Some(body) = &task.body else { continue };
        let Ok(pid) = i32::try_from(task.pid()) else { continue };
        let known = wanted.processes.iter().find(|wanted| wanted.pid == pid).cloned().unwrap_or_default();
        let shared: Vec<Span> = if share { body.sharable().map(span).collect() } else { Vec::new() };
        // What is written is its own then. To copy it costs less than to map it and have the kernel copy it.
        let mapped = without(&shared, &known.written);
        let mut offset = 0;
        let mut runs = Vec::new();
        for run in &body.pages.runs {
            let length = run.pages() * PAGE_SIZE;
            if run.flags.unwrap_or(0) & Pagemap::LAZY != 0 {
                divide(Run { start: run.vaddr, length, offset, shared: false }, &mapped, &mut runs);
            }
            offset += length;
        }
        let siblings = of_siblings.get(&task.entry.ppid).map_or(&[][..], Vec::as_slice);
        let siblings = without(siblings, &known.first);
        let (first, then) = if share {
            // The threads wait until the first of it is mapped.
            (known.first, [siblings, known.then].concat())
        } else {
            ([known.first, siblings].concat(), known.then)
        };
        let is_anonymous = |vma: &&Vma| vma.status & status::ANON_PRIVATE != 0;
        let anonymous = body.mm.vmas.iter().filter(is_anonymous).map(span);
        let anonymous = anonymous.filter(|span| share && !shared.contains(span)).collect();
        let file = body.pages.file_name();
        plan.processes.push(Process { pid, file, length: offset, runs, first, then, shared, anonymous });
    }
    if plan.processes.iter().all(|process| process.runs.is_empty()) {
        plan.processes.clear();
    }
    plan
}

/// What the children of each process are known to want until the first answer, all of them together (ascending): any of several workers may be asked.
fn of_siblings(wanted: &WorkingSet, parents: &HashMap<i32, u32>) -> HashMap<u32, Vec<Span>> {
    let mut all: HashMap<u32, Vec<Span>> = HashMap::new();
    for process in &wanted.processes {
        if let Some(parent) = parents.get(&process.pid) {
            all.entry(*parent).or_default().extend(&process.first);
        }
    }
    all.into_iter().map(|(parent, spans)| (parent, merged(spans))).collect()
}

fn span(vma: &Vma) -> Span {
    Span { start: vma.start, length: vma.end - vma.start }
}

/// Adds a run in parts, each of which lies in one of the mappings that are shared (ascending), or in none.
fn divide(run: Run, shared: &[Span], parts: &mut Vec<Run>) {
    let end = run.start + run.length;
    let mut at = run.start;
    let first = shared.partition_point(|span| span.start + span.length <= run.start);
    let mut add = |from: u64, to: u64, shared: bool| {
        if from < to {
            let offset = run.offset + (from - run.start);
            parts.push(Run { start: from, length: to - from, offset, shared });
        }
    };
    for span in shared[first..].iter().take_while(|span| span.start < end) {
        let (from, to) = (span.start.max(at), (span.start + span.length).min(end));
        add(at, from, false);
        add(from, to, true);
        at = to;
    }
    add(at, end, false);
}

#[cfg(test)]
mod tests {
    use woodfrog_criu::images::ImageDir;
    use woodfrog_protocol::pager::Wanted;

    use super::*;

    /// Process 300 with its children 303 and 304, as if all of their memory could come later.
    fn server() -> Checkpoint {
        let path = format!("{}/../crates/criu/testdata/server", env!("CARGO_MANIFEST_DIR"));
        let dir = ImageDir::new(std::fs::File::open(path).unwrap().into());
        let mut images = Checkpoint::open(&dir, &[]).unwrap();
        for body in images.tasks.iter_mut().filter_map(|task| task.body.as_mut()) {
            body.pages.runs.iter_mut().for_each(|run| run.flags = Some(Pagemap::PRESENT | Pagemap::LAZY));
        }
        images
    }

    #[test]
    fn a_process_is_brought_what_any_child_of_its_parent_wants_first() {
        let span = |page| Span { start: page * PAGE_SIZE, length: PAGE_SIZE };
        let wanted = |pid, first: [u64; 2], then| Wanted {
            pid,
            first: first.map(span).into(),
            then: vec![span(then)],
            ..Wanted::default()
        };
        let known = [wanted(300, [1, 2], 3), wanted(303, [9, 5], 7), wanted(304, [6, 9], 8)];
        let set = WorkingSet { processes: known.into(), runs: 1 };
        let planned = |share| {
            let plan = plan(&server(), set.clone(), share);
            plan.processes.into_iter().map(|process| (process.first, process.then)).collect::<Vec<_>>()
        };
        let spans = |pages: &[u64]| pages.iter().copied().map(span).collect::<Vec<_>>();
        let copied = [([1, 2].as_slice(), 3), (&[9, 5, 6], 7), (&[6, 9, 5], 8)];
        assert_eq!(planned(false), copied.map(|(first, then)| (spans(first), spans(&[then]))));
        let shared = [(&[1, 2], [3].as_slice()), (&[9, 5], &[6, 7]), (&[6, 9], &[5, 8])];
        assert_eq!(planned(true), shared.map(|(first, then)| (spans(first), spans(then))));
    }
}
