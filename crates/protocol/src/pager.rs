//! Between the agent, a container's init and the pager that gives a thawed application its memory.
//!
//! ```text
//!   agent ──Plan (a file)──► pager ──Report (all of its standard output)──► agent
//!                              │
//!                              └─[`HOLD`] + userfaultfd, …, [`COMPLETE`]──► init
//! ```
//!
//! init holds what it is given until it is told [`COMPLETE`]. If the pager's end closes before that, pages are missing that nobody
//! will ever bring: init kills the application.

use prost::Message;

/// The message with which the pager hands init a descriptor to hold.
pub const HOLD: &[u8] = b"H";
/// The message with which the pager tells init that all memory is there.
pub const COMPLETE: &[u8] = b"C";

/// The pager's descriptors beyond the standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Descriptor {
    /// The [`Plan`], a file read from its beginning.
    Plan = 3,
    /// The listening socket that CRIU connects to (`lazy-pages.socket`).
    Criu = 4,
    /// A SEQPACKET socket whose other end init has.
    Init = 5,
    /// The directory of the page files.
    Pages = 6,
}

/// What the memory of all processes of a tree consists of.
#[derive(Clone, PartialEq, Message)]
pub struct Plan {
    /// The processes that have memory.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Process>,
    /// Let the processes ask for a while before anything is filled in unasked, and report what they wanted.
    #[prost(bool, tag = "2")]
    pub record: bool,
}

/// The memory of a process.
#[derive(Clone, PartialEq, Message)]
pub struct Process {
    /// PID inside the container.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Name of its page file.
    #[prost(string, tag = "2")]
    pub file: String,
    /// Length of that file, in bytes.
    #[prost(uint64, tag = "3")]
    pub length: u64,
    /// What is brought in later, by address.
    #[prost(message, repeated, tag = "4")]
    pub runs: Vec<Run>,
    /// What is known to be wanted first, in the order in which it is.
    #[prost(message, repeated, tag = "5")]
    pub first: Vec<Span>,
}

/// Pages that lie one behind the other in memory and in a page file. Everything is in bytes, and whole pages.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Run {
    /// Address of the first page.
    #[prost(uint64, tag = "1")]
    pub start: u64,
    /// How much.
    #[prost(uint64, tag = "2")]
    pub length: u64,
    /// Where it begins in the page file.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
}

/// A range of addresses, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Span {
    /// The first.
    #[prost(uint64, tag = "1")]
    pub start: u64,
    /// How many.
    #[prost(uint64, tag = "2")]
    pub length: u64,
}

/// What a pager has done by its end.
#[derive(Clone, PartialEq, Message)]
pub struct Report {
    /// Bytes that it copied.
    #[prost(uint64, tag = "1")]
    pub copied: u64,
    /// Faults that it answered, and how many of them with zeros.
    #[prost(uint64, tag = "2")]
    pub faults: u64,
    /// See `faults`.
    #[prost(uint64, tag = "3")]
    pub zero_faults: u64,
    /// When the processes were let go, microseconds of CLOCK_MONOTONIC.
    #[prost(uint64, tag = "4")]
    pub released_us: u64,
    /// When 99 % of the memory was there, likewise.
    #[prost(uint64, tag = "5")]
    pub nearly_us: u64,
    /// When all memory was there, likewise; 0 if the container ended before.
    #[prost(uint64, tag = "6")]
    pub complete_us: u64,
    /// CPU time of the pager, microseconds.
    #[prost(uint64, tag = "7")]
    pub cpu_us: u64,
    /// What was wanted before anything else was filled in, a process each, in order. Only if that was asked for.
    #[prost(message, repeated, tag = "8")]
    pub wanted: Vec<Wanted>,
}

/// What the processes of an image want first: how a node remembers it.
#[derive(Clone, PartialEq, Message)]
pub struct WorkingSet {
    /// A process each.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Wanted>,
}

/// Addresses that a process wanted.
#[derive(Clone, PartialEq, Message)]
pub struct Wanted {
    /// PID inside the container.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// In the order of the faults.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}
