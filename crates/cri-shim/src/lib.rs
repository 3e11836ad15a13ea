//! The CRI shim between kubelet and the container runtime.
//!
//! ```text
//!   kubelet ──/run/woodfrog/cri.sock──► cri-shim ──containerd.sock──► containerd
//!                                          │
//!                                          └──agent.sock──► node-agent (may be absent)
//! ```
//!
//! Every call is handed through as it is, HTTP/2 stream by HTTP/2 stream. Five methods are read on the way:
//! `CreateContainer` of a managed container is edited so that `woodfrog-init` runs as its PID 1, `StartContainer` waits for
//! the thaw, and of `StopContainer`, `RemoveContainer` and `RemovePodSandbox` the agent is told or its directories
//! removed. Without an agent, or with one that is slow or broken, containers start cold.

#![forbid(unsafe_code)]

mod agent;
mod client;
mod control;
mod create;
mod deadlines;
mod edit;
mod exchange;
mod grpc;
mod images;
mod lifecycle;
mod listen;
mod pipe;
mod plan;
mod proxy;
mod runtime;
mod seccomp;
mod shim;
mod upstream;
mod visit;
mod wire;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use woodfrog_protocol::paths;

use crate::listen::Listener;
use crate::shim::Shim;

/// Largest message that CRI clients and runtimes agree on, in bytes (kubelet's and containerd's limit).
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The socket that kubelet uses.
    pub listen: PathBuf,
    /// The runtime's socket.
    pub runtime: PathBuf,
    /// The agent's socket.
    pub agent: PathBuf,
    /// Parent of the control directories.
    pub containers: PathBuf,
    /// The init binary, which is mounted into managed containers; where it is missing none is managed.
    pub init: PathBuf,
    /// CRIU's cache of kernel features, mounted into managed containers if it is there.
    pub kdat: PathBuf,
    /// Where the shim writes the seccomp profile for managed containers that ask for none.
    pub seccomp_profile: PathBuf,
    /// Largest message, in bytes.
    pub max_message_bytes: usize,
}

impl Config {
    /// The usual places, but for these two sockets.
    pub fn new(listen: impl Into<PathBuf>, runtime: impl Into<PathBuf>) -> Self {
        Self {
            listen: listen.into(),
            runtime: runtime.into(),
            agent: paths::AGENT_SOCKET.into(),
            containers: paths::CONTAINERS_DIR.into(),
            init: concat!("/opt/woodfrog/", env!("CARGO_PKG_VERSION"), "/woodfrog-init").into(),
            kdat: paths::KDAT.into(),
            seccomp_profile: format!("{}/seccomp/no-io-uring.json", paths::STATE_DIR).into(),
            max_message_bytes: MAX_MESSAGE_BYTES,
        }
    }
}

/// Why the shim cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be made.
    #[error("listen on {path}: {source}: is its directory writable for root?")]
    Listen {
        /// [`Config::listen`].
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Serves until `shutdown` resolves; calls that are under way then have ten seconds to end.
///
/// # Errors
/// [`Error::Listen`]; nothing that clients, the runtime or the agent do ends the shim.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let listen = |source| Error::Listen { path: config.listen.clone(), source };
    let listener = Listener::bind(&config.listen).map_err(listen)?;
    tracing::info!(listen = %config.listen.display(), runtime = %config.runtime.display(), "shim serves");
    if !config.init.is_file() {
        tracing::warn!(init = %config.init.display(), "no init binary: no container will be managed until it is there");
    }
    if let Err(e) = seccomp::write(&config.seccomp_profile) {
        let path = config.seccomp_profile.display();
        tracing::warn!(%path, error = %e, "managed containers without seccomp profile may use io_uring");
    }
    let shim = Arc::new(Shim::new(config));
    let mut sweeper = JoinSet::new();
    sweeper.spawn({
        let shim = shim.clone();
        async move { shim.sweep_forever().await }
    });
    let (stop, stopped) = watch::channel(false);
    let mut clients = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.socket.accept() => accepted,
            Some(_) = clients.join_next() => continue,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, _)) => _ = clients.spawn(proxy::serve(stream, shim.clone(), stopped.clone())),
            Err(e) => {
                tracing::warn!(error = %e, "accept a client");
                tokio::time::sleep(deadlines::ACCEPT_AGAIN).await;
            }
        }
    }
    drop(sweeper);
    drop(listener);
    _ = stop.send(true);
    _ = tokio::time::timeout(deadlines::DRAIN, async { while clients.join_next().await.is_some() {} }).await;
    Ok(())
}
