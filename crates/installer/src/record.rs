//! What an installation must remember: a small file on the host, written before kubelet's configuration is touched.

use serde::{Deserialize, Serialize};

use crate::Root;
use crate::error::Error;

/// Where it is on the host.
pub const PATH: &str = "/var/lib/woodfrog/installer.json";

/// The format that this release writes.
const FORMAT: u32 = 1;

/// What an installation must remember.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// What we did to kubelet; None: it was to be pointed at the shim by hand.
    pub kubelet: Option<Change>,
    /// The last installation that was rolled back.
    pub failure: Option<Failure>,
}

/// What was done to kubelet's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The file that we changed, as on the host.
    pub file: String,
    /// The endpoint that it named before; None: it named none.
    pub original: Option<String>,
    /// The container runtime's endpoint, whether it was named or the default.
    pub runtime: String,
    /// kubelet was seen running with the change.
    pub settled: bool,
}

/// An installation that was rolled back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The version that failed.
    pub version: String,
    /// How often in a row.
    pub attempts: u32,
    /// Why.
    pub reason: String,
}

impl Record {
    /// The host's; None if there is none.
    ///
    /// # Errors
    /// It cannot be read, or another release's format.
    pub fn read(root: &Root) -> Result<Option<Self>, Error> {
        let Some(text) = root.read(PATH)? else { return Ok(None) };
        let broken = |reason: String| Error::io("understand", root.path(PATH))(std::io::Error::other(reason));
        let record: Self = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
        if record.format != FORMAT {
            return Err(broken(format!("it has format {}, this release knows {FORMAT}", record.format)));
        }
        Ok(Some(record))
    }

    /// Writes it in one step.
    pub(crate) fn write(&self, root: &Root) -> Result<(), Error> {
        let record = Self { format: FORMAT, ..self.clone() };
        let mut text = serde_json::to_vec_pretty(&record).expect("a record is plain data");
        text.push(b'\n');
        root.write(PATH, &text, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_the_first_release_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        let text = r#"{"format": 1, "kubelet": {"file": "/var/lib/kubelet/config.yaml", "original": null,
            "runtime": "unix:///run/containerd/containerd.sock", "settled": true}, "failure": null}"#;
        root.write(PATH, text.as_bytes(), 0o600).unwrap();
        let record = Record::read(&root).unwrap().unwrap();
        assert_eq!(record.kubelet.unwrap().file, "/var/lib/kubelet/config.yaml");
    }

    #[test]
    fn a_later_format_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path());
        root.write(PATH, br#"{"format": 9}"#, 0o600).unwrap();
        assert!(Record::read(&root).unwrap_err().to_string().contains("format 9"));
    }
}
