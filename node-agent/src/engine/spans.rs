//! Ranges of addresses.

use woodfrog_protocol::pager::Span;

/// Ascending spans without overlaps that cover the same.
pub(super) fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by_key(|span| span.start);
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start <= last.start + last.length => {
                last.length = last.length.max(span.start + span.length - last.start);
            }
            _ => merged.push(span),
        }
    }
    merged
}

/// What is left of spans without the others, in their order.
pub(super) fn without(spans: &[Span], others: &[Span]) -> Vec<Span> {
    let others = merged(others.to_vec());
    let mut left = Vec::new();
    for of in spans {
        let (mut at, end) = (of.start, of.start + of.length);
        let first = others.partition_point(|span| span.start + span.length <= at);
        for span in others[first..].iter().take_while(|span| span.start < end) {
            if at < span.start {
                left.push(Span { start: at, length: span.start - at });
            }
            at = span.start + span.length;
        }
        if at < end {
            left.push(Span { start: at, length: end - at });
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, length: u64) -> Span {
        Span { start, length }
    }

    #[test]
    fn what_others_cover_is_left_out() {
        let spans = [span(10, 20), span(30, 10), span(100, 10)];
        let others = [span(35, 30), span(0, 12), span(15, 2), span(16, 4), span(25, 7)];
        assert_eq!(without(&spans, &others), [span(12, 3), span(20, 5), span(32, 3), span(100, 10)]);
        assert_eq!(without(&spans, &[]), spans);
        assert_eq!(without(&spans, &[span(0, 1000)]), []);
    }
}
