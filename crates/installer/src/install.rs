//! `woodfrog node install`.

use std::path::PathBuf;

use crate::binaries::{self, Release};
use crate::error::Error;
use crate::host::Host;
use crate::kubelet::{self, Mode};
use crate::record::{Change, Failure, Record};
use crate::undo::Undo;
use crate::{CURRENT, DEFAULT_ENDPOINT, KUBELET_UNIT, SHIM_ENDPOINT, UNIT, cri, record, unit};

/// How often an installation that took kubelet down is tried again: each try restarts kubelet twice, and the agent's pod would
/// go on trying for ever.
const ATTEMPTS: u32 = 3;

/// A file of the agent's state: no container may sleep.
pub(crate) const WIDE_AWAKE: &str = "/var/lib/woodfrog/wide-awake";

/// What to install, and how.
#[derive(Clone, Debug)]
pub struct Install {
    /// Directory with [`crate::PROGRAMS`].
    pub from: PathBuf,
    /// Their version.
    pub version: String,
    /// The container runtime's endpoint; None: the one that kubelet has.
    pub runtime: Option<String>,
    /// Who points kubelet at the shim.
    pub kubelet: Mode,
    /// Try again what failed too often.
    pub again: bool,
}

/// What an installation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The version with its digest.
    pub version: String,
    /// What was changed or restarted; nothing if all was as it should be.
    pub changed: Vec<&'static str>,
}

/// Installs the shim, or another version of it, and points kubelet at it. Does nothing where that is so already.
///
/// # Errors
/// What stands against it, or what failed; then everything is as before.
pub fn install(host: &mut Host<'_>, options: &Install) -> Result<Installed, Error> {
    host.check_systemd()?;
    let _lock = host.lock()?;
    let plan = Plan::make(host, options)?;
    let mut undo = Undo::default();
    let mut changed = Vec::new();
    match plan.carry_out(host, &mut undo, &mut changed) {
        Ok(()) => {
            let keep = [Some(plan.release.name.clone()), plan.previous.clone()];
            let keep: Vec<&str> = keep.iter().flatten().map(String::as_str).collect();
            // What cannot be removed does no harm, and all else is done.
            _ = binaries::sweep(&host.root, &keep);
            // What an uninstallation has told the agent.
            host.root.remove(WIDE_AWAKE)?;
            Ok(Installed { version: plan.release.name, changed })
        }
        Err(cause) => {
            let disturbed = undo.kubelet_restarted;
            let error = undo.roll_back(host, cause);
            if disturbed {
                plan.remember_failure(host, &error);
            }
            Err(error)
        }
    }
}

/// Everything that is known before anything is changed.
struct Plan {
    release: Release,
    previous: Option<String>,
    record: Record,
    unit: String,
    /// kubelet's file, and whether it has to be changed.
    kubelet: Option<(String, bool)>,
}

impl Plan {
    fn make(host: &mut Host<'_>, options: &Install) -> Result<Self, Error> {
        let root = &host.root;
        let release = Release::open(&options.from, &options.version)?;
        let mut record = Record::read(root)?.unwrap_or_default();
        if let Some(failure) = record.failure.as_ref().filter(|failure| {
            failure.version == release.name && failure.attempts >= ATTEMPTS && !options.again
        }) {
            return Err(Error::GivenUp {
                attempts: failure.attempts,
                version: failure.version.clone(),
                reason: failure.reason.clone(),
            });
        }
        let found = match options.kubelet {
            Mode::Auto => Some(kubelet::find(root)?),
            Mode::ByHand => None,
        };
        let named = found.as_ref().filter(|found| !found.is_shim()).map(|found| found.endpoint.clone());
        let remembered = record.kubelet.as_ref().map(|change| change.runtime.clone());
        let runtime = options.runtime.clone().or(named.clone().flatten());
        // A kubelet that names no endpoint uses the default; one that goes through the shim has told us before.
        let runtime =
            runtime.or(remembered.filter(|_| named.is_none())).unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        let name = host.runtime(&runtime)?;
        if name != "containerd" {
            return Err(Error::OtherRuntime { endpoint: runtime, name });
        }
        if !release.is_placed(root) {
            release.check_space(root)?;
        }
        // By hand from now on, or as before: what we changed earlier is still ours to undo.
        if let Some(found) = &found {
            let change = match record.kubelet.take() {
                Some(change) if found.is_shim() => change,
                // Pointed at the shim by somebody else: back to the runtime is all that we can do later.
                None if found.is_shim() => {
                    Change { original: Some(runtime.clone()), settled: true, ..Change::default() }
                }
                _ => Change { original: found.endpoint.clone(), settled: false, ..Change::default() },
            };
            let file = if found.is_shim() && !change.file.is_empty() {
                change.file.clone()
            } else {
                found.file.clone()
            };
            record.kubelet = Some(Change { file, runtime: runtime.clone(), ..change });
        }
        Ok(Self {
            previous: binaries::current(root),
            unit: unit::text(cri::socket(&runtime).unwrap_or(&runtime)),
            kubelet: found.map(|found| (found.file.clone(), !found.is_shim())),
            release,
            record,
        })
    }

