//! Nodes come, and go without a trace, whatever happens to who started them.
#![forbid(unsafe_code)]

mod traces;

use std::{
    env,
    fs::File,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use traces::Traces;
use woodfrog_testnode::{Need, Node, Options, names, pid_in_node};

const STARTER: &str = "WOODFROG_TESTNODE_STARTER";

#[test]
fn node_up_twice_is_one_node_and_down_twice_is_no_error() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let node = Node::up("twice", &Options::default())?.into_guard();
    let again = Node::up("twice", &Options::default())?;
    assert_eq!(node.pid(), again.pid());
    assert!(names()?.contains(&"twice".to_owned()));
    let status = Node::status("twice")?;
    assert_eq!(status.services, [("containerd".to_owned(), true), ("registry".to_owned(), true)]);
    Node::down("twice")?;
    Node::down("twice")?;
    let error = Node::attach("twice").expect_err("it is down");
    assert!(error.to_string().contains("cargo xtask node up --name twice"), "{error}");
    Ok(())
}

#[test]
fn node_whose_containerd_died_is_made_anew() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let node = Node::up("half-dead", &Options::default())?.into_guard();
    node.stop("containerd", Signal::KILL)?;
    let again = Node::up("half-dead", &Options::default())?;
    assert_ne!(node.pid(), again.pid());
    again.run("ctr", &["version"])?;
    Ok(())
}

#[test]
fn node_services_end_and_start_again() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let node = Node::up("services", &Options::default())?.into_guard();
    for (name, signal) in [("containerd", Signal::TERM), ("registry", Signal::KILL)] {
        let before = node.service_pid(name).context("it runs")?;
        node.stop(name, signal)?;
        assert!(!Node::status("services")?.services.contains(&(name.to_owned(), true)));
        node.start_again(name)?;
        assert_ne!(node.service_pid(name).context("it runs again")?, before);
    }
    node.run("ctr", &["version"])?;
    node.run("curl", &["--fail", "--silent", "http://127.0.0.1:5000/v2/"])?;
    Ok(())
}

#[test]
fn node_commands_get_a_clean_start_and_die_with_their_child() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let node = Node::up("commands", &Options::default())?.into_guard();
    // rustix leaves close-on-exec to the caller, as C does.
    let leak = rustix::io::fcntl_dupfd_cloexec(File::open("/dev/null")?, 20)?;
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty())?;
    let open = node.run("sh", &["-c", "echo /proc/$$/fd/*"])?;
    drop(leak);
    assert!(!open.contains("/fd/20"), "{open}");
    assert_eq!(node.run("hostname", &[]).or_else(|_| node.run("uname", &["-n"]))?.trim(), "commands");
    assert_eq!(node.command("sh").args(["-c", "exit 7"]).status()?.code(), Some(7));
    let error = node.run("sh", &["-c", "echo why >&2; exit 3"]).expect_err("it fails").to_string();
    assert!(error.contains("why") && error.contains("in node commands"), "{error}");

    let mut child = node.command("sleep").arg("1000").spawn()?;
    let inner =
        until("the program's start", || pid_in_node(&child).filter(|(outer, _)| comm(*outer) == "sleep"))?;
    child.kill()?;
    child.wait()?;
    until("the program's end", || (comm(inner.0) != "sleep").then_some(()))?;
    Ok(())
}

#[test]
fn node_down_leaves_nothing_even_of_frozen_processes() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    let node = Node::up("traceless", &Options::default())?.into_guard();
    let traces = Traces::of(&node)?;
    node.start("sleeper", &["sleep", "1000"])?;
    node.run(
        "sh",
        &[
            "-euc",
            "pid=$(cat /run/woodfrog-services/sleeper.pid)
             if [ -d /sys/fs/cgroup/freezer ]; then
                 mkdir /sys/fs/cgroup/freezer/ice
                 echo $pid >/sys/fs/cgroup/freezer/ice/cgroup.procs
                 echo FROZEN >/sys/fs/cgroup/freezer/ice/freezer.state
             else
                 mkdir /sys/fs/cgroup/ice
                 echo $pid >/sys/fs/cgroup/ice/cgroup.procs
                 echo 1 >/sys/fs/cgroup/ice/cgroup.freeze
             fi
             mount -t tmpfs tmpfs /mnt
             ip link add spare type bridge",
        ],
    )?;
    let start = Instant::now();
    Node::down("traceless")?;
    ensure!(start.elapsed() < Duration::from_secs(15), "down took {:?}", start.elapsed());
    traces.assert_gone("traceless")
}

#[test]
fn node_whose_starter_was_killed_at_any_moment_goes_down_without_a_trace() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    // The layers must be there, so that all delays fall into the start itself.
    Node::up("killed", &Options::default())?;
    Node::down("killed")?;
    for delay in [0, 5, 10, 20, 30, 40, 60, 80, 100, 130, 160, 200, 250, 300, 400, 500, 700, 1000] {
        let mut starter = Command::new(env::current_exe()?)
            .args(["--exact", "starter", "--ignored"])
            .env(STARTER, "killed")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        sleep(Duration::from_millis(delay));
        starter.kill()?;
        starter.wait()?;
        let traces = Node::attach("killed").ok().and_then(|node| Traces::of(&node).ok()).unwrap_or_default();
        Node::down("killed").with_context(|| format!("killed after {delay} ms"))?;
        traces.assert_gone("killed").with_context(|| format!("killed after {delay} ms"))?;
    }
    Ok(())
}

#[test]
fn node_comes_up_over_what_a_killed_starter_left() -> Result<()> {
    if !Need::met() {
        return Ok(());
    }
    for delay in [50, 150, 300] {
        let mut starter = Command::new(env::current_exe()?)
            .args(["--exact", "starter", "--ignored"])
            .env(STARTER, "second-try")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        sleep(Duration::from_millis(delay));
        starter.kill()?;
        starter.wait()?;
        let node = Node::up("second-try", &Options::default())?.into_guard();
        node.run("ctr", &["version"])?;
    }
    Ok(())
}

/// Not a test: what the tests above start as another process, to kill it.
#[test]
#[ignore = "started by other tests"]
fn starter() -> Result<()> {
    if let Ok(name) = env::var(STARTER) {
        Node::up(&name, &Options::default())?;
    }
    Ok(())
}

fn comm(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "{what} did not come");
        sleep(Duration::from_millis(10));
    }
}
