//! Userfaultfd: page faults of another process, answered by this one (`linux/userfaultfd.h`, and
//! `Documentation/admin-guide/mm/userfaultfd.rst` of the kernel).
//!
//! All addresses are the other process's; all ranges are whole pages.

use std::ffi::c_void;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// What the kernel tells of a process whose memory is served.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page at `address`.
    Fault {
        /// Address, not rounded.
        address: u64,
        /// It wants to write.
        write: bool,
    },
    /// The process has forked. The child's faults come through this descriptor.
    Fork(Userfault),
    /// Pages were moved to another address.
    Remap {
        /// Where they were.
        from: u64,
        /// Where they are.
        to: u64,
        /// Bytes.
        length: u64,
    },
    /// Pages were given up (`madvise`): what is read there now is zero.
    Remove {
        /// First byte.
        start: u64,
        /// Behind the last one.
        end: u64,
    },
    /// Nothing is mapped there any more.
    Unmap {
        /// First byte.
        start: u64,
        /// Behind the last one.
        end: u64,
    },
}

/// A range was served in part only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partly {
    /// Bytes that were served before it went wrong.
    pub done: u64,
    /// Why the next page was not.
    pub errno: Errno,
}

/// The descriptor through which the memory of one process is served.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

/// `struct uffd_msg`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    arguments: [u64; 3],
}

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;
const FAULT_WRITE: u64 = 1 << 0;

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    destination: u64,
    source: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeroed: i64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_continue`.
#[repr(C)]
struct Continue {
    range: Range,
    mode: u64,
    mapped: i64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `_IOWR(0xAA, number, size)`, `_IOR` for the wake.
const fn request(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    ((direction << 30) | ((size as u32) << 16) | (0xaa << 8) | number) as libc::Ioctl
}

const UFFDIO_API: libc::Ioctl = request(3, 0x3f, mem::size_of::<Api>());
const UFFDIO_REGISTER: libc::Ioctl = request(3, 0x00, mem::size_of::<Register>());
const UFFDIO_UNREGISTER: libc::Ioctl = request(2, 0x01, mem::size_of::<Range>());
const UFFDIO_WAKE: libc::Ioctl = request(2, 0x02, mem::size_of::<Range>());
const UFFDIO_COPY: libc::Ioctl = request(3, 0x03, mem::size_of::<Copy>());
const UFFDIO_ZEROPAGE: libc::Ioctl = request(3, 0x04, mem::size_of::<ZeroPage>());

const UFFDIO_WRITEPROTECT: libc::Ioctl = request(3, 0x06, mem::size_of::<WriteProtect>());
const UFFDIO_CONTINUE: libc::Ioctl = request(3, 0x07, mem::size_of::<Continue>());

/// `UFFDIO_REGISTER_MODE_MISSING` and `UFFDIO_REGISTER_MODE_MINOR`.
const MISSING_AND_MINOR: u64 = (1 << 0) | (1 << 2);

/// `UFFD_API`.
const API: u64 = 0xaa;
/// Fork, remap, remove and unmap are told of.
const EVENT_FEATURES: u64 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 6);

/// `UFFD_FEATURE_MINOR_SHMEM` (Linux 5.14).
const MINOR_SHMEM: u64 = 1 << 10;

/// Whether this kernel has what serving the memory of a process from the outside takes.
///
/// # Errors
/// What it lacks, as the kernel says it: `ENOSYS`, `EPERM`, or `EINVAL` for the events.
pub fn probe() -> Result<(), Errno> {
    probe_for(EVENT_FEATURES)
}

/// Whether this kernel also tells of pages that are in a file on a tmpfs and not in the page table of who reads them.
///
/// # Errors
/// As for [`probe`].
pub fn probe_shared() -> Result<(), Errno> {
    probe_for(EVENT_FEATURES | MINOR_SHMEM)
}

fn probe_for(features: u64) -> Result<(), Errno> {
    // SAFETY: a plain system call that makes a descriptor.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
    // SAFETY: the descriptor was just made, for this owner.
    let userfault = Userfault(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    let mut api = Api { api: API, features, ioctls: 0 };
    userfault.ioctl(UFFDIO_API, &mut api)
}

impl Userfault {
    /// Takes a descriptor that was made for another process, with fork, remap, remove and unmap events, non-blocking.
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// The next event; none if nothing has happened.
    ///
    /// Whoever caused an event other than a fault goes on when it has been read: what it did must be taken in before
    /// any page is served.
    ///
    /// # Errors
    /// The kernel's.
    pub fn next(&self) -> Result<Option<Event>, Errno> {
        let mut buffer = [0; mem::size_of::<Message>()];
        match rustix::io::read(&self.0, &mut buffer) {
            Ok(length) if length == buffer.len() => {}
            Ok(_) => return Err(Errno::IO),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let word = |index: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&buffer[8 + 8 * index..16 + 8 * index]);
            u64::from_ne_bytes(bytes)
        };
        Ok(Some(match buffer[0] {
            EVENT_PAGEFAULT => Event::Fault { address: word(1), write: word(0) & FAULT_WRITE != 0 },
            // SAFETY: the kernel has made the descriptor for whoever reads this message.
            EVENT_FORK => Event::Fork(Self(unsafe { OwnedFd::from_raw_fd(word(0) as u32 as i32) })),
            EVENT_REMAP => Event::Remap { from: word(0), to: word(1), length: word(2) },
            EVENT_REMOVE => Event::Remove { start: word(0), end: word(1) },
            EVENT_UNMAP => Event::Unmap { start: word(0), end: word(1) },
            _ => return Err(Errno::PROTO),
        }))
    }

    /// Fills missing pages from `to` on with these bytes, and wakes who waits for them.
    ///
    /// # Errors
    /// `EEXIST`: the page is there. `ENOENT`: the range is not (all) registered memory of one mapping. `EAGAIN`: an event
    /// has to be read first. `ESRCH`: the process has gone.
    pub fn copy(&self, to: u64, bytes: &[u8]) -> Result<(), Partly> {
        let (source, length) = (bytes.as_ptr() as u64, bytes.len() as u64);
        let mut copy = Copy { destination: to, source, length, mode: 0, copied: 0 };
        partly(self.ioctl(UFFDIO_COPY, &mut copy), copy.copied)
    }

    /// Fills missing pages with zeros that take no memory, and wakes who waits for them.
    ///
    /// # Errors
    /// As for [`Userfault::copy`].
    pub fn zero(&self, start: u64, length: u64) -> Result<(), Partly> {
        let mut zero = ZeroPage { range: Range { start, length }, mode: 0, zeroed: 0 };
        partly(self.ioctl(UFFDIO_ZEROPAGE, &mut zero), zero.zeroed)
    }

    /// Puts a private mapping of a file on a tmpfs under this descriptor: whoever touches a page that is not in the page table waits,
    /// whether or not the file has one.
    ///
    /// # Errors
    /// `EINVAL`: the range is not all such memory. `EBUSY`: another descriptor has it. `ESRCH`: the process has gone.
    pub fn register(&self, start: u64, length: u64) -> Result<(), Errno> {
        let range = Range { start, length };
        self.ioctl(UFFDIO_REGISTER, &mut Register { range, mode: MISSING_AND_MINOR, ioctls: 0 })
    }

    /// Nothing is told of this range any more. Whoever waits there tries again.
    ///
    /// # Errors
    /// `EINVAL`: nothing that could be served is mapped there. `ESRCH`: the process has gone.
    pub fn unregister(&self, start: u64, length: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_UNREGISTER, &mut Range { start, length })
    }

    /// Maps the pages that the file has there ([`Userfault::register`]), and wakes who waits for them.
    ///
    /// # Errors
    /// As for [`Userfault::copy`], and `EFAULT`: the file has no such page.
    pub fn map(&self, start: u64, length: u64) -> Result<(), Partly> {
        let mut map = Continue { range: Range { start, length }, mode: 0, mapped: 0 };
        partly(self.ioctl(UFFDIO_CONTINUE, &mut map), map.mapped)
    }

    /// Whether the process has ended, or runs another program.
    pub fn is_gone(&self) -> bool {
        // No memory is registered for that, so that it fails on whatever is there and changes nothing.
        let mut protect = WriteProtect { range: Range { start: 1 << 46, length: 4096 }, mode: 0 };
        self.ioctl(UFFDIO_WRITEPROTECT, &mut protect) == Err(Errno::SRCH)
    }

    /// Lets whoever waits for a page of the range try again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wake(&self, start: u64, length: u64) -> Result<(), Errno> {
        self.ioctl(UFFDIO_WAKE, &mut Range { start, length })
    }

    fn ioctl<T>(&self, request: libc::Ioctl, argument: &mut T) -> Result<(), Errno> {
        let argument: *mut c_void = std::ptr::from_mut(argument).cast();
        // SAFETY: each request of this file is passed its own structure; what the kernel writes elsewhere is the memory
        // of the process that the descriptor was made for, where pages are missing.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument) }.into()).map(drop)
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The kernel says how much it did, or the negative errno when that was nothing.
fn partly(result: Result<(), Errno>, done: i64) -> Result<(), Partly> {
    result.map_err(|errno| Partly { done: u64::try_from(done).unwrap_or(0), errno })
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    // SAFETY: the pointer is to this thread's errno.
    Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }))
}
