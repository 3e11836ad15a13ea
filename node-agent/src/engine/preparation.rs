//! What a thaw does ahead of time, while the runtime still makes and starts the container.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;
use woodfrog_criu::Seat;

use super::container::Container;
use super::prepared::Prepared;
use super::thaw::{ThawError, failed};
use super::{Engine, cgroups};

/// A thaw's work ahead of its container's start. Given up when it is dropped.
#[derive(Debug)]
pub struct Preparation {
    image: AbortOnDropHandle<Result<Prepared, ThawError>>,
    seat: AbortOnDropHandle<Result<(i32, Seat), ThawError>>,
    init: oneshot::Sender<i32>,
}

impl Preparation {
    /// Begins to read the container's image, and to wait for the container's PID 1.
    pub fn begin(engine: &Arc<Engine>, container: &Arc<Container>) -> Self {
        let (init, connected) = oneshot::channel();
        Self {
            image: AbortOnDropHandle::new(tokio::spawn(image(engine.clone(), container.clone()))),
            seat: AbortOnDropHandle::new(tokio::spawn(seat(engine.clone(), container.clone(), connected))),
            init,
        }
    }

    /// The image, and a process in the namespaces and cgroups of the init, which has connected and whose PID is known.
    ///
    /// # Errors
    /// The image cannot be restored here, or the container cannot be entered.
    pub async fn complete(self, init: i32) -> Result<(Prepared, Seat), ThawError> {
        // An error means that the runtime has told before.
        let _ = self.init.send(init);
        let prepared = self.image.await??;
        let seat = match self.seat.await?? {
            (pid, seat) if pid == init => seat,
            _ => take(init).await?,
        };
        Ok((prepared, seat))
    }
}

async fn image(engine: Arc<Engine>, container: Arc<Container>) -> Result<Prepared, ThawError> {
    let id = &container.info.id;
    let (layers, image) = tokio::try_join!(engine.runtime.layers(id), engine.runtime.image(id))?;
    Ok(spawn_blocking(move || Prepared::read(&layers, image.digest, &engine.node)).await??)
}

/// Once the runtime tells of PID 1, or it connects: a runtime that is restarted tells nothing.
async fn seat(
    engine: Arc<Engine>,
    container: Arc<Container>,
    mut connected: oneshot::Receiver<i32>,
) -> Result<(i32, Seat), ThawError> {
    let made = tokio::select! {
        made = engine.runtime.made(&container.info.id) => made.ok(),
        init = &mut connected => init.ok(),
    };
    let pid = match made {
        Some(pid) => pid,
        None => connected.await.map_err(|_| failed("take a seat")(io::ErrorKind::NotConnected.into()))?,
    };
    Ok((pid, take(pid).await?))
}

async fn take(init: i32) -> Result<Seat, ThawError> {
    let pidfd = Arc::new(open_pidfd(init)?);
    let cgroups = cgroups::of(init).map_err(failed("open the container's cgroups"))?;
    Ok(Seat::take(pidfd, cgroups).await?)
}

fn open_pidfd(pid: i32) -> Result<OwnedFd, ThawError> {
    let pid = Pid::from_raw(pid)
        .ok_or_else(|| failed("name the container's init")(io::ErrorKind::NotFound.into()))?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .map_err(|e| failed("open the container's init")(e.into()))
}
