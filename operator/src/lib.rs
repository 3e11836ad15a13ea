//! The operator, as a library so that tests can drive its parts.
//!
//! ```text
//!   lease ─► leader ─┬─► checkpoint: observe ─► plan (pure) ─► apply     Checkpoint ─► pod, instruction ─► images
//!                    └─► pool:       observe ─► plan (pure) ─► apply     WarmPool ─► pods
//!   serve: /healthz /readyz /metrics, on every replica
//! ```
//!
//! It knows nothing of CRIU and talks to no node: what an agent is to do stands in the Checkpoint's status.

#![forbid(unsafe_code)]

mod agents;
pub mod args;
pub mod checkpoint;
mod context;
mod events;
mod index;
mod leader;
mod metrics;
mod mismatch;
pub mod pool;
mod quantity;
mod revision;
mod run;
mod serve;
pub mod stores;
pub mod template;

pub use context::Context;
pub use run::run;
