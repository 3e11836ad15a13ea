//! What the operator and the agent show of themselves: their log ([`log`]), and metrics over HTTP ([`metrics`]).

#![forbid(unsafe_code)]

pub mod log;
pub mod metrics;
