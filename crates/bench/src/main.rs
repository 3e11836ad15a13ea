//! Demo and benchmarks on a test node.

fn main() {}
