//! Answers kubelet's probes in place of an application that sleeps: HTTP, HTTPS, gRPC health, and TCP by being there. Its hooks by HTTP
//! are answered too, and left to the next wake.

mod answers;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use socket2::{Domain, Socket, Type};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use woodfrog_protocol::agent::Hook;

pub(super) use answers::Answers;

/// Takes a hook that came for a container which sleeps, and is done when that cannot be lost any more.
pub type Leave = Arc<dyn Fn(Hook) -> BoxFuture<'static, ()> + Send + Sync>;

/// Connections at a time; kubelet has one a probe.
const MAX_CONNECTIONS: usize = 16;
/// How long one may last; kubelet asks as soon as it is connected.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long to wait when no descriptors are left.
const PAUSE: Duration = Duration::from_millis(100);

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
    // Connections inherit it. They have the application's port, which it could not bind beside one that is open or in TIME_WAIT.
    socket.set_reuse_address(true)?;
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
    pub(super) fn serve(
        listeners: Vec<TcpListener>,
        answers: &Arc<Answers>,
        leave: Leave,
    ) -> io::Result<Self> {
        let port = listeners.first().map(TcpListener::local_addr).transpose()?.map_or(0, |a| a.port());
        let tasks = listeners.into_iter().map(|listener| {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Ok(AbortOnDropHandle::new(tokio::spawn(accept(listener, answers.clone(), leave.clone()))))
        });
        Ok(Self { port, _tasks: tasks.collect::<io::Result<_>>()? })
    }
}

async fn accept(listener: tokio::net::TcpListener, answers: Arc<Answers>, leave: Leave) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let (answers, leave) = (answers.clone(), leave.clone());
                    connections.spawn(async move {
                        let _ = tokio::time::timeout(DEADLINE, answers.serve(stream, &leave)).await;
                    });
                }
                // The connection stays in the backlog, so that without a pause this would come at once again.
                Err(e) => {
                    tracing::debug!("cannot accept a probe: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
