//! How a container stands by: what its pod's annotations say, as the shim has left them in the control directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use woodfrog_image::MemoryMode;
use woodfrog_protocol::init::Command;
use woodfrog_protocol::{frame, paths};

/// What a container from a checkpoint image is while nobody needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Its application does not run; a wake is a thaw.
    Dormant(OnIdle),
    /// Its application is thawed and held by the cgroup freezer.
    Frozen,
}

/// What becomes of the state of an application that is put to sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnIdle {
    /// It is gone: the next wake starts from the image.
    #[default]
    Discard,
    /// It is dumped on the node: the next wake goes on from there.
    Save,
}

/// How a container from a checkpoint image sleeps. It sleeps from its start on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standby {
    /// What it is while it sleeps.
    pub rest: Rest,
    /// After so long without anything to do it falls asleep again; none: it stays awake.
    pub idle_timeout: Option<Duration>,
    /// Not earlier than this after it woke.
    pub min_awake: Duration,
}

/// Why annotations make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandbyError {
    /// Not a kind of standby.
    #[error("the pod's annotation {key}: {0:?} is none of \"Awake\", \"Dormant\" and \"Frozen\"", key = paths::STANDBY_ANNOTATION)]
    Kind(String),
    /// Not a thing to do.
    #[error("the pod's annotation {key}: {0:?} is neither \"Discard\" nor \"Save\"", key = paths::ON_IDLE_ANNOTATION)]
    OnIdle(String),
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
    let word = |key: &str| annotations.get(key).map(String::as_str).filter(|word| !word.is_empty());
    let on_idle = match word(paths::ON_IDLE_ANNOTATION) {
        None | Some("Discard") => OnIdle::Discard,
        Some("Save") => OnIdle::Save,
        Some(other) => return Err(StandbyError::OnIdle(other.into())),
    };
    let rest = match word(paths::STANDBY_ANNOTATION) {
        None | Some("Awake") => return Ok(None),
        Some("Dormant") => Rest::Dormant(on_idle),
        Some("Frozen") => Rest::Frozen,
        Some(other) => return Err(StandbyError::Kind(other.into())),
    };
    let duration = |key: &'static str| {
        let parsed = word(key).map(|text| text.parse::<woodfrog_api::Duration>()).transpose();
        let parsed = parsed.map_err(|e| StandbyError::Duration { key, message: e.to_string() })?;
        Ok(parsed.map(Duration::from).filter(|duration| !duration.is_zero()))
    };
    Ok(Some(Standby {
        rest,
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
        let rest = Rest::Dormant(OnIdle::Discard);
        let standby = |idle_timeout, min_awake| Ok(Some(Standby { rest, idle_timeout, min_awake }));
        assert_eq!(parsed(&[dormant]), standby(None, Duration::ZERO));
        let both =
            [dormant, (paths::IDLE_TIMEOUT_ANNOTATION, "1m30s"), (paths::MIN_AWAKE_TIME_ANNOTATION, "250ms")];
        assert_eq!(parsed(&both), standby(Some(Duration::from_secs(90)), Duration::from_millis(250)));
        let error = parsed(&[dormant, (paths::IDLE_TIMEOUT_ANNOTATION, "soon")]).unwrap_err().to_string();
        assert!(error.contains(paths::IDLE_TIMEOUT_ANNOTATION) && error.contains("soon"), "{error}");
        assert!(parsed(&[(paths::STANDBY_ANNOTATION, "Asleep")]).is_err());
    }

    #[test]
    fn the_state_of_a_dormant_one_is_saved_if_its_pod_says_so() {
        let rest = |words: [&str; 2]| {
            let [standby, on_idle] = words;
            let parsed =
                parsed(&[(paths::STANDBY_ANNOTATION, standby), (paths::ON_IDLE_ANNOTATION, on_idle)]);
            parsed.map(|standby| standby.map(|standby| standby.rest))
        };
        assert_eq!(rest(["Dormant", "Save"]), Ok(Some(Rest::Dormant(OnIdle::Save))));
        assert_eq!(rest(["Dormant", ""]), Ok(Some(Rest::Dormant(OnIdle::Discard))));
        assert_eq!(rest(["Frozen", "Discard"]), Ok(Some(Rest::Frozen)));
        assert!(rest(["Dormant", "Keep"]).unwrap_err().to_string().contains("Keep"));
    }
}
