//! Wire types of the sockets of a node; no IO.
//!
//! ```text
//!   woodfrog-init ──<token>/agent.sock──► node-agent ◄──agent.sock── cri-shim, woodfrog
//!        init::{FromInit, ToInit}                     agent::{Request, Response}
//! ```
//!
//! [`pager`] is what passes between the agent, an init and the pager of a thaw.
//!
//! Every message on a socket of these two travels in a [`frame`]: magic, version, length, one protobuf message. Field numbers are
//! never used again, so that an agent and an init of different releases understand each other.

#![forbid(unsafe_code)]

pub mod agent;
pub mod frame;
pub mod init;
pub mod pager;
pub mod paths;
