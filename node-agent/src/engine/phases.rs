//! How long each phase of a freeze or a thaw took.

use std::time::Instant;

use woodfrog_protocol::agent::Phase;

/// Names phases as they end.
#[derive(Debug)]
pub struct Stopwatch {
    last: Instant,
    phases: Vec<Phase>,
}

impl Stopwatch {
    /// The first phase begins now.
    pub fn start() -> Self {
        Self { last: Instant::now(), phases: Vec::new() }
    }

    /// The phase that ends now was `name`; the next one begins.
    pub fn lap(&mut self, name: &str) {
        let now = Instant::now();
        self.phases.push(Phase { name: name.into(), ms: (now - self.last).as_secs_f64() * 1e3 });
        self.last = now;
    }

    /// All phases, in order.
    pub fn phases(self) -> Vec<Phase> {
        self.phases
    }
}

/// Microseconds of CLOCK_MONOTONIC, which processes of one node can compare.
pub fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}
