//! A stand-in for a container: fresh namespaces, a small reaper as PID 1, and pipes as its standard streams.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use woodfrog_criu::{RestoreOptions, Setup, Toolchain};

use crate::INSIDE;

/// PID 1: starts what is written to it as a line of shell, as a session leader with PID 300, and reaps. In Perl, which
/// every Debian has.
const REAPER: &str = r#"
use POSIX; use Socket;
socket(my $s, AF_INET, SOCK_DGRAM, 0) or die;
my $up = pack("a16 s x22", "lo", 0x41);
ioctl($s, 0x8914, $up) or die;  # SIOCSIFFLAGS
close $s;
$| = 1;
print "ready\n";
sysread(STDIN, my $command, 65536);
if ($command =~ /\S/) {
    open(my $cursor, ">", "/proc/sys/kernel/ns_last_pid") or die;
    print $cursor "299";
    close $cursor;
    if (!fork) {
        open(STDIN, "<", "/dev/null");
        open(STDERR, ">&", STDOUT);
        setsid();
        exec("sh", "-c", "exec $command");
    }
}
close STDIN;
$SIG{CHLD} = sub {};
sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGCHLD));
while (1) { sigsuspend(POSIX::SigSet->new) if waitpid(-1, 0) < 0 }
"#;

/// An application that counts, so that it can be seen to go on where it was.
pub(crate) const COUNTER: &str =
    r#"perl -e '$| = 1; for ($n = 0;; $n++) { print "$n\n"; select(undef, undef, undef, 0.005) }'"#;

pub(crate) struct Container {
    unshare: Child,
    output: BufReader<ChildStdout>,
    pub(crate) pid1: Arc<OwnedFd>,
    pub(crate) host_pid1: u32,
}

impl Container {
    /// One that runs an application as PID 300.
    pub(crate) fn running(command: &str) -> Self {
        Self::prepared("", command)
    }

    /// The same, after PID 1 has run some lines of Perl.
    pub(crate) fn prepared(script: &str, command: &str) -> Self {
        let (mut container, mut input) = Self::start(script);
        input.write_all(command.as_bytes()).unwrap();
        drop(input);
        container.eventually("the application runs", |container| container.alive(300));
        container
    }

    /// One that waits to be thawed.
    pub(crate) fn waiting() -> Self {
        Self::start("").0
    }

    fn start(script: &str) -> (Self, ChildStdin) {
        let mut unshare = Command::new("unshare")
            .args(["-m", "-p", "-u", "-i", "-n", "-f", "--kill-child", "--mount-proc", "--", "perl", "-e"])
            .arg(format!("{script}\n{REAPER}"))
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
    pub(crate) fn count(&mut self) -> u64 {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().parse().unwrap_or_else(|_| panic!("not a number: {line:?}"))
    }

    /// Passes over what has been printed up to now.
    pub(crate) fn skim(&mut self) {
        let mut left = self.waiting_bytes();
        while left > 0 {
            let mut line = String::new();
            left = left.saturating_sub(self.output.read_line(&mut line).unwrap());
        }
    }

    /// How much has been printed and not read.
    pub(crate) fn waiting_bytes(&self) -> usize {
        let waiting = rustix::io::ioctl_fionread(self.output.get_ref()).unwrap();
        waiting as usize + self.output.buffer().len()
    }

    /// The next line of output, of whatever kind.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Everything in the PID namespace but PID 1: PID on the node and in the container.
    fn processes(&self) -> Vec<(u32, u32)> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let own = namespace(self.host_pid1);
        let inside = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("NSpid:"))?;
            line.split_whitespace().last()?.parse().ok()
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != self.host_pid1 && namespace(*pid) == own)
            .filter_map(|pid| Some((pid, inside(pid)?)))
            .collect()
    }

    /// PIDs in the container of everything but PID 1, helpers included.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes().into_iter().map(|(_, inside)| inside).collect()
    }

    pub(crate) fn alive(&self, pid: u32) -> bool {
        self.pids().contains(&pid)
    }

    /// PID on the node of a process of the container.
    pub(crate) fn host_pid(&self, pid: u32) -> u32 {
        self.processes().into_iter().find(|(_, inside)| *inside == pid).unwrap().0
    }

    /// A field of the status of a process.
    pub(crate) fn status(&self, pid: u32, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.host_pid(pid))).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_once(":\t").unwrap().1.to_owned()
    }

    /// PID on the node of the parent of a process.
    pub(crate) fn parent(&self, pid: u32) -> u32 {
        self.status(pid, "PPid").parse().unwrap()
    }

    pub(crate) fn eventually(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "not within 10 s: {what}: {:?}",
                self.processes()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// CRIU's name of standard output.
    pub(crate) fn stdout_key(&self) -> String {
        fs::read_link(format!("/proc/{}/fd/1", self.host_pid1)).unwrap().to_str().unwrap().to_owned()
    }

    /// A worker's setup, with a fresh work directory.
    pub(crate) fn setup(&self, work: &Path) -> Setup {
        Setup::new(directory(work)).container(Arc::clone(&self.pid1))
    }

    /// The same, and restore options that give the container's own output to a tree that had `key`.
    pub(crate) fn restore_setup(&self, work: &Path, key: &str) -> (Setup, RestoreOptions) {
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

pub(crate) fn directory(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// The node's CRIU; none outside of a node.
pub(crate) fn toolchain() -> Option<Arc<Toolchain>> {
    if std::env::var_os(INSIDE).is_none() {
        eprintln!("skipped: runs in a node, as a part of node_the_driver_works");
        return None;
    }
    let toolchain = Toolchain::open(Path::new("/usr/sbin/criu")).unwrap();
    toolchain.ensure_kdat(Path::new("/run/criu.kdat")).unwrap();
    Some(Arc::new(toolchain))
}

fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
