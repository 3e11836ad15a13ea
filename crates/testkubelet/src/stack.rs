//! Woodfrog on a node: the agent and the shim, as services.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use woodfrog_testnode::Node;

/// Woodfrog's services on a node. They end with the node.
#[derive(Debug)]
pub struct Stack<'a> {
    node: &'a Node,
    binaries: String,
    agent_arguments: Vec<String>,
}

/// Name of the agent's service.
pub const AGENT: &str = "node-agent";
const AGENT_SOCKET: &str = "/run/woodfrog/agent.sock";
/// Name of the shim's service.
pub const SHIM: &str = "cri-shim";

impl<'a> Stack<'a> {
    /// Starts shim and agent from `/opt/woodfrog/PROFILE` of the node.
    ///
    /// # Errors
    /// A binary is missing, or does not come up; its log is in the error.
    pub fn start(node: &'a Node, profile: &str) -> Result<Self> {
        Self::start_with(node, profile, &[])
    }

    /// The same, with more arguments for the agent, each time that it is started.
    ///
    /// # Errors
    /// As [`Stack::start`].
    pub fn start_with(node: &'a Node, profile: &str, agent_arguments: &[&str]) -> Result<Self> {
        let stack = Self {
            node,
            binaries: format!("/opt/woodfrog/{profile}"),
            agent_arguments: agent_arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        };
        node.run("mkdir", &["-p", "/run/woodfrog"])?;
        stack.start_agent()?;
        stack.start_shim()?;
        Ok(stack)
    }

    /// Starts the agent and waits until its socket answers.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_agent(&self) -> Result<()> {
        self.start_agent_that_crashes("never")
    }

    /// Starts an agent (of a debug build) that kills itself at the end of a phase, such as `thaw:restore`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_agent_that_crashes(&self, at: &str) -> Result<()> {
        self.start_agent_of(&self.binaries, &static_binary("woodfrog-pager"), at)
    }

    /// Starts the agent of another release: `release` is a directory of the node with `node-agent` and `woodfrog-pager`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_agent_from(&self, release: &str) -> Result<()> {
        self.start_agent_of(release, &format!("{release}/woodfrog-pager"), "never")
    }

    fn start_agent_of(&self, binaries: &str, pager: &str, crash_at: &str) -> Result<()> {
        let program = format!("{binaries}/node-agent");
        let _ = std::fs::remove_file(self.node.path(AGENT_SOCKET));
        let crash = format!("WOODFROG_CRASH_AT={crash_at}");
        let mut command = vec!["env", &crash, &program, "run", "--pager", pager];
        command.extend(self.agent_arguments.iter().map(String::as_str));
        self.node.start(AGENT, &command)?;
        self.listening(AGENT, AGENT_SOCKET)
    }

    /// Starts the shim and waits until its socket answers.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_shim(&self) -> Result<()> {
        let program = format!("{}/node-agent", self.binaries);
        self.node.start(SHIM, &[&program, "cri-shim", "--init", &static_binary("woodfrog-init")])?;
        self.listening(SHIM, "/run/woodfrog/cri.sock")
    }

    /// Puts copies of agent and pager, which are other files with other contents, into a directory of the node, as another release.
    ///
    /// # Errors
    /// There is no room.
    pub fn place_release(&self, directory: &str) -> Result<()> {
        let (binaries, pager) = (&self.binaries, static_binary("woodfrog-pager"));
        let place = format!(
            "mkdir -p {directory} && cp {binaries}/node-agent {pager} {directory} && \
             for program in {directory}/*; do echo another release >> $program; done"
        );
        self.node.run("sh", &["-ec", &place])?;
        Ok(())
    }

    /// Kills the agent as a crash would, and waits for its end.
    ///
    /// # Errors
    /// It lives on.
    pub fn kill_agent(&self) -> Result<()> {
        self.node.stop(AGENT, rustix::process::Signal::KILL)?;
        Ok(())
    }

    /// The shim's socket as seen from the host.
    pub fn cri_socket(&self) -> PathBuf {
        self.node.path("/run/woodfrog/cri.sock")
    }

    /// Runs the command `woodfrog` on the node and returns what it printed.
    ///
    /// # Errors
    /// It fails; all its output is in the error.
    pub fn woodfrog(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.node.run(&format!("{}/woodfrog", self.binaries), arguments)?)
    }

    fn listening(&self, service: &str, socket: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(self.node.path(socket)).is_err() {
            if Instant::now() > deadline || self.node.service_pid(service).is_none() {
                let log = self.node.logs(service).context("its log")?;
                bail!("{service} does not listen on {socket}:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Path of a static binary on a node.
fn static_binary(name: &str) -> String {
    format!("/opt/woodfrog/static/{}-unknown-linux-gnu/init/{name}", std::env::consts::ARCH)
}
