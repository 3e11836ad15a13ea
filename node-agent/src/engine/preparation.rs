//! What a thaw does ahead of time, while the runtime still makes and starts the container.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::task::AbortOnDropHandle;
use woodfrog_criu::Seat;
use woodfrog_criu::images::Rewrite;
use woodfrog_image::MemoryMode;
use woodfrog_protocol::pager::WorkingSet;
use woodfrog_sys::process::{Place, SpawnError, Waiting};

use super::container::Container;
use super::criu::Criu;
use super::image_set::with_own;
use super::pager::{Pager, Planned, Sharing};
use super::prepared::{PrepareError, Prepared};
use super::thaw::{ThawError, failed};
use super::{Engine, cgroups, images, page_plan, standby};

/// A thaw's work ahead of its container's start. Given up when it is dropped.
#[derive(Debug)]
pub struct Preparation {
    image: oneshot::Receiver<Arc<Image>>,
    begun: AbortOnDropHandle<Result<Begun, ThawError>>,
    /// Of `begun`, which gives up what its container does not live to ask for.
    asked: Option<oneshot::Sender<()>>,
    init: Option<oneshot::Sender<i32>>,
    /// It is of a state that was saved, not of an image.
    pub saved: bool,
}

/// What waits in the container.
#[derive(Debug)]
pub struct Begun {
    /// PID 1 of the container, as the node numbers it.
    init: i32,
    /// CRIU.
    pub criu: Criu,
    /// What brings memory later; none if the node cannot, or the image has nothing for it.
    pub pager: AbortOnDropHandle<Result<Option<Pager>, ThawError>>,
}

/// What needs no container that runs.
#[derive(Debug)]
pub struct Image {
    /// The image.
    pub prepared: Arc<Prepared>,
    /// Its memory, if the container is to share it.
    pub sharing: Option<Sharing>,
    /// What of its memory comes later; none if nothing does, or the node has no pager.
    pub planned: Option<Planned>,
    /// CRIU's work directory.
    pub work: OwnedFd,
    /// CRIU's image directory: `changed` over the image's own.
    pub images: OwnedFd,
    /// The files that the container has in place of the image's.
    changed: OwnedFd,
    _scratch: TempDir,
}

impl Preparation {
    /// Begins to read the container's image, and to wait for the container's PID 1.
    pub fn begin(engine: &Arc<Engine>, container: &Arc<Container>) -> Self {
        let (init, connected) = oneshot::channel();
        let (owner, of) = (engine.clone(), container.clone());
        let taken = async move { take(&owner, pid1(&owner, &of, connected).await?).await };
        let (owner, of) = (engine.clone(), container.clone());
        let image = async move {
            let prepared = images::read(&owner, &of).await?;
            Image::new(&owner, &of, prepared).await
        };
        Self { init: Some(init), ..Self::of_both(engine, image, taken) }
    }

    /// Of a container whose image has been read, and whose init is process `init`.
    pub fn of(engine: &Arc<Engine>, container: &Arc<Container>, prepared: Arc<Prepared>, init: i32) -> Self {
        let saved = prepared.saved;
        let owner = engine.clone();
        let taken = async move { take(&owner, init).await };
        let (owner, of) = (engine.clone(), container.clone());
        let image = async move { Image::new(&owner, &of, prepared).await };
        Self { saved, ..Self::of_both(engine, image, taken) }
    }

    fn of_both(
        engine: &Arc<Engine>,
        image: impl Future<Output = Result<Image, ThawError>> + Send + 'static,
        taken: impl Future<Output = Result<Taken, ThawError>> + Send + 'static,
    ) -> Self {
        let engine = engine.clone();
        let ((tell, image_told), (ask, asked)) = (oneshot::channel(), oneshot::channel());
        let begun = tokio::spawn(async move {
            let image = async {
                let image = Arc::new(image.await?);
                let _ = tell.send(image.clone());
                Ok::<_, ThawError>(image)
            };
            let (image, taken) = tokio::try_join!(image, taken)?;
            let begun = Begun::new(&engine, &image, taken).await?;
            tokio::select! {
                biased;
                _ = asked => Ok(begun),
                // Dropped, so that it is reaped: what is not holds up the end of the container.
                () = begun.criu.ended() => Err(failed("keep CRIU waiting")(io::ErrorKind::BrokenPipe.into())),
            }
        });
        let begun = AbortOnDropHandle::new(begun);
        Self { image: image_told, begun, asked: Some(ask), init: None, saved: false }
    }

