//! Between the agent, a container's init and the pager that gives a thawed application its memory.
//!
//! ```text
//!   agent ──Plan (a file)──► pager ──Report (all of its standard output)──► agent
//!                              │
//!                              └─[`HOLD`] + userfaultfd, …, [`COMPLETE`]──► init
//! ```
//!
//! init holds what it is given until it is told [`COMPLETE`], or that one of them is of no use any more ([`RELEASE`]). If the pager's end
//! closes before `COMPLETE`, pages are missing that nobody will ever bring: init kills the application. Where memory is shared that
//! word never comes, for the pager is needed as long as the application lives; then [`MAPPED`] says that all memory is there.

use prost::Message;

/// The message with which the pager hands init a descriptor to hold.
pub const HOLD: &[u8] = b"H";
/// The message with which the pager tells init that all memory is there.
pub const COMPLETE: &[u8] = b"C";

/// The message with which the pager tells init that all memory is there, and that it stays.
pub const MAPPED: &[u8] = b"M";
/// With this and the number of a descriptor (as [`release`] writes it) the pager tells init that its process has ended.
pub const RELEASE: u8 = b'R';
/// The longest of these messages.
pub const MAX_MESSAGE: usize = 9;

/// The message that releases the descriptor that was held as the `number`th, from 0 on.
pub fn release(number: u64) -> [u8; MAX_MESSAGE] {
    let mut message = [RELEASE; MAX_MESSAGE];
    message[1..].copy_from_slice(&number.to_le_bytes());
    message
}

/// The number in such a message.
pub fn released(message: &[u8]) -> Option<u64> {
    let (kind, number) = message.split_first()?;
    (*kind == RELEASE).then(|| number.try_into().map(u64::from_le_bytes).ok())?
}

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
    /// The counters of the pod's network (`net/netstat`), if it is recorded what is wanted: they tell when somebody has been answered. Otherwise nothing to read.
    Counters = 7,
    /// Only if memory is shared: a SEQPACKET socket whose other end the agent has. It says when everything is mapped ([`RESTORED`]), and is told when
    /// no thread can miss the pager any more ([`READY`]).
    Agent = 8,
    /// Only if memory is shared: a listening SEQPACKET socket. Whoever connects is sent a file with the [`Standing`] of all processes.
    Standing = 9,
    /// Only if memory is shared: the image's directory in the page store, which is locked as long as it is open.
    Store = 10,
}

/// The message with which the agent tells the pager that CRIU has mapped everything, and that no thread runs before [`READY`].
pub const RESTORED: &[u8] = b"M";
/// The message with which the pager tells the agent that all shared memory is served: CRIU may let the threads run.
pub const READY: &[u8] = b"R";

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

impl Plan {
    /// Whether any memory is shared, so that the pager stays.
    pub fn shares(&self) -> bool {
        self.processes.iter().any(|process| !process.shared.is_empty())
    }
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
    /// What is known to be wanted until the first answer, in the order in which it is.
    #[prost(message, repeated, tag = "5")]
    pub first: Vec<Span>,
    /// What is known to be wanted after that, likewise.
    #[prost(message, repeated, tag = "8")]
    pub then: Vec<Span>,
    /// Mappings of the process's file in the page store.
    #[prost(message, repeated, tag = "6")]
    pub shared: Vec<Span>,
    /// Mappings of anonymous memory, which CRIU puts under the userfaultfd.
    #[prost(message, repeated, tag = "7")]
    pub anonymous: Vec<Span>,
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
    /// Where it begins in the page file. Of no meaning where memory is shared.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// It is mapped from the page store instead of being copied from the page file.
    #[prost(bool, tag = "4")]
    pub shared: bool,
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
    /// Bytes that it mapped, of shared memory.
    #[prost(uint64, tag = "9")]
    pub mapped: u64,
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
    /// How many thaws it was recorded in.
    #[prost(uint32, tag = "2")]
    pub runs: u32,
}

/// Addresses that a process wanted.
#[derive(Clone, PartialEq, Message)]
pub struct Wanted {
    /// PID inside the container.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Until somebody was answered, in the order of the faults.
    #[prost(message, repeated, tag = "2")]
    pub first: Vec<Span>,
    /// After that, likewise.
    #[prost(message, repeated, tag = "4")]
    pub then: Vec<Span>,
    /// Pages among these that it wrote to, where memory was shared.
    #[prost(message, repeated, tag = "3")]
    pub written: Vec<Span>,
}

/// What the pager of shared memory knows of the processes.
#[derive(Clone, PartialEq, Message)]
pub struct Standing {
    /// The processes that were restored and live.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Image>,
    /// How many live that were forked since and have not executed another program.
    #[prost(uint32, tag = "2")]
    pub forked: u32,
}

/// The memory of a process that is the image's where it has not been written to: elsewhere what is not there is zero.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    /// PID inside the container.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Addresses, ascending.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// What is to be put into the page store: the pager's program does that when it is started with the argument `fill`, the directory of the
/// page files as descriptor 3, an empty one as 4 and this as 5.
#[derive(Clone, PartialEq, Message)]
pub struct Fill {
    /// A file each, of which only `pid`, `file`, `length` and `runs` matter.
    #[prost(message, repeated, tag = "1")]
    pub processes: Vec<Process>,
}

/// Name of a process's file in the directory of its image in the page store. A page's offset is its address.
pub fn store_file(pid: i32) -> String {
    format!("mem-{pid}")
}

/// Length of such a file: all addresses that a process can have.
pub const STORE_FILE_LENGTH: u64 = 1 << 47;
