//! A host in a directory: files as kubeadm leaves them, a service manager that can be broken, sockets that speak CRI.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use k8s_cri::v1::VersionResponse;
use prost::Message as _;
use tempfile::TempDir;
use tokio::sync::oneshot;
use woodfrog_installer::kubelet::{self, Mode};
use woodfrog_installer::{
    Error, Host, Init, InitError, Install, Installed, KUBELET_UNIT, PROGRAMS, Patience, Root, State, Status,
    UNIT, Uninstall, Uninstalled, install, status, uninstall,
};

pub(crate) const CONFIG: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
cgroupDriver: systemd
# chosen by hand
maxPods: 60
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
kind: KubeletConfiguration
";

/// What can be made to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Break {
    #[default]
    Nothing,
    Reload,
    Enable,
    RestartShim,
    /// The shim's process runs and answers nobody.
    ShimIsSilent,
    RestartKubelet,
    /// kubelet ends whenever it is to use the shim.
    KubeletDiesOfShim,
    /// kubelet ends whenever it is to use containerd.
    KubeletDiesOfRuntime,
}

#[derive(Default)]
struct Unit {
    running: bool,
    enabled: bool,
    pid: u32,
}

/// systemd, as far as the installer can see.
pub(crate) struct Systemd {
    root: Root,
    units: HashMap<String, Unit>,
    shim: Option<CriServer>,
    next_pid: u32,
    /// What kubelet read when it was last restarted; None: it was not.
    kubelet_uses_shim: Option<bool>,
    pub(crate) broken: Break,
    /// All that was done, such as `restart kubelet.service`.
    pub(crate) calls: Vec<String>,
}

impl Systemd {
    fn call(&mut self, command: String, fails: Break) -> Result<(), InitError> {
        self.calls.push(command.clone());
        if fails != Break::Nothing && self.broken == fails {
            // Only once: what is tried in order to put things back succeeds.
            self.broken = Break::Nothing;
            return Err(InitError { command, said: "broken by the test".into() });
        }
        Ok(())
    }

    fn unit(&mut self, name: &str) -> &mut Unit {
        self.units.entry(name.to_owned()).or_default()
    }
}

impl Init for Systemd {
    fn reload(&mut self) -> Result<(), InitError> {
        self.call("daemon-reload".into(), Break::Reload)
    }

    fn enable(&mut self, unit: &str) -> Result<(), InitError> {
        self.call(format!("enable {unit}"), Break::Enable)?;
        self.unit(unit).enabled = true;
        Ok(())
    }

    fn disable(&mut self, unit: &str) -> Result<(), InitError> {
        self.call(format!("disable {unit}"), Break::Nothing)?;
        self.unit(unit).enabled = false;
        Ok(())
    }

    fn restart(&mut self, unit: &str) -> Result<(), InitError> {
        let fails = if unit == UNIT { Break::RestartShim } else { Break::RestartKubelet };
        self.call(format!("restart {unit}"), fails)?;
        if unit == KUBELET_UNIT {
            self.kubelet_uses_shim = Some(kubelet::find(&self.root).is_ok_and(|found| found.is_shim()));
        } else {
            self.shim = None;
            let program = self.root.path("/opt/woodfrog/current/node-agent");
            assert!(program.is_file(), "{} is what the unit runs", program.display());
            if self.broken != Break::ShimIsSilent {
                self.shim = Some(CriServer::start(self.root.path("/run/woodfrog/cri.sock"), "containerd"));
            }
            // The next one works: that is the old one, or none.
            self.broken = if self.broken == Break::ShimIsSilent { Break::Nothing } else { self.broken };
        }
        self.next_pid += 1;
        let pid = self.next_pid;
        *self.unit(unit) = Unit { running: true, pid, enabled: self.unit(unit).enabled };
        Ok(())
    }

    fn stop(&mut self, unit: &str) -> Result<(), InitError> {
        self.call(format!("stop {unit}"), Break::Nothing)?;
        if unit == UNIT {
            self.shim = None;
        }
        *self.unit(unit) = Unit { running: false, pid: 0, enabled: self.unit(unit).enabled };
        Ok(())
    }

    fn state(&mut self, unit: &str) -> Result<State, InitError> {
        let dies = unit == KUBELET_UNIT
            && match self.broken {
                Break::KubeletDiesOfShim => self.kubelet_uses_shim == Some(true),
                Break::KubeletDiesOfRuntime => self.kubelet_uses_shim == Some(false),
                _ => false,
            };
        let state = self.unit(unit);
        let active = match (state.running, dies) {
            (true, false) => "active/running",
            (true, true) => "activating/auto-restart",
            (false, _) => "inactive/dead",
        };
        let pid = if dies { 0 } else { state.pid };
        Ok(State { active: active.into(), enabled: state.enabled, main_pid: pid })
    }
}

