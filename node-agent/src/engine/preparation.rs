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
    work: AbortOnDropHandle<Result<Ready, ThawError>>,
    init: oneshot::Sender<i32>,
    /// It is of a state that was saved, not of an image.
    pub saved: bool,
}

/// All that is made ahead of time.
#[derive(Debug)]
pub struct Ready {
    /// The image.
    pub prepared: Arc<Prepared>,
    /// A process in the namespaces and cgroups of the init.
    pub seat: Seat,
    /// Brings memory later; none if the node cannot, or the image has nothing for it.
    pub pager: Option<Pager>,
    /// The image's memory, if the container is to share it.
    pub sharing: Option<Sharing>,
    /// For CRIU: `work` is its work directory.
    pub scratch: TempDir,
    init: i32,
}

impl Preparation {
    /// Begins to read the container's image, and to wait for the container's PID 1.
    pub fn begin(engine: &Arc<Engine>, container: &Arc<Container>) -> Self {
        let (init, connected) = oneshot::channel();
        let work = prepare(engine.clone(), container.clone(), connected);
        Self { work: AbortOnDropHandle::new(tokio::spawn(work)), init, saved: false }
    }

    /// Of a container whose image has been read, and whose init is process `init`.
    pub fn of(engine: &Arc<Engine>, container: &Arc<Container>, prepared: Arc<Prepared>, init: i32) -> Self {
        let ((connected, _), saved) = (oneshot::channel(), prepared.saved);
        let (engine, container) = (engine.clone(), container.clone());
        let work = async move {
            let sharing = sharing(&engine, &container, &prepared);
            let (sharing, taken) = tokio::try_join!(sharing, take(&engine, init))?;
            furnish(&engine, prepared, sharing, taken).await
        };
        Self { work: AbortOnDropHandle::new(tokio::spawn(work)), init: connected, saved }
    }

    /// What was made for the init, which has connected and whose PID is known.
    ///
    /// # Errors
    /// The image cannot be restored here, or the container cannot be entered.
    pub async fn complete(self, engine: &Arc<Engine>, init: i32) -> Result<Ready, ThawError> {
        // An error means that the runtime has told before.
        let _ = self.init.send(init);
        match self.work.await?? {
            ready if ready.init == init => Ok(ready),
            // The runtime told of another process.
            Ready { prepared, sharing, .. } => {
                furnish(engine, prepared, sharing, take(engine, init).await?).await
            }
        }
    }
}

/// What is taken in a container.
struct Taken {
    init: i32,
    seat: Seat,
    pager: Option<Waiting>,
}

async fn prepare(
    engine: Arc<Engine>,
    container: Arc<Container>,
    connected: oneshot::Receiver<i32>,
) -> Result<Ready, ThawError> {
    let taken = async { take(&engine, pid1(&engine, &container, connected).await?).await };
    let image = async {
        let prepared = images::read(&engine, &container).await?;
        let sharing = sharing(&engine, &container, &prepared).await?;
        Ok((prepared, sharing))
    };
    let ((prepared, sharing), taken) = tokio::try_join!(image, taken)?;
    furnish(&engine, prepared, sharing, taken).await
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

async fn furnish(
    engine: &Engine,
    prepared: Arc<Prepared>,
    sharing: Option<Sharing>,
    taken: Taken,
) -> Result<Ready, ThawError> {
    let scratch = tempfile::tempdir_in(&engine.dirs.scratch).map_err(failed("make a scratch directory"))?;
    let work = scratch.path().join("work");
    std::fs::create_dir(&work).map_err(failed("make a scratch directory"))?;
    let pager = match (&engine.pager, taken.pager) {
        (Some(program), Some(place)) => {
            let wanted = engine.working_sets.get(&prepared.digest);
            Pager::start(program.clone(), place, prepared.clone(), wanted, sharing.clone(), work).await?
        }
        _ => None,
    };
    let sharing = sharing.filter(|_| pager.is_some());
    Ok(Ready { prepared, seat: taken.seat, pager, sharing, scratch, init: taken.init })
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, ThawError> {
    let pid = Pid::from_raw(pid)
        .ok_or_else(|| failed("name the container's init")(io::ErrorKind::NotFound.into()))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| failed("open the container's init")(e.into()))
}
