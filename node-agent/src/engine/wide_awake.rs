//! Whether containers of this node may sleep. That they may not is a file, so that it outlives this agent: what was woken before
//! Woodfrog leaves must not be put to sleep by the next one, whose rules nobody would take away.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use tokio::sync::watch;

/// For whoever finds the file.
const WHY: &str = "Containers of this node do not sleep: `woodfrog wake --all --for-good` or `woodfrog node uninstall` was run here.\n\
    `woodfrog wake --sleep-again` or `woodfrog node install` removes this file.\n";

/// True while no container may sleep.
pub(super) struct WideAwake {
    file: PathBuf,
    is: watch::Sender<bool>,
}

impl WideAwake {
    /// As an earlier agent has left it.
    pub(super) fn remembered(file: PathBuf) -> Self {
        let is = watch::Sender::new(file.exists());
        Self { file, is }
    }

    /// From now on no container may sleep.
    pub(super) fn begin(&self) -> io::Result<()> {
        let mut file = File::create(&self.file)?;
        file.write_all(WHY.as_bytes())?;
        file.sync_all()?;
        self.is.send_replace(true);
        Ok(())
    }

    /// Containers may sleep again.
    pub(super) fn end(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.is.send_replace(false);
        Ok(())
    }

    /// Whether it is so now.
    pub(super) fn is(&self) -> bool {
        *self.is.borrow()
    }

    /// Tells of changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.is.subscribe()
    }

    /// The file, for errors.
    pub(super) fn path(&self) -> PathBuf {
        self.file.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_holds_for_the_next_agent_until_it_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let agent = || WideAwake::remembered(dir.path().join("wide-awake"));
        let first = agent();
        assert!(!first.is());
        let told = first.subscribe();
        first.begin().unwrap();
        assert!(*told.borrow() && agent().is());
        let second = agent();
        second.end().unwrap();
        second.end().unwrap();
        assert!(!second.is() && !agent().is());
    }

    #[test]
    fn what_cannot_be_remembered_is_not_begun() {
        let wide_awake = WideAwake::remembered("/nonexistent/wide-awake".into());
        assert!(wide_awake.begin().is_err() && !wide_awake.is());
    }
}
