//! The usual kind of activator: a userspace proxy in front of a container that waits. It accepts the first connection, restores the
//! application with plain `criu restore`, connects to it, and copies bytes both ways.
//!
//! The dump and the container are those of [`Criu`]. CRIU enters the container's cgroups when the connection has come.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::Container;
use woodfrog_testkubelet::http::PORT;

use super::criu::{Criu, Memory};
use super::{Contender as _, Place};
use crate::client::first_byte;
use crate::workload::Workload;

/// See the module.
#[derive(Debug)]
pub(crate) struct Proxy {
    criu: Criu,
}

impl Proxy {
    /// Warms the application up and dumps it.
    pub(crate) async fn prepare(place: Place, workload: Workload) -> Result<Self> {
        Ok(Self { criu: Criu::prepare(place, workload, Memory::AtOnce).await? })
    }

    /// Milliseconds from a client's SYN to the proxy to the first byte of the answer.
    pub(crate) async fn first_byte(&self) -> Result<f64> {
        let place = &self.criu.place;
        let container = self.criu.waiting("proxy").await?;
        let (mut proxy, mut output) = self.start(&container).await?;
        let mut port = String::new();
        output.read_line(&mut port)?;
        let address =
            SocketAddr::from((Ipv4Addr::LOCALHOST, port.trim().parse().context("the proxy's port")?));
        let ms = place.node.in_network(|| first_byte(address))?;
        let status = proxy.wait()?;
        ensure!(status.success(), "the proxy: {status}");
        self.criu.state.check(&place.node, container.ip())?;
        container.remove().await?;
        ms
    }

    async fn start(&self, container: &Container) -> Result<(Child, BufReader<ChildStdout>)> {
        let place = &self.criu.place;
        let mut command = place.node.command(&format!("{}/woodfrog-bench", place.binaries));
        command.args(["inside", "proxy", "--init", &container.pid().await?.to_string()]);
        command.args([
            "--images",
            &self.criu.images,
            "--to",
            &SocketAddr::new(container.ip(), PORT).to_string(),
        ]);
        let mut proxy = command.stdout(Stdio::piped()).spawn()?;
        let output = proxy.stdout.take().context("no pipe")?;
        Ok((proxy, BufReader::new(output)))
    }

    /// Removes the dump.
    pub(crate) async fn clean(&self) -> Result<()> {
        self.criu.clean().await
    }
}
