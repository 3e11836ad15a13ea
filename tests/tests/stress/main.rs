//! Dormant pods under stress: many at once, many cycles, long requests, restarts around them, and hostile packets.
//!
//! A few rounds of each; `WOODFROG_CYCLES` and `WOODFROG_PODS` make them as many as they should be before a release.

#![forbid(unsafe_code)]

mod crowd;
mod cycles;
mod families;
mod hostile;
mod leaks;
mod packets;
mod requests;
mod restarts;
mod torture;
mod traffic;
mod upgrade;

/// A number from the environment, or this one.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}
