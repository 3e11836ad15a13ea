//! What PID 1 of a container needs of the kernel; used by `woodfrog-init` only, which is single-threaded.
//!
//! ```text
//!   signals   every catchable signal, as a descriptor to poll
//!   reap      exit statuses, without allocation
//!   start     the PID cursor, fork and exec of the application
//! ```

pub mod reap;
pub mod signals;
pub mod start;