    fn carry_out(
        &self,
        host: &mut Host<'_>,
        undo: &mut Undo,
        changed: &mut Vec<&'static str>,
    ) -> Result<(), Error> {
        if !self.release.is_placed(&host.root) {
            self.release.place(&host.root)?;
            undo.placed = Some(self.release.dir());
            changed.push("binaries");
        }
        self.start_shim(host, undo, changed)?;
        self.point_kubelet(host, undo, changed)
    }

    fn start_shim(
        &self,
        host: &mut Host<'_>,
        undo: &mut Undo,
        changed: &mut Vec<&'static str>,
    ) -> Result<(), Error> {
        let state = host.init.state(UNIT)?;
        let mut stale = !state.running();
        let target = std::path::Path::new(&self.release.name);
        let link = host.root.link(CURRENT);
        if link.as_deref() != Some(target) {
            undo.current = Some(link);
            host.root.relink(CURRENT, Some(target))?;
            changed.push("version");
            stale = true;
        }
        if host.root.read(unit::UNIT_PATH)?.as_deref() != Some(&self.unit) {
            undo.unit = Some(host.root.save(unit::UNIT_PATH)?);
            host.root.write(unit::UNIT_PATH, self.unit.as_bytes(), 0o644)?;
            host.init.reload()?;
            changed.push("unit");
            stale = true;
        }
        if !state.enabled {
            undo.enabled = true;
            host.init.enable(UNIT)?;
        }
        // One that runs and does not answer is helped by a restart if by anything.
        if stale || cri::version(&host.root, SHIM_ENDPOINT, host.patience.shim).is_err() {
            undo.shim = Some(state.running());
            host.init.restart(UNIT)?;
            changed.push("shim");
        }
        host.await_shim()
    }

    fn point_kubelet(
        &self,
        host: &mut Host<'_>,
        undo: &mut Undo,
        changed: &mut Vec<&'static str>,
    ) -> Result<(), Error> {
        let mut record = Record { failure: None, ..self.record.clone() };
        if Record::read(&host.root)?.as_ref() != Some(&Record { format: 1, ..record.clone() }) {
            undo.record = Some(host.root.save(record::PATH)?);
            record.write(&host.root)?;
        }
        let (Some((file, change)), Some(known)) = (&self.kubelet, &mut record.kubelet) else { return Ok(()) };
        if *change {
            undo.kubelet = Some(host.root.save(file)?);
            kubelet::point(&host.root, file, Some(SHIM_ENDPOINT))?;
            if !kubelet::find(&host.root)?.is_shim() {
                let reason = "another file that kubelet reads later names another endpoint".into();
                return Err(Error::Edit { path: file.clone(), reason, endpoint: SHIM_ENDPOINT.into() });
            }
            changed.push("kubelet");
        }
        if known.settled {
            return Ok(());
        }
        // A kubelet that does not run, such as before the node joins, will read its configuration when it starts.
        if host.init.state(KUBELET_UNIT)?.running() {
            undo.kubelet_restarted = true;
            host.restart_kubelet()?;
        }
        known.settled = true;
        record.write(&host.root)
    }

    /// Counts an installation that took kubelet down and was rolled back.
    fn remember_failure(&self, host: &Host<'_>, error: &Error) {
        let mut record = Record::read(&host.root).ok().flatten().unwrap_or_default();
        let version = self.release.name.clone();
        let before =
            record.failure.filter(|failure| failure.version == version).map_or(0, |failure| failure.attempts);
        record.failure = Some(Failure { version, attempts: before + 1, reason: error.to_string() });
        // What failed is on its way to the user; that it could not be noted as well adds nothing.
        _ = record.write(&host.root);
    }
}
