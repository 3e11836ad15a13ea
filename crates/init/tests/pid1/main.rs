//! woodfrog-init as what it is: PID 1 of fresh namespaces, with these tests as its agent, speaking the real protocol.
//!
//! Runs the debug build, or the binary that `WOODFROG_INIT` names. Needs root, `unshare` and `nsenter` (util-linux).

#![forbid(unsafe_code)]

mod agent;
mod node_api;
mod node_cold;
mod node_dump;
mod node_size;
mod node_thaw;
mod sandbox;
