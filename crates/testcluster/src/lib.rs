//! A cluster for tests: everything real but scheduler, kubelet and garbage collector, which stand-ins play.
//!
//! ```text
//!   test ──► API server (host's loopback) ◄──watch── scheduler, kubelet, garbage collector: tasks of the test
//!                 ▲                                                 │ CRI
//!                 │ forward                                         ▼
//!   node:  127.0.0.1:PORT ◄── operator, node-agent        cri-shim ──► containerd ──► pods
//! ```
//!
//! - [`cluster`]: what a test holds, and [`member`], its nodes;
//! - [`operator`]: its process on the node;
//! - `forward`: the API server's way into the node's network;
//! - `scheduler`: binds pods to nodes whose labels match;
//! - `kubelet`, `worker`: pods of the node, each lived by a task of its own; `translate`, `probe` and `status` are its parts;
//! - `garbage`: deletes pods whose owners are gone.
//!
//! What the kubelet does not imitate: init and ephemeral containers, volumes other than emptyDir, variables from Secrets and
//! ConfigMaps, limits on resources, liveness and startup probes, and lifecycle hooks. A pod that uses one of the first three
//! stays Pending and says so; the others are left out.

#![forbid(unsafe_code)]

pub mod cluster;
mod forward;
mod garbage;
mod kubelet;
mod manifest;
pub mod member;
pub mod operator;
mod probe;
mod scheduler;
mod status;
mod translate;
mod worker;

pub use cluster::{Cluster, Rights, in_cluster};
pub use member::Member;
