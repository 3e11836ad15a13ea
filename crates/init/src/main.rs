//! PID 1 of a managed container.

fn main() {}
