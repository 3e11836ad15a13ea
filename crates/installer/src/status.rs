//! `woodfrog node status`.

use serde::Serialize;

use crate::error::Error;
use crate::host::Host;
use crate::kubelet;
use crate::record::Record;
use crate::{SHIM_ENDPOINT, UNIT, binaries, cri};

/// What is installed on a host, and whether its parts agree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version with its digest; None: nothing is installed.
    pub version: Option<String>,
    /// systemd's state of the shim's service.
    pub service: String,
    /// It starts at boot.
    pub enabled: bool,
    /// The shim hands a question through to the runtime.
    pub answers: bool,
    /// kubelet's endpoint as it is configured; None: its default, or not known.
    pub kubelet_endpoint: Option<String>,
    /// The file in which it is, or would be, set; None: this kubelet is pointed at the shim by hand.
    pub kubelet_file: Option<String>,
    /// All installed and in use, or nothing installed and nothing used.
    pub agrees: bool,
    /// What does not agree, a sentence each.
    pub problems: Vec<String>,
}

/// Looks at a host without changing it.
///
/// # Errors
/// systemd or a file cannot be asked.
pub fn status(host: &mut Host<'_>) -> Result<Status, Error> {
    host.check_systemd()?;
    let version = binaries::current(&host.root);
    let state = host.init.state(UNIT)?;
    let answers = state.running() && cri::version(&host.root, SHIM_ENDPOINT, host.patience.shim).is_ok();
    let record = Record::read(&host.root)?;
    let found = kubelet::find(&host.root).ok();
    let by_hand = found.is_none() || record.as_ref().is_some_and(|record| record.kubelet.is_none());
    let is_shim = found.as_ref().is_some_and(kubelet::Found::is_shim);
    let mut problems = Vec::new();
    match &version {
        Some(_) => {
            if !state.running() {
                problems.push(format!("{UNIT} is {}: see journalctl -u {UNIT}", state.active));
            } else if !answers {
                problems.push(format!("the shim does not answer: see journalctl -u {UNIT}"));
            }
            if !state.enabled {
                problems.push(format!("{UNIT} does not start at boot: run woodfrog node install"));
            }
            if !is_shim && !by_hand {
                problems.push("kubelet does not go through the shim: run woodfrog node install".into());
            }
        }
        None if is_shim => {
            problems.push(
                "kubelet goes to a shim that is not installed: run woodfrog node install or uninstall".into(),
            );
        }
        None if state.running() => {
            problems.push(format!("{UNIT} runs what is not installed: run woodfrog node uninstall"))
        }
        None => {}
    }
    if let Some(failure) = record.and_then(|record| record.failure) {
        problems.push(format!("installing {} was rolled back: {}", failure.version, failure.reason));
    }
    Ok(Status {
        version,
        service: state.active,
        enabled: state.enabled,
        answers,
        kubelet_endpoint: found.as_ref().and_then(|found| found.endpoint.clone()),
        kubelet_file: found.map(|found| found.file),
        agrees: problems.is_empty(),
        problems,
    })
}
