//! Processes started inside other namespaces. Needs root and `unshare` (util-linux); skipped without root.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use woodfrog_sys::process::{Child, HELPER_PIDS, Place, Program, SpawnError, Step, set_last_pid};

/// A process in fresh namespaces that does nothing, ended on drop.
struct Container {
    unshare: std::process::Child,
    pidfd: OwnedFd,
}

/// What a test wishes to be different.
#[derive(Default)]
struct How<'a> {
    pids: Option<RangeInclusive<i32>>,
    descriptors: &'a [BorrowedFd<'a>],
    cgroups: &'a [File],
    last_pid: Option<i32>,
    real_ids: Option<(u32, u32)>,
}

impl Container {
    fn start() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            let required = std::env::var("WOODFROG_REQUIRE").unwrap_or_default();
            assert!(!required.contains("node"), "WOODFROG_REQUIRE names node, but this is not root");
            eprintln!("skipped: needs root");
            return None;
        }
        let mut unshare = Command::new("unshare")
            .args(["-m", "-p", "-u", "-i", "-n", "-f", "--kill-child", "--mount-proc", "--", "sh", "-c"])
            .arg("echo ready; exec sleep 600")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        unshare.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let pid: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        Some(Self { unshare, pidfd })
    }

    /// Runs a shell script inside; its standard output and exit status.
    fn run(&self, script: &str) -> (String, i32) {
        self.run_with(script, &How::default())
    }

    fn run_with(&self, script: &str, how: &How<'_>) -> (String, i32) {
        let (read, child) = self.start_script(script, how).unwrap();
        let mut output = String::new();
        File::from(read).read_to_string(&mut output).unwrap();
        (output, child.wait().unwrap().exit_status().unwrap())
    }

    fn start_script(&self, script: &str, how: &How<'_>) -> Result<(OwnedFd, Child), SpawnError> {
        let shell = File::open("/bin/sh").unwrap();
        let null = File::open("/dev/null").unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut program = Program::new(shell.as_fd(), [null.as_fd(), write.as_fd(), write.as_fd()]);
        for argument in ["sh", "-p", "-c", script] {
            program.argument(std::ffi::CString::new(argument).unwrap());
        }
        program.variable(c"PATH=/usr/bin:/bin".to_owned());
        for fd in how.descriptors {
            program.descriptor(*fd);
        }
        let pids = how.pids.clone().unwrap_or(HELPER_PIDS);
        let place = Place::default().inside(self.pidfd.as_fd(), pids);
        let place = how.cgroups.iter().fold(place, |place, cgroup| place.cgroup(cgroup.as_fd()));
        how.last_pid.map(|last| program.last_pid(last));
        how.real_ids.map(|(uid, gid)| program.real_ids(uid, gid));
        program.start(&place).map(|child| (read, child))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let _ = self.unshare.wait();
    }
}

#[test]
fn node_a_child_runs_in_the_namespaces_with_a_helpers_pid_and_is_ours_to_wait_for() {
    let Some(container) = Container::start() else { return };
    let (output, status) = container.run("echo $$; until grep -x sleep /proc/1/comm; do :; done; exit 3");
    assert_eq!(output, "299\nsleep\n");
    assert_eq!(status, 3);
}

#[test]
fn node_the_next_child_takes_the_next_free_pid_and_when_all_are_taken_the_error_says_so() {
    let Some(container) = Container::start() else { return };
    let (_pipe, first) = container.start_script("exec sleep 600", &How::default()).unwrap();
    assert_eq!(first.pid_inside(), Some(299));
    assert_eq!(container.run("echo $$").0, "298\n");

    let only = 299..=299;
    let how = How { pids: Some(only.clone()), ..How::default() };
    let error = container.start_script("true", &how).unwrap_err();
    assert!(matches!(error, SpawnError::PidsTaken(range) if range == only));
    rustix::process::pidfd_send_signal(&first, rustix::process::Signal::KILL).unwrap();
    assert_eq!(first.wait().unwrap().terminating_signal(), Some(9));
}

#[test]
fn node_a_child_has_the_given_descriptors_and_no_others() {
    let Some(container) = Container::start() else { return };
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    File::from(write).write_all(b"through the pipe").unwrap();
    let script = "cat <&3; echo; ls /proc/$$/fd; true";
    let (output, _) = container.run_with(script, &How { descriptors: &[read.as_fd()], ..How::default() });
    assert_eq!(output, "through the pipe\n0\n1\n2\n3\n");
}

#[test]
fn node_real_ids_change_and_effective_ones_stay() {
    let Some(container) = Container::start() else { return };
    let how = How { real_ids: Some((1234, 4321)), ..How::default() };
    let (output, _) = container.run_with("grep -E '^(Uid|Gid|CapEff)' /proc/$$/status", &how);
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = own.lines().find(|line| line.starts_with("CapEff")).unwrap();
    assert!(output.contains("Uid:\t1234\t0\t0\t0"), "{output}");
    assert!(output.contains("Gid:\t4321\t0\t0\t0"), "{output}");
    assert!(output.contains(capabilities), "{output}");
}

#[test]
fn node_the_cursor_decides_the_next_pids() {
    let Some(container) = Container::start() else { return };
    let how = How { last_pid: Some(4000), ..How::default() };
    let (output, _) = container.run_with("sh -c 'echo $$'; true", &how);
    assert_eq!(output, "4001\n");
    set_last_pid(container.pidfd.as_fd(), 5000).unwrap();
    assert_eq!(container.run("sh -c 'echo $$'; true").0, "5001\n");
}

