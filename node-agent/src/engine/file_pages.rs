//! Pages that processes have written to in private mappings of files, such as a JVM's archive of class data, which it relocates at each start.
//!
//! They have to be there before the threads run. CRIU reads them one process after the other while it makes them. Where they are many they
//! are written from outside instead, once everything is mapped, on several CPUs.

use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::uio::{RemoteIoVec, process_vm_writev};
use nix::unistd::Pid;
use woodfrog_criu::images::{Checkpoint, FilePages, Rewrite};
use woodfrog_sys::mapping::Mapping;

use super::link::innermost_pid;
use super::one_cpu;
use super::prepared::Prepared;

/// Of a process with less, or more, CRIU reads them.
const LEAST: u64 = 1 << 20;
const MOST: u64 = 256 << 20;
/// What is written at once.
const PIECE: u64 = 256 << 10;
/// More threads would hinder each other: they write to one address space.
const MOST_THREADS: usize = 4;

/// Processes with many such pages, by their PIDs inside the container.
#[derive(Debug, Default)]
pub(super) struct Plan(Vec<(u32, Vec<FilePages>)>);

impl Plan {
    /// Those of an image.
    pub(super) fn new(images: &Checkpoint) -> Self {
        let all = images.tasks.iter().filter_map(|task| {
            let pages = task.body.as_ref()?.file_pages();
            let bytes: u64 = pages.iter().map(|pages| pages.length).sum();
            (LEAST..=MOST).contains(&bytes).then_some((task.pid(), pages))
        });
        Self(all.collect())
    }

    /// Has CRIU leave these pages out.
    pub(super) fn apply(&self, rewrite: &mut Rewrite<'_>) {
        self.0.iter().for_each(|(pid, _)| rewrite.leave_file_pages(*pid));
    }

    /// Maps the page files, and has what is needed of them read.
    ///
    /// # Errors
    /// The image lacks a page file, or some of its pages.
    pub(super) fn open(&self, prepared: &Prepared) -> io::Result<Opened> {
        let mut opened = Opened(Vec::new());
        for (pid, pages) in &self.0 {
            let body = prepared.images.task(*pid).and_then(|task| task.body.as_ref());
            let file = prepared.open(&body.ok_or(io::ErrorKind::NotFound)?.pages.file_name())?;
            let mapping =
                Mapping::new(&file, usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?)?;
            for part in pages {
                mapping.read(part.offset, part.length).ok_or(io::ErrorKind::UnexpectedEof)?;
            }
            opened.0.push((pid.cast_signed(), mapping, pages.clone()));
        }
        Ok(opened)
    }
}

/// The pages, ready to be written.
#[derive(Debug)]
pub(super) struct Opened(Vec<(i32, Mapping, Vec<FilePages>)>);

impl Opened {
    /// Writes them into the processes that process `criu` has restored beside `init`, none of which runs.
    ///
    /// # Errors
    /// A process is not there, or its memory is not.
    pub(super) fn write(&self, init: i32, criu: i32) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let restored = one_cpu::restored(init, criu);
        for (inside, mapping, pages) in &self.0 {
            let pid = restored.iter().find(|pid| innermost_pid(**pid) == Some(*inside));
            let pid = Pid::from_raw(*pid.ok_or(io::ErrorKind::NotFound)?);
            write(pid, mapping, &pieces(pages))?;
        }
        Ok(())
    }
}

/// The same pages, [`PIECE`] at a time.
fn pieces(pages: &[FilePages]) -> Vec<FilePages> {
    let cut = |pages: &FilePages| {
        let FilePages { start, offset, length } = *pages;
        (0..length).step_by(PIECE as usize).map(move |at| FilePages {
            start: start + at,
            offset: offset + at,
            length: PIECE.min(length - at),
        })
    };
    pages.iter().flat_map(cut).collect()
}

fn write(pid: Pid, mapping: &Mapping, pieces: &[FilePages]) -> io::Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            let bytes = mapping.read(piece.offset, piece.length).ok_or(io::ErrorKind::UnexpectedEof)?;
            let remote = RemoteIoVec { base: piece.start as usize, len: bytes.len() };
            if process_vm_writev(pid, &[io::IoSlice::new(bytes)], &[remote])? != bytes.len() {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let ours = work();
        let ended =
            others.into_iter().map(|other| other.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())));
        ended.fold(ours, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn all_pages_are_written_where_they_belong() {
        const LENGTH: usize = 3 << 20;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![2; LENGTH]).unwrap();
        let mut memory = vec![1_u8; LENGTH];
        let start = memory.as_mut_ptr() as u64;
        let parts = [(4096, 8192, 12288), (1 << 20, 0, 1 << 20)];
        let parts = parts.map(|(at, offset, length)| FilePages { start: start + at, offset, length });
        write(Pid::this(), &Mapping::new(&file, LENGTH).unwrap(), &pieces(&parts)).unwrap();
        let is_written = |at: usize| (4096..16384).contains(&at) || (1 << 20..2 << 20).contains(&at);
        let mut bytes = std::hint::black_box(&memory).iter().enumerate();
        assert!(bytes.all(|(at, byte)| *byte == 1 + u8::from(is_written(at))));
    }

    #[test]
    fn what_is_not_mapped_is_an_error() {
        let pages = tempfile::tempfile().unwrap();
        pages.set_len(8192).unwrap();
        let part = FilePages { start: 4096, offset: 0, length: 8192 };
        write(Pid::this(), &Mapping::new(&pages, 8192).unwrap(), &[part]).unwrap_err();
    }
}
