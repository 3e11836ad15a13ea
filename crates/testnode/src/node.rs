//! A node, as tests and `cargo xtask node` use it.

use std::{
    env, fs, io,
    net::{SocketAddr, TcpStream},
    ops::Deref,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    thread::LinkNameSpaceType,
};
use serde::Serialize;

use crate::{App, Error, cgroup::Cgroup, down, error::At as _, hub, process, state, state::State, up};

/// containerd and the registry, in the order in which they start.
pub(crate) const SERVICES: [(&str, &[&str]); 2] = [
    ("registry", &["/usr/bin/docker-registry", "serve", "/etc/docker/registry/config.yml"]),
    ("containerd", &["/usr/bin/containerd", "--config", "/etc/containerd/config.toml"]),
];

const SERVICE: &str = include_str!("../scripts/service.sh");

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Applications whose images must be in the registry; those that the cache lacks are built, which takes minutes.
    pub images: Vec<App>,
    /// The directory on the host that the node sees, read-only, at `/opt/woodfrog`: cargo's target directory.
    pub binaries: PathBuf,
    /// Whether containerd keeps images and containers on disk rather than in memory. Memory is quicker to fill and, on disks that
    /// discard what is deleted, far quicker to empty; but a container's files then count as its memory, so measure on disk.
    pub disk: bool,
}

impl Default for Options {
    /// No image, the target directory of this workspace, all in memory.
    fn default() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let binaries = env::var_os("CARGO_TARGET_DIR").map_or(workspace, PathBuf::from);
        Self { images: Vec::new(), binaries, disk: false }
    }
}

/// A node that is up. Dropping it leaves the node as it is; see [`Guard`].
#[derive(Debug, Clone)]
pub struct Node {
    state: State,
    init: i32,
}

/// A node that is taken down when this is dropped.
#[derive(Debug)]
pub struct Guard(Node);

/// What is known of a node.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The host's PID of its PID 1; none if it is dead.
    pub pid: Option<i32>,
    /// Its address on the network between nodes.
    pub address: String,
    /// The addresses of its pods.
    pub pods: String,
    /// The services that were started in it, and whether each runs.
    pub services: Vec<(String, bool)>,
    /// How many processes it has, the ones that wait for them on the host included.
    pub processes: usize,
}

impl Node {
    /// Starts a node, or returns the one of this name that runs and is well. A dead one, or one that never was whole, is
    /// cleaned away first. Returns when containerd serves CRI and the registry answers.
    pub fn up(name: &str, options: &Options) -> Result<Self, Error> {
        up::up(name, options)
    }

    /// The node of this name, which must be up.
    pub fn attach(name: &str) -> Result<Self, Error> {
        state::check_name(name)?;
        let not_up = || Error::NotUp(name.to_owned());
        let state = state::get(name)?.ok_or_else(not_up)?;
        let init = process::init(&Cgroup::of(name)?).ok_or_else(not_up)?;
        Ok(Self { state, init })
    }

    pub(crate) const fn new(state: State, init: i32) -> Self {
        Self { state, init }
    }

    /// Removes a node and all traces of it, in whatever state it is, or does nothing if there is none.
    pub fn down(name: &str) -> Result<(), Error> {
        down::down(name)
    }

    /// Takes the node down when the guard is dropped.
    #[must_use]
    pub const fn into_guard(self) -> Guard {
        Guard(self)
    }

