//! Between a container's init and the agent.
//!
//! ```text
//!   init                                agent
//!    │ Hello{state}                       │
//!    ├───────────────────────────────────►│
//!    │            Welcome{start} + API listener
//!    │◄───────────────────────────────────┤ start = COLD: init starts the command
//!    │                                    │ start = DORMANT: init waits as long as it takes
//!    │   RequestLease + pidfd of CRIU     │ start = THAW: init waits
//!    │◄───────────────────────────────────┤
//!    │ LeaseGranted                       │ one lease: to the thaw or to the cold start
//!    ├───────────────────────────────────►│
//!    │   Pager + its socket               │ only if memory comes later, see [`crate::pager`]
//!    │◄───────────────────────────────────┤
//!    │                                    │ … CRIU restores, tasks held …
//!    │                       Commit{pid}  │
//!    │◄───────────────────────────────────┤
//!    │ Committed                          │
//!    ├───────────────────────────────────►│ … CRIU lets the tasks run …
//!    │                  Done{generation}  │
//!    │◄───────────────────────────────────┤
//!    │ MemoryComplete                     │
//!    ├───────────────────────────────────►│
//! ```
//!
//! If the agent goes away between `LeaseGranted` and `Done`, init waits for the end of CRIU (its pidfd) and starts
//! cold, unless the committed process lives on as its child.

use std::collections::BTreeMap;

use prost::{Enumeration, Message, Oneof};

/// The command that a container would have run, written by the shim for init: the file `command.bin`.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    /// The argument vector as the runtime would have resolved it; never empty.
    #[prost(string, repeated, tag = "1")]
    pub argv: Vec<String>,
    /// Whether init waits for a thaw before it starts the command.
    #[prost(enumeration = "Start", tag = "2")]
    pub start: i32,
    /// How long init waits for the agent's [`Welcome`], in milliseconds.
    #[prost(uint32, tag = "3")]
    pub hello_timeout_ms: u32,
    /// How long a thaw may take from the lease on, in milliseconds.
    #[prost(uint32, tag = "4")]
    pub thaw_timeout_ms: u32,
    /// For the agent: those of the pod's annotations that say how its containers stand by (see [`crate::paths::STANDBY`]).
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}

/// How a container's life begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Start {
    /// The command is started at once.
    Cold = 0,
    /// The agent thaws; the command is started only if it does not.
    Thaw = 1,
    /// Nothing is started until the agent thaws, whenever that is.
    Dormant = 2,
}

/// What init is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum State {
    /// No application yet; a thaw is awaited.
    Waiting = 0,
    /// The lease is out to a thaw.
    Leased = 1,
    /// The application was started from its command.
    Cold = 2,
    /// The application was restored.
    Thawed = 3,
    /// No application until the agent brings one.
    Dormant = 4,
}

/// From init to the agent.
#[derive(Clone, PartialEq, Message)]
pub struct FromInit {
    /// What is said.
    #[prost(oneof = "from_init::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub kind: Option<from_init::Kind>,
}

/// Kinds of [`FromInit`].
pub mod from_init {
    use super::*;
    /// What init says.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// The first message of every connection.
        #[prost(message, tag = "1")]
        Hello(Hello),
        /// Answers `RequestLease`: nobody but the agent will start an application now.
        #[prost(message, tag = "2")]
        LeaseGranted(Empty),
        /// Answers `RequestLease`: the reason why not.
        #[prost(message, tag = "3")]
        LeaseRefused(Reason),
        /// Answers `Commit`.
        #[prost(message, tag = "4")]
        Committed(Empty),
        /// The command was started cold.
        #[prost(message, tag = "5")]
        Started(Started),
        /// Answers `BeginDump`: signals are held back from now on.
        #[prost(message, tag = "6")]
        DumpBegun(Empty),
        /// The application said `POST /checkpoint`.
        #[prost(message, tag = "7")]
        CheckpointRequested(Empty),
        /// The application ended; init exits with this code right after.
        #[prost(message, tag = "8")]
        Exiting(Exiting),
        /// A thawed application has all of its memory: nothing of the thaw is left.
        #[prost(message, tag = "9")]
        MemoryComplete(Empty),
        /// Answers `Sleep` and `Rehearse`: nothing of the application is left.
        #[prost(message, tag = "10")]
        Asleep(Empty),
    }
}

