//! `woodfrog node uninstall`.

use std::path::PathBuf;

use crate::binaries::{self, Release};
use crate::error::Error;
use crate::host::Host;
use crate::kubelet;
use crate::record::{self, Record};
use crate::undo::Undo;
use crate::{CURRENT, DEFAULT_ENDPOINT, KUBELET_UNIT, OPT_DIR, UNIT, unit};

/// How to uninstall.
#[derive(Clone, Debug, Default)]
pub struct Uninstall {
    /// Only if the node runs the binaries in this directory: what was meant as the end of one release must not end the one
    /// that has replaced it.
    pub only: Option<PathBuf>,
    /// kubelet, pointed at the shim by hand, has been pointed back by hand.
    pub kubelet_is_back: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uninstalled {
    /// There was nothing.
    Nothing,
    /// Another release is installed, which stays.
    Upgraded {
        /// Its version.
        version: String,
    },
    /// All is as before the installation.
    Done {
        /// Versions whose programs still run in containers; they are removed by another uninstall after those containers' end.
        in_use: Vec<String>,
    },
}

/// Points kubelet back at the container runtime and removes the shim. Managed containers go on running: their control
/// directories stay, and the binaries that they run. Before anything is changed, `wake_all` has the agent wake those that sleep.
///
/// # Errors
/// What stands against it, or what failed; then kubelet still goes through the shim.
pub fn uninstall(
    host: &mut Host<'_>,
    options: &Uninstall,
    wake_all: &mut dyn FnMut() -> Result<(), String>,
) -> Result<Uninstalled, Error> {
    let _lock = host.lock()?;
    let record = Record::read(&host.root)?;
    let current = binaries::current(&host.root);
    if let (Some(from), Some(version)) = (&options.only, &current)
        && Release::open(from, "")?.name.trim_start_matches('+')
            != version.rsplit('+').next().unwrap_or_default()
    {
        return Ok(Uninstalled::Upgraded { version: version.clone() });
    }
    if current.is_none() && record.is_none() && !host.root.exists(unit::UNIT_PATH) {
        binaries::sweep(&host.root, &[])?;
        return Ok(Uninstalled::Nothing);
    }
    host.check_systemd()?;
    wake_all().map_err(|reason| Error::Asleep { reason })?;
    let by_hand = record.as_ref().is_some_and(|record| record.kubelet.is_none());
    match kubelet::find(&host.root) {
        Ok(found) if found.is_shim() => point_back(host, &found, record.as_ref())?,
        // It names the runtime already, unless that is not what counts.
        Ok(_) if !by_hand => {}
        _ if options.kubelet_is_back || host.init.state(UNIT)?.main_pid == 0 => {}
        _ => return Err(Error::ByHand),
    }
    host.init.stop(UNIT)?;
    host.init.disable(UNIT)?;
    host.root.remove(unit::UNIT_PATH)?;
    host.init.reload()?;
    host.root.relink(CURRENT, None)?;
    let in_use = binaries::sweep(&host.root, &[])?;
    // Last: an uninstallation that was killed can be run again with all that it needs to know.
    host.root.remove(record::PATH)?;
    _ = std::fs::remove_dir(host.root.path(OPT_DIR));
    Ok(Uninstalled::Done { in_use })
}

/// kubelet's own endpoint again, in the file where the shim's is.
fn point_back(host: &mut Host<'_>, found: &kubelet::Found, record: Option<&Record>) -> Result<(), Error> {
    let change = record.and_then(|record| record.kubelet.as_ref());
    let runtime = change.map_or(DEFAULT_ENDPOINT, |change| &change.runtime);
    // The shim is the only way to the runtime that works for sure: it stays until there is another.
    host.runtime(runtime)?;
    let original = match change {
        Some(change) if change.file == found.file => change.original.as_deref(),
        _ => Some(runtime),
    };
    let mut undo = Undo { kubelet: Some(host.root.save(&found.file)?), ..Undo::default() };
    let done = bring_back(host, &mut undo, &found.file, original);
    done.map_err(|cause| undo.roll_back(host, cause))
}

fn bring_back(host: &mut Host<'_>, undo: &mut Undo, file: &str, original: Option<&str>) -> Result<(), Error> {
    // Our own file in a drop-in directory goes, whatever it replaced.
    let original = original.filter(|_| !kubelet::is_ours(file));
    kubelet::point(&host.root, file, original)?;
    if host.init.state(KUBELET_UNIT)?.running() {
        undo.kubelet_restarted = true;
        host.restart_kubelet()?;
    }
    Ok(())
}
