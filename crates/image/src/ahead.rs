//! Page files that are still being written: what is there already is compressed meanwhile.
//!
//! ```text
//!   pages-1.img   │ 0 │ 1 │ 2 │ 3 │ 4 │ 5   ◄── CRIU
//!                   │   │   │   └── is being compressed
//!                   └───┴───┴────── frames, for whoever writes the layer
//! ```
//!
//! CRIU appends to page files and changes nothing in them, so a block that is whole is final. It tells nobody how far it is: the files are
//! looked at.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Dir, Mode, OFlags};

use crate::frame::{BLOCK, Framer};
use crate::layer::Compression;
use crate::page_file::is_memory;

/// More threads than this do not get to see a block: CRIU copies memory about four times as fast as one compresses.
const MOST_THREADS: usize = 4;
/// How long to wait for a block: what CRIU takes for a fraction of one.
const PAUSE: Duration = Duration::from_millis(1);

/// Frames of a page file, by block.
pub(crate) type Frames = BTreeMap<u64, Vec<u8>>;

/// Compresses beside CRIU, on threads that have the lowest priority and leave it a core of its own. They end with this value.
#[derive(Debug)]
pub struct Ahead(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    directory: OwnedFd,
    level: i32,
    ended: AtomicBool,
    files: Mutex<Files>,
}

#[derive(Debug, Default)]
struct Files {
    by_name: BTreeMap<String, Following>,
    waiting: u64,
}

#[derive(Debug)]
struct Following {
    file: Arc<File>,
    /// The first block that nobody has begun.
    next: u64,
    frames: Frames,
}

impl Ahead {
    /// Most bytes of frames that wait to be taken. Then CRIU is no longer followed.
    pub const MOST_BYTES: u64 = 64 << 20;

    /// Follows the page files that appear in a directory. On a single core nothing happens: it is CRIU's, and the application waits
    /// for that.
    pub fn start(directory: OwnedFd, compression: Compression) -> Self {
        let ended = AtomicBool::new(false);
        let level = compression.level;
        let shared = Arc::new(Shared { directory, level, ended, files: Mutex::default() });
        for _ in 0..(compression.threads as usize).saturating_sub(1).min(MOST_THREADS) {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                // What is missed here is made up for by who writes the layer, who also says why it fails.
                if let Err(e) = shared.follow() {
                    tracing::debug!("memory is not compressed while it is dumped: {e}");
                }
            });
        }
        Self(shared)
    }

    /// How many blocks have been compressed.
    pub fn frames(&self) -> usize {
        self.0.files().by_name.values().map(|following| following.frames.len()).sum()
    }

    /// The frames that there are, by page file. Ends the work.
    pub(crate) fn take(self) -> BTreeMap<String, Frames> {
        self.0.ended.store(true, Ordering::Relaxed);
        let files = std::mem::take(&mut *self.0.files());
        files.by_name.into_iter().map(|(name, following)| (name, following.frames)).collect()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(&self) -> io::Result<()> {
        // Of this thread alone; a kernel that refuses leaves it as it is.
        let _ = rustix::process::setpriority_process(None, 19);
        let mut framer = Framer::new(self.level)?;
        while !self.ended.load(Ordering::Relaxed) {
            let Some((name, file, block)) = self.claim()? else {
                self.look()?;
                std::thread::sleep(PAUSE);
                continue;
            };
            let frame = framer.of_file(&file, &[(block * BLOCK, BLOCK)])?;
            let mut files = self.files();
            files.waiting += frame.len() as u64;
            let full = files.waiting > Ahead::MOST_BYTES;
            if let Some(following) = files.by_name.get_mut(&name) {
                following.frames.insert(block, frame);
            }
            if full {
                break;
            }
        }
        Ok(())
    }

    /// A block that is whole and that nobody has begun.
    fn claim(&self) -> io::Result<Option<(String, Arc<File>, u64)>> {
        for (name, following) in &mut self.files().by_name {
            if following.file.metadata()?.len() >= (following.next + 1) * BLOCK {
                following.next += 1;
                return Ok(Some((name.clone(), Arc::clone(&following.file), following.next - 1)));
            }
        }
        Ok(None)
    }

    /// Looks for new page files.
    fn look(&self) -> io::Result<()> {
        for entry in Dir::read_from(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let mut files = self.files();
            if is_memory(&name) && !files.by_name.contains_key(&name) {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&self.directory, name.as_str(), flags, Mode::empty())?;
                let following = Following { file: Arc::new(file.into()), next: 0, frames: Frames::new() };
                files.by_name.insert(name, following);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn open(directory: &Path) -> OwnedFd {
        File::open(directory).unwrap().into()
    }

    fn wait_for(ahead: &Ahead, frames: usize) {
        while ahead.frames() < frames {
            std::thread::sleep(PAUSE);
        }
    }

    #[test]
    fn blocks_are_compressed_once_they_are_whole_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let compression = Compression { threads: 2, ..Compression::default() };
        let ahead = Ahead::start(open(directory.path()), compression);
        let block = |byte: u8| vec![byte; BLOCK as usize];
        let mut first = File::create(directory.path().join("pages-1.img")).unwrap();
        std::fs::write(directory.path().join("pagemap-1.img"), block(0)).unwrap();
        first.write_all(&block(1)).unwrap();
        wait_for(&ahead, 1);
        first.write_all(&[block(2), vec![3; 4096]].concat()).unwrap();
        std::fs::write(directory.path().join("pages-2.img"), block(4)).unwrap();
        wait_for(&ahead, 3);
        let frames = ahead.take();
        let contents = frames.iter().map(|(name, frames)| {
            let contents =
                frames.iter().map(|(block, frame)| (*block, zstd::decode_all(frame.as_slice()).unwrap()));
            (name.as_str(), contents.collect::<Vec<_>>())
        });
        let expected =
            [("pages-1.img", vec![(0, block(1)), (1, block(2))]), ("pages-2.img", vec![(0, block(4))])];
        assert!(contents.eq(expected));
    }

    #[test]
    fn a_single_core_is_left_to_criu() {
        let directory = tempfile::tempdir().unwrap();
        let compression = Compression { threads: 1, ..Compression::default() };
        let ahead = Ahead::start(open(directory.path()), compression);
        assert_eq!(Arc::strong_count(&ahead.0), 1);
    }

    #[test]
    fn its_threads_end_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let ahead =
            Ahead::start(open(directory.path()), Compression { threads: 3, ..Compression::default() });
        let shared = Arc::clone(&ahead.0);
        drop(ahead);
        while Arc::strong_count(&shared) > 1 {
            std::thread::sleep(PAUSE);
        }
    }
}
