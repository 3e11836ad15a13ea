//! CRIU in a container, which waits there to be told what to restore.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{Mode, OFlags};
use woodfrog_criu::{Connections, Given, LogLevel, Restore, RestoreOptions, Seat, Setup, Worker};
use woodfrog_protocol::paths;

use super::Engine;
use super::preparation::Image;
use super::prepared::Prepared;
use super::thaw::{ThawError, failed};

/// First PID of an application; the ones below are for helpers.
const FIRST_PID: i32 = 300;

/// A CRIU that has all that it may be told to use.
#[derive(Debug)]
pub struct Criu {
    worker: Worker,
    /// The image directory.
    images: Given,
    /// The container's standard streams, by CRIU's keys for them.
    stdio: Vec<(String, Given)>,
    /// The files of shared memory, by PID.
    stored: BTreeMap<i32, Given>,
}

impl Criu {
    /// Starts it in a seat beside process `init`.
    ///
    /// # Errors
    /// It did not start, or the container's streams cannot be opened.
    pub async fn start(engine: &Engine, seat: Seat, init: i32, image: &Image) -> Result<Self, ThawError> {
        let handed = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed("hand CRIU its files"));
        let mut setup = Setup::new(handed(image.work.as_fd())?)
            .seat(seat)
            .last_pid(highest_pid(&image.prepared))
            .light(!image.prepared.keeps_connections() && has_cache(init));
        let images = setup.give(handed(image.images.as_fd())?);
        let mut stdio: Vec<(String, Given)> = Vec::new();
        for stream in &image.prepared.record.stdio {
            let given = setup.give(open_stdio(init, stream.fd)?);
            if !stdio.iter().any(|(key, _)| *key == stream.key) {
                stdio.push((stream.key.clone(), given));
            }
        }
        let mut stored = BTreeMap::new();
        for (pid, file) in image.sharing.iter().flat_map(|sharing| sharing.stored.files()) {
            stored.insert(pid, setup.give(handed(file.as_fd())?));
        }
        let worker = Worker::spawn(engine.criu.clone(), setup).await?;
        Ok(Self { worker, images, stdio, stored })
    }

    /// Returns when it has ended, as it does with its container.
    pub async fn ended(&self) {
        self.worker.ended().await;
    }

    /// Has it read the image, changed for this container before. Nothing is made yet. `shared` are the processes whose
    /// memory is the page store's, by CRIU's keys for their files.
    ///
    /// # Errors
    /// CRIU cannot read it.
    pub async fn read(self, image: &Image, shared: Vec<(String, i32)>) -> Result<Restore, ThawError> {
        let Self { worker, images, stdio, stored } = self;
        let memory = shared.into_iter().filter_map(|(key, pid)| Some((key, *stored.get(&pid)?)));
        let keeps = image.prepared.keeps_connections();
        let options = RestoreOptions {
            connections: if keeps { Connections::Keep } else { Connections::Close },
            log_level: LogLevel::Warnings,
            lazy_pages: image.planned.is_some(),
            inherit: stdio.into_iter().chain(memory).collect(),
            ..RestoreOptions::default()
        };
        let mut restore = worker.restore(images, &options).await?;
        restore.before_tasks().await?;
        Ok(restore)
    }
}

/// Whether a container has the node's newest cache of kernel features, not one of a CRIU before that: without it CRIU looks at more than a light one can.
fn has_cache(init: i32) -> bool {
    let file = |path: String| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let node = file(paths::KDAT.to_owned());
    node.is_some() && node == file(format!("/proc/{init}/root{}", paths::KDAT))
}

fn highest_pid(prepared: &Prepared) -> i32 {
    let tasks = prepared.images.tasks.iter();
    let pids = tasks.flat_map(|task| task.threads.iter().map(|t| t.tid).chain([task.pid()]));
    pids.max().map_or(FIRST_PID, |pid| (pid as i32).max(FIRST_PID))
}

/// Standard streams of the init: the runtime's pipes. A new description of the same pipe serves as well.
fn open_stdio(init: i32, fd: u32) -> Result<OwnedFd, ThawError> {
    let path = format!("/proc/{init}/fd/{fd}");
    let access = if fd == 0 { OFlags::RDONLY } else { OFlags::WRONLY };
    rustix::fs::open(&path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .and_then(|stream| {
            rustix::fs::fcntl_setfl(&stream, rustix::fs::fcntl_getfl(&stream)? - OFlags::NONBLOCK)?;
            Ok(stream)
        })
        .map_err(|e| failed(format!("open stream {fd} of the container"))(e.into()))
}
