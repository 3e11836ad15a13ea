//! CRIU's image files: read strictly, looked at, and written back with a few fields changed.
//!
//! Who calls it: the policy check before a thaw, the thaw itself (addresses, limits, labels), the preflight and
//! `woodfrog inspect`. Facts are from CRIU 4.2: `images/*.proto`, `criu/include/magic.h`, `criu/image-desc.c`.
//!
//! ```text
//!  directory descriptor ──Checkpoint::open──► Checkpoint (immutable, shared by all thaws of one image)
//!                                                │
//!                    reads: tasks, files, sockets│       Rewrite::new(&checkpoint)
//!                                                ▼            │ core(), files(), …: edit typed entries
//!                                     policy, inspect         ▼
//!                                                     Rewrite::write_into(scratch): only the changed files
//! ```
//!
//! **Nothing is lost on a rewrite**, and nothing is accepted that was not understood: an entry is taken only if
//! encoding what was decoded gives the same bytes again. A field that this version does not know, a field given
//! twice, a required one left out: each is refused with file, entry and field number. What need not be understood
//! (registers, signal queues) is carried as opaque bytes. So the typed entries *are* the file, byte for byte.
//!
//! An image is hostile until checked: sizes are capped before anything is read, counts are bounded by bytes that
//! were really there, files are opened beneath the directory without following links, and memory is never loaded.

mod address;
mod archives;
mod checkpoint;
mod dir;
mod error;
mod frame;
mod in_place;
pub mod messages;
mod name;
mod rewrite;
mod sharing;
mod strict;
mod summary;
mod task;
#[cfg(test)]
mod tests;
mod unsharing;
pub mod zeros;

pub use address::Rebind;
pub use checkpoint::{Checkpoint, PagesFile, TcpStream};
pub use dir::ImageDir;
pub use error::ImageError;
pub use frame::Frames;
pub use messages::file::FileType;
pub use name::ImageName;
pub use rewrite::Rewrite;
pub use strict::decode;
pub use summary::{MemoryByKind, OpenFile, Socket, SocketState};
pub use task::{Body, Task, TaskState, Thread};
pub use unsharing::Piece;

/// Bytes of a memory page in CRIU's page files on the architectures that are supported.
pub const PAGE_SIZE: u64 = 4096;
