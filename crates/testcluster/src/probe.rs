//! Readiness probes, asked from the node's network as kubelet does.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1::ExecSyncRequest;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use woodfrog_testkubelet::Kubelet;
use woodfrog_testnode::Node;

/// Asks over HTTP; see [`prepare`].
const KUBELET: &str = "/run/kubelet";

/// Puts a program there. The kernel names a process after the file that it was started from.
pub(crate) fn prepare(node: &Node) -> Result<()> {
    node.run("cp", &["/usr/bin/curl", KUBELET])?;
    Ok(())
}

/// The state of a container's readiness.
#[derive(Debug)]
pub(crate) struct Readiness {
    started: Instant,
    next: Instant,
    successes: i32,
    failures: i32,
    ready: bool,
}

impl Readiness {
    /// Of a container that has just started.
    pub(crate) fn of(container: &Container) -> Self {
        let started = Instant::now();
        let probe = container.readiness_probe.as_ref();
        let delay = probe.and_then(|probe| probe.initial_delay_seconds).map_or(Duration::ZERO, seconds);
        Self { started, next: started + delay, successes: 0, failures: 0, ready: probe.is_none() }
    }

    /// Whether it is ready now: asks when it is time to.
    pub(crate) async fn ask(
        &mut self,
        node: &Node,
        kubelet: &Kubelet,
        container: &Container,
        id: &str,
        ip: IpAddr,
    ) -> bool {
        let Some(probe) = &container.readiness_probe else { return self.ready };
        if Instant::now() < self.next {
            return self.ready;
        }
        let outcome = once(node, kubelet, container, probe, id, ip).await;
        self.next = Instant::now() + seconds(probe.period_seconds.unwrap_or(10));
        if outcome.is_ok() {
            (self.successes, self.failures) = (self.successes + 1, 0);
            self.ready |= self.successes >= probe.success_threshold.unwrap_or(1);
        } else {
            (self.successes, self.failures) = (0, self.failures + 1);
            self.ready &= self.failures < probe.failure_threshold.unwrap_or(3);
        }
        self.ready
    }

    /// For how long the container has been up.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }
}

async fn once(
    node: &Node,
    kubelet: &Kubelet,
    container: &Container,
    probe: &Probe,
    id: &str,
    ip: IpAddr,
) -> Result<()> {
    let timeout = seconds(probe.timeout_seconds.unwrap_or(1));
    if let Some(exec) = &probe.exec {
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: exec.command.clone().unwrap_or_default(),
            timeout: timeout.as_secs().cast_signed(),
        };
        let answer = kubelet.runtime.clone().exec_sync(request).await?.into_inner();
        ensure!(answer.exit_code == 0, "exit code {}", answer.exit_code);
        return Ok(());
    }
    let node = node.clone();
    if let Some(action) = probe.http_get.clone() {
        let address = SocketAddr::new(ip, port(container, &action.port)?);
        let work = move || get(&node, address, &action, timeout);
        return tokio::task::spawn_blocking(work).await?;
    }
    let action = probe.tcp_socket.as_ref().context("a probe that is neither exec, httpGet nor tcpSocket")?;
    let address = SocketAddr::new(ip, port(container, &action.port)?);
    let work = move || node.in_network(|| TcpStream::connect_timeout(&address, timeout).map(drop));
    Ok(tokio::task::spawn_blocking(work).await???)
}

/// Asked by a process of the node that is called kubelet: agents know probes by that.
fn get(node: &Node, address: SocketAddr, action: &HTTPGetAction, timeout: Duration) -> Result<()> {
    let url = format!("http://{address}{}", action.path.as_deref().unwrap_or("/"));
    let seconds = timeout.as_secs().max(1).to_string();
    let headers = action.http_headers.iter().flatten();
    let headers: Vec<String> = headers.map(|header| format!("{}: {}", header.name, header.value)).collect();
    let mut arguments =
        vec!["--silent", "--show-error", "--fail", "--max-time", &seconds, "--output", "/dev/null"];
    for header in &headers {
        arguments.extend(["--header", header]);
    }
    arguments.push(&url);
    node.run(KUBELET, &arguments)?;
    Ok(())
}

fn port(container: &Container, port: &IntOrString) -> Result<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            named.with_context(|| format!("container {} has no port {name}", container.name))?.container_port
        }
    };
    Ok(u16::try_from(number)?)
}

fn seconds(number: i32) -> Duration {
    Duration::from_secs(number.max(0).unsigned_abs().into())
}
