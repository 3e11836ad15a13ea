//! What the tests of this crate share: a base image, files of a dump, and the real registry program.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses a part")]

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use woodfrog_image::*;

/// A record as an engine hands it to the builder.
pub fn record() -> CheckpointRecord {
    CheckpointRecord {
        source: Source {
            container: "web".into(),
            namespace: "shop".into(),
            pod: "web-1".into(),
            image: "registry.example/shop/web:1".into(),
            image_digest: sha256(b"image"),
        },
        created: SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000),
        generation: 0,
        seccomp_filters: 0,
        compatibility: Compatibility::of_this_node("4.2.1").unwrap(),
        environment: vec!["LANG=C".into()],
        stdio: Vec::new(),
        processes: vec![Process { pid: 300, name: "web".into() }],
        listeners: Vec::new(),
        memory_mode: MemoryMode::Copied,
        after_restore: Vec::new(),
        pod_addresses: Vec::new(),
        files: Vec::new(),
        memory: Vec::new(),
        volumes: Vec::new(),
    }
}

/// An image of one layer, whose blobs are in `store` as a runtime has them.
pub struct Base {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layer: String,
}

impl Base {
    pub fn new(store: &BlobStore) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(4);
        header.set_mode(0o644);
        tar.append_data(&mut header, "etc/base", &b"base"[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        let layer = store.put(&tar).unwrap();
        let config = serde_json::to_vec(&serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": {
                "Entrypoint": ["/bin/web"], "Cmd": ["--port", "80"], "Env": ["A=b"], "User": "1000",
                "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
                "Healthcheck": {"Test": ["CMD", "true"]}, "Labels": {"maintainer": "shop"},
            },
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created_by": "COPY"}, {"created_by": "CMD", "empty_layer": true}],
        }))
        .unwrap();
        let config_digest = store.put(&config).unwrap();
        let manifest = serde_json::to_vec(&serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest, "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": tar.len(),
            }],
        }))
        .unwrap();
        store.put(&manifest).unwrap();
        Self { manifest, config, layer }
    }

    pub fn image(&self) -> BaseImage {
        BaseImage::new(&self.manifest, &self.config).unwrap()
    }
}

/// The files of a small dump.
pub fn dump(directory: &Path) {
    std::fs::write(directory.join("inventory.img"), b"inventory").unwrap();
    std::fs::write(directory.join("core-300.img"), b"core").unwrap();
    std::fs::write(directory.join("dump.log"), b"not part of the image").unwrap();
    let pages: Vec<u8> =
        (0..3_000_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    std::fs::write(directory.join("pages-1.img"), pages).unwrap();
}

/// Builds a checkpoint image of [`dump`] upon `base`.
pub fn build(store: &BlobStore, base: BaseImage) -> BuiltImage {
    let dumped = tempfile::tempdir().unwrap();
    dump(dumped.path());
    let mut builder = ImageBuilder::new(store, base, record());
    builder.checkpoint_directory(dumped.path()).unwrap();
    builder.finish().unwrap()
}

/// A registry of Debian's package `docker-registry` on loopback; it ends with this value.
pub struct RegistryProcess {
    child: Child,
    pub host: String,
    pub storage: tempfile::TempDir,
}

impl Drop for RegistryProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Option<PathBuf> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&paths).collect();
    // The layers of test nodes.
    let layers = std::fs::read_dir("/var/cache/woodfrog/layers").into_iter().flatten().flatten();
    directories.extend(layers.map(|layer| layer.path().join("fs/usr/bin")));
    directories.into_iter().map(|directory| directory.join("docker-registry")).find(|path| path.exists())
}

/// Starts a registry. `None`, said on standard error, where the program is missing and not required.
pub fn registry(auth: bool) -> Option<RegistryProcess> {
    start(auth, false)
}

/// One that lets manifests be deleted, by who knows the password.
pub fn deleting_registry() -> Option<RegistryProcess> {
    start(true, true)
}

fn start(auth: bool, deletes: bool) -> Option<RegistryProcess> {
    let Some(program) = program() else {
        let required = std::env::var("WOODFROG_REQUIRE").unwrap_or_default();
        assert!(!required.contains("node"), "docker-registry is required and missing");
        eprintln!("skipped: there is no docker-registry; install Debian's package of that name");
        return None;
    };
    let storage = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let host = format!("127.0.0.1:{port}");
    let directory = storage.path().display();
    let mut config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{delete: {{enabled: {deletes}}}, filesystem: {{rootdirectory: {directory}/data}}}}\n\
         http: {{addr: '{host}'}}\n"
    );
    if auth {
        // User "frog", password "geheim".
        let htpasswd = storage.path().join("htpasswd");
        std::fs::write(
            &htpasswd,
            concat!("frog:", "$2y$04$ta72ty1EUTEU5hxfB536AuQjTbi12XDg5F0eE7saHh0tz7MF3Q.Wa", "\n"),
        )
        .unwrap();
        config += &format!("auth: {{htpasswd: {{realm: pond, path: {}}}}}\n", htpasswd.display());
    }
    let path = storage.path().join("config.yml");
    std::fs::File::create(&path).unwrap().write_all(config.as_bytes()).unwrap();
    let child = Command::new(program)
        .arg("serve")
        .arg(&path)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = RegistryProcess { child, host, storage };
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(&process.host).is_err() {
        assert!(Instant::now() < deadline, "the registry does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(process)
}

/// Options for a registry on loopback that fail fast.
pub fn options(host: &str) -> RegistryOptions {
    RegistryOptions {
        plain_http: vec![host.to_owned()],
        attempts: 2,
        backoff: Duration::from_millis(10),
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            request: Duration::from_secs(5),
            stall: Duration::from_secs(5),
        },
        ..RegistryOptions::default()
    }
}
