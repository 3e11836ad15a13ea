//! A rehearsal: right after its dump an application is thawed from it, in its own container, so that its image can say which memory is
//! wanted first.
//!
//! ```text
//!   dump, tasks held ─► read as for a thaw ─► the init ends it ─► thaw, recorded by the pager ─► requests ─► all memory is there
//!                            │ of no use           │ is not heard       │ fails                                    │
//!                            ▼                     ▼                    ▼                                          ▼
//!                       the tasks run on      the tasks run on     the command is started            a last layer of the image
//! ```
//!
//! Whatever goes wrong, the images are made, without that layer.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use woodfrog_criu::Dump;
use woodfrog_image::{CheckpointRecord, ProcessSet, record_of, sha256};
use woodfrog_protocol::agent::{HttpRequest, Rehearsal};

use super::container::{Container, Order, Phasing};
use super::dump::Dumped;
use super::http::{self, Target};
use super::prepared::Prepared;
use super::{Engine, image_set, saves};

/// How long one request may take. The recording is over by then.
const ANSWER: Duration = Duration::from_secs(10);
/// How long all memory may take to be there.
const MEMORY: Duration = Duration::from_secs(60);

/// Why an image does not say what is wanted first.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// Nothing on this node records.
    #[error("this node has no pager (the agent's log says why)")]
    NoPager,
    /// What was dumped is not the whole of its memory.
    #[error("{0} shares memory with other pods of this node")]
    SharesMemory(String),
    /// What was dumped cannot be thawed.
    #[error("{container} cannot be thawed from what was dumped: {why}")]
    Thaw {
        /// The container.
        container: String,
        /// A sentence.
        why: String,
    },
    /// Its memory did not come, or it has ended.
    #[error("{0} has ended, or its memory has not come within {MEMORY:?}")]
    Memory(String),
    /// It wanted nothing.
    #[error("{0} wanted no memory that could come later")]
    Nothing(String),
}

/// What is needed to thaw a container from its dump.
#[derive(Debug)]
pub struct Script {
    /// The directory of the dump, laid out as that of a saved state.
    pub dir: PathBuf,
    /// What is known of it; without its files.
    pub record: CheckpointRecord,
}

/// What each container wants first, in their order; the containers run on, thawed. Their dumps hold them no more when this returns, whatever came
/// of it.
pub(super) async fn record(
    engine: &Engine,
    containers: &[Arc<Container>],
    dumped: &mut [Dumped],
    rehearsal: &Rehearsal,
) -> Result<Vec<Vec<ProcessSet>>, RehearsalError> {
    let prepared = prepare(engine, containers, dumped).await;
    let dumps: Vec<Option<Dump>> = dumped.iter_mut().map(|dumped| dumped.held.take()).collect();
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(e) => {
            for dump in dumps.into_iter().flatten() {
                run_on(dump).await;
            }
            return Err(e);
        }
    };
    let thaws = containers
        .iter()
        .zip(&prepared)
        .zip(dumps)
        .map(|((container, prepared), dump)| thaw(container, prepared.clone(), dump));
    join_all(thaws).await.into_iter().collect::<Result<(), _>>()?;
    if let Some(container) = containers.first() {
        let init = container.life().init;
        for request in &rehearsal.requests {
            if let Err(why) = send(init, request).await {
                container
                    .note(format!("its rehearsal: request to port {}{}: {why}", request.port, request.path));
            }
        }
    }
    let sets = containers.iter().zip(&prepared).map(async |(container, prepared)| {
        let over = container.when(|life| life.memory.is_some() || life.phasing != Phasing::Thawed);
        let known = timeout(MEMORY, over).await.is_ok_and(|life| life.memory.is_some());
        let (set, bytes) = image_set::recorded(engine.working_sets.take(&prepared.digest));
        let name = || container.info.display();
        match (known, bytes) {
            (false, _) => Err(RehearsalError::Memory(name())),
            (true, 0) => Err(RehearsalError::Nothing(name())),
            (true, _) => {
                container.note(format!("{:.1} MB of its memory are wanted first", bytes as f64 / 1e6));
                Ok(set)
            }
        }
    });
    try_join_all(sets).await
}

/// Lets CRIU go on, so that the tasks do. If that fails they have ended, and their init says so.
async fn run_on(dump: Dump) {
    if let Err(e) = dump.finish().await {
        tracing::warn!("a dump did not end well: {e}");
    }
}

async fn prepare(
    engine: &Engine,
    containers: &[Arc<Container>],
    dumped: &mut [Dumped],
) -> Result<Vec<Arc<Prepared>>, RehearsalError> {
    if engine.pager.is_none() {
        return Err(RehearsalError::NoPager);
    }
    let mut all = Vec::new();
    for (container, dumped) in containers.iter().zip(dumped) {
        let container = container.info.display();
        let Some(Script { dir, record }) = dumped.rehearsal.take() else {
            return Err(RehearsalError::SharesMemory(container));
        };
        let node = engine.node.clone();
        let read = spawn_blocking(move || {
            let record = record_of(&saves::memory(&dir).join(woodfrog_image::labels::CHECKPOINT_DIR), record);
            let record = record.map_err(io::Error::other)?.to_json().map_err(io::Error::other)?;
            saves::write_record(&dir, &record)?;
            saves::read(&dir, sha256(&record), &node).map_err(io::Error::other)
        });
        let failed = |e: io::Error| RehearsalError::Thaw { container, why: e.to_string() };
        match read.await.map_err(io::Error::other) {
            Ok(Ok(prepared)) => all.push(Arc::new(prepared)),
            Ok(Err(e)) | Err(e) => return Err(failed(e)),
        }
    }
    Ok(all)
}

async fn thaw(
    container: &Container,
    prepared: Arc<Prepared>,
    dump: Option<Dump>,
) -> Result<(), RehearsalError> {
    let (reply, answer) = oneshot::channel();
    let thawed = match container.order(Order::Rehearse(prepared, reply)) {
        Ok(()) => answer.await.unwrap_or_else(|_| Err("its init does not end it".into())),
        Err(e) => Err(e),
    };
    match (&thawed, dump) {
        // What it held is no more.
        (Ok(()), Some(dump)) => _ = dump.ended().await,
        (Err(_), Some(dump)) => run_on(dump).await,
        (_, None) => {}
    }
    thawed.map_err(|why| RehearsalError::Thaw { container: container.info.display(), why })
}

async fn send(init: i32, request: &HttpRequest) -> Result<(), String> {
    let port = u16::try_from(request.port).map_err(|_| "no such port".to_owned())?;
    let method = if request.method.is_empty() { "GET" } else { request.method.as_str() };
    let mut http = Request::builder().method(method).uri(&request.path);
    for header in &request.headers {
        http = http.header(&header.name, &header.value[..]);
    }
    let body = Full::new(Bytes::from(request.body.clone()));
    let http = http.body(body).map_err(|e| e.to_string())?;
    http::send(init, Target::loopback(port), http, ANSWER).await.map(drop)
}