    /// The image, for the init that has connected: process `init`.
    ///
    /// # Errors
    /// It cannot be restored here, or the container cannot be entered.
    pub async fn image(&mut self, init: i32) -> Result<Arc<Image>, ThawError> {
        // Errors mean that the runtime has told before, and that nothing has begun.
        self.init.take().map(|connected| connected.send(init));
        self.asked.take().map(|asked| asked.send(()));
        match (&mut self.image).await {
            Ok(image) => Ok(image),
            Err(_) => match (&mut self.begun).await {
                Ok(Err(e)) => Err(e),
                Err(e) => Err(e.into()),
                Ok(Ok(_)) => Err(failed("read the image")(io::ErrorKind::BrokenPipe.into())),
            },
        }
    }

    /// What waits beside process `init`. The image has been told.
    ///
    /// # Errors
    /// The container cannot be entered.
    pub async fn begun(
        self,
        engine: &Arc<Engine>,
        init: i32,
        image: &Arc<Image>,
    ) -> Result<Begun, ThawError> {
        let begun = self.begun.await??;
        if begun.init == init {
            return Ok(begun);
        }
        // The runtime told of another process.
        Begun::new(engine, image, take(engine, init).await?).await
    }
}

impl Begun {
    async fn new(engine: &Arc<Engine>, image: &Arc<Image>, taken: Taken) -> Result<Self, ThawError> {
        let Taken { init, seat, pager } = taken;
        let (owner, of) = (engine.clone(), image.clone());
        let pager = tokio::spawn(async move { start_pager(&owner, &of, init, pager).await });
        let pager = AbortOnDropHandle::new(pager);
        let criu = Criu::start(engine, seat, init, image).await?;
        Ok(Self { init, criu, pager })
    }
}

impl Image {
    async fn new(
        engine: &Arc<Engine>,
        container: &Arc<Container>,
        prepared: Arc<Prepared>,
    ) -> Result<Self, ThawError> {
        if !prepared.wanted.is_empty() {
            let first = prepared.wanted.iter().flat_map(|process| &process.first);
            let bytes: u64 = first.map(|span| span.length).sum();
            container.note(format!("its image says that {:.1} MB are wanted first", bytes as f64 / 1e6));
        }
        let sharing = sharing(engine, container, &prepared).await?;
        let scratch =
            tempfile::tempdir_in(&engine.dirs.scratch).map_err(failed("make a scratch directory"))?;
        let work = scratch.path().join("work");
        let make = |path: &Path| {
            std::fs::create_dir(path)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Ok(rustix::fs::open(path, flags, Mode::empty())?)
        };
        let [opened, changed] = [work.as_path(), &scratch.path().join("images")]
            .map(|path| make(path).map_err(failed("make a scratch directory")));
        let (opened, changed) = (opened?, changed?);
        let images = prepared.with(&changed)?;
        let planned = match &engine.pager {
            Some(_) => {
                let wanted = with_own(&prepared.wanted, engine.working_sets.get(&prepared.digest));
                Planned::new(&prepared.images, wanted, sharing.is_some(), &work)
            }
            None => Ok(None),
        };
        let planned = planned.map_err(failed("plan which memory comes later"))?;
        Ok(Self { prepared, sharing, planned, work: opened, images, changed, _scratch: scratch })
    }

