//! What a thaw does ahead of time, while the runtime still makes and starts the container.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;
use woodfrog_criu::Seat;
use woodfrog_image::MemoryMode;
use woodfrog_protocol::pager::WorkingSet;
use woodfrog_sys::process::{Place, Waiting};

use super::container::Container;
use super::pager::{self, Pager, Sharing};
use super::prepared::Prepared;
use super::thaw::{ThawError, failed};
use super::{Engine, cgroups, images, standby};

/// A thaw's work ahead of its container's start. Given up when it is dropped.
#[derive(Debug)]
pub struct Preparation {
    image: oneshot::Receiver<Arc<Image>>,
    work: AbortOnDropHandle<Result<Entered, ThawError>>,
    init: Option<oneshot::Sender<i32>>,
    /// It is of a state that was saved, not of an image.
    pub saved: bool,
}

/// What needs no container that runs.
#[derive(Debug)]
pub struct Image {
    /// The image.
    pub prepared: Arc<Prepared>,
    /// Its memory, if the container is to share it.
    pub sharing: Option<Sharing>,
    /// For CRIU: `work` is its work directory.
    pub scratch: TempDir,
}

/// What is in the container's cgroups.
#[derive(Debug)]
pub struct Entered {
    /// A process in the namespaces and cgroups of the init.
    pub seat: Seat,
    /// Brings memory later; none if the node cannot, or the image has nothing for it.
    pub pager: Option<Pager>,
    init: i32,
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
        let (tell, told) = oneshot::channel();
        let work = tokio::spawn(async move {
            let image = async {
                let image = Arc::new(image.await?);
                let _ = tell.send(image.clone());
                Ok(image)
            };
            let (image, taken) = tokio::try_join!(image, taken)?;
            enter(&engine, &image, taken).await
        });
        Self { image: told, work: AbortOnDropHandle::new(work), init: None, saved: false }
    }

    /// The image, for the init that has connected: process `init`.
    ///
    /// # Errors
    /// It cannot be restored here, or the container cannot be entered.
    pub async fn image(&mut self, init: i32) -> Result<Arc<Image>, ThawError> {
        // An error means that the runtime has told before.
        self.init.take().map(|connected| connected.send(init));
        if let Ok(image) = (&mut self.image).await {
            return Ok(image);
        }
        (&mut self.work).await?.and_then(|_| Err(failed("read the image")(io::ErrorKind::BrokenPipe.into())))
    }

    /// What was made for process `init`.
    ///
    /// # Errors
    /// The container cannot be entered.
    pub async fn complete(self, engine: &Engine, init: i32, image: &Image) -> Result<Entered, ThawError> {
        match self.work.await?? {
            entered if entered.init == init => Ok(entered),
            // The runtime told of another process.
            _ => enter(engine, image, take(engine, init).await?).await,
        }
    }
}

impl Image {
    async fn new(
        engine: &Arc<Engine>,
        container: &Arc<Container>,
        prepared: Arc<Prepared>,
    ) -> Result<Self, ThawError> {
        let sharing = sharing(engine, container, &prepared).await?;
        let scratch =
            tempfile::tempdir_in(&engine.dirs.scratch).map_err(failed("make a scratch directory"))?;
        std::fs::create_dir(scratch.path().join(WORK)).map_err(failed("make a scratch directory"))?;
        Ok(Self { prepared, sharing, scratch })
    }
}

/// CRIU's work directory, in the scratch directory.
const WORK: &str = "work";

/// What is taken in a container.
struct Taken {
    init: i32,
    seat: Seat,
    pager: Option<Waiting>,
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
        let processes = pager::plan(&prepared.images, WorkingSet::default(), true).processes;
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
    let pidfd = Arc::new(open_pidfd(init)?);
    let cgroups = || cgroups::of(init).map_err(failed("open the container's cgroups"));
    let seat = async { Ok::<_, ThawError>(Seat::take(pidfd, cgroups()?).await?) };
    let pager = async {
        if engine.pager.is_none() {
            return Ok(None);
        }
        let cgroups = cgroups()?;
        let entered = spawn_blocking(move || {
            cgroups.iter().fold(Place::default(), |place, directory| place.cgroup(directory.as_fd())).enter()
        });
        Ok(Some(entered.await?.map_err(|e| failed("enter the container's cgroups")(io::Error::other(e)))?))
    };
    let (seat, pager) = tokio::try_join!(seat, pager)?;
    Ok(Taken { init, seat, pager })
}

async fn enter(engine: &Engine, image: &Image, taken: Taken) -> Result<Entered, ThawError> {
    let Taken { init, seat, pager } = taken;
    let pager = match (&engine.pager, pager) {
        (Some(program), Some(place)) => {
            let Image { prepared, sharing, scratch } = image;
            let (wanted, work) = (engine.working_sets.get(&prepared.digest), scratch.path().join(WORK));
            Pager::start(program.clone(), place, prepared.clone(), wanted, sharing.clone(), work).await?
        }
        _ => None,
    };
    Ok(Entered { seat, pager, init })
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, ThawError> {
    let pid = Pid::from_raw(pid)
        .ok_or_else(|| failed("name the container's init")(io::ErrorKind::NotFound.into()))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| failed("open the container's init")(e.into()))
}
