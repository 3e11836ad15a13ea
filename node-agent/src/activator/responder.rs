//! Answers kubelet's probes in place of an application that sleeps: HTTP, gRPC health, and TCP by being there.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use bytes::Bytes;
use futures::stream;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use socket2::{Domain, Socket, Type};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A `grpc.health.v1.HealthCheckResponse` that says `SERVING`, uncompressed, with its length.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Connections at a time; kubelet has one a probe.
const MAX_CONNECTIONS: usize = 16;

/// Listens on loopback in one network namespace, until it is dropped.
#[derive(Debug)]
pub(super) struct Responder {
    /// Its port, the same for both families.
    pub(super) port: u16,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Sockets that listen in the calling thread's network namespace, and accept what is sent to other addresses, too. The second is
/// missing where there is no IPv6.
///
/// # Errors
/// No ports are left, or loopback is down.
pub(super) fn listen() -> io::Result<Vec<TcpListener>> {
    let v4 = transparent(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let port = v4.local_addr()?.port();
    Ok([Ok(v4), transparent(SocketAddr::from((Ipv6Addr::LOCALHOST, port)))].into_iter().flatten().collect())
}

fn transparent(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // One option serves both families.
    socket.set_ip_transparent_v4(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(MAX_CONNECTIONS as i32)?;
    Ok(socket.into())
}

impl Responder {
    /// Serves what [`listen`] has made.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn serve(listeners: Vec<TcpListener>) -> io::Result<Self> {
        let port = listeners.first().map(TcpListener::local_addr).transpose()?.map_or(0, |a| a.port());
        let tasks = listeners.into_iter().map(|listener| {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Ok(AbortOnDropHandle::new(tokio::spawn(accept(listener))))
        });
        Ok(Self { port, _tasks: tasks.collect::<io::Result<_>>()? })
    }
}

async fn accept(listener: tokio::net::TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(async {
                    let server = auto::Builder::new(TokioExecutor::new());
                    // A probe that is given up is kubelet's affair.
                    let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

type Frames = stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

async fn answer(request: Request<Incoming>) -> Result<Response<StreamBody<Frames>>, Infallible> {
    let grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let (kind, frames) = if grpc {
        let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static("0"))]);
        (
            "application/grpc",
            vec![Ok(Frame::data(Bytes::from_static(&SERVING))), Ok(Frame::trailers(trailers))],
        )
    } else {
        ("text/plain", vec![Ok(Frame::data(Bytes::from_static(b"asleep, and ready\n")))])
    };
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}
