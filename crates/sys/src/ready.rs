//! Descriptors that a tokio program waits for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::Child;

/// What holds one descriptor for as long as it lives and never replaces it through a shared reference.
pub trait Steady: AsRawFd + sealed::Sealed {}

impl Steady for OwnedFd {}
impl Steady for Child {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::os::fd::OwnedFd {}
    impl Sealed for crate::process::Child {}
}

/// A descriptor registered with a tokio runtime. It has to be non-blocking if it is read or written.
///
/// `AsyncFd` without the exclusive reference to what it holds, by which safe code could replace the descriptor.
#[derive(Debug)]
pub struct Ready<T: Steady>(AsyncFd<T>);

impl<T: Steady> Ready<T> {
    /// Registers a descriptor with the current runtime.
    pub fn new(inner: T, interest: Interest) -> io::Result<Self> {
        // SAFETY: a `Steady` type owns its descriptor, and nothing closes or replaces it while `AsyncFd` holds the
        // value, since only shared references to it are given out.
        Ok(Self(unsafe { AsyncFd::register_with_interest(inner, interest) }?))
    }

    /// What is registered.
    pub fn get(&self) -> &T {
        self.0.get_ref()
    }

    /// Unregisters it.
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }

    /// Waits until the descriptor is ready and `operation` gives anything but [`io::ErrorKind::WouldBlock`].
    pub async fn when<R>(
        &self,
        interest: Interest,
        operation: impl FnMut(&T) -> io::Result<R>,
    ) -> io::Result<R> {
        self.0.async_io(interest, operation).await
    }
}
