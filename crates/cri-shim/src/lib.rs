//! The CRI shim between kubelet and the container runtime.
//!
//! ```text
//!   kubelet ──/run/woodfrog/cri.sock──► cri-shim ──containerd.sock──► containerd
//!                                          │
//!                                          └──agent.sock──► node-agent (may be absent)
//! ```
//!
//! Every call is handed through as it is, HTTP/2 stream by HTTP/2 stream.

#![forbid(unsafe_code)]

mod client;
mod deadlines;
mod exchange;
mod grpc;
mod listen;
mod pipe;
mod proxy;
mod shim;
mod upstream;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

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
    /// Largest request message, in bytes.
    pub max_message_bytes: usize,
}

impl Config {
    /// The usual places, but for these two sockets.
    pub fn new(listen: impl Into<PathBuf>, runtime: impl Into<PathBuf>) -> Self {
        Self { listen: listen.into(), runtime: runtime.into(), max_message_bytes: MAX_MESSAGE_BYTES }
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
    let shim = Arc::new(Shim { config });
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
    drop(listener);
    _ = stop.send(true);
    _ = tokio::time::timeout(deadlines::DRAIN, async { while clients.join_next().await.is_some() {} }).await;
    Ok(())
}
