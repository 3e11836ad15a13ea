//! Version 2 with real processes, in a mount of the hierarchy that the test makes; nodes of version 1 have the whole test for the other.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::*;

const WITHIN: Duration = Duration::from_secs(20);

/// The second hierarchy, mounted for this test, and a cgroup in it for a container.
struct Hierarchy {
    mounted: tempfile::TempDir,
    container: PathBuf,
}

impl Hierarchy {
    /// None: this machine does not let us.
    fn mount() -> Option<Self> {
        let mounted = tempfile::tempdir().unwrap();
        mount("none", mounted.path(), "cgroup2", MountFlags::empty(), None).ok()?;
        // All mounts show one hierarchy.
        let name = mounted.path().file_name()?.to_string_lossy().trim_matches('.').to_owned();
        let container = mounted.path().join(format!("woodfrog-freezer-test-{name}"));
        std::fs::create_dir(&container).unwrap();
        Some(Self { mounted, container })
    }

    fn open(&self) -> OwnedFd {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.container, flags, Mode::empty()).unwrap()
    }
}

impl Drop for Hierarchy {
    fn drop(&mut self) {
        // All at once, those that are frozen and those that are not.
        let _ = std::fs::write(self.container.join("cgroup.kill"), "1");
        let application = self.container.join(NAME);
        let until = Instant::now() + WITHIN;
        for group in [&application, &self.container] {
            while group.exists() && std::fs::remove_dir(group).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = unmount(self.mounted.path(), UnmountFlags::DETACH);
    }
}

/// A container: an init that has a PID namespace, and an application that counts into a file as fast as it can.
struct Container {
    outside: Child,
    init: i32,
    counted: PathBuf,
}

impl Container {
    fn start(hierarchy: &Hierarchy, directory: &Path) -> Self {
        let counted = directory.join("counted");
        let procs = hierarchy.container.join("cgroup.procs");
        // The second shell is PID 1 of its namespace; the loop is its child.
        let script = format!(
            "echo $$ > {}; exec unshare --pid --fork --kill-child sh -c '(while :; do echo >> {}; done) & wait'",
            procs.display(),
            counted.display()
        );
        let outside = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", outside.id());
        let init = wait(|| {
            let children = std::fs::read_to_string(&children).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        let container = Self { outside, init, counted };
        container.await_counting();
        container
    }

    fn count(&self) -> u64 {
        std::fs::metadata(&self.counted).map_or(0, |file| file.len())
    }

    fn await_counting(&self) {
        let before = self.count();
        wait(|| (self.count() > before).then_some(()));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}

fn wait<T>(mut done: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + WITHIN;
    loop {
        if let Some(done) = done() {
            return done;
        }
        assert!(Instant::now() < until, "not within {WITHIN:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn an_application_is_held_and_released_by_version_2_and_its_init_goes_on() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let Some(hierarchy) = Hierarchy::mount() else {
        eprintln!("skipped: this machine lets nobody mount the second cgroup hierarchy");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let container = Container::start(&hierarchy, directory.path());
    let freezer = Freezer::among(container.init, vec![hierarchy.open()]).unwrap();
    assert_eq!(freezer.version, Version::V2);
    assert!(!freezer.is_held());

    for _ in 0..3 {
        freezer.hold().unwrap();
        assert!(freezer.is_held());
        let events = std::fs::read_to_string(hierarchy.container.join(NAME).join("cgroup.events")).unwrap();
        assert!(events.contains("frozen 1"), "{events}");
        // Not a byte more after any number of turns of the scheduler.
        let before = container.count();
        for _ in 0..50 {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(container.count(), before, "it runs");
        let there = std::fs::read_to_string(hierarchy.container.join("cgroup.procs")).unwrap();
        assert!(there.lines().any(|pid| pid == container.init.to_string()), "its init is not held: {there}");
        // The next agent finds it so.
        assert!(Freezer::among(container.init, vec![hierarchy.open()]).unwrap().is_held());

        freezer.release().unwrap();
        assert!(!freezer.is_held());
        container.await_counting();
    }
}

#[test]
fn an_application_that_is_held_can_be_killed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let Some(hierarchy) = Hierarchy::mount() else { return };
    let directory = tempfile::tempdir().unwrap();
    let container = Container::start(&hierarchy, directory.path());
    let freezer = Freezer::among(container.init, vec![hierarchy.open()]).unwrap();
    freezer.hold().unwrap();
    let pid = rustix::process::Pid::from_raw(container.init).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    wait(|| {
        let left = std::fs::read_to_string(hierarchy.container.join(NAME).join("cgroup.procs")).ok()?;
        left.trim().is_empty().then_some(())
    });
}
