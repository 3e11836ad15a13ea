//! The runtime's side: a connection that is opened when needed and again when it broke.
//!
//! Each client connection has one of its own, so that a client that does not read its stream holds up nobody else,
//! just as if it had connected to the runtime directly.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::deadlines;
use crate::grpc::Status;

/// Flow control window of one stream, in bytes: what is buffered at most for a reader that does not read.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// Flow control window of a whole connection, in bytes.
pub(crate) const CONNECTION_WINDOW: u32 = 4 << 20;
/// Largest HTTP/2 frame that is accepted, in bytes.
pub(crate) const MAX_FRAME: u32 = 64 << 10;
/// Largest header list that is accepted, in bytes; grpc-go's default.
pub(crate) const MAX_HEADERS: u32 = 16 << 20;
/// Streams that were reset and whose late frames are still expected. Frames on others count as errors, and h2 ends a
/// connection after 1024 of them unless told not to: connections here live for months, between processes of root.
pub(crate) const REMEMBERED_RESETS: usize = 1024;

/// Why the runtime cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("connect to the container runtime at {path}: {source}: is it running?")]
    Socket { path: PathBuf, source: io::Error },
    #[error("HTTP/2 with the container runtime at {path}: {source}")]
    Http { path: PathBuf, source: h2::Error },
}

impl From<ConnectError> for Status {
    fn from(e: ConnectError) -> Self {
        Status::unavailable(format!("cri-shim: {e}"))
    }
}

/// A connection to the runtime.
#[derive(Debug)]
pub(crate) struct Upstream {
    path: PathBuf,
    sender: Mutex<Option<SendRequest<Bytes>>>,
}

impl Upstream {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), sender: Mutex::new(None) }
    }

    /// A handle that can take one request: of the open connection, else of a new one. A connect that fails is tried
    /// once more.
    pub(crate) async fn ready(&self) -> Result<SendRequest<Bytes>, ConnectError> {
        let mut slot = self.sender.lock().await;
        if let Some(sender) = slot.clone() {
            // Fails at once when the connection has ended; waits when the runtime takes no more streams.
            if let Ok(sender) = sender.ready().await {
                return Ok(sender);
            }
            *slot = None;
        }
        let sender = match self.connect().await {
            Ok(sender) => sender,
            Err(_) => {
                tokio::time::sleep(deadlines::RECONNECT).await;
                self.connect().await?
            }
        };
        *slot = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, ConnectError> {
        let socket = |source| ConnectError::Socket { path: self.path.clone(), source };
        let http = |source| ConnectError::Http { path: self.path.clone(), source };
        let stream = UnixStream::connect(&self.path).await.map_err(socket)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADERS)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .max_local_error_reset_streams(None)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(http)?;
        let path = self.path.clone();
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!(runtime = %path.display(), error = %e, "connection to the runtime ended");
            }
        });
        sender.ready().await.map_err(http)
    }
}
