//! What was changed so far, and taking it back.

use std::path::PathBuf;

use crate::error::Error;
use crate::host::Host;
use crate::root::Saved;
use crate::{CURRENT, UNIT};

/// What was changed so far. Each field is set right before the change that it undoes.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    /// Binaries that were not there.
    pub(crate) placed: Option<PathBuf>,
    /// The record.
    pub(crate) record: Option<Saved>,
    /// Where the link to the current version pointed.
    pub(crate) current: Option<Option<PathBuf>>,
    /// The unit's file.
    pub(crate) unit: Option<Saved>,
    /// The shim was not enabled.
    pub(crate) enabled: bool,
    /// The shim was restarted; it ran before, or not.
    pub(crate) shim: Option<bool>,
    /// kubelet's configuration.
    pub(crate) kubelet: Option<Saved>,
    /// kubelet was restarted.
    pub(crate) kubelet_restarted: bool,
}

impl Undo {
    /// Takes everything back and gives the cause, with what could not be taken back.
    pub(crate) fn roll_back(self, host: &mut Host<'_>, cause: Error) -> Error {
        let mut problems = Vec::new();
        let mut tried = |done: Result<(), Error>| problems.extend(done.err().map(|e| e.to_string()));
        // kubelet first: it works with the old runtime whatever becomes of the shim.
        if let Some(saved) = &self.kubelet {
            tried(host.root.put_back(saved));
        }
        if self.kubelet_restarted {
            tried(host.restart_kubelet());
        }
        if self.shim == Some(false) {
            tried(host.init.stop(UNIT).map_err(Error::from));
        }
        if self.enabled {
            tried(host.init.disable(UNIT).map_err(Error::from));
        }
        if let Some(target) = &self.current {
            tried(host.root.relink(CURRENT, target.as_deref()));
        }
        if let Some(saved) = &self.unit {
            tried(host.root.put_back(saved));
            tried(host.init.reload().map_err(Error::from));
        }
        if self.shim == Some(true) {
            tried(host.init.restart(UNIT).map_err(Error::from).and_then(|()| host.await_shim()));
        }
        if let Some(dir) = &self.placed {
            let path = host.root.path(dir);
            tried(std::fs::remove_dir_all(&path).map_err(Error::io("remove", path)));
        }
        if let Some(saved) = &self.record {
            tried(host.root.put_back(saved));
        }
        if problems.is_empty() { cause } else { Error::NotRolledBack { cause: Box::new(cause), problems } }
    }
}
