//! The client's side of one call: its response, begun at most once and ended exactly once.

use std::future::poll_fn;

use bytes::Bytes;
use h2::SendStream;
use h2::server::SendResponse;
use http::Response;

use crate::exchange::Answer;
use crate::pipe::{self, Broken, Verdict};

/// Where the response of one call goes.
pub(crate) struct Client {
    respond: SendResponse<Bytes>,
    body: Option<SendStream<Bytes>>,
}

impl Client {
    pub(crate) fn new(respond: SendResponse<Bytes>) -> Self {
        Self { respond, body: None }
    }

    /// Resolves when the client has given up this call or its connection is gone.
    pub(crate) async fn gone(&mut self) {
        // A reset and a broken connection mean the same here: nobody waits for the answer.
        _ = match &mut self.body {
            Some(body) => poll_fn(|cx| body.poll_reset(cx)).await,
            None => poll_fn(|cx| self.respond.poll_reset(cx)).await,
        };
    }

    /// Sends the head; `end` for a response that consists of it.
    pub(crate) fn head(&mut self, head: Response<()>, end: bool) -> Result<&mut SendStream<Bytes>, Broken> {
        let body = self.respond.send_response(head, end).map_err(|_| Broken::Sink)?;
        Ok(self.body.insert(body))
    }

    /// Sends a whole response.
    pub(crate) async fn answer(&mut self, answer: Answer) -> Result<(), Broken> {
        let Answer { head, body, trailers } = answer;
        let end = body.is_empty() && trailers.is_none();
        let to = self.head(head, end)?;
        if end {
            return Ok(());
        }
        pipe::send(to, body, trailers.is_none()).await?;
        if trailers.is_some() { pipe::finish(to, trailers) } else { Ok(()) }
    }

    /// Ends a response that the runtime did not, whether it has begun or not.
    pub(crate) fn fail(&mut self, verdict: Verdict) {
        match (verdict, &mut self.body) {
            (Verdict::Reset(reason), Some(body)) => body.send_reset(reason),
            (Verdict::Reset(reason), None) => self.respond.send_reset(reason),
            // Errors here mean that the client is gone, too.
            (Verdict::Status(status), Some(body)) => _ = body.send_trailers(status.trailers()),
            (Verdict::Status(status), None) => _ = self.respond.send_response(status.response(), true),
        }
    }
}
