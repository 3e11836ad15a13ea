//! What a probe is answered, whatever it asks: that all is well. A hook hears the same.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use woodfrog_protocol::agent::{Get, Header, Hook};

use super::Leave;
use super::tls::{HANDSHAKE, Identity};
use crate::metrics::Metrics;

/// A `grpc.health.v1.HealthCheckResponse` that says `SERVING`, uncompressed, with its length.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
/// How kubelet calls itself when it runs a hook (`pkg/kubelet/lifecycle/handlers.go`); for a probe it is `kube-probe/`.
const LIFECYCLE: &[u8] = b"kube-lifecycle/";
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
    pub(super) async fn serve(&self, stream: TcpStream, leave: &Leave) {
        // Not the responder's own address, but the one that was asked for.
        let Ok(to) = stream.local_addr() else { return };
        match first_byte(&stream).await {
            Ok(Some(HANDSHAKE)) => {
                let Some(acceptor) = self.identity.acceptor() else { return };
                if let Ok(stream) = acceptor.accept(stream).await {
                    self.requests(stream, to, "https", leave).await;
                }
            }
            Ok(Some(_)) => self.requests(stream, to, "http", leave).await,
            // It has learned that somebody accepts connections.
            Ok(None) | Err(_) => self.metrics.probe_answered("tcp"),
        }
    }

    async fn requests<S: AsyncRead + AsyncWrite + Unpin + 'static>(
        &self,
        stream: S,
        to: SocketAddr,
        protocol: &'static str,
        leave: &Leave,
    ) {
        let (metrics, leave) = (self.metrics.clone(), leave.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (response, is_grpc) = answer(&request);
            let left = hook(&request, to, protocol == "https").map(|hook| leave(hook));
            if left.is_none() {
                metrics.probe_answered(if is_grpc { "grpc" } else { protocol });
            }
            async move {
                if let Some(left) = left {
                    left.await;
                }
                Ok::<_, Infallible>(response)
            }
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

/// The hook that a request is; none: it is a probe.
fn hook(request: &Request<Incoming>, to: SocketAddr, https: bool) -> Option<Hook> {
    let agent = request.headers().get(USER_AGENT)?;
    agent.as_bytes().starts_with(LIFECYCLE).then_some(())?;
    let header = |(name, value): (&HeaderName, &HeaderValue)| Header {
        name: name.as_str().into(),
        value: value.as_bytes().into(),
    };
    let get = Get {
        address: to.ip().to_string(),
        port: to.port().into(),
        https,
        path: request.uri().path_and_query().map_or("/", |path| path.as_str()).into(),
        headers: request.headers().iter().map(header).collect(),
    };
    Some(Hook { get: Some(get), ..Hook::default() })
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