#[test]
fn node_a_child_starts_in_the_given_cgroups() {
    let Some(container) = Container::start() else { return };
    let name = format!("woodfrog-test-{}", std::process::id());
    let directories = CgroupDirectory::make_all(&name);
    let opened: Vec<_> = directories.iter().map(|d| File::open(&d.0).unwrap()).collect();
    let how = How { cgroups: &opened, ..How::default() };
    let (output, _) = container.run_with("cat /proc/self/cgroup", &how);
    assert_eq!(output.matches(&name).count(), directories.len(), "{output}");
}

#[test]
fn node_a_child_is_in_all_given_cgroups_when_its_move_has_ended() {
    let Some(container) = Container::start() else { return };
    let name = format!("woodfrog-test-move-{}", std::process::id());
    let directories = CgroupDirectory::make_all(&name);
    let opened: Vec<_> = directories.iter().map(|d| File::open(&d.0).unwrap()).collect();
    let place = Place::default().inside(container.pidfd.as_fd(), HELPER_PIDS);
    let place = opened.iter().fold(place, |place, cgroup| place.cgroup(cgroup.as_fd()));
    let (waiting, left) = place.begin().unwrap();
    let (sleep, null) = (File::open("/bin/sleep").unwrap(), File::open("/dev/null").unwrap());
    let mut program = Program::new(sleep.as_fd(), [null.as_fd(); 3]);
    program.argument(c"sleep".to_owned()).argument(c"600".to_owned());
    let child = waiting.run(&program).unwrap();
    left.finish().unwrap();
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).unwrap();
    assert_eq!(cgroups.matches(&name).count(), directories.len(), "{cgroups}");
    rustix::process::pidfd_send_signal(&child, rustix::process::Signal::KILL).unwrap();
    child.wait().unwrap();
}

#[test]
fn node_the_move_of_a_child_that_was_reaped_moves_nobody() {
    let directories = CgroupDirectory::make_all(&format!("woodfrog-test-gone-{}", std::process::id()));
    let Some(container) = Container::start() else { return };
    let opened: Vec<_> = directories.iter().map(|d| File::open(&d.0).unwrap()).collect();
    let place = Place::default().inside(container.pidfd.as_fd(), HELPER_PIDS);
    let place = opened.iter().fold(place, |place, cgroup| place.cgroup(cgroup.as_fd()));
    let (waiting, left) = place.begin().unwrap();
    drop(waiting);
    assert!(matches!(left.finish().unwrap_err(), SpawnError::Gone));
}

/// A cgroup removed on drop.
struct CgroupDirectory(PathBuf);

impl CgroupDirectory {
    /// One of that name in each of some hierarchies.
    fn make_all(name: &str) -> Vec<Self> {
        let roots =
            ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
        let usable = |root: &&str| fs::exists(format!("{root}/cgroup.procs")).unwrap();
        let make = |root: &str| {
            let path = format!("{root}/{name}");
            fs::create_dir(&path).unwrap();
            Self(path.into())
        };
        let made: Vec<_> = roots.into_iter().filter(usable).map(make).collect();
        assert!(!made.is_empty());
        made
    }
}

impl Drop for CgroupDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn node_a_program_that_cannot_run_is_named_by_step_and_errno() {
    let Some(container) = Container::start() else { return };
    let program = File::open("/proc/self/comm").unwrap();
    let null = File::open("/dev/null").unwrap();
    let place = Place::default().inside(container.pidfd.as_fd(), HELPER_PIDS);
    let error = Program::new(program.as_fd(), [null.as_fd(); 3]).start(&place).unwrap_err();
    let SpawnError::Step { step, errno } = error else { panic!("{error}") };
    assert_eq!((step, errno), (Step::Execute, rustix::io::Errno::ACCESS));
}

#[test]
fn node_a_container_that_has_gone_is_an_error() {
    let Some(container) = Container::start() else { return };
    rustix::process::pidfd_send_signal(&container.pidfd, rustix::process::Signal::KILL).unwrap();
    let mut unshare = container.unshare.id();
    while fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).is_ok_and(|c| !c.is_empty())
    {
        std::thread::yield_now();
        unshare = container.unshare.id();
    }
    let error = container.start_script("true", &How::default()).unwrap_err();
    assert!(matches!(error, SpawnError::Step { step: Step::EnterNamespaces, .. }), "{error}");
}

#[test]
fn node_a_waiting_process_holds_nothing_open_and_ends_when_it_is_given_up() {
    let Some(container) = Container::start() else { return };
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let waiting = Place::default().inside(container.pidfd.as_fd(), HELPER_PIDS).enter().unwrap();
    drop(write);
    assert_eq!(File::from(read).read(&mut [0]).unwrap(), 0);
    assert_eq!(container.run("echo $$").0, "298\n");
    drop(waiting);
    assert_eq!(container.run("echo $$").0, "299\n");
}

#[test]
fn node_a_waiting_process_that_is_killed_is_an_error() {
    let Some(container) = Container::start() else { return };
    let waiting = Place::default().inside(container.pidfd.as_fd(), HELPER_PIDS).enter().unwrap();
    let pidfd = waiting.pidfd().unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut ended, None).unwrap();
    let null = File::open("/dev/null").unwrap();
    let error = waiting.run(&Program::new(null.as_fd(), [null.as_fd(); 3])).unwrap_err();
    assert!(matches!(error, SpawnError::Gone), "{error}");
}

#[test]
fn node_many_threads_start_children_at_once() {
    let Some(container) = Container::start() else { return };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let (output, status) = container.run("echo x");
                    assert_eq!((output.as_str(), status), ("x\n", 0));
                }
            });
        }
    });
}
