//! Wire types of the sockets of a node: init, agent, shim and command; no IO.
