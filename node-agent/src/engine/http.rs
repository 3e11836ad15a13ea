//! HTTP requests to an application, sent from within its pod: hooks and warm-ups.

mod unverified;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

#[cfg(test)]
pub(crate) use unverified::Believes;

use super::netns;

/// Whom a request is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// One of the pod's.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Over TLS, whatever the certificate.
    pub https: bool,
}

impl Target {
    /// Plain HTTP on loopback.
    pub fn loopback(port: u16) -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), port, https: false }
    }
}

/// Sends a request in the network namespace of process `init`, and reads the answer to its end.
///
/// # Errors
/// Nobody listens, no whole answer within `deadline`; a sentence.
pub async fn send(
    init: i32,
    target: Target,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<StatusCode, String> {
    timeout(deadline, exchange(init, target, request, deadline))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {deadline:?}")))
}

async fn exchange(
    init: i32,
    target: Target,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<StatusCode, String> {
    let to = SocketAddr::new(target.address, target.port);
    let stream = tokio::task::spawn_blocking(move || netns::connect(init, to, deadline))
        .await
        .map_err(|e| e.to_string())?
        .and_then(|stream| {
            stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(stream)
        })
        .map_err(|e: io::Error| e.to_string())?;
    if !target.https {
        return converse(stream, request).await;
    }
    let connector = unverified::connector().map_err(|e| e.to_string())?;
    let stream = connector.connect(ServerName::from(target.address), stream).await;
    converse(stream.map_err(|e| e.to_string())?, request).await
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    mut request: Request<Full<Bytes>>,
) -> Result<StatusCode, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let headers = request.headers_mut();
    headers.entry("host").or_insert(hyper::header::HeaderValue::from_static("localhost"));
    // The connection ends with the exchange: it must leave none behind for a dump to find.
    headers.insert("connection", hyper::header::HeaderValue::from_static("close"));
    let answer = async {
        let mut response = sender.send_request(request).await?;
        while let Some(frame) = response.frame().await {
            frame?;
        }
        Ok::<_, hyper::Error>(response.status())
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer.map_err(|e| e.to_string())
}
