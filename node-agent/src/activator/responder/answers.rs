//! What a probe is answered, whatever it asks: that all is well.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::tls::{HANDSHAKE, Identity};
use crate::metrics::Metrics;

/// A `grpc.health.v1.HealthCheckResponse` that says `SERVING`, uncompressed, with its length.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Answers probes of all containers of a node.
#[derive(Debug, Default)]
pub(in crate::activator) struct Answers {
    metrics: Metrics,
    identity: Identity,
}

impl Answers {
    /// Counts what it answers.
    pub(in crate::activator) fn counted(metrics: Metrics) -> Self {
        Self { metrics, identity: Identity::default() }
    }

    /// Answers one connection, until its peer has enough. One that is given up is kubelet's affair.
    pub(super) async fn serve(&self, stream: TcpStream) {
        match first_byte(&stream).await {
            Ok(Some(HANDSHAKE)) => {
                let Some(acceptor) = self.identity.acceptor() else { return };
                if let Ok(stream) = acceptor.accept(stream).await {
                    self.requests(stream, "https").await;
                }
            }
            Ok(Some(_)) => self.requests(stream, "http").await,
            // It has learned that somebody accepts connections.
            Ok(None) | Err(_) => self.metrics.probe_answered("tcp"),
        }
    }

    async fn requests<S: AsyncRead + AsyncWrite + Unpin + 'static>(&self, stream: S, protocol: &'static str) {
        let metrics = self.metrics.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let (response, is_grpc) = answer(&request);
            metrics.probe_answered(if is_grpc { "grpc" } else { protocol });
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let _ =
            auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    }
}

/// The first byte that is sent, which stays to be read. None: the peer sends nothing.
async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut byte = [0];
    Ok((stream.peek(&mut byte).await? == 1).then_some(byte[0]))
}

type Frames = stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

/// The answer, and whether it is gRPC's.
fn answer(request: &Request<Incoming>) -> (Response<StreamBody<Frames>>, bool) {
    let kind = request.headers().get(CONTENT_TYPE);
    let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let (kind, frames) = if grpc {
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
        let frames = vec![Ok(Frame::data(Bytes::from_static(&SERVING))), Ok(Frame::trailers(trailers))];
        ("application/grpc", frames)
    } else {
        ("text/plain", vec![Ok(Frame::data(Bytes::from_static(b"asleep, and ready\n")))])
    };
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    (response, grpc)
}