/// A socket at which a runtime says its name.
pub(crate) struct CriServer {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl CriServer {
    pub(crate) fn start(path: PathBuf, name: &'static str) -> Self {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        _ = fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tokio::select! {
                    () = accept(listener, name) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { path, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for CriServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        _ = fs::remove_file(&self.path);
    }
}

async fn accept(listener: tokio::net::UnixListener, name: &'static str) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/runtime.v1.RuntimeService/Version");
                let head =
                    http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut body = respond.send_response(head, false).unwrap();
                let message = VersionResponse { runtime_name: name.into(), ..VersionResponse::default() }
                    .encode_to_vec();
                let mut frame = BytesMut::new();
                frame.put_u8(0);
                frame.put_u32(message.len() as u32);
                frame.put_slice(&message);
                body.send_data(frame.freeze(), false).unwrap();
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                body.send_trailers(trailers).unwrap();
            }
        });
    }
}

/// A host set up by kubeadm, with containerd and a running kubelet.
pub(crate) struct Fixture {
    dir: TempDir,
    pub(crate) systemd: Systemd,
    pub(crate) containerd: Option<CriServer>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().join("host"));
        let units = HashMap::from([(KUBELET_UNIT.into(), Unit { running: true, enabled: true, pid: 10 })]);
        let systemd = Systemd {
            root: root.clone(),
            units,
            shim: None,
            next_pid: 100,
            kubelet_uses_shim: None,
            broken: Break::Nothing,
            calls: Vec::new(),
        };
        let containerd = CriServer::start(root.path("/run/containerd/containerd.sock"), "containerd");
        let fixture = Self { dir, systemd, containerd: Some(containerd) };
        fixture.write("/run/systemd/system/x", "");
        fixture.write("/etc/systemd/system/kubelet.service", "");
        fixture.write("/var/lib/kubelet/config.yaml", CONFIG);
        fixture.write("/var/lib/kubelet/kubeadm-flags.env", "KUBELET_KUBEADM_ARGS=\"--v=2\"\n");
        fixture.release("1");
        fixture
    }

    pub(crate) fn path(&self, host: &str) -> PathBuf {
        self.systemd.root.path(host)
    }

    pub(crate) fn write(&self, host: &str, text: &str) {
        let path = self.path(host);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, host: &str) -> String {
        fs::read_to_string(self.path(host)).unwrap()
    }

    /// The binaries of the image, as this build of them.
    pub(crate) fn release(&self, build: &str) -> PathBuf {
        let from = self.dir.path().join("image");
        fs::create_dir_all(&from).unwrap();
        for program in PROGRAMS {
            fs::write(from.join(program), format!("{program} {build}")).unwrap();
        }
        from
    }

    pub(crate) fn host(&mut self) -> Host<'_> {
        let patience = Patience {
            shim: Duration::from_millis(300),
            kubelet: Duration::from_millis(300),
            settled: Duration::from_millis(40),
            poll: Duration::from_millis(5),
        };
        Host { root: self.systemd.root.clone(), init: &mut self.systemd, patience }
    }

    pub(crate) fn options(&self) -> Install {
        Install {
            from: self.dir.path().join("image"),
            version: "0.1.0".into(),
            runtime: None,
            kubelet: Mode::Auto,
            again: false,
        }
    }

    pub(crate) fn install(&mut self) -> Result<Installed, Error> {
        let options = self.options();
        install(&mut self.host(), &options)
    }

    pub(crate) fn uninstall(&mut self) -> Result<Uninstalled, Error> {
        uninstall(&mut self.host(), &Uninstall::default(), &mut || Ok(()))
    }

    pub(crate) fn status(&mut self) -> Status {
        status(&mut self.host()).unwrap()
    }

    /// Everything that an installation may change: files with their contents and modes, links, units.
    pub(crate) fn snapshot(&self) -> Vec<String> {
        let mut seen = Vec::new();
        for dir in ["/etc", "/opt", "/var/lib/kubelet"] {
            walk(&self.path(dir), &mut seen);
        }
        for (name, unit) in &self.systemd.units {
            if unit.running || unit.enabled {
                seen.push(format!("{name} running={} enabled={}", unit.running, unit.enabled));
            }
        }
        seen.sort();
        seen
    }
}

fn walk(path: &Path, seen: &mut Vec<String>) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    let mode = metadata.permissions().mode() & 0o7777;
    if metadata.is_symlink() {
        seen.push(format!("{} -> {}", path.display(), fs::read_link(path).unwrap().display()));
    } else if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), seen);
        }
    } else {
        seen.push(format!("{} {mode:o} {}", path.display(), fs::read_to_string(path).unwrap()));
    }
}
