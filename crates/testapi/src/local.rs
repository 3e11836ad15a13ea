//! An API server of our own on loopback: etcd and the server under a supervisor.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use crate::Error;
use crate::error::Context as _;

const SUPERVISE: &str = include_str!("../scripts/supervise.sh");

/// How long a server may take to get ready; two cores that also compile need a while.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often another free port is tried when somebody else took one.
const TRIES: usize = 3;

/// The token of `system:masters` at kube-apiserver.
pub(crate) const MASTER_TOKEN: &str = "woodfrog-tests";

/// A running server; it ends when this is dropped.
pub(crate) struct Local {
    supervisor: Child,
    /// Where it keeps everything.
    pub(crate) dir: PathBuf,
    /// Where it listens.
    pub(crate) port: u16,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What is started beside etcd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// kube-apiserver.
    Real,
    /// The test server.
    Test,
}

impl Local {
    /// Starts etcd and a server from the programs in `binaries`, and returns when the server is ready.
    pub(crate) async fn start(binaries: &Path, kind: Kind) -> Result<Self, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut local = Self::spawn(binaries, kind)?;
            match local.ready().await {
                Err(_) if tries < TRIES && local.taken() => {}
                result => return result.map(|()| local),
            }
        }
    }

    /// The certificate by which clients know the server, with its issuer.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.dir.join("certs/apiserver.crt")
    }

    fn spawn(binaries: &Path, kind: Kind) -> Result<Self, Error> {
        let dir = tempfile::Builder::new()
            .prefix("woodfrog-api-")
            .tempdir()
            .file("create", std::env::temp_dir())?
            .keep();
        let [port, client, peer] = free_ports()?;
        let etcd_url = format!("http://127.0.0.1:{client}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let mut command = Command::new("bash");
        command.args(["-c", SUPERVISE, "supervise.sh"]).arg(&dir);
        command.arg(binaries.join("etcd")).arg("--data-dir").arg(dir.join("etcd"));
        command.args(["--unsafe-no-fsync", "--log-level", "warn", "--listen-client-urls", &etcd_url]);
        command.args(["--advertise-client-urls", &etcd_url, "--listen-peer-urls", &peer_url]);
        command
            .args(["--initial-advertise-peer-urls", &peer_url, "--initial-cluster"])
            .arg(format!("default={peer_url}"));
        command.arg("--");
        match kind {
            Kind::Test => {
                command.arg(binaries.join("apiserver")).args([
                    "--etcd",
                    &etcd_url,
                    "--port",
                    &port.to_string(),
                ]);
                command.arg("--cert-dir").arg(dir.join("certs"));
            }
            Kind::Real => {
                command.arg(binaries.join("kube-apiserver"));
                real_arguments(&mut command, &dir, &etcd_url, port)?;
            }
        }
        // A third of a server's time under load is Go's garbage collector's: memory is cheaper here than time.
        command.env("GOGC", "300");
        // Away from the terminal's signals: it ends when we do.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let supervisor = command.spawn().file("run", "bash")?;
        Ok(Self { supervisor, dir, port, kind })
    }

    async fn ready(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        let mut reason = "it has not written its certificate".to_owned();
        while start.elapsed() < PATIENCE {
            if self.certificate().is_file() {
                match crate::server::ready(self).await {
                    Ok(()) => return Ok(()),
                    Err(error) => reason = error,
                }
            }
            if self.died() {
                reason = "a process ended".to_owned();
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(Error::NotReady {
            dir: self.dir.clone(),
            seconds: start.elapsed().as_secs(),
            reason,
            logs: self.logs(),
        })
    }

    /// Whether one of the processes below the supervisor is over.
    fn died(&mut self) -> bool {
        if matches!(self.supervisor.try_wait(), Ok(Some(_)) | Err(_)) {
            return true;
        }
        self.dir.join("died").exists()
    }

    fn taken(&self) -> bool {
        self.logs().contains("address already in use")
    }

    fn logs(&self) -> String {
        let end = |name: &str| {
            let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {name}\n{}", lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        format!("{}\n{}", end("etcd.log"), end("apiserver.log"))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// Free at this moment; all three are held until all are known, so they differ.
fn free_ports() -> Result<[u16; 3], Error> {
    let bind = || TcpListener::bind("127.0.0.1:0").file("listen on", "127.0.0.1");
    let held = [bind()?, bind()?, bind()?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr().file("listen on", "127.0.0.1")?.port();
    }
    Ok(ports)
}

/// As controller-runtime's envtest starts it, with a token instead of client certificates.
fn real_arguments(command: &mut Command, dir: &Path, etcd: &str, port: u16) -> Result<(), Error> {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|error| Error::Credentials(error.to_string()))?;
    let pem =
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64_STANDARD.encode(key));
    let key = dir.join("accounts.key");
    fs::write(&key, pem).file("write", &key)?;
    let tokens = dir.join("tokens.csv");
    fs::write(&tokens, format!("{MASTER_TOKEN},admin,admin,system:masters\n")).file("write", &tokens)?;
    command.args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--authorization-mode=RBAC"]);
    command.args([
        "--allow-privileged=true",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--disable-admission-plugins=ServiceAccount",
    ]);
    command.arg("--service-account-issuer=https://127.0.0.1");
    command.arg(format!("--etcd-servers={etcd}")).arg(format!("--secure-port={port}"));
    command.arg(format!("--cert-dir={}", dir.join("certs").display()));
    command.arg(format!("--token-auth-file={}", tokens.display()));
    command.arg(format!("--service-account-key-file={}", key.display()));
    command.arg(format!("--service-account-signing-key-file={}", key.display()));
    Ok(())
}
