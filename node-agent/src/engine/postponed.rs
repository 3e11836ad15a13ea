//! Hooks that wait: kubelet's for the next wake, and those of a thaw for the agent that takes over from one that ended meanwhile.
//!
//! ```text
//!   hook.bin        left by the shim (a command) or the agent (a request) ─► taken at the next wake
//!   hooks-due.bin   written before the application runs ─► removed when all of its image's hooks have ended
//! ```

use std::fs;
use std::io;
use std::path::Path;

use prost::Message;
use woodfrog_protocol::agent::{Hook, Hooks};
use woodfrog_protocol::{frame, paths};

use super::container::{Container, Phasing};
use super::hooks;
use super::runtime::Runtime;

/// Leaves a hook of kubelet's to the next wake. One that comes when the container has woken is run now.
pub(super) async fn leave(runtime: &dyn Runtime, container: &Container, hook: Hook) {
    container.note(format!("a hook of kubelet's waits for the next wake: {}", hooks::name(&hook)));
    if let Err(e) = write(&container.control(paths::HOOK), &hook) {
        return container.note(format!("it cannot wait: {e}"));
    }
    if matches!(container.life().phasing, Phasing::Thawed | Phasing::Cold) {
        run(runtime, container).await;
    }
}

/// Runs the hook that kubelet wanted run while the container slept, if there is one. One that fails is noted; kubelet was told that
/// all is well.
pub(super) async fn run(runtime: &dyn Runtime, container: &Container) {
    let hook: Hook = match take(&container.control(paths::HOOK)) {
        Ok(Some(hook)) => hook,
        Ok(None) => return,
        Err(e) => return container.note(format!("the hook that it slept through cannot be read: {e}")),
    };
    match hooks::run(runtime, &container.info.id, container.life().init, &hook).await {
        Ok(()) => container.note(format!("the hook that it slept through was run: {}", hooks::name(&hook))),
        Err(e) => container.note(format!("the hook that it slept through: {e}")),
    }
}

/// Writes down which hooks a thaw is to be followed by.
///
/// # Errors
/// The control directory is gone or full.
pub(super) fn note_due(container: &Container, hooks: Vec<Hook>) -> io::Result<()> {
    if hooks.is_empty() { Ok(()) } else { write(&container.control(paths::HOOKS_DUE), &Hooks { hooks }) }
}

/// They have ended, or there was no thaw.
pub(super) fn none_due(container: &Container) {
    if let Err(e) = fs::remove_file(container.control(paths::HOOKS_DUE))
        && e.kind() != io::ErrorKind::NotFound
    {
        container.note(format!("the hooks of a thaw may be run once more: {e}"));
    }
}

/// Hooks of a thaw whose agent has ended before they did.
pub(super) fn due(container: &Container) -> Vec<Hook> {
    match fs::read(container.control(paths::HOOKS_DUE)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => {
            let hooks = read.and_then(|bytes| frame::whole::<Hooks>(&bytes).map_err(io::Error::other));
            let noted =
                hooks.inspect_err(|e| container.note(format!("hooks that are due cannot be read: {e}")));
            noted.unwrap_or_default().hooks
        }
    }
}

fn write(path: &Path, message: &impl Message) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, frame::encode(message).map_err(io::Error::other)?)?;
    fs::rename(&fresh, path)
}

/// Takes it, so that nobody can take it back.
fn take<M: Message + Default>(path: &Path) -> io::Result<Option<M>> {
    let taken = path.with_extension("taken");
    match fs::rename(path, &taken) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        renamed => renamed?,
    }
    let bytes = fs::read(&taken)?;
    fs::remove_file(&taken)?;
    frame::whole(&bytes).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_is_taken_once_and_as_it_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(paths::HOOK);
        assert_eq!(take::<Hook>(&path).unwrap(), None);
        let hook = Hook { exec: vec!["true".into()], ..Hook::default() };
        write(&path, &Hook::default()).unwrap();
        write(&path, &hook).unwrap();
        assert_eq!(take(&path).unwrap(), Some(hook));
        assert_eq!(take::<Hook>(&path).unwrap(), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn half_a_hook_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(paths::HOOK);
        fs::write(&path, b"half").unwrap();
        assert!(take::<Hook>(&path).is_err());
        assert!(take::<Hook>(&path).unwrap().is_none(), "it is not in the way of the next");
    }
}
