//! CRIU as a library: swrk driver, image files, translated errors.
//!
//! ```text
//!   Toolchain::open ──► Worker::spawn ──► Worker::dump ────► Dump    ─┐ stages, each acknowledged by going on
//!   (once a node)       (one a request)   Worker::restore ─► Restore ─┘ or refused
//!                       ▲
//!   Seat::take ─────────┘ (before there is a request)
//! ```

#![forbid(unsafe_code)]

mod cause;
mod connection;
mod dump;
mod exchange;
mod failure;
pub mod images;
mod light;
mod loader;
mod log;
mod options;
mod pattern;
mod probe;
mod restore;
mod rpc;
mod seat;
mod toolchain;
mod worker;

pub use cause::Cause;
pub use dump::{Dump, DumpStage};
pub use failure::{CriuError, End, Failure, Operation};
pub use options::{Connections, DumpOptions, LogLevel, RestoreOptions};
pub use probe::{Features, Kdat};
pub use restore::{Restore, RestoreStage, Restored};
pub use seat::Seat;
pub use toolchain::{Toolchain, ToolchainError};
pub use worker::{Given, LOG_FILE, Setup, Worker, WorkerError};

/// Whether this process has CAP_SYS_RESOURCE, without which CRIU can read the resource limits only of processes whose
/// user and group are its own real ones (see [`Setup::real_ids`]).
pub fn can_override_resource_limits() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE))
}
