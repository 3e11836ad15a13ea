//! The operator, as a process on the node.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::cluster::{Cluster, KUBECONFIG, SYSTEM};

/// Name of the operator's service on the node.
pub const OPERATOR: &str = "operator";
/// Where the operator serves metrics, on the node's loopback.
pub const METRICS_OF_OPERATOR: &str = "127.0.0.1:8080";
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);

impl Cluster<'_> {
    /// Starts the operator and waits until it says that it is ready.
    ///
    /// # Errors
    /// It is not within 20 s; its log is in the error.
    pub async fn start_operator(&self) -> Result<()> {
        let program = format!("/opt/woodfrog/{}/operator", self.profile);
        let health = HEALTH.to_string();
        let arguments = [
            program.as_str(),
            "--kubeconfig",
            KUBECONFIG,
            "--metrics-addr",
            METRICS_OF_OPERATOR,
            "--health-addr",
            &health,
            "--leader-election-namespace",
            SYSTEM,
        ];
        self.node.start(OPERATOR, &arguments)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(e) = self.node.in_network(ask_ready)? {
            if Instant::now() > deadline || self.node.service_pid(OPERATOR).is_none() {
                let log = self.node.logs(OPERATOR).unwrap_or_default();
                return Err(e.context(format!("the operator does not come up:\n{log}")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Kills the operator as a crash would, and waits for its end.
    ///
    /// # Errors
    /// It lives on.
    pub fn kill_operator(&self) -> Result<()> {
        Ok(self.node.stop(OPERATOR, Signal::KILL)?)
    }
}

fn ask_ready() -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&HEALTH, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains(" 200 "), "{answer}");
    Ok(())
}
