//! System calls that the standard library and rustix lack, behind safe types.
//!
//! Every `unsafe` of the node's programs is in this crate, one topic a file:
//!
//! - [`process`]: start a program inside the namespaces and cgroups of another process, with a wished PID;
//! - [`access`]: whether a resolved file may be opened;
//! - [`breakpoint`]: hardware breakpoints;
//! - [`heap`]: memory that the allocator keeps;
//! - [`mapping`]: files mapped for reading;
//! - [`mount`]: mounts that exist only as a descriptor;
//! - [`scheduler`]: when a process gets a CPU;
//! - [`scm`]: descriptors sent over unix sockets;
//! - [`seccomp`]: filters of another process;
//! - [`userfault`]: page faults of another process;
//! - `ready` (feature `tokio`): descriptors that a tokio program waits for.

#![allow(unsafe_code)]

pub mod access;
pub mod breakpoint;
pub mod heap;
pub mod mapping;
pub mod mount;
pub mod pid1;
pub mod process;
#[cfg(feature = "tokio")]
pub mod ready;
pub mod scheduler;
pub mod scm;
pub mod seccomp;
pub mod userfault;
