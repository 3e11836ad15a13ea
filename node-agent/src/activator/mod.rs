//! The activator: holds the first packets to a container that sleeps, until it is awake.
//!
//! ```text
//!   packet ──► rules (mangle PREROUTING of the pod's namespace) ──► queue ──► gate: is it kubelet's probe?
//!                                                                              ├ yes ─► marked ─► responder (TPROXY)
//!                                                                              └ no ──► held … awake … released
//! ```
//!
//! The client talks to the application itself, from its own address; nothing of the activator is in between once the packet is
//! released. Rules without an agent drop what they match, so that a client sends it again: nobody is ever refused.

mod gate;
pub mod idle;
mod kubelet;
mod listeners;
mod nfnetlink;
mod packet;
mod queue;
mod responder;
mod rules;
mod turn;

pub use gate::{Activator, Gate, GateError, Knock};
pub use listeners::Listeners;
pub use responder::Leave;
