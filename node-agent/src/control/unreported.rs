//! Images that are pushed for a Checkpoint before a report names them. If the agent ends in between, the work is done anew and makes
//! other images; without this nobody would know of the first ones, and they would stay in the registry.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// An image that may be in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Image {
    /// `registry/repository:tag`.
    pub(super) image: String,
    /// Of its manifest.
    pub(super) digest: String,
}

/// Those of one Checkpoint: a file with a line each.
#[derive(Debug)]
pub(super) struct Unreported(PathBuf);

impl Unreported {
    /// Those of the Checkpoint with this UID, in a directory of the agent's own.
    pub(super) fn of(dir: &Path, uid: &str) -> Self {
        // The API server makes UIDs; it is not asked to make paths.
        let name: String = uid.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        Self(dir.join(name))
    }

    /// One more, which is about to be pushed.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn add(&self, image: &Image) -> io::Result<()> {
        if self.all().contains(image) {
            return Ok(());
        }
        self.0.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut file = File::options().create(true).append(true).open(&self.0)?;
        writeln!(file, "{}", serde_json::to_string(image)?)
    }

    /// All of them; a line that was not written to its end is none.
    pub(super) fn all(&self) -> Vec<Image> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What was reported, or is gone, needs no note.
    pub(super) fn forget(&self) {
        // What stays is looked at again by the next attempt.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(digest: &str) -> Image {
        Image { image: "r.example/web:warm".into(), digest: digest.into() }
    }

    #[test]
    fn images_are_known_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let unreported = Unreported::of(&dir.path().join("unreported"), "a-1");
        assert_eq!(unreported.all(), []);
        for digest in ["sha256:1", "sha256:2", "sha256:1"] {
            unreported.add(&image(digest)).unwrap();
        }
        assert_eq!(unreported.all(), [image("sha256:1"), image("sha256:2")]);
        unreported.forget();
        assert_eq!(unreported.all(), []);
    }

    #[test]
    fn half_a_line_is_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let unreported = Unreported::of(dir.path(), "a");
        unreported.add(&image("sha256:1")).unwrap();
        let mut file = File::options().append(true).open(dir.path().join("a")).unwrap();
        write!(file, "{{\"image\":\"r.exam").unwrap();
        assert_eq!(unreported.all(), [image("sha256:1")]);
    }

    #[test]
    fn a_uid_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        Unreported::of(&dir.path().join("in"), "../out").add(&image("sha256:1")).unwrap();
        assert!(dir.path().join("in/out").exists());
    }
}
