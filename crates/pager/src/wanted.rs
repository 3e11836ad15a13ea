//! What a recording makes of the faults of a process.

use std::collections::BTreeMap;

use woodfrog_protocol::pager::Span;

use crate::memory::PAGE;

/// How many bytes of faults are put in order together: what comes after them was wanted later.
const WAVE: u64 = 1 << 20;
/// Within this much memory the order of addresses counts, beyond it that of the faults.
const NEIGHBOURHOOD: u64 = 2 << 20;
/// A gap this small is brought with what is around it: another call costs as much.
const GAP: u64 = 3 * PAGE;

/// The spans in few pieces, one wave after the other.
pub(crate) fn batches(spans: &[Span]) -> Vec<Span> {
    let mut bytes = 0;
    let mut wave_of = |span: &Span| {
        bytes += span.length;
        (bytes - span.length) / WAVE
    };
    let waves: Vec<_> = spans.iter().map(|span| (wave_of(span), *span)).collect();
    waves.chunk_by(|(one, _), (other, _)| one == other).flat_map(of_wave).collect()
}

/// One neighbourhood after the other, in the order in which they were first asked for.
fn of_wave(spans: &[(u64, Span)]) -> Vec<Span> {
    let mut neighbourhoods: BTreeMap<u64, (usize, Vec<Span>)> = BTreeMap::new();
    for (order, (_, span)) in spans.iter().enumerate() {
        let (_, members) =
            neighbourhoods.entry(span.start / NEIGHBOURHOOD).or_insert_with(|| (order, Vec::new()));
        members.push(*span);
    }
    let mut neighbourhoods: Vec<_> = neighbourhoods.into_values().collect();
    neighbourhoods.sort_by_key(|(order, _)| *order);
    neighbourhoods.into_iter().flat_map(|(_, members)| joined(members)).collect()
}

fn joined(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| span.start);
    let mut joined: Vec<Span> = Vec::new();
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.start <= last.start + last.length + GAP => {
                last.length = last.length.max(span.start + span.length - last.start);
            }
            _ => joined.push(span),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(start: u64, length: u64) -> Span {
        Span { start: start * PAGE, length: length * PAGE }
    }

    #[test]
    fn neighbours_are_joined_and_neighbourhoods_come_in_the_order_of_their_first_fault() {
        let far = 10 * NEIGHBOURHOOD / PAGE;
        let faults = [pages(far + 8, 1), pages(3, 1), pages(far, 1), pages(1, 1), pages(7, 2), pages(20, 1)];
        assert_eq!(batches(&faults), [pages(far, 1), pages(far + 8, 1), pages(1, 8), pages(20, 1)]);
    }

    #[test]
    fn nothing_wanted_is_no_batch() {
        assert_eq!(batches(&[]), []);
    }

    #[test]
    fn a_span_within_another_adds_nothing() {
        assert_eq!(batches(&[pages(4, 16), pages(6, 2)]), [pages(4, 16)]);
    }
}
