//! CRIU's protobuf entries, written from the field tags of CRIU 4.2's `images/*.proto` (proto2, unpacked).
//!
//! Fields carry CRIU's own names, so that an error names what `crit show` shows. Every tag that CRIU 4.2 can write
//! is here, in ascending order, because decoding is strict (see the parent module); parts that nobody looks into
//! are `bytes`, which is the same on the wire as the message they hold.

// The names are CRIU's and so is their documentation.
#![allow(missing_docs)]

pub mod file;
pub mod memory;
pub mod misc;
pub mod socket;
pub mod task;
