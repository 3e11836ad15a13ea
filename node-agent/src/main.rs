//! The node agent: freezes and thaws containers, builds and pushes images.

fn main() {}