/// From the agent to init.
#[derive(Clone, PartialEq, Message)]
pub struct ToInit {
    /// What is said.
    #[prost(oneof = "to_init::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub kind: Option<to_init::Kind>,
}

/// Kinds of [`ToInit`].
pub mod to_init {
    use super::*;
    /// What the agent says.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// Answers `Hello`.
        #[prost(message, tag = "1")]
        Welcome(Welcome),
        /// Asks for the single lease; the pidfd of the CRIU process comes with it (SCM_RIGHTS).
        #[prost(message, tag = "2")]
        RequestLease(Empty),
        /// The tree is restored and held; this is its root.
        #[prost(message, tag = "3")]
        Commit(Commit),
        /// The tree runs.
        #[prost(message, tag = "4")]
        Done(Done),
        /// No thaw: init starts the command once CRIU is gone.
        #[prost(message, tag = "5")]
        StartCold(Reason),
        /// A dump begins: init holds back signals, and starts the command again should the dump kill the application.
        #[prost(message, tag = "6")]
        BeginDump(Empty),
        /// The dump is over: held signals are delivered.
        #[prost(message, tag = "7")]
        EndDump(Empty),
        /// Kill the application and exit with this code (a freeze that was asked to stop it).
        #[prost(message, tag = "8")]
        Stop(Exiting),
        /// Memory comes later; the socket of whoever brings it comes with this.
        #[prost(message, tag = "9")]
        Pager(Empty),
        /// End the application, or give a thaw up that failed, and be dormant.
        #[prost(message, tag = "10")]
        Sleep(Reason),
        /// End the application, however it came to life, and be dormant: it is thawed from what was just dumped of it.
        #[prost(message, tag = "11")]
        Rehearse(Reason),
    }
}

/// No content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Empty {}

/// Why something is (not) done, for people.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Reason {
    /// A sentence.
    #[prost(string, tag = "1")]
    pub message: String,
}

/// See [`from_init::Kind::Hello`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Hello {
    /// Release of init.
    #[prost(string, tag = "1")]
    pub version: String,
    /// What init is doing.
    #[prost(enumeration = "State", tag = "2")]
    pub state: i32,
    /// PID of the application inside the container, 0 if none runs.
    #[prost(int32, tag = "3")]
    pub application_pid: i32,
    /// Generation of the application (see [`Done`]), or of the one before if it is dormant; 0 after a cold start.
    #[prost(uint64, tag = "4")]
    pub generation: u64,
    /// Whether init already has the listener of the application's API.
    #[prost(bool, tag = "5")]
    pub has_api: bool,
    /// Whether the application has said that it is warm.
    #[prost(bool, tag = "6")]
    pub warm: bool,
    /// Whether some of the application's memory is still to come.
    #[prost(bool, tag = "7")]
    pub memory_pending: bool,
}

/// See [`to_init::Kind::Welcome`]. The listening descriptor of the application's API comes with it, unless
/// `Hello.has_api`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Welcome {
    /// What a waiting init is to do.
    #[prost(enumeration = "Start", tag = "1")]
    pub start: i32,
}

/// See [`to_init::Kind::Commit`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Commit {
    /// PID of the root of the restored tree, inside the container.
    #[prost(int32, tag = "1")]
    pub pid: i32,
}

/// See [`to_init::Kind::Done`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Done {
    /// How many thaws lie between the application and the start of its ancestor; at least 1.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// Digest of the checkpoint image.
    #[prost(string, tag = "2")]
    pub image_digest: String,
}

/// See [`from_init::Kind::Started`].
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Started {
    /// PID of the application inside the container.
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Why it was a cold start.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// An end with an exit code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Exiting {
    /// Exit code of init (128+n after signal n).
    #[prost(int32, tag = "1")]
    pub code: i32,
}
