//! A client's connection: each of its calls becomes one call on the runtime's connection.
//!
//! ```text
//!   client ──RecvStream──► request side ──SendStream──► runtime
//!          ◄─SendStream─── answer side  ◄─RecvStream───
//! ```
//!
//! Both sides of a call run in one task. Whichever side breaks, the other is reset when its handles are dropped.
//! The few methods of [`Read`] are read whole before they are handed on.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::client::Client;
use crate::exchange::{self, Answer};
use crate::grpc::Meter;
use crate::pipe::{self, Broken, Verdict};
use crate::shim::Shim;
use crate::upstream::{
    CONNECTION_WINDOW, MAX_FRAME, MAX_HEADERS, REMEMBERED_RESETS, STREAM_WINDOW, Upstream,
};
use crate::{create, lifecycle, visit};

/// Resets that a client may have pending before it is taken for an attacker; the default of 20 is soon reached by a
/// client that cancels many calls at once.
const PENDING_RESETS: usize = 1024;

/// Serves one client until it leaves, or until its calls have ended after `stop`.
pub(crate) async fn serve(stream: UnixStream, shim: Arc<Shim>, mut stop: watch::Receiver<bool>) {
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_local_error_reset_streams(None)
        .handshake::<_, Bytes>(stream);
    let mut connection = tokio::select! {
        connection = handshake => match connection {
            Ok(connection) => connection,
            Err(e) => return tracing::warn!(error = %e, "a client does not speak HTTP/2: its connection is closed"),
        },
        _ = stop.wait_for(|stop| *stop) => return,
    };
    let upstream = Arc::new(Upstream::new(&shim.config.runtime));
    let mut stopping = false;
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            _ = stop.wait_for(|stop| *stop), if !stopping => {
                stopping = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                tokio::spawn(call(shim.clone(), upstream.clone(), request, respond));
            }
            Some(Err(e)) => return tracing::debug!(error = %e, "a client's connection broke"),
            None => return,
        }
    }
}

async fn call(
    shim: Arc<Shim>,
    upstream: Arc<Upstream>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let begun = Instant::now();
    let mut client = Client::new(respond);
    let (mut parts, body) = request.into_parts();
    parts.uri = exchange::uri(parts.uri);
    let mut head = Request::from_parts(parts, ());
    let max = shim.config.max_message_bytes;
    let done = match Read::of(head.uri().path()) {
        None => pass(&upstream, head, body, &mut client, max).await,
        Some(method) => match exchange::read(body, max).await {
            Ok((body, _)) => {
                // An edited body has another length; HTTP/2 frames it anyway.
                head.headers_mut().remove(http::header::CONTENT_LENGTH);
                let call = Call { shim, upstream, head, body, begun };
                method.handle(call, &mut client).await
            }
            Err(Broken::TooLarge(status)) => Err(Verdict::Status(status)),
            Err(Broken::Source(_) | Broken::Sink) => return,
        },
    };
    if let Err(verdict) = done {
        client.fail(verdict);
    }
}

/// The methods that are read whole.
#[derive(Clone, Copy, Debug)]
enum Read {
    Create,
    Start,
    Exec,
    Attach,
    ExecSync,
    Stop,
    Remove,
    RemoveSandbox,
}

impl Read {
    fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/runtime.v1.RuntimeService/")? {
            "CreateContainer" => Some(Self::Create),
            "StartContainer" => Some(Self::Start),
            "Exec" => Some(Self::Exec),
            "Attach" => Some(Self::Attach),
            "ExecSync" => Some(Self::ExecSync),
            "StopContainer" => Some(Self::Stop),
            "RemoveContainer" => Some(Self::Remove),
            "RemovePodSandbox" => Some(Self::RemoveSandbox),
            _ => None,
        }
    }

    async fn handle(self, call: Call, client: &mut Client) -> Result<(), Verdict> {
        match self {
            Self::Create => create::handle(call, client).await,
            Self::Start => lifecycle::start(call, client).await,
            Self::Exec => visit::exec(call, client).await,
            Self::Attach => visit::attach(call, client).await,
            Self::ExecSync => visit::exec_sync(call, client).await,
            Self::Stop => lifecycle::stop(call, client).await,
            Self::Remove => lifecycle::remove(call, client).await,
            Self::RemoveSandbox => lifecycle::remove_sandbox(call, client).await,
        }
    }
}

/// A call that was read whole.
pub(crate) struct Call {
    pub(crate) shim: Arc<Shim>,
    upstream: Arc<Upstream>,
    pub(crate) head: Request<()>,
    pub(crate) body: Bytes,
    pub(crate) begun: Instant,
}

impl Call {
    /// The runtime's answer to this call with `body`; `None` if the client gave up, and then the runtime is told so.
    pub(crate) async fn ask(&self, body: Bytes, client: &mut Client) -> Result<Option<Answer>, Verdict> {
        let max = self.shim.config.max_message_bytes;
        tokio::select! {
            answer = exchange::call(&self.upstream, self.head.clone(), body, max) => answer.map(Some),
            () = client.gone() => Ok(None),
        }
    }

    /// Gives the client the runtime's answer, if it still wants one.
    pub(crate) async fn give(&self, answer: Option<Answer>, client: &mut Client) -> Result<(), Verdict> {
        if let Some(answer) = answer {
            // Fails only when the client is gone.
            _ = client.answer(answer).await;
        }
        Ok(())
    }

    /// Hands the call through as it came.
    pub(crate) async fn hand_through(&self, client: &mut Client) -> Result<(), Verdict> {
        let answer = self.ask(self.body.clone(), client).await?;
        self.give(answer, client).await
    }
}

/// Hands one call through, piece by piece.
async fn pass(
    upstream: &Upstream,
    head: Request<()>,
    body: RecvStream,
    client: &mut Client,
    max: usize,
) -> Result<(), Verdict> {
    let opened = tokio::select! {
        opened = exchange::open(upstream, head, body.is_end_stream()) => opened.map_err(Verdict::Status)?,
        () = client.gone() => return Ok(()),
    };
    let (response, mut to_runtime) = opened;
    let ended = body.is_end_stream();
    let request =
        async { if ended { Ok(()) } else { pipe::copy(body, &mut to_runtime, Some(Meter::new(max))).await } };
    let answer = answer(response, client);
    tokio::pin!(request, answer);

    let answered = tokio::select! {
        biased;
        answered = &mut answer => answered,
        sent = &mut request => match sent {
            // The runtime's answer is still to come, or says why it stopped reading.
            Ok(()) | Err(Broken::Sink) => answer.await,
            Err(Broken::Source(_)) => return Ok(()),
            Err(Broken::TooLarge(status)) => return Err(Verdict::Status(status)),
        },
    };
    match answered {
        Ok(()) | Err(Broken::Sink) => Ok(()),
        Err(Broken::Source(e)) => Err(Verdict::from(&e)),
        Err(Broken::TooLarge(status)) => Err(Verdict::Status(status)),
    }
}

async fn answer(response: ResponseFuture, client: &mut Client) -> Result<(), Broken> {
    let response = tokio::select! {
        response = response => response.map_err(Broken::Source)?,
        () = client.gone() => return Err(Broken::Sink),
    };
    let (parts, body) = response.into_parts();
    let end = body.is_end_stream();
    let to = client.head(Response::from_parts(parts, ()), end)?;
    if end { Ok(()) } else { pipe::copy(body, to, None).await }
}
