//! The host's service manager, behind a trait so that tests can watch and break it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// systemd did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[error("systemctl {command}: {said}")]
pub struct InitError {
    /// Arguments of `systemctl`.
    pub command: String,
    /// What it printed, or why it does not run.
    pub said: String,
}

/// What is known of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// `ActiveState/SubState` (systemctl(1)), such as `active/running`.
    pub active: String,
    /// Starts at boot.
    pub enabled: bool,
    /// PID of its main process; 0: none.
    pub main_pid: u32,
}

impl State {
    /// It runs.
    pub fn running(&self) -> bool {
        self.active == "active/running"
    }
}

/// The calls that we need of a service manager. Units that do not exist are inactive and disabled.
pub trait Init {
    /// Reads unit files again.
    ///
    /// # Errors
    /// [`InitError`], as of all methods.
    fn reload(&mut self) -> Result<(), InitError>;
    /// Starts a unit at boot from now on.
    ///
    /// # Errors
    /// [`InitError`].
    fn enable(&mut self, unit: &str) -> Result<(), InitError>;
    /// Undoes [`Init::enable`].
    ///
    /// # Errors
    /// [`InitError`].
    fn disable(&mut self, unit: &str) -> Result<(), InitError>;
    /// Starts a unit anew, whether it runs or not.
    ///
    /// # Errors
    /// [`InitError`].
    fn restart(&mut self, unit: &str) -> Result<(), InitError>;
    /// Stops a unit, if it runs.
    ///
    /// # Errors
    /// [`InitError`].
    fn stop(&mut self, unit: &str) -> Result<(), InitError>;
    /// What is known of a unit.
    ///
    /// # Errors
    /// [`InitError`].
    fn state(&mut self, unit: &str) -> Result<State, InitError>;
}

/// The host's own `systemctl`. In a container it runs in the host's root by `chroot`: it reaches systemd by the socket in /run, and
/// is of the host's version.
#[derive(Debug)]
pub struct Systemctl {
    root: PathBuf,
}

impl Systemctl {
    /// For the host whose root is at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn run(&self, arguments: &[&str]) -> Result<String, InitError> {
        let failed = |said: String| InitError { command: arguments.join(" "), said };
        let mut command = if self.root == Path::new("/") {
            Command::new("systemctl")
        } else {
            let mut command = Command::new("chroot");
            command.arg(&self.root).arg("systemctl");
            command
        };
        // systemctl does nothing, and succeeds, where it believes to be in a chroot.
        command.env("SYSTEMD_IGNORE_CHROOT", "1").args(arguments);
        let output = command.output().map_err(|e| failed(e.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Err(failed(if said.is_empty() { output.status.to_string() } else { said }));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Init for Systemctl {
    fn reload(&mut self) -> Result<(), InitError> {
        self.run(&["daemon-reload"]).map(drop)
    }

    fn enable(&mut self, unit: &str) -> Result<(), InitError> {
        self.run(&["enable", "--quiet", unit]).map(drop)
    }

    fn disable(&mut self, unit: &str) -> Result<(), InitError> {
        self.run(&["disable", "--quiet", unit]).map(drop)
    }

    fn restart(&mut self, unit: &str) -> Result<(), InitError> {
        self.run(&["restart", unit]).map(drop)
    }

    fn stop(&mut self, unit: &str) -> Result<(), InitError> {
        self.run(&["stop", unit]).map(drop)
    }

    fn state(&mut self, unit: &str) -> Result<State, InitError> {
        self.run(&["show", "--property=ActiveState,SubState,MainPID,UnitFileState", unit])
            .map(|text| parse(&text))
    }
}

fn parse(text: &str) -> State {
    let properties: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let get = |name| properties.get(name).copied().unwrap_or_default();
    State {
        active: format!("{}/{}", get("ActiveState"), get("SubState")),
        enabled: get("UnitFileState") == "enabled",
        main_pid: get("MainPID").parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_read() {
        let state = parse("MainPID=812\nActiveState=active\nSubState=running\nUnitFileState=enabled\n");
        assert_eq!(state, State { active: "active/running".into(), enabled: true, main_pid: 812 });
        assert!(state.running());
        let state = parse("MainPID=0\nActiveState=activating\nSubState=auto-restart\nUnitFileState=\n");
        assert!(!state.running() && !state.enabled);
    }
}
