//! One direction of a stream: data and trailers, with flow control and resets handed through.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use crate::grpc::{Meter, Status};

/// Why a direction ended early.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The side that is read from ended the stream or its connection.
    Source(h2::Error),
    /// The side that is written to ended the stream or its connection.
    Sink,
    /// A message was too large.
    TooLarge(Status),
}

/// Copies everything from `from` to `to`, up to and including the trailers or the end of the stream. What is not yet
/// taken by `to` is not yet acknowledged to `from`.
pub(crate) async fn copy(
    mut from: RecvStream,
    to: &mut SendStream<Bytes>,
    mut meter: Option<Meter>,
) -> Result<(), Broken> {
    while let Some(data) = next(&mut from, to).await? {
        if let Some(meter) = &mut meter {
            meter.see(&data).map_err(Broken::TooLarge)?;
        }
        let len = data.len();
        let end = from.is_end_stream();
        send(to, data, end).await?;
        if end {
            return Ok(());
        }
        // Fails only on a stream that is over, which the next read tells.
        _ = from.flow_control().release_capacity(len);
    }
    finish(to, from.trailers().await.map_err(Broken::Source)?)
}

/// The next piece of `from`, unless `to` is reset first.
async fn next(from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Broken> {
    poll_fn(|cx| {
        if let Poll::Ready(data) = from.poll_data(cx) {
            return Poll::Ready(data.transpose().map_err(Broken::Source));
        }
        if to.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Broken::Sink));
        }
        Poll::Pending
    })
    .await
}

/// Sends `data` as the peer's windows allow.
pub(crate) async fn send(to: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> Result<(), Broken> {
    if data.is_empty() {
        return if end { to.send_data(data, true).map_err(|_| Broken::Sink) } else { Ok(()) };
    }
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        let n = to.capacity().min(data.len());
        if n == 0 {
            match poll_fn(|cx| to.poll_capacity(cx)).await {
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return Err(Broken::Sink),
            }
        }
        let piece = data.split_to(n);
        to.send_data(piece, end && data.is_empty()).map_err(|_| Broken::Sink)?;
    }
    Ok(())
}

/// Ends a stream, with trailers if there are any.
pub(crate) fn finish(to: &mut SendStream<Bytes>, trailers: Option<HeaderMap>) -> Result<(), Broken> {
    match trailers {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
    .map_err(|_| Broken::Sink)
}

/// What to tell the client of an exchange that the runtime broke off.
pub(crate) enum Verdict {
    /// The runtime reset the stream: so does the shim, with the same code.
    Reset(Reason),
    /// The connection is gone: what a client of the runtime would have seen.
    Status(Status),
}

impl From<&h2::Error> for Verdict {
    fn from(e: &h2::Error) -> Self {
        match e.reason() {
            Some(reason) if e.is_reset() => Verdict::Reset(reason),
            // A graceful end of the connection: the runtime did not begin this call, so the client may try it again.
            Some(Reason::NO_ERROR) if e.is_go_away() => Verdict::Reset(Reason::REFUSED_STREAM),
            _ => Verdict::Status(Status::unavailable(format!(
                "cri-shim: the connection to the container runtime broke during the call: {e}"
            ))),
        }
    }
}
