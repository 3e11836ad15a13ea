//! The warm-up: requests, commands, the application's own word, rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use tokio::time::Instant;
use woodfrog_api::{HttpRequest, WarmUp, WarmUpExec};

use crate::engine::Engine;
use crate::engine::container::Container;
use crate::engine::http::{self, Target};

/// The longest that a single request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request that failed waits before it is sent again.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a pod is not warm.
#[derive(Debug, thiserror::Error)]
pub(super) enum WarmUpError {
    /// A request, to its last try.
    #[error("warm-up request {number}, {method} http://127.0.0.1:{port}{path}: {why}")]
    Request {
        /// Its place in `spec.warmUp.http`, from 1.
        number: usize,
        method: String,
        port: i32,
        path: String,
        /// What came of the last try.
        why: String,
    },
    /// A command.
    #[error("warm-up command {command:?}: {why}")]
    Command { command: Vec<String>, why: String },
    /// The application has not said that it is warm.
    #[error("the application has not sent POST /checkpoint within {0:?}")]
    Silent(Duration),
    /// What was asked for takes longer than it may.
    #[error("the warm-up was not over within {0:?}; raise spec.warmUp.timeout or ask for less")]
    TimedOut(Duration),
}

impl WarmUpError {
    /// A reason of the API.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Request { .. } => "WarmUpRequest",
            Self::Command { .. } => "WarmUpCommand",
            Self::Silent(_) | Self::TimedOut(_) => "WarmUpTimeout",
        }
    }
}

/// Warms up a pod whose frozen containers are `containers`. `progress` is told how many requests have been answered, of
/// how many.
pub(super) async fn warm_up(
    engine: &Engine,
    containers: &[Arc<Container>],
    warm_up: &WarmUp,
    progress: impl Fn(u64, u64),
) -> Result<(), WarmUpError> {
    let limit = warm_up.timeout.get();
    let deadline = Instant::now() + limit;
    let all: u64 = warm_up.http.iter().map(|request| u64::from(request.count.unsigned_abs())).sum();
    let answered = AtomicU64::new(0);
    let init = containers.first().map_or(0, |container| container.life().init);
    for (number, request) in warm_up.http.iter().enumerate() {
        let one = || async {
            until_answered(init, request, deadline).await.map_err(|why| WarmUpError::Request {
                number: number + 1,
                method: request.method.clone(),
                port: request.port,
                path: request.path.clone(),
                why,
            })?;
            progress(answered.fetch_add(1, Ordering::Relaxed) + 1, all);
            Ok(())
        };
        stream::iter(0..request.count)
            .map(|_| one())
            .buffer_unordered(request.concurrency.unsigned_abs().max(1) as usize)
            .try_collect::<()>()
            .await?;
    }
    for exec in &warm_up.exec {
        command(engine, containers, exec, deadline).await?;
    }
    if warm_up.signal {
        let said = stream::iter(containers).then(|container| container.when(|life| life.warm)).count();
        tokio::time::timeout_at(deadline, said).await.map_err(|_| WarmUpError::Silent(limit))?;
    }
    if let Some(settle) = warm_up.settle {
        let until = Instant::now() + settle.get();
        tokio::time::sleep_until(until.min(deadline)).await;
    }
    if Instant::now() < deadline { Ok(()) } else { Err(WarmUpError::TimedOut(limit)) }
}

/// Sends a request until it is answered as expected: an application need not listen when its container starts.
async fn until_answered(init: i32, request: &HttpRequest, deadline: Instant) -> Result<(), String> {
    let mut last = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(last.unwrap_or_else(|| "there was no time left for it".to_owned()));
        }
        match send(init, request, left.min(REQUEST_TIMEOUT)).await {
            Ok(status) if is_expected(request, status) => return Ok(()),
            Ok(status) => last = Some(format!("answered {status}")),
            Err(why) => last = Some(why),
        }
        tokio::time::sleep(AGAIN.min(left)).await;
    }
}

async fn send(init: i32, request: &HttpRequest, timeout: Duration) -> Result<u16, String> {
    let port = u16::try_from(request.port).map_err(|_| "no such port".to_owned())?;
    let mut http = Request::builder().method(request.method.as_str()).uri(&request.path);
    for (name, value) in &request.headers {
        http = http.header(name, value);
    }
    let body = Bytes::from(request.body.clone().unwrap_or_default());
    let http = http.body(Full::new(body)).map_err(|e| e.to_string())?;
    http::send(init, Target::loopback(port), http, timeout).await.map(|status| status.as_u16())
}

fn is_expected(request: &HttpRequest, status: u16) -> bool {
    if request.expected_status.is_empty() {
        (200..300).contains(&status)
    } else {
        request.expected_status.contains(&i32::from(status))
    }
}

async fn command(
    engine: &Engine,
    containers: &[Arc<Container>],
    exec: &WarmUpExec,
    deadline: Instant,
) -> Result<(), WarmUpError> {
    let failed = |why: String| WarmUpError::Command { command: exec.command.clone(), why };
    let named =
        |container: &&Arc<Container>| exec.container.as_ref().is_none_or(|name| *name == container.info.name);
    let container = containers.iter().find(named).ok_or_else(|| {
        failed(format!("container {} is not frozen", exec.container.as_deref().unwrap_or_default()))
    })?;
    let left = deadline.saturating_duration_since(Instant::now());
    let output = engine
        .runtime
        .exec(&container.info.id, &exec.command, left)
        .await
        .map_err(|e| failed(e.to_string()))?;
    match output.code {
        0 => Ok(()),
        code => Err(failed(format!("ended with exit code {code}: {}", output.stderr))),
    }
}
