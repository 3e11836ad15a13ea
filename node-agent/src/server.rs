//! The agent's socket: requests of the shim and of the command `woodfrog`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tracing::{debug, warn};
use woodfrog_protocol::agent::{Containers, Empty, Error, Log, Request, Response, request, response};
use woodfrog_protocol::frame;

use crate::engine::wake::WakeReason;
use crate::engine::{Engine, EngineError};

/// Binds `path`, for root only, in place of what an earlier agent left there.
///
/// # Errors
/// The directory is missing or not ours to write.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves requests until the process ends.
pub async fn serve(listener: UnixListener, engine: Arc<Engine>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let engine = engine.clone();
                tokio::spawn(async move {
                    if let Err(e) = connection(stream, &engine).await {
                        debug!("a client of the agent's socket: {e}");
                    }
                });
            }
            // Out of descriptors, most likely; the next accept may work.
            Err(e) => {
                warn!("cannot accept on the agent's socket: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, engine: &Arc<Engine>) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let (responses, mut outgoing) = mpsc::channel::<response::Kind>(16);
    let write = async {
        while let Some(kind) = outgoing.recv().await {
            let bytes = frame::encode(&Response { kind: Some(kind) }).map_err(io::Error::other)?;
            writer.write_all(&bytes).await?;
        }
        Ok::<_, io::Error>(())
    };
    let read = async {
        let mut decoder = frame::Decoder::default();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let n = reader.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            decoder.push(&buffer[..n]);
            while let Some(request) = decoder.pop::<Request>().map_err(io::Error::other)? {
                let answer = answer(request, engine, &responses).await;
                if responses.send(answer).await.is_err() {
                    return Ok(());
                }
            }
        }
    };
    // A client that goes away ends its request; what must not be left half-done runs in a task of its own.
    tokio::select! {
        done = write => done,
        done = read => done,
    }
}

async fn answer(
    request: Request,
    engine: &Arc<Engine>,
    progress: &mpsc::Sender<response::Kind>,
) -> response::Kind {
    let ok = response::Kind::Ok(Empty {});
    let result = match request.kind {
        Some(request::Kind::Ping(_)) => Ok(ok),
        Some(request::Kind::ContainerCreated(created)) => engine.created(created).await.map(|()| ok),
        Some(request::Kind::AwaitStart(token)) => {
            engine.await_start(&token.token).await.map(response::Kind::Started)
        }
        Some(request::Kind::ContainerStopping(id)) => {
            engine.stopping(&id.container_id);
            Ok(ok)
        }
        Some(request::Kind::ContainerRemoved(id)) => {
            engine.removed(&id.container_id);
            Ok(ok)
        }
        Some(request::Kind::List(_)) => {
            Ok(response::Kind::Containers(Containers { containers: engine.list(), stored: engine.stored() }))
        }
        Some(request::Kind::Freeze(freeze)) => {
            engine.freeze(freeze, progress.clone()).await.map(response::Kind::Frozen)
        }
        Some(request::Kind::Check(check)) => engine.check(check).await.map(response::Kind::Checked),
        Some(request::Kind::Log(name)) => {
            engine.find(&name.container).map(|c| response::Kind::Log(Log { lines: c.log() }))
        }
        Some(request::Kind::Wake(wake)) => {
            engine.wake(&wake.container, WakeReason::of(&wake)).await.map(response::Kind::Started)
        }
        Some(request::Kind::WakeAll(all)) => engine
            .wake_all(all.for_good)
            .await
            .map(|containers| response::Kind::Containers(Containers { containers, ..Containers::default() })),
        Some(request::Kind::SleepAgain(_)) => engine.sleep_again().map(|()| ok),
        None => Err(EngineError::Unknown),
    };
    result.unwrap_or_else(|e| {
        response::Kind::Error(Error {
            category: e.category().into(),
            message: e.to_string(),
            details: e.details(),
        })
    })
}
