//! The command that the container would have run: read from the control directory, found in `PATH`, started.

use std::ffi::CString;
use std::io;
use std::path::Path;
use std::time::Duration;

use woodfrog_protocol::frame::{self, FrameError};
use woodfrog_protocol::init::{Command as Wire, Start};
use woodfrog_sys::pid1::start;

/// The first PID that an application may have; those below are for helpers that enter, and for what a restore brings.
const FIRST_PID: i32 = 300;
/// What a container without `PATH` gets, as from other container runtimes.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why the command cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(
        "reading {path}: {source}; woodfrog-init runs only in containers that the woodfrog CRI shim made"
    )]
    Read { path: String, source: io::Error },
    #[error("{path}: {source}")]
    Frame { path: String, source: FrameError },
    #[error("{path}: no command in it")]
    Empty { path: String },
    #[error("{path}: a NUL byte in the command")]
    Nul { path: String },
    #[error("exec: {program:?}: {reason}")]
    Exec { program: String, reason: &'static str, found: bool },
    #[error("exec: {program:?}: {source}")]
    Start { program: String, source: io::Error },
}

impl CommandError {
    /// The exit code that a shell would give.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Exec { found: false, .. } => 127,
            _ => 126,
        }
    }
}

/// A command ready to start.
#[derive(Debug)]
pub(crate) struct Command {
    argv: Vec<CString>,
    /// Whether a thaw is awaited first.
    pub(crate) thaw: bool,
    /// For the agent's Welcome.
    pub(crate) hello_timeout: Duration,
    /// For the thaw, from the lease on.
    pub(crate) thaw_timeout: Duration,
}

impl Command {
    /// Reads a frame with [`Wire`] from `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, CommandError> {
        let name = || path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| CommandError::Read { path: name(), source })?;
        let wire: Wire =
            frame::whole(&bytes).map_err(|source| CommandError::Frame { path: name(), source })?;
        let thaw = wire.start() != Start::Cold;
        let argv: Vec<CString> = wire
            .argv
            .into_iter()
            .map(|argument| CString::new(argument).map_err(|_| CommandError::Nul { path: name() }))
            .collect::<Result<_, _>>()?;
        if argv.first().is_none_or(|program| program.is_empty()) {
            return Err(CommandError::Empty { path: name() });
        }
        Ok(Self {
            argv,
            thaw,
            hello_timeout: millis(wire.hello_timeout_ms, 5_000),
            thaw_timeout: millis(wire.thaw_timeout_ms, 30_000),
        })
    }

    /// Starts the application; its PID, at least [`FIRST_PID`].
    pub(crate) fn start(&self) -> Result<i32, CommandError> {
        let program = self.argv[0].to_string_lossy();
        start::advance_pids(FIRST_PID)
            .and_then(|()| start::start(&candidates(&program), &self.argv))
            .map_err(|source| explain(&program, source))
    }
}

/// 0 means that the shim left it to us.
fn millis(value: u32, default: u64) -> Duration {
    Duration::from_millis(if value == 0 { default } else { value.into() })
}

/// The paths to try, in order, as execvp(3) does.
fn candidates(program: &str) -> Vec<CString> {
    let paths: Vec<String> = if program.contains('/') {
        vec![program.to_owned()]
    } else {
        let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
        path.split(':').map(|dir| format!("{}/{program}", if dir.is_empty() { "." } else { dir })).collect()
    };
    paths.into_iter().filter_map(|path| CString::new(path).ok()).collect()
}

fn explain(program: &str, source: io::Error) -> CommandError {
    let program = program.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound if program.contains('/') => {
            CommandError::Exec { program, reason: "no such file or directory", found: false }
        }
        io::ErrorKind::NotFound => {
            CommandError::Exec { program, reason: "executable file not found in $PATH", found: false }
        }
        io::ErrorKind::PermissionDenied => {
            CommandError::Exec { program, reason: "permission denied", found: true }
        }
        _ => CommandError::Start { program, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Command, CommandError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Command::read(file.path())
    }

    fn wire(argv: &[&str]) -> Vec<u8> {
        let argv = argv.iter().map(|&a| a.to_owned()).collect();
        frame::encode(&Wire { argv, hello_timeout_ms: 7, ..Wire::default() }).unwrap()
    }

    #[test]
    fn a_command_is_read_with_the_designs_deadlines_where_it_has_none() {
        let command = read(&wire(&["a", ""])).unwrap();
        assert_eq!(command.argv, [c"a".to_owned(), c"".to_owned()]);
        assert_eq!(command.hello_timeout, Duration::from_millis(7));
        assert_eq!(command.thaw_timeout, Duration::from_secs(30));
        assert!(!command.thaw);
    }

    #[test]
    fn a_missing_command_is_127_and_a_bad_one_126() {
        assert_eq!(Command::read(Path::new("/nowhere")).unwrap_err().exit_code(), 127);
        let whole = wire(&["a"]);
        for bad in
            [&whole[..whole.len() - 1], b"#!/bin/sh\nexec true\n", &wire(&[]), &wire(&[""]), &wire(&["\0"])]
        {
            assert_eq!(read(bad).unwrap_err().exit_code(), 126);
        }
    }

    #[test]
    fn a_program_with_a_slash_is_not_sought() {
        assert_eq!(candidates("./a"), [c"./a".to_owned()]);
    }
}
