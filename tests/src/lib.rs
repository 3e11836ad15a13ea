//! Tests that need a node.
