//! HTTP for Prometheus and for kubelet's probes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus_client::registry::Registry;
use woodfrog_telemetry::metrics;

/// Serves until the process ends. `ready` is true once the API server has been reached.
pub(crate) async fn serve(
    metrics_addr: SocketAddr,
    health_addr: SocketAddr,
    registry: Arc<Registry>,
    ready: Arc<AtomicBool>,
) -> io::Result<()> {
    let health = Router::new().route("/healthz", get(async || "ok")).route(
        "/readyz",
        get(async move || match ready.load(Ordering::Relaxed) {
            true => (StatusCode::OK, "ok"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "the API server has not been reached yet"),
        }),
    );
    tokio::try_join!(metrics::serve(metrics_addr, registry), metrics::serve_router(health_addr, health))?;
    Ok(())
}
