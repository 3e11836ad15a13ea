//! What PID 1 of a container needs of the kernel; used by `woodfrog-init` only, which is single-threaded.
//!
//! ```text
//!   signals   every catchable signal, as a descriptor to poll
//!   peer      the user at the other end of a socket
//!   reap      exit statuses, without allocation
//!   resident  less memory
//!   start     the PID cursor, fork and exec of the application
//! ```

pub mod peer;
pub mod reap;
pub mod resident;
pub mod signals;
pub mod start;
