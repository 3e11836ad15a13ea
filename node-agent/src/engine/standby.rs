//! How a container stands by: what its pod's annotations say, as the shim has left them in the control directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use woodfrog_image::MemoryMode;
use woodfrog_protocol::init::Command;
use woodfrog_protocol::{frame, paths};

/// How a container from a checkpoint image sleeps. It sleeps from its start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standby {
    /// After so long without anything to do it falls asleep again; none: it stays awake.
    pub idle_timeout: Option<Duration>,
    /// Not earlier than this after it woke.
    pub min_awake: Duration,
}

/// Why annotations make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandbyError {
    /// Not a kind of standby.
    #[error("the pod's annotation {key}: {0:?} is neither \"Awake\" nor \"Dormant\"", key = paths::STANDBY_ANNOTATION)]
    Kind(String),
    /// Not a duration.
    #[error("the pod's annotation {key}: {message}")]
    Duration {
        /// Its key.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// What is said of a container in its control directory. None: it stays awake.
///
/// # Errors
/// It cannot be understood; the container then stays awake.
pub fn read(control_directory: &Path) -> Result<Option<Standby>, StandbyError> {
    parse(&annotations(control_directory))
}

/// How the container gets its memory, if its pod says so: otherwise it is as its image says.
pub fn memory(control_directory: &Path) -> Option<MemoryMode> {
    MemoryMode::parse(annotations(control_directory).get(paths::MEMORY_ANNOTATION)?)
}

fn annotations(control_directory: &Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(control_directory.join(paths::COMMAND)).unwrap_or_default();
    // A file that cannot be read is the shim's and init's affair, who say so.
    frame::whole::<Command>(&bytes).map(|command| command.annotations).unwrap_or_default()
}

fn parse(annotations: &BTreeMap<String, String>) -> Result<Option<Standby>, StandbyError> {
    match annotations.get(paths::STANDBY_ANNOTATION).map(String::as_str) {
        None | Some("Awake") => return Ok(None),
        Some("Dormant") => {}
        Some(other) => return Err(StandbyError::Kind(other.into())),
    }
    let duration = |key: &'static str| {
        let text = annotations.get(key).filter(|text| !text.is_empty());
        let parsed = text.map(|text| text.parse::<woodfrog_api::Duration>()).transpose();
        let parsed = parsed.map_err(|e| StandbyError::Duration { key, message: e.to_string() })?;
        Ok(parsed.map(Duration::from).filter(|duration| !duration.is_zero()))
    };
    Ok(Some(Standby {
        idle_timeout: duration(paths::IDLE_TIMEOUT_ANNOTATION)?,
        min_awake: duration(paths::MIN_AWAKE_TIME_ANNOTATION)?.unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(annotations: &[(&str, &str)]) -> Result<Option<Standby>, StandbyError> {
        parse(&annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
    }

    #[test]
    fn a_pod_that_says_nothing_is_awake() {
        assert_eq!(parsed(&[]), Ok(None));
        assert_eq!(parsed(&[(paths::STANDBY_ANNOTATION, "Awake")]), Ok(None));
        assert_eq!(parsed(&[(paths::IDLE_TIMEOUT_ANNOTATION, "1s")]), Ok(None));
    }

    #[test]
    fn durations_are_those_of_the_resources() {
        let dormant = (paths::STANDBY_ANNOTATION, "Dormant");
        let standby = |idle_timeout, min_awake| Ok(Some(Standby { idle_timeout, min_awake }));
        assert_eq!(parsed(&[dormant]), standby(None, Duration::ZERO));
        let both =
            [dormant, (paths::IDLE_TIMEOUT_ANNOTATION, "1m30s"), (paths::MIN_AWAKE_TIME_ANNOTATION, "250ms")];
        assert_eq!(parsed(&both), standby(Some(Duration::from_secs(90)), Duration::from_millis(250)));
        let error = parsed(&[dormant, (paths::IDLE_TIMEOUT_ANNOTATION, "soon")]).unwrap_err().to_string();
        assert!(error.contains(paths::IDLE_TIMEOUT_ANNOTATION) && error.contains("soon"), "{error}");
        assert!(parsed(&[(paths::STANDBY_ANNOTATION, "Asleep")]).is_err());
    }
}
