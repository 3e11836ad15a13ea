//! The operator's process: its start and end, its memory, its own metrics.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Namespace of the lease.
pub(super) const SYSTEM: &str = "woodfrog-system";
/// How long it may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running operator; killed when this is dropped.
pub(super) struct Operator {
    child: Child,
    pid: i32,
    metrics: SocketAddr,
    log: PathBuf,
    /// When it was started.
    pub(super) started: Instant,
}

/// Resident memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resident {
    /// The most that it ever was.
    pub(super) peak: u64,
    /// What it is.
    pub(super) now: u64,
}

impl Operator {
    /// Starts it and waits until it leads. Its log is kept in `dir`.
    ///
    /// # Errors
    /// It does not come up; the end of its log is in the error.
    pub(super) async fn start(kubeconfig: &Path, dir: &Path, identity: &str) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("operator");
        let (metrics, health) = (free_address()?, free_address()?);
        let log = dir.join(format!("{identity}.log"));
        let started = Instant::now();
        let child = Command::new(&program)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--metrics-addr", &metrics.to_string(), "--health-addr", &health.to_string()])
            .args(["--leader-election-namespace", SYSTEM, "--identity", identity])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot run {}: build it with the same profile", program.display()))?;
        let pid = child.id().context("the operator has ended")?.cast_signed();
        let operator = Self { child, pid, metrics, log, started };
        while operator.metric("woodfrog_operator_leader", "").await.unwrap_or(0.0) < 1.0 {
            ensure!(started.elapsed() < PATIENCE, "the operator does not come up:\n{}", operator.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(operator)
    }

    /// Ends it as Kubernetes does, so that it gives the lease back.
    ///
    /// # Errors
    /// It does not end.
    pub(super) async fn end(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.pid).context("no PID")?;
        kill_process(pid, Signal::TERM)?;
        tokio::time::timeout(PATIENCE, self.child.wait()).await.context("the operator does not end")??;
        Ok(())
    }

    /// Its memory now.
    ///
    /// # Errors
    /// It has ended; the end of its log is in the error.
    pub(super) fn resident(&self) -> Result<Resident> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.with_context(|| format!("the operator has ended:\n{}", self.log()))?;
        let bytes = |key: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
            Ok(kilobytes
                .with_context(|| format!("no {key} of process {}", self.pid))?
                .trim()
                .parse::<u64>()?
                << 10)
        };
        Ok(Resident { peak: bytes("VmHWM:")?, now: bytes("VmRSS:")? })
    }

    /// Processor time that it has used.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The program's name, in parentheses, is the second field; utime and stime are the 14th and 15th (proc(5)).
        let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let ticks = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum::<u64>();
        Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second().max(1)))
    }

    /// How many reconciliations of a kind have gone well.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn reconciled(&self, kind: &str) -> Result<u64> {
        let label = format!("kind=\"{kind}\",outcome=\"ok\"");
        Ok(self.metric("woodfrog_operator_reconciles_total", &label).await? as u64)
    }

    /// How many attempts at Checkpoints have failed, by why. The stand-ins never fail, so there is no reason for any.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn failed(&self) -> Result<BTreeMap<String, u64>> {
        let metrics = self.metrics().await?;
        let attempts = metrics.lines().filter_map(|line| {
            let line = line.strip_prefix("woodfrog_operator_checkpoint_attempts_total{outcome=\"")?;
            let (outcome, count) = line.split_once("\"} ")?;
            Some((outcome.to_owned(), count.parse::<f64>().ok()? as u64))
        });
        Ok(attempts.filter(|(outcome, _)| outcome != "Succeeded").collect())
    }

    /// The sum of a metric over all that has these labels; 0 if there is none yet.
    async fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        let text = self.metrics().await?;
        let found = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        Ok(found.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    async fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.metrics).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// Free at this moment.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