    /// Puts files that the container has in place of the image's into the image directory, which nobody has looked into before.
    ///
    /// # Errors
    /// They cannot be written, or are not to be seen there.
    pub fn change(&self, rewrite: &Rewrite<'_>) -> Result<(), ThawError> {
        rewrite.write_into(&self.changed).map_err(PrepareError::from)?;
        // The kernel does not promise that what changes below an overlay is seen in it.
        let seen = |name: &CStr| {
            let stat = |dir: &OwnedFd| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
            let (written, seen) = (stat(&self.changed)?, stat(&self.images)?);
            Ok::<_, io::Error>((written.st_ino, written.st_size) == (seen.st_ino, seen.st_size))
        };
        let all_seen = || {
            for entry in Dir::read_from(&self.changed)? {
                let entry = entry?;
                if entry.file_type() == FileType::RegularFile && !seen(entry.file_name())? {
                    return Err(io::Error::other("what was written is not to be seen in the overlay"));
                }
            }
            Ok(())
        };
        all_seen().map_err(failed("change the image directory"))
    }
}

/// What is taken in a container.
struct Taken {
    init: i32,
    seat: Seat,
    /// In the container's cgroups, before long.
    pager: Option<JoinHandle<Result<Waiting, SpawnError>>>,
}

/// The image's memory in the page store, if the pod or the image asks for that and it can be had. The first time this takes as long as reading it.
pub(super) async fn sharing(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    prepared: &Arc<Prepared>,
) -> Result<Option<Sharing>, ThawError> {
    let asked = standby::memory(&container.dir).unwrap_or(prepared.record.memory_mode);
    if asked != MemoryMode::Shared || prepared.saved {
        return Ok(None);
    }
    if engine.page_store.is_none() {
        container.note(
            "its memory is copied and not shared: this node has no page store (the agent's log says why)",
        );
        return Ok(None);
    }
    let (engine, container, prepared) = (engine.clone(), container.clone(), prepared.clone());
    let stored = spawn_blocking(move || {
        let store = engine.page_store.as_ref()?;
        let processes = page_plan::plan(&prepared.images, WorkingSet::default(), true).processes;
        if processes.iter().all(|process| process.shared.is_empty()) {
            return None;
        }
        match store.get(&prepared, &processes) {
            Ok(stored) => Some(Sharing { stored: Arc::new(stored), standing: engine.standing(&container) }),
            Err(e) => {
                container.note(format!("its memory is copied and not shared: {e}"));
                None
            }
        }
    });
    Ok(stored.await?)
}

/// Once the runtime tells of PID 1, or it connects: a runtime that is restarted tells nothing.
async fn pid1(
    engine: &Engine,
    container: &Container,
    mut connected: oneshot::Receiver<i32>,
) -> Result<i32, ThawError> {
    let made = tokio::select! {
        made = engine.runtime.made(&container.info.id) => made.ok(),
        init = &mut connected => init.ok(),
    };
    match made {
        Some(pid) => Ok(pid),
        None => connected.await.map_err(|_| failed("take a seat")(io::ErrorKind::NotConnected.into())),
    }
}

async fn take(engine: &Engine, init: i32) -> Result<Taken, ThawError> {
    let cgroups = || cgroups::of(init).map_err(failed("open the container's cgroups"));
    let seat = Seat::take(Arc::new(open_pidfd(init)?), cgroups()?).await?;
    let groups = engine.pager.as_ref().map(|_| cgroups()).transpose()?;
    let pager = groups.map(|groups| {
        spawn_blocking(move || {
            groups.iter().fold(Place::default(), |place, directory| place.cgroup(directory.as_fd())).enter()
        })
    });
    Ok(Taken { init, seat, pager })
}

async fn start_pager(
    engine: &Engine,
    image: &Arc<Image>,
    init: i32,
    place: Option<JoinHandle<Result<Waiting, SpawnError>>>,
) -> Result<Option<Pager>, ThawError> {
    let (Some(program), Some(place)) = (&engine.pager, place) else { return Ok(None) };
    let place = place.await?.map_err(|e| failed("enter the container's cgroups")(io::Error::other(e)))?;
    Pager::start(program.clone(), place, image.clone(), init).await
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, ThawError> {
    let pid = Pid::from_raw(pid)
        .ok_or_else(|| failed("name the container's init")(io::ErrorKind::NotFound.into()))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| failed("open the container's init")(e.into()))
}
