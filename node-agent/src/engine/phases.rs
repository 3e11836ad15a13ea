//! How long each phase of a freeze or a thaw took.
//!
//! The boundaries of phases are also where tests kill the agent: a debug build kills itself at the end of the phase that
//! `WOODFROG_CRASH_AT` names, such as `thaw:restore`.

use std::time::Instant;

use woodfrog_protocol::agent::Phase;

/// Names phases as they end.
#[derive(Debug)]
pub struct Stopwatch {
    work: &'static str,
    last: Instant,
    phases: Vec<Phase>,
}

impl Stopwatch {
    /// The first phase of `work` (`freeze` or `thaw`) begins now.
    pub fn start(work: &'static str) -> Self {
        Self { work, last: Instant::now(), phases: Vec::new() }
    }

    /// The phase that ends now was `name`; the next one begins.
    pub fn lap(&mut self, name: &str) {
        let now = Instant::now();
        self.phases.push(Phase { name: name.into(), ms: (now - self.last).as_secs_f64() * 1e3 });
        self.last = now;
        if cfg!(debug_assertions) {
            crash_if_asked(self.work, name);
        }
    }

    /// All phases, in order.
    pub fn phases(self) -> Vec<Phase> {
        self.phases
    }
}

fn crash_if_asked(work: &str, phase: &str) {
    let asked = std::env::var("WOODFROG_CRASH_AT").ok();
    if asked.as_deref().and_then(|at| at.split_once(':')) == Some((work, phase)) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Microseconds of CLOCK_MONOTONIC, which processes of one node can compare.
pub fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}
