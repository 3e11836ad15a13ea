//! HTTP requests to an application, sent from within its pod: hooks and warm-ups.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::netns;

/// Sends a request to a port on loopback in the network namespace of process `init`, and reads the answer to its end.
///
/// # Errors
/// Nobody listens, no whole answer within `deadline`; a sentence.
pub async fn send(
    init: i32,
    port: u16,
    request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<StatusCode, String> {
    timeout(deadline, exchange(init, port, request, deadline))
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {deadline:?}")))
}

async fn exchange(
    init: i32,
    port: u16,
    mut request: Request<Full<Bytes>>,
    deadline: Duration,
) -> Result<StatusCode, String> {
    let say = |e: &dyn std::error::Error| e.to_string();
    let stream = tokio::task::spawn_blocking(move || netns::connect(init, port, deadline))
        .await
        .map_err(|e| say(&e))?
        .and_then(|stream| {
            stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(stream)
        })
        .map_err(|e: io::Error| say(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| say(&e))?;
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
    answer.map_err(|e| say(&e))
}
