//! Control directories: made before a container, removed after it, swept when nobody was there to remove them.

use std::collections::HashSet;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use woodfrog_protocol::agent::Hook;
use woodfrog_protocol::frame::{self, FrameError};
use woodfrog_protocol::init::{Command, Start};
use woodfrog_protocol::paths;

/// Why a control directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the command in {path}: {source}")]
    Frame { path: PathBuf, source: FrameError },
}

/// The parent of all control directories.
#[derive(Debug)]
pub(crate) struct ControlDirs {
    root: PathBuf,
    /// Tokens of containers that are being created: the runtime may not list them yet.
    creating: Mutex<HashSet<String>>,
}

/// A control directory whose container is being created; [`ControlDirs::stale`] leaves it alone until this is dropped.
#[derive(Debug)]
pub(crate) struct Creating {
    dirs: Arc<ControlDirs>,
    pub(crate) token: String,
}

impl Drop for Creating {
    fn drop(&mut self) {
        self.dirs.creating().remove(&self.token);
    }
}

impl ControlDirs {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), creating: Mutex::default() }
    }

    /// Where a container's directory is on the node.
    pub(crate) fn path(&self, token: &str) -> PathBuf {
        self.root.join(token)
    }

    /// Makes a directory under a new token, with the command and the mount point of the init binary.
    ///
    /// # Errors
    /// The file system, or a command larger than a frame; nothing is left then.
    pub(crate) fn create(self: &Arc<Self>, command: &Command) -> Result<Creating, ControlError> {
        // Only root passes; the container's user comes in through the mount.
        let at = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ControlError::Io { action, path, source }
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.root).map_err(at("create", &self.root))?;
        let token = token().map_err(at("read", Path::new("/dev/urandom")))?;
        let path = self.path(&token);
        let bytes = encode(&path, command)?;
        let creating = Creating { dirs: self.clone(), token };
        self.creating().insert(creating.token.clone());
        std::fs::create_dir(&path).map_err(at("create", &path))?;
        let filled = std::fs::set_permissions(&path, Permissions::from_mode(0o755))
            .and_then(|()| write(&path.join(paths::COMMAND), &bytes))
            // An empty file: the read-only mount of the directory leaves no other place to mount the binary on.
            .and_then(|()| write(&path.join(paths::INIT), &[]));
        filled.map_err(|source| {
            _ = self.remove(&creating.token);
            ControlError::Io { action: "fill", path, source }
        })?;
        Ok(creating)
    }

    /// How the container's life begins, as its init reads it.
    pub(crate) fn start(&self, token: &str) -> Result<Start, ControlError> {
        Ok(self.command(token)?.start())
    }

    /// Whether the container may sleep, by its pod's annotations.
    pub(crate) fn may_sleep(&self, token: &str) -> bool {
        self.command(token).is_ok_and(|command| command.annotations.contains_key(paths::STANDBY_ANNOTATION))
    }

    /// Makes init start the command without waiting for a thaw.
    pub(crate) fn set_cold(&self, token: &str) -> Result<(), ControlError> {
        let command = Command { start: Start::Cold as i32, ..self.command(token)? };
        let path = self.path(token).join(paths::COMMAND);
        let fresh = self.path(token).join("command.new");
        write(&fresh, &encode(&path, &command)?)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|source| ControlError::Io { action: "write", path, source })
    }

    /// Leaves a hook for the agent, to be run at the next wake.
    pub(crate) fn postpone(&self, token: &str, hook: &Hook) -> Result<(), ControlError> {
        let path = self.path(token).join(paths::HOOK);
        let fresh = path.with_extension("new");
        let bytes =
            frame::encode(hook).map_err(|source| ControlError::Frame { path: path.clone(), source })?;
        write(&fresh, &bytes)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|source| ControlError::Io { action: "write", path, source })
    }

    /// Takes that back; false if the agent has taken it.
    pub(crate) fn take_back(&self, token: &str) -> bool {
        std::fs::remove_file(self.path(token).join(paths::HOOK)).is_ok()
    }

    fn command(&self, token: &str) -> Result<Command, ControlError> {
        let path = self.path(token).join(paths::COMMAND);
        let bytes = std::fs::read(&path).map_err(|source| ControlError::Io {
            action: "read",
            path: path.clone(),
            source,
        })?;
        frame::whole(&bytes).map_err(|source| ControlError::Frame { path, source })
    }

    /// Removes a directory, if it is there.
    pub(crate) fn remove(&self, token: &str) -> Result<(), ControlError> {
        let path = self.path(token);
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ControlError::Io { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// The tokens of directories whose containers must be known to the runtime by now, if they exist.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let creating = self.creating();
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| paths::is_token(name) && !creating.contains(name)).collect()
    }

    fn creating(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.creating.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(path: &Path, command: &Command) -> Result<Vec<u8>, ControlError> {
    frame::encode(command).map_err(|source| ControlError::Frame { path: path.to_owned(), source })
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    // The container's user reads it, whatever the shim's umask.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(bytes)
}

/// 128 random bits.
fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs() -> (tempfile::TempDir, Arc<ControlDirs>) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Arc::new(ControlDirs::new(&dir.path().join("containers")));
        (dir, dirs)
    }

    fn command() -> Command {
        Command { argv: vec!["/app".into()], start: Start::Thaw as i32, ..Command::default() }
    }

    #[test]
    fn a_command_can_be_made_cold_and_keeps_its_words() {
        let (_dir, dirs) = dirs();
        let creating = dirs.create(&command()).unwrap();
        assert_eq!(dirs.start(&creating.token).unwrap(), Start::Thaw);
        dirs.set_cold(&creating.token).unwrap();
        assert_eq!(dirs.command(&creating.token).unwrap(), Command { start: 0, ..command() });
    }

    #[test]
    fn a_directory_is_no_candidate_for_removal_while_its_container_is_being_created() {
        let (_dir, dirs) = dirs();
        let creating = dirs.create(&command()).unwrap();
        std::fs::create_dir(dirs.path("not-a-token")).unwrap();
        assert!(dirs.candidates().is_empty());
        let token = creating.token.clone();
        drop(creating);
        assert_eq!(dirs.candidates(), std::slice::from_ref(&token));
        dirs.remove(&token).unwrap();
        dirs.remove(&token).unwrap();
        assert!(dirs.candidates().is_empty());
    }

    #[test]
    fn a_command_that_fits_no_frame_leaves_nothing_behind() {
        let (_dir, dirs) = dirs();
        let huge = Command { argv: vec!["x".repeat(frame::MAX_PAYLOAD)], ..Command::default() };
        assert!(matches!(dirs.create(&huge), Err(ControlError::Frame { .. })));
        assert_eq!(std::fs::read_dir(&dirs.root).unwrap().count(), 0);
    }
}
