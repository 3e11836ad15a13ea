//! Puts the memory of an image into the page store: a process of its own, so that the pages are charged to the store's cgroup.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};

use prost::Message as _;
use rustix::fs::{Mode, OFlags};
use woodfrog_protocol::pager::{Fill, Process, STORE_FILE_LENGTH, store_file};
use woodfrog_sys::mapping::Mapping;

/// How much is written at once.
const PIECE: u64 = 4 << 20;

/// Writes what `fill` says from the page files in `pages` into new files in `store`.
///
/// # Errors
/// A file cannot be read or written, which is named.
pub(crate) fn fill(pages: OwnedFd, store: OwnedFd, fill: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
    let mut bytes = Vec::new();
    File::from(fill).read_to_end(&mut bytes)?;
    for process in &Fill::decode(&*bytes)?.processes {
        let name = store_file(process.pid);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let to = rustix::fs::openat(&store, &name, flags, Mode::RUSR)?;
        let from = crate::open_pages(pages.as_fd(), process)?;
        write(process, &from, to).map_err(|e| format!("cannot write {name} from {}: {e}", process.file))?;
    }
    Ok(())
}

fn write(process: &Process, from: &Mapping, to: OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
    rustix::fs::ftruncate(&to, STORE_FILE_LENGTH)?;
    for run in process.runs.iter().filter(|run| run.shared) {
        let mut done = 0;
        while done < run.length {
            let piece = PIECE.min(run.length - done);
            let bytes = from.read(run.offset + done, piece).ok_or("the page file is too short")?;
            done += rustix::io::pwrite(&to, bytes, run.start + done)? as u64;
        }
    }
    Ok(())
}
