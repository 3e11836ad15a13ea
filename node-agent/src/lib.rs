//! The node agent, as a library so that tests can drive its parts.
//!
//! ```text
//!   agent.sock ──► server ──► engine ──► criu, image, policy
//!   init       ──► keeper ──┤    │ traits
//!   API server ──► control ─┘    └──► adapters: containerd, registries
//! ```

#![forbid(unsafe_code)]

pub mod activator;
pub mod adapters;
pub mod args;
mod control;
pub mod engine;
pub mod metrics;
pub mod policy;
mod run;
pub mod server;

pub use run::run;
