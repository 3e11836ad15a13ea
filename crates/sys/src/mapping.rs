//! Files mapped for reading.

use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// A whole file, mapped read-only.
///
/// The file must not shrink or change meanwhile: a page that is gone kills the process that reads it (SIGBUS).
#[derive(Debug)]
pub struct Mapping {
    start: *mut c_void,
    length: usize,
}

// SAFETY: the memory is read-only, and unmapped by the owner alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of a file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(file: impl AsFd, length: usize) -> Result<Self, Errno> {
        if length == 0 {
            return Ok(Self { start: ptr::null_mut(), length });
        }
        // SAFETY: a new mapping where the kernel likes, which nobody else knows of.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        Ok(Self { start, length })
    }

    /// `length` bytes from `offset` on; none if they are not all there. They are read in (`MADV_POPULATE_READ`), at once
    /// instead of page by page.
    pub fn read(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let bytes = self.get(offset, length)?;
        // SAFETY: nothing changes but that the pages are there. Advice: without it they are read when they are used.
        let _ = unsafe {
            rustix::mm::madvise(bytes.as_ptr().cast_mut().cast(), bytes.len(), Advice::LinuxPopulateRead)
        };
        Some(bytes)
    }

    /// The same bytes, which are read in page by page when they are used.
    pub fn get(&self, offset: u64, length: u64) -> Option<&[u8]> {
        let end = offset.checked_add(length)?;
        if end > self.length as u64 {
            return None;
        }
        if length == 0 {
            return Some(&[]);
        }
        // SAFETY: the range lies in the mapping, as was checked.
        Some(unsafe {
            let start = self.start.cast::<u8>().add(offset as usize);
            std::slice::from_raw_parts(start, length as usize)
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: the mapping is this value's, and no slice of it outlives it.
            let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
        }
    }
}
