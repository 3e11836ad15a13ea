//! Calls to the runtime: opened for a client's stream, or made whole for a call that the shim reads.

use bytes::{Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Method, Request, Response, Uri, Version, header};

use crate::grpc::Status;
use crate::pipe::{self, Broken, Verdict};
use crate::upstream::Upstream;

/// A whole response, as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Response<()>,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    /// The call's gRPC status, if it has one; 0 is success.
    pub(crate) fn status(&self) -> Option<u16> {
        crate::grpc::status_of(self.head.headers(), self.trailers.as_ref())
    }

    /// The response message of a call that succeeded.
    pub(crate) fn message<M: prost::Message + Default>(&self) -> Option<M> {
        M::decode(crate::grpc::single_message(&self.body)?).ok()
    }
}

/// Begins a call. A connection that ends in just this moment is replaced once: nothing of the call was sent yet.
pub(crate) async fn open(
    upstream: &Upstream,
    head: Request<()>,
    end: bool,
) -> Result<(ResponseFuture, SendStream<Bytes>), Status> {
    let mut sender = upstream.ready().await?;
    if let Ok(opened) = sender.send_request(head.clone(), end) {
        return Ok(opened);
    }
    let mut sender = upstream.ready().await?;
    sender
        .send_request(head, end)
        .map_err(|e| Status::unavailable(format!("cri-shim: send the request: {e}")))
}

/// Makes a whole call.
pub(crate) async fn call(
    upstream: &Upstream,
    head: Request<()>,
    body: Bytes,
    max: usize,
) -> Result<Answer, Verdict> {
    let (response, mut to) = open(upstream, head, false).await.map_err(Verdict::Status)?;
    // A runtime that answers without reading on says why in its answer.
    _ = pipe::send(&mut to, body, true).await;
    let (parts, from) = response.await.map_err(|e| Verdict::from(&e))?.into_parts();
    let (body, trailers) = read(from, max).await.map_err(|broken| match broken {
        Broken::Source(e) => Verdict::from(&e),
        Broken::TooLarge(status) => Verdict::Status(status),
        Broken::Sink => unreachable!("nothing is written"),
    })?;
    Ok(Answer { head: Response::from_parts(parts, ()), body, trailers })
}

/// A whole body of at most one message of `max` bytes, with its trailers.
pub(crate) async fn read(mut from: RecvStream, max: usize) -> Result<(Bytes, Option<HeaderMap>), Broken> {
    let mut whole = BytesMut::new();
    while let Some(data) = from.data().await {
        let data = data.map_err(Broken::Source)?;
        _ = from.flow_control().release_capacity(data.len());
        whole.extend_from_slice(&data);
        let length = whole
            .first_chunk::<{ crate::grpc::PREFIX }>()
            .map_or(0, |&[_, length @ ..]| u32::from_be_bytes(length) as usize);
        let len = length.max(whole.len().saturating_sub(crate::grpc::PREFIX));
        if len > max {
            return Err(Broken::TooLarge(Status::too_large(len, max)));
        }
    }
    Ok((whole.freeze(), from.trailers().await.map_err(Broken::Source)?))
}

/// The head of a question of the shim's own.
pub(crate) fn question(path: &'static str) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = Method::POST;
    *head.version_mut() = Version::HTTP_2;
    *head.uri_mut() = uri(Uri::from_static(path));
    let headers = head.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, header::HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, header::HeaderValue::from_static("woodfrog-cri-shim"));
    head
}

/// `uri` with the scheme and authority that HTTP/2 requests have.
pub(crate) fn uri(uri: Uri) -> Uri {
    if uri.authority().is_some() && uri.scheme().is_some() {
        return uri;
    }
    let mut parts = uri.into_parts();
    parts.scheme.get_or_insert(http::uri::Scheme::HTTP);
    parts.authority.get_or_insert(http::uri::Authority::from_static("localhost"));
    // Scheme, authority and path are all there, or the path was not one (`*`, CONNECT), which no gRPC call has.
    Uri::from_parts(parts).unwrap_or_else(|_| Uri::from_static("http://localhost/"))
}
