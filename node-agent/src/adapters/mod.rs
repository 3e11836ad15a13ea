//! The engine's seams, filled: one file for each outside party.

pub mod containerd;
pub mod registry;
