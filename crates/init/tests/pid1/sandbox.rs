//! Namespaces with a control directory in which init is PID 1.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;
use woodfrog_protocol::frame;
use woodfrog_protocol::init::{self, Start};

/// Everything here should take far less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the tests can run; says why not, and fails where they must.
pub(crate) fn can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    let works = root
        && Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "nsenter", "--version"])
            .output()
            .is_ok_and(|output| output.status.success());
    if !works {
        let required = std::env::var("WOODFROG_REQUIRE").is_ok_and(|required| required.contains("node"));
        assert!(!required, "WOODFROG_REQUIRE: root, unshare and nsenter are needed");
        eprintln!("skipped: needs root, unshare and nsenter");
    }
    works
}

/// Waits until `what` is true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A control directory, before init runs.
pub(crate) struct Plan {
    dir: TempDir,
    command: init::Command,
    binary: PathBuf,
    env: Vec<(String, String)>,
}

impl Plan {
    /// A shell script as the application.
    pub(crate) fn script(script: &str) -> Self {
        Self::command(&["/bin/sh", "-c", script])
    }

    /// Any command.
    pub(crate) fn command(argv: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let binary = std::env::var_os("WOODFROG_INIT")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_woodfrog-init")), PathBuf::from);
        let command = init::Command {
            argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
            start: Start::Cold.into(),
            hello_timeout_ms: PATIENCE.as_millis() as u32,
            thaw_timeout_ms: PATIENCE.as_millis() as u32,
            ..init::Command::default()
        };
        Self { dir, command, binary, env: Vec::new() }
    }

    /// Waits for a thaw first, with these deadlines in milliseconds.
    pub(crate) fn thaw(mut self, hello_ms: u32, thaw_ms: u32) -> Self {
        self.command.start = Start::Thaw.into();
        self.command.hello_timeout_ms = hello_ms;
        self.command.thaw_timeout_ms = thaw_ms;
        self
    }

    /// Another build of init.
    pub(crate) fn binary(mut self, binary: &Path) -> Self {
        self.binary = binary.to_owned();
        self
    }

    /// One more variable in the environment.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The control directory as the agent sees it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts init with a good command file.
    pub(crate) fn start(self) -> Sandbox {
        let bytes = frame::encode(&self.command).unwrap();
        self.start_with(Some(&bytes))
    }

    /// Starts init with any command file, or none.
    pub(crate) fn start_with(self, command: Option<&[u8]>) -> Sandbox {
        if let Some(command) = command {
            std::fs::write(self.dir.path().join("command.bin"), command).unwrap();
        }
        std::fs::copy(&self.binary, self.dir.path().join("init")).unwrap();
        let script = "mount -t tmpfs tmpfs /run && mkdir /run/woodfrog && mount -o bind,ro \"$0\" /run/woodfrog \
            && mount -t proc proc /proc && exec /run/woodfrog/init";
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-c", script])
            .arg(self.dir.path())
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let outer = unshare.id();
        let mut init = 0;
        eventually("init runs", || {
            init = children(outer).first().copied().unwrap_or(0);
            let cmdline = std::fs::read(format!("/proc/{init}/cmdline")).unwrap_or_default();
            cmdline == b"/run/woodfrog/init\0" || unshare.try_wait().unwrap().is_some()
        });
        Sandbox { unshare, init, dir: self.dir }
    }
}

/// A running init.
pub(crate) struct Sandbox {
    unshare: Child,
    init: u32,
    dir: TempDir,
}

impl Sandbox {
    /// Init's PID on the host.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// The control directory as the agent sees it.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends init a signal from outside.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.init, signal);
    }

    /// The application's PID on the host, once there is one.
    pub(crate) fn application(&self) -> u32 {
        let mut pid = 0;
        eventually("an application runs", || {
            let running = |&pid: &u32| {
                let is = |file| std::fs::read_link(format!("/proc/{pid}/{file}")).ok();
                is("exe").is_some() && is("exe") != is("../self/exe") && inner_pid(pid) >= 300
            };
            pid = children(self.init).into_iter().find(running).unwrap_or(0);
            pid != 0
        });
        pid
    }

    /// What the application and init have written to standard output until now, once it holds `wanted`.
    pub(crate) fn output_until(&mut self, wanted: &str) -> String {
        let mut all = Vec::new();
        let stdout = self.unshare.stdout.as_mut().unwrap();
        let mut buffer = [0; 256];
        while !String::from_utf8_lossy(&all).contains(wanted) {
            let n = stdout.read(&mut buffer).unwrap();
            assert!(n > 0, "no {wanted:?} in {:?}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8(all).unwrap()
    }

    /// Init's exit code, and what was written to standard output and error.
    pub(crate) fn end(mut self) -> (i32, String, String) {
        let mut status = None;
        eventually("init ends", || {
            status = self.unshare.try_wait().unwrap();
            status.is_some()
        });
        let (mut out, mut err) = (String::new(), String::new());
        self.unshare.stdout.as_mut().unwrap().read_to_string(&mut out).unwrap();
        self.unshare.stderr.as_mut().unwrap().read_to_string(&mut err).unwrap();
        (status.unwrap().code().unwrap_or(-1), out, err)
    }

    /// Whether init still runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.unshare.try_wait().unwrap().is_none()
    }

    /// Something that enters the PID namespace as CRIU does: its parent is outside. The script's first line of output
    /// is returned, and its standard input, whose end a script can await.
    pub(crate) fn enter(&self, script: &str) -> Entered {
        let mut nsenter = Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--pid", "--mount", "/bin/sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while nsenter.stdout.as_mut().unwrap().read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        // The kernel's list may miss one while others come and go.
        let mut worker = None;
        for _ in 0..100 {
            worker = children(nsenter.id()).first().copied();
            if worker.is_some() || nsenter.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may have ended since it was listed.
        let pidfd = worker.and_then(|pid| {
            match pidfd_open(Pid::from_raw(pid as i32).unwrap(), PidfdFlags::empty()) {
                Err(Errno::SRCH) => None,
                opened => Some(opened.unwrap()),
            }
        });
        let stdin = nsenter.stdin.take();
        Entered { line: String::from_utf8(line).unwrap(), pidfd, stdin, nsenter }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Takes init along, and init its namespace.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

/// A process that entered.
pub(crate) struct Entered {
    /// What it said first.
    pub(crate) line: String,
    /// Its descriptor, unless it has ended.
    pub(crate) pidfd: Option<OwnedFd>,
    stdin: Option<ChildStdin>,
    nsenter: Child,
}

impl Entered {
    /// The number that it said first.
    pub(crate) fn number(&self) -> i32 {
        self.line.trim().parse().unwrap()
    }

    /// Closes its standard input and waits for its end.
    pub(crate) fn finish(mut self) {
        self.stdin = None;
        self.nsenter.wait().unwrap();
    }
}

/// Sends a signal by PID on the host.
pub(crate) fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// PIDs on the host of the children of a single-threaded process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// A field of `/proc/PID/status`.
pub(crate) fn status(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// The PID that a process has in its own namespace.
pub(crate) fn inner_pid(pid: u32) -> i32 {
    status(pid, "NSpid").split_whitespace().last().and_then(|pid| pid.parse().ok()).unwrap_or(0)
}
