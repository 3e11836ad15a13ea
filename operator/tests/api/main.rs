//! The operator's process on an API server, with stand-ins for kubelet and the node agent.

#![forbid(unsafe_code)]

mod bad_input;
mod checkpoints;
mod pools;
mod retention;
mod stage;
