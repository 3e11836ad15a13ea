//! The API server's way into a node: whoever connects to a port of the node's loopback reaches the host's.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use tokio::net::{TcpListener, TcpStream};
use woodfrog_testnode::Node;

/// Listens on the node's loopback at the port of `target`, an address on the host, and hands connections through for as long
/// as the returned future is polled.
pub(crate) fn forward(node: &Node, target: SocketAddr) -> Result<impl Future<Output = ()> + Send + use<>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, target.port()));
    // A socket stays in the network in which it was made, as do those that it accepts.
    let listener = node
        .in_network(|| std::net::TcpListener::bind(address))?
        .with_context(|| format!("cannot listen on {address} in node {}", node.name()))?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    Ok(async move {
        while let Ok((mut inside, _)) = listener.accept().await {
            tokio::spawn(async move {
                // Either side may hang up at any time.
                if let Ok(mut outside) = TcpStream::connect(target).await {
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                }
            });
        }
    })
}
