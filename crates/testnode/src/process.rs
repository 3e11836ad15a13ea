//! Processes in namespaces: how programs get into a node, and how they are found from outside.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use crate::{Error, cgroup::Cgroup};

const JOIN: &str = include_str!("../scripts/join.sh");

/// The environment of everything in a node.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program on the host that joins control groups first; it and its arguments follow as arguments.
pub(crate) fn join(procs: &[PathBuf]) -> Command {
    let mut command = Command::new("/bin/bash");
    command.args(["-c", JOIN, "join.sh"]).args(procs).arg("--");
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LC_ALL", "C.UTF-8");
    for name in ["TERM", "RUST_LOG", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// A program in all namespaces of PID 1 `init`, below its root. It dies with the process that is returned.
pub(crate) fn enter(procs: &[PathBuf], init: i32) -> Command {
    let mut command = join(procs);
    command.args(["nsenter", "--target", &init.to_string()]);
    command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--"]);
    // nsenter waits outside for what it started inside; without this, killing the one would leave the other.
    command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
    command
}

/// Runs a command to its end; an error holds what it wrote.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<Output, Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| Error::Program {
        program: command.get_program().to_string_lossy().into_owned(),
        package: "bash",
        source,
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(Error::Failed { what: what.to_owned(), status: output.status.to_string(), output: text })
}

/// The PID 1 of the PID namespace that was made in these control groups, as the host's PID.
pub(crate) fn init(cgroup: &Cgroup) -> Option<i32> {
    cgroup.pids().into_iter().find(|pid| {
        let pids = nspids(*pid);
        pids.len() == 2 && pids[1] == 1
    })
}

/// A process's PIDs in its PID namespaces, outermost first (`NSpid` of proc_pid_status(5)); none if it is gone or a zombie.
pub(crate) fn nspids(pid: i32) -> Vec<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    if status.lines().any(|line| line.starts_with("State:") && line.contains('Z')) {
        return Vec::new();
    }
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The program that a child made by [`Node::command`](crate::Node::command) runs in its node: its PID on the host and in the node.
/// The child itself is the `nsenter` that waits for it. Nothing if it has not started yet or is over.
#[must_use]
pub fn pid_in_node(child: &Child) -> Option<(i32, i32)> {
    let id = child.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    let pid = children.split_whitespace().next()?.parse().ok()?;
    nspids(pid).get(1).map(|inner| (pid, *inner))
}
