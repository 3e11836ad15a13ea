//! A stand-in for kubelet in tests: drives a real container runtime, or the shim before it, through CRI.
//!
//! - [`stack`]: agent and shim, started on a node;
//! - [`pod`]: what a pod is to be, in the two forms that matter (locked down; root without a profile);
//! - [`kubelet`]: pods made, started, looked at and removed.

#![forbid(unsafe_code)]

pub mod http;
pub mod kubelet;
pub mod pod;
pub mod stack;

pub use k8s_cri::v1::Mount;
pub use kubelet::{Container, Kubelet, Pod};
pub use pod::{PodSpec, Security};
pub use stack::Stack;
