//! Sets of pages by address, and where they come from.
//!
//! Two of these are all that is known of a process's memory: what it has not got yet, and, where memory is shared, what is its image's as long as
//! it is not written to. What is in neither is there already, or is zero.

use std::collections::BTreeMap;

use woodfrog_protocol::pager::Run;

/// Runs of pages by address, none touching the address range of another.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pending {
    /// By start.
    runs: BTreeMap<u64, Rest>,
    bytes: u64,
}

/// What is known of a run beside its start.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rest {
    end: u64,
    offset: u64,
    shared: bool,
}

impl Rest {
    fn of(run: Run) -> Self {
        Self { end: run.start + run.length, offset: run.offset, shared: run.shared }
    }

    fn from(self, start: u64) -> Run {
        Run { start, length: self.end - start, offset: self.offset, shared: self.shared }
    }
}

impl Pending {
    /// Adds a run. What was pending in its place is replaced.
    pub(crate) fn insert(&mut self, run: Run) {
        if run.length > 0 {
            self.remove(run.start, run.start + run.length);
            self.runs.insert(run.start, Rest::of(run));
            self.bytes += run.length;
        }
    }

    /// All runs, ascending.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> {
        self.runs.iter().map(|(start, rest)| rest.from(*start))
    }

    /// How much is in it.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The run that holds `address`, whole.
    pub(crate) fn at(&self, address: u64) -> Option<Run> {
        let (&start, rest) = self.runs.range(..=address).next_back()?;
        (address < rest.end).then(|| rest.from(start))
    }

    /// The first run with anything at or behind `address`, from there on.
    pub(crate) fn from(&self, address: u64) -> Option<Run> {
        if let Some(run) = self.at(address) {
            return Some(clip(run, address, u64::MAX));
        }
        let (&start, rest) = self.runs.range(address..).next()?;
        Some(rest.from(start))
    }

    /// Forgets what lies from `start` up to `end`.
    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        while let Some(run) = self.from(start).filter(|run| run.start < end) {
            let whole = self.at(run.start).unwrap_or(run);
            self.runs.remove(&whole.start);
            self.bytes -= whole.length;
            for rest in [clip(whole, 0, start), clip(whole, end, u64::MAX)] {
                if rest.length > 0 {
                    self.runs.insert(rest.start, Rest::of(rest));
                    self.bytes += rest.length;
                }
            }
        }
    }

    /// The memory from `from` on has another address now.
    pub(crate) fn relocate(&mut self, from: u64, to: u64, length: u64) {
        let mut moved = Vec::new();
        let mut next = from;
        while let Some(run) = self.from(next).filter(|run| run.start < from + length) {
            let run = clip(run, from, from + length);
            next = run.start + run.length;
            moved.push(Run { start: run.start - from + to, ..run });
        }
        self.remove(from, from + length);
        self.remove(to, to + length);
        for run in moved {
            self.insert(run);
        }
    }
}

/// The part of a run from `start` up to `end`; of length 0 if there is none.
pub(crate) fn clip(run: Run, start: u64, end: u64) -> Run {
    let first = run.start.max(start);
    let behind = (run.start + run.length).min(end);
    let length = behind.saturating_sub(first);
    Run { start: first, length, offset: run.offset + first.saturating_sub(run.start), shared: run.shared }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pages by address, the simplest way.
    struct Model([Option<u64>; 64]);

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64, u64),
        Remove(u64, u64),
        Relocate(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0u64..64).prop_flat_map(|start| (Just(start), 0..=64 - start));
        prop_oneof![
            (range.clone(), 0u64..1000)
                .prop_map(|((start, length), offset)| Step::Insert(start, length, offset)),
            range.clone().prop_map(|(start, length)| Step::Remove(start, length)),
            // The kernel moves to where nothing is, never onto itself.
            (0u64..32, 32u64..64, 0u64..=32).prop_map(|(from, to, length)| {
                let length = length.min(32 - from).min(64 - to);
                Step::Relocate(from, to, length)
            }),
        ]
    }

    proptest! {
        #[test]
        fn pending_pages_are_those_of_a_plain_table(steps in prop::collection::vec(step(), 0..40)) {
            let mut pending = Pending::default();
            let mut model = Model([None; 64]);
            for step in steps {
                match step {
                    Step::Insert(start, length, offset) => {
                        pending.insert(Run { start, length, offset, shared: false });
                        for i in 0..length {
                            model.0[(start + i) as usize] = Some(offset + i);
                        }
                    }
                    Step::Remove(start, length) => {
                        pending.remove(start, start + length);
                        for i in 0..length {
                            model.0[(start + i) as usize] = None;
                        }
                    }
                    Step::Relocate(from, to, length) => {
                        pending.relocate(from, to, length);
                        for i in 0..length {
                            model.0[(to + i) as usize] = model.0[(from + i) as usize].take();
                        }
                    }
                }
                for address in 0..64 {
                    let found = pending.at(address).map(|run| run.offset + (address - run.start));
                    prop_assert_eq!(found, model.0[address as usize]);
                }
                prop_assert_eq!(pending.bytes(), model.0.iter().flatten().count() as u64);
            }
        }
    }

    #[test]
    fn what_comes_next_begins_where_it_was_asked_for() {
        let mut pending = Pending::default();
        pending.insert(Run { start: 10, length: 10, offset: 100, shared: true });
        assert_eq!(pending.from(0), Some(Run { start: 10, length: 10, offset: 100, shared: true }));
        assert_eq!(pending.from(15), Some(Run { start: 15, length: 5, offset: 105, shared: true }));
        assert_eq!(pending.from(20), None);
    }
}
