//! The network between nodes: a bridge in a namespace of its own, so that the host's network stays as it is.
//!
//! The hub has the address 10.210.0.254 on the bridge and routes each node's pods (10.210.N.0/24) to the node (10.210.0.N).
//! It lives from the first node to the last, as a process that sleeps.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Error, cgroup::Cgroup, error::At as _, layer::Layer, process, state::State};

/// No node can have this name.
const NAME: &str = ".hub";
const ADDRESS: &str = "10.210.0.254";

/// A node's address.
pub(crate) fn node_address(number: u8) -> String {
    format!("10.210.0.{number}")
}

/// The addresses of a node's pods.
pub(crate) fn pod_subnet(number: u8) -> String {
    format!("10.210.{number}.0/24")
}

/// Makes sure that there is a hub, and joins a node to it.
pub(crate) fn connect(node: &Layer, state: &State, init: i32) -> Result<(), Error> {
    let hub = start(node)?;
    let number = state.number;
    let (address, pods) = (node_address(number), pod_subnet(number));
    let link = format!("node{number}");
    let script = format!(
        "set -e\n\
         ip link show {link} >/dev/null 2>&1 && ip link delete {link}\n\
         ip link add {link} type veth peer name eth0 netns {init}\n\
         ip link set {link} master br0 up\n\
         ip route replace {pods} via {address}\n"
    );
    in_network(hub, "connect the node to the hub", &script)?;
    let script = format!(
        "set -e\n\
         ip link set lo up\n\
         ip address add {address}/24 dev eth0\n\
         ip link set eth0 up\n\
         ip route add default via {ADDRESS}\n"
    );
    in_network(init, "give the node its address", &script)
}

/// Ends the hub, with whatever hangs on it.
pub(crate) fn stop() -> Result<(), Error> {
    Cgroup::of(NAME)?.destroy()
}

fn start(node: &Layer) -> Result<i32, Error> {
    let cgroup = Cgroup::of(NAME)?;
    if let Some(init) = process::init(&cgroup)
        && in_network(init, "look at the hub", &format!("ip address show br0 | grep -q {ADDRESS}/")).is_ok()
    {
        return Ok(init);
    }
    cgroup.destroy()?;
    cgroup.create()?;
    let mut command = process::join(&cgroup.leaves());
    command
        .args(["unshare", "--net", "--pid", "--fork"])
        .arg(node.dir.join("fs/usr/bin/catatonit"))
        .arg("-P");
    let init = detached(&command, &cgroup, "start the hub")?;
    let script = format!(
        "set -e\n\
         ip link set lo up\n\
         ip link add br0 type bridge\n\
         ip link set br0 up\n\
         echo 1 >/proc/sys/net/ipv4/ip_forward\n\
         ip address add {ADDRESS}/24 dev br0\n"
    );
    in_network(init, "set up the hub", &script)?;
    Ok(init)
}

/// Starts a command that makes a PID namespace, as nobody's child, and returns that namespace's PID 1 once it is `catatonit`.
pub(crate) fn detached(command: &Command, cgroup: &Cgroup, what: &str) -> Result<i32, Error> {
    // Its parent must be neither us, who would have to reap it, nor the terminal's group, which Ctrl-C kills.
    let mut outer = Command::new("/bin/bash");
    outer.args(["-c", "setsid \"$@\" &", "detach"]).arg(command.get_program()).args(command.get_args());
    outer
        .env_clear()
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir("/");
    let log = env::temp_dir().join(format!("woodfrog-testnode-{}.log", std::process::id()));
    let file = fs::File::create(&log).at("create", &log)?;
    let both = file.try_clone().at("duplicate", &log)?;
    let result = outer
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(both)
        .status()
        .map_err(|source| Error::Program { program: "bash".into(), package: "bash", source })
        .and_then(|_| wait_for_init(cgroup, what, &log));
    let _ = fs::remove_file(&log);
    result
}

fn wait_for_init(cgroup: &Cgroup, what: &str, log: &Path) -> Result<i32, Error> {
    let start = Instant::now();
    loop {
        if let Some(init) = process::init(cgroup)
            && fs::read_to_string(format!("/proc/{init}/comm")).is_ok_and(|name| name.trim() == "catatonit")
        {
            return Ok(init);
        }
        // Joining its control groups is the first thing that it does, so later an empty one means that it is over.
        let over = start.elapsed() > Duration::from_secs(3) && cgroup.pids().is_empty();
        if over || start.elapsed() > Duration::from_secs(30) {
            let detail = fs::read_to_string(log).unwrap_or_default();
            return Err(Error::Timeout { what: what.to_owned(), seconds: start.elapsed().as_secs(), detail });
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a shell script of the host in the network namespace of `pid`.
fn in_network(pid: i32, what: &str, script: &str) -> Result<(), Error> {
    process::run(
        what,
        Command::new("nsenter").args(["--target", &pid.to_string(), "--net", "sh", "-c", script]),
    )
    .map(drop)
}
