//! Metrics over HTTP, in the text format of OpenMetrics, as Prometheus scrapes them.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `GET /metrics` at this address until the process ends.
///
/// # Errors
/// The address is taken.
pub async fn serve(address: SocketAddr, registry: Arc<Registry>) -> io::Result<()> {
    let metrics = Router::new().route("/metrics", get(async move || scrape(registry).await));
    serve_router(address, metrics).await
}

/// Serves these routes until the process ends.
///
/// # Errors
/// The address is taken; it is in the message.
pub async fn serve_router(address: SocketAddr, routes: Router) -> io::Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.map_err(|e| io::Error::new(e.kind(), format!("cannot listen on {address}: {e}")))?;
    axum::serve(listener, routes).await
}

/// A thread of its own, since collectors may read files.
async fn scrape(registry: Arc<Registry>) -> impl IntoResponse {
    let text = spawn_blocking(move || {
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok::<_, fmt::Error>(text)
    });
    match text.await {
        Ok(Ok(text)) => Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text)),
        Ok(Err(e)) => Err((StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
        Err(e) => Err((StatusCode::INTERNAL_SERVER_ERROR, e.to_string())),
    }
}
