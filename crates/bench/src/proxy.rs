//! The proxy of [`crate::contenders::proxy`], in the node.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::inside;

/// How long a restored application may take to accept.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_micros(200);

/// Prints its port, serves one connection, and ends with it.
pub(crate) fn serve(init: i32, images: &Path, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    let (client, _) = listener.accept()?;
    inside::restore(init, images, false)?;
    let application = connect(to)?;
    let (from_client, to_application) = (client.try_clone()?, application.try_clone()?);
    let forward = std::thread::spawn(move || copy(&from_client, &to_application));
    copy(&application, &client)?;
    // Whatever the client still has to say, nobody hears it.
    client.shutdown(Shutdown::Both).or_else(gone)?;
    forward.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let deadline = Instant::now() + ACCEPTS_WITHIN;
    loop {
        match TcpStream::connect(to) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            connected => return connected,
        }
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    io::copy(&mut from, &mut to)?;
    Ok(to.shutdown(Shutdown::Write).or_else(gone)?)
}

/// That a connection is over is no error here.
fn gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}
