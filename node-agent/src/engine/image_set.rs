//! What an image says of the memory that its processes want first. An image is not trusted: whatever it says, only whole pages of the
//! mappings that it has are brought earlier than others.

use std::collections::BTreeSet;

use woodfrog_criu::images::messages::memory::Vma;
use woodfrog_criu::images::{Checkpoint, PAGE_SIZE};
use woodfrog_image::{MAX_SPANS, ProcessSet, RecordedSet};
use woodfrog_protocol::pager::{Span, Wanted, WorkingSet};

use super::working_sets;

/// Why a set is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ImageSetError {
    /// Addresses of another capture.
    #[error("it is of another capture")]
    OtherCapture,
    /// A process that is not in the image, or twice.
    #[error("it names process {0}, which the image has not, or twice")]
    Process(u32),
    /// No pages, or none that a process can have.
    #[error("it names {length} bytes from {start:#x} on, which are no pages")]
    Span {
        /// The first address.
        start: u64,
        /// How many bytes.
        length: u64,
    },
    /// The same memory again and again.
    #[error("it names more memory than process {0} has")]
    TooMuch(u32),
}

/// What of a set can be true of the capture with this digest, a process each.
///
/// # Errors
/// It is not this capture's, or nonsense.
pub(super) fn check(
    set: RecordedSet,
    capture: &str,
    images: &Checkpoint,
) -> Result<Vec<Wanted>, ImageSetError> {
    if set.capture != capture {
        return Err(ImageSetError::OtherCapture);
    }
    let mut seen = BTreeSet::new();
    let of_process = |process: ProcessSet| {
        let pid = process.pid;
        let task = images.tasks.iter().find(|task| task.pid() == pid);
        let body = task.and_then(|task| task.body.as_ref()).filter(|_| seen.insert(pid));
        let body = body.ok_or(ImageSetError::Process(pid))?;
        let first = within(pid, &process.spans, &body.mm.vmas)?;
        Ok(Wanted { pid: pid.cast_signed(), first, ..Wanted::default() })
    };
    set.processes.into_iter().map(of_process).collect()
}

/// The parts of a process's spans that lie in mappings (ascending): a span also covers small gaps between what was wanted.
fn within(pid: u32, spans: &[(u64, u64)], mappings: &[Vma]) -> Result<Vec<Span>, ImageSetError> {
    let all: u64 = mappings.iter().map(|mapping| mapping.end.saturating_sub(mapping.start)).sum();
    let (mut parts, mut bytes) = (Vec::new(), 0_u64);
    for &(start, length) in spans {
        let is_pages = start % PAGE_SIZE == 0 && length % PAGE_SIZE == 0 && length > 0;
        let end = start.checked_add(length).filter(|_| is_pages);
        let end = end.ok_or(ImageSetError::Span { start, length })?;
        let first = mappings.partition_point(|mapping| mapping.end <= start);
        for mapping in mappings[first..].iter().take_while(|mapping| mapping.start < end) {
            let (from, to) = (mapping.start.max(start), mapping.end.min(end));
            bytes += to - from;
            parts.push(Span { start: from, length: to - from });
            // The same neighbour may be in two spans, but not everything again and again.
            if bytes / 2 > all || parts.len() > 2 * MAX_SPANS {
                return Err(ImageSetError::TooMuch(pid));
            }
        }
    }
    Ok(parts)
}

/// What is known of an image from its maker (`told`) and from this node's thaws, which have found out what that left out.
pub(super) fn with_own(told: &[Wanted], own: WorkingSet) -> WorkingSet {
    if told.is_empty() {
        return own;
    }
    let mut all = WorkingSet { processes: told.to_vec(), runs: own.runs + 1 };
    working_sets::merge(&mut all.processes, own.processes);
    all
}

/// What a thaw has shown, as an image says it, and how many bytes that is. The requests that it was shown by come from the pod itself, so that the first of them
/// counts as an answer already ([`woodfrog_protocol::pager::Descriptor::Counters`]); and all of them stand for what is asked for first.
pub(super) fn recorded(shown: WorkingSet) -> (Vec<ProcessSet>, u64) {
    let spans = |process: &Wanted| -> Vec<(u64, u64)> {
        process.first.iter().chain(&process.then).map(|span| (span.start, span.length)).collect()
    };
    let processes = shown.processes.iter();
    let processes: Vec<_> = processes
        .filter_map(|process| Some(ProcessSet { pid: process.pid.try_into().ok()?, spans: spans(process) }))
        .collect();
    let bytes = processes.iter().flat_map(|process| &process.spans).map(|(_, length)| length).sum();
    (processes, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE;

    fn mappings() -> Vec<Vma> {
        let pages = [(16, 32), (33, 40), (1 << 20, (1 << 20) + 4)];
        pages.map(|(from, to)| Vma { start: from * PAGE, end: to * PAGE, ..Vma::default() }).into()
    }

    fn parts(spans: &[(u64, u64)]) -> Result<Vec<(u64, u64)>, ImageSetError> {
        let parts = within(300, spans, &mappings())?;
        Ok(parts.iter().map(|part| (part.start / PAGE, part.length / PAGE)).collect())
    }

    #[test]
    fn only_what_lies_in_mappings_is_brought_and_in_the_order_that_is_said() {
        let said = [((1 << 20) * PAGE, PAGE), (30 * PAGE, 5 * PAGE), (0, 8 * PAGE), (100 * PAGE, PAGE)];
        assert_eq!(parts(&said).unwrap(), [(1 << 20, 1), (30, 2), (33, 2)]);
    }

    #[test]
    fn what_is_no_pages_is_refused() {
        for (start, length) in
            [(1, PAGE), (PAGE, 1), (PAGE, 0), (u64::MAX - PAGE + 1, PAGE), (PAGE, u64::MAX)]
        {
            assert_eq!(parts(&[(start, length)]), Err(ImageSetError::Span { start, length }));
        }
    }

    #[test]
    fn the_same_memory_again_and_again_is_refused() {
        let everything = (0, (2 << 20) * PAGE);
        assert_eq!(parts(&[everything, everything]).unwrap().len(), 6);
        assert_eq!(parts(&[everything; 3]), Err(ImageSetError::TooMuch(300)));
    }

    #[test]
    fn this_node_s_thaws_add_what_the_image_does_not_say() {
        let wanted =
            |pid, start| Wanted { pid, first: vec![Span { start, length: PAGE }], ..Wanted::default() };
        let own = WorkingSet { processes: vec![wanted(300, 2 * PAGE), wanted(301, 0)], runs: 1 };
        let all = with_own(&[wanted(300, PAGE)], own.clone());
        assert_eq!((all.runs, all.processes[0].first.len(), all.processes[1].pid), (2, 2, 301));
        assert_eq!(all.processes[0].first[0].start, PAGE, "what the image says comes first");
        assert_eq!(with_own(&[], own.clone()), own);
    }
}