    /// Its name, which is also its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// The host's PID of its PID 1, for those who enter namespaces themselves.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.init
    }

    /// Its address on the network between nodes; every node and every pod can reach it.
    #[must_use]
    pub fn address(&self) -> String {
        hub::node_address(self.state.number)
    }

    /// Its root directory as seen from the host, with all mounts that are in it.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init))
    }

    /// The host's path of a socket or file in the node, given its absolute path there. Short enough for a socket's address
    /// as long as `path` is below 90 bytes. An absolute symbolic link on the way would lead to the host's files.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// containerd's socket, to connect to from the host.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.path("/run/containerd/containerd.sock")
    }

    /// A program to run in the node: in all its namespaces and control groups, at `/`, with a clean environment and no
    /// descriptor above 2. Arguments, variables and stdio can be added as to any command, but not a working directory.
    /// It dies if the child that is spawned is killed; [`pid_in_node`](crate::pid_in_node) tells its PID.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let leaves = Cgroup::of(self.name()).map(|cgroup| cgroup.leaves()).unwrap_or_default();
        let mut command = process::enter(&leaves, self.init);
        command.arg(program);
        command
    }

    /// Runs a command in the node to its end and returns what it wrote to stdout. Anything but success is an error that holds all its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String, Error> {
        let what = format!("{program} {} in node {}", arguments.join(" "), self.name());
        let output = process::run(&what, self.command(program).args(arguments))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `work` on a thread in the node's network namespace; sockets made there stay in it.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let namespace = format!("/proc/{}/ns/net", self.init);
        let fd = rustix::fs::open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                rustix::thread::move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&fd),
                    Some(LinkNameSpaceType::Network),
                )?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects to a pod or service as a client on the node would.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.in_network(|| TcpStream::connect(address))?
    }

    /// Starts a program that outlives this process, as a child of the node's PID 1, its output in the log `name`.
    /// Returns its PID in the node.
    pub fn start(&self, name: &str, program: &[&str]) -> Result<i32, Error> {
        let mut command = self.command("sh");
        command.args(["-euc", SERVICE, "service.sh", name]).args(program);
        process::run(&format!("start {name} in node {}", self.name()), &mut command)?;
        self.service_pid(name).map(|(_, inner)| inner).ok_or_else(|| Error::Failed {
            what: format!("{name} in node {}", self.name()),
            status: "over at once".into(),
            output: self.logs(name).unwrap_or_default(),
        })
    }

    /// Sends a signal to what [`Node::start`] started under this name; no error if it is over already.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<(), Error> {
        if let Some(pid) = self.service_pid(name).and_then(|(outer, _)| Pid::from_raw(outer)) {
            match kill_process(pid, signal) {
                Err(rustix::io::Errno::SRCH) => {}
                result => result.at("signal", format!("{name} of node {}", self.name()))?,
            }
        }
        Ok(())
    }

    /// Sends a signal to a service and waits until it is over, 20 s at most.
    pub fn stop(&self, name: &str, signal: Signal) -> Result<(), Error> {
        self.signal(name, signal)?;
        wait(
            &format!("the end of {name}"),
            || self.service_pid(name).is_none(),
            || self.logs(name).unwrap_or_default(),
        )
    }

    /// Starts `containerd` or `registry` again after [`Node::stop`], and waits until it serves.
    pub fn start_again(&self, service: &str) -> Result<(), Error> {
        let Some((name, program)) = SERVICES.iter().find(|(name, _)| *name == service) else {
            return Err(Error::Need(format!("a service called containerd or registry, not {service}")));
        };
        let log = self.log_path(name);
        let before = fs::metadata(&log).map_or(0, |log| log.len());
        self.start(name, program)?;
        let logs = || self.logs(name).unwrap_or_default();
        if *name == "containerd" {
            // containerd answers on its socket before CRI is there; this is the last that CRI says while it starts.
            let ready =
                || logs().get(before as usize..).is_some_and(|log| log.contains("Start streaming server"));
            wait(
                "containerd's start",
                || ready() && UnixStream::connect(self.containerd_socket()).is_ok(),
                logs,
            )
        } else {
            let address = SocketAddr::from(([127, 0, 0, 1], 5000));
            wait("the registry's start", || self.connect(address).is_ok(), logs)
        }
    }

    /// The PID, on the host and in the node, of a service that runs.
    #[must_use]
    pub fn service_pid(&self, name: &str) -> Option<(i32, i32)> {
        let text = fs::read_to_string(self.path(&format!("/run/woodfrog-services/{name}.pid"))).ok()?;
        let inner: i32 = text.trim().parse().ok()?;
        let pids = Cgroup::of(self.name()).ok()?.pids();
        pids.into_iter().find(|pid| process::nspids(*pid).get(1) == Some(&inner)).map(|outer| (outer, inner))
    }

    /// What a service has written so far; `containerd`, `registry`, and what was started by [`Node::start`].
    pub fn logs(&self, service: &str) -> Result<String, Error> {
        let path = self.log_path(service);
        Ok(String::from_utf8_lossy(&fs::read(&path).at("read", path)?).into_owned())
    }

    fn log_path(&self, service: &str) -> PathBuf {
        state::disk(self.name()).join("log").join(format!("{service}.log"))
    }

    /// Builds and stores the images of these applications, for pods of all nodes.
    pub fn publish(&self, images: &[App]) -> Result<(), Error> {
        images.iter().try_for_each(|app| app.publish(&state::registry()))
    }

    /// What is known of a node that was started, dead or alive.
    pub fn status(name: &str) -> Result<Status, Error> {
        let state = state::get(name)?.ok_or_else(|| Error::NotUp(name.to_owned()))?;
        let cgroup = Cgroup::of(name)?;
        let init = process::init(&cgroup);
        let mut services = Vec::new();
        if let Some(init) = init {
            let node = Self::new(state.clone(), init);
            for entry in fs::read_dir(node.path("/run/woodfrog-services")).into_iter().flatten().flatten() {
                let name = entry.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let runs = node.service_pid(&name).is_some();
                services.push((name, runs));
            }
            services.sort();
        }
        Ok(Status {
            pid: init,
            address: hub::node_address(state.number),
            pods: hub::pod_subnet(state.number),
            services,
            processes: cgroup.pids().len(),
            name: state.name,
        })
    }

    /// Whether containerd and the registry run.
    pub(crate) fn is_well(&self) -> bool {
        SERVICES.iter().all(|(name, _)| self.service_pid(name).is_some())
            && UnixStream::connect(self.containerd_socket()).is_ok()
    }
}

impl Deref for Guard {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Err(error) = down::down(self.0.name()) {
            eprintln!("node {} is still there: {error}", self.0.name());
        }
    }
}

fn wait(what: &str, done: impl Fn() -> bool, detail: impl Fn() -> String) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        if Instant::now() > deadline {
            return Err(Error::Timeout { what: what.to_owned(), seconds: 20, detail: detail() });
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
