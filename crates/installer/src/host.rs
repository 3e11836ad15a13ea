//! A host: its files, its service manager, and how long we wait for it.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::Error;
use crate::systemd::Init;
use crate::{KUBELET_UNIT, Root, SHIM_ENDPOINT, cri};

/// How long to wait for what was started.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the shim's first answer, and for any answer of the runtime.
    pub shim: Duration,
    /// For kubelet to be up and to stay so.
    pub kubelet: Duration,
    /// How long kubelet must run without a break to count as up. One that cannot use its endpoint ends after some seconds.
    pub settled: Duration,
    /// Between two looks.
    pub poll: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            shim: Duration::from_secs(20),
            kubelet: Duration::from_secs(90),
            settled: Duration::from_secs(15),
            poll: Duration::from_millis(200),
        }
    }
}

/// A host.
pub struct Host<'a> {
    /// Its files.
    pub root: Root,
    /// Its service manager.
    pub init: &'a mut dyn Init,
    /// How long we wait.
    pub patience: Patience,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Held while a host is changed.
pub(crate) struct Lock(#[expect(dead_code, reason = "closing it is the unlocking")] File);

impl Host<'_> {
    /// Keeps other installers away; they do not wait, for two releases would undo each other's work.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        let path = self.root.path("/run/woodfrog-installer.lock");
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::Busy { path })?;
        Ok(Lock(file))
    }

    /// systemd runs (sd_booted(3)).
    pub(crate) fn check_systemd(&self) -> Result<(), Error> {
        if self.root.exists("/run/systemd/system") {
            return Ok(());
        }
        Err(Error::NoSystemd { root: self.root.dir().to_owned() })
    }

    /// The runtime's name, if it answers.
    pub(crate) fn runtime(&self, endpoint: &str) -> Result<String, Error> {
        cri::version(&self.root, endpoint, self.patience.shim)
            .map_err(|reason| Error::Runtime { endpoint: endpoint.into(), reason })
    }

    /// Waits until the shim answers, with what the runtime behind it says.
    pub(crate) fn await_shim(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.patience.shim;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match cri::version(&self.root, SHIM_ENDPOINT, left.max(self.patience.poll)) {
                Ok(_) => return Ok(()),
                Err(reason) if left.is_zero() => {
                    let seconds = self.patience.shim.as_secs();
                    return Err(Error::ShimSilent { endpoint: SHIM_ENDPOINT.into(), seconds, reason });
                }
                Err(_) => std::thread::sleep(self.patience.poll),
            }
        }
    }

    /// Restarts kubelet and waits until it stays up.
    pub(crate) fn restart_kubelet(&mut self) -> Result<(), Error> {
        self.init.restart(KUBELET_UNIT)?;
        let deadline = Instant::now() + self.patience.kubelet;
        let mut since: Option<(u32, Instant)> = None;
        loop {
            let state = self.init.state(KUBELET_UNIT)?;
            since = match since {
                _ if !state.running() => None,
                Some((pid, start)) if pid == state.main_pid => Some((pid, start)),
                _ => Some((state.main_pid, Instant::now())),
            };
            if since.is_some_and(|(_, start)| start.elapsed() >= self.patience.settled) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Error::KubeletDown {
                    seconds: self.patience.kubelet.as_secs(),
                    state: state.active,
                });
            }
            std::thread::sleep(self.patience.poll);
        }
    }
}
