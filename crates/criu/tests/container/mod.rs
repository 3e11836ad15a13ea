//! A stand-in for a container: fresh namespaces, a small reaper as PID 1, and pipes as its standard streams.

#![allow(unreachable_pub, dead_code, reason = "shared by several test programs")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use woodfrog_criu::{RestoreOptions, Setup, Toolchain};

/// PID 1: starts what is written to it as a line of shell, as a session leader with PID 300, and reaps.
const REAPER: &str = r#"
import os, signal, sys
command = os.read(0, 65536).decode()
if command.strip():
    open("/proc/sys/kernel/ns_last_pid", "w").write("299")
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.setsid()
        os.execvp("sh", ["sh", "-c", "exec " + command])
os.close(0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        signal.sigwait([signal.SIGCHLD])
"#;

/// An application that counts, so that it can be seen to go on where it was.
pub const COUNTER: &str = "python3 -c 'import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.005)'";

pub struct Container {
    unshare: Child,
    output: BufReader<ChildStdout>,
    pub pid1: Arc<OwnedFd>,
    pub host_pid1: u32,
}

impl Container {
    /// One that runs an application as PID 300.
    pub fn running(command: &str) -> Self {
        let (mut container, mut input) = Self::start();
        input.write_all(command.as_bytes()).unwrap();
        drop(input);
        container.eventually("the application runs", |container| container.alive(300));
        container
    }

    /// One that waits to be thawed.
    pub fn waiting() -> Self {
        Self::start().0
    }

    fn start() -> (Self, ChildStdin) {
        let mut unshare = Command::new("unshare")
            .args(["-m", "-p", "-u", "-i", "-n", "-f", "--kill-child", "--mount-proc", "--", "python3", "-c"])
            .arg(format!("print('ready', flush=True)\n{REAPER}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(unshare.stdout.take().unwrap());
        output.read_line(&mut String::new()).unwrap();
        let host_pid1 = children(unshare.id())[0];
        let pid = Pid::from_raw(host_pid1 as i32).unwrap();
        let pid1 = Arc::new(pidfd_open(pid, PidfdFlags::empty()).unwrap());
        let input = unshare.stdin.take().unwrap();
        (Self { unshare, output, pid1, host_pid1 }, input)
    }

    /// The next number of the counter.
    pub fn count(&mut self) -> u64 {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap_or_else(|_| panic!("not a number: {line:?}"))
    }

    /// The next line of output, of whatever kind.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// PIDs in the container of everything but PID 1.
    pub fn pids(&self) -> Vec<u32> {
        let inside = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let own = status.lines().find(|line| line.starts_with("NSpid:"))?;
            own.split_whitespace().last()?.parse().ok()
        };
        descendants(self.host_pid1).into_iter().filter_map(inside).collect()
    }

    pub fn alive(&self, pid: u32) -> bool {
        self.pids().contains(&pid)
    }

    /// PID on the node of a process of the container.
    pub fn host_pid(&self, pid: u32) -> u32 {
        let is = |host: &u32| {
            let status = fs::read_to_string(format!("/proc/{host}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with(&format!("\t{pid}")))
        };
        descendants(self.host_pid1).into_iter().find(is).unwrap()
    }

    /// A field of the status of a process.
    pub fn status(&self, pid: u32, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.host_pid(pid))).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_once(":\t").unwrap().1.to_owned()
    }

    /// PID on the node of the parent of a process.
    pub fn parent(&self, pid: u32) -> u32 {
        self.status(pid, "PPid").parse().unwrap()
    }

    pub fn eventually(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < Duration::from_secs(10), "not within 10 s: {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// CRIU's name of standard output.
    pub fn stdout_key(&self) -> String {
        fs::read_link(format!("/proc/{}/fd/1", self.host_pid1)).unwrap().to_str().unwrap().to_owned()
    }

    /// A worker's setup, with a fresh work directory.
    pub fn setup(&self, work: &Path) -> Setup {
        Setup::new(directory(work)).container(Arc::clone(&self.pid1))
    }

    /// The same, and restore options that give the container's own output to a tree that had `key`.
    pub fn restore_setup(&self, work: &Path, key: &str) -> (Setup, RestoreOptions) {
        let mut setup = self.setup(work);
        let stdout =
            fs::OpenOptions::new().write(true).open(format!("/proc/{}/fd/1", self.host_pid1)).unwrap();
        let given = setup.give(stdout.into());
        (setup, RestoreOptions { inherit: vec![(key.to_owned(), given)], ..RestoreOptions::default() })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(self.pid1.as_fd(), Signal::KILL);
        let _ = self.unshare.wait();
    }
}

pub fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// CRIU as installed; none, with a word of explanation, where these tests cannot run.
pub fn toolchain() -> Option<Arc<Toolchain>> {
    let path = Path::new("/usr/sbin/criu");
    if rustix::process::geteuid().is_root() && path.exists() {
        return Some(Arc::new(Toolchain::open(path).unwrap()));
    }
    let required = std::env::var("WOODFROG_REQUIRE").unwrap_or_default();
    assert!(
        !required.contains("node"),
        "WOODFROG_REQUIRE names node, but there is no root or no {}",
        path.display()
    );
    eprintln!("skipped: needs root and {}", path.display());
    None
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn descendants(pid: u32) -> Vec<u32> {
    let own = children(pid);
    let deeper: Vec<u32> = own.iter().flat_map(|child| descendants(*child)).collect();
    own.into_iter().chain(deeper).collect()
}
