//! `woodfrog inspect` of an image in a registry, with files that CRIU wrote (crates/criu/testdata).

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;
use woodfrog_image::{
    CheckpointRecord, Compatibility, FileRecord, Listener, PageFileRecord, Process, Source, VolumeKind,
    VolumeRecord, labels, sha256,
};

const OCI: &str = "application/vnd.oci.image";

/// Serves what is at a path, until the test's process ends. Its address.
fn registry(content: HashMap<String, (String, Vec<u8>)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let path = request.split(' ').nth(1).unwrap_or_default();
            let nothing = (String::from("text/plain"), Vec::new());
            let (status, (kind, body)) = match content.get(path) {
                Some(found) => ("200 OK", found),
                None if path == "/v2/" => ("200 OK", &nothing),
                None => ("404 Not Found", &nothing),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // A client that has heard enough may be gone.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    address
}

/// A registry with the image `a/warm:1`: its state layer holds `record` and `files`.
fn with_image(labels: &Value, record: &[u8], files: &Path) -> String {
    let mut tar = tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, format!("{}/{name}", labels::CHECKPOINT_DIR), bytes).unwrap();
    };
    add(labels::RECORD_FILE, record);
    for entry in std::fs::read_dir(files).unwrap() {
        let entry = entry.unwrap();
        add(entry.file_name().to_str().unwrap(), &std::fs::read(entry.path()).unwrap());
    }
    let layer = tar.into_inner().unwrap().finish().unwrap();
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux", "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": []},
    }));
    let config = config.unwrap();
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": sha256(bytes), "size": bytes.len()});
    let kind = format!("{OCI}.manifest.v1+json");
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": kind,
        "config": descriptor(&format!("{OCI}.config.v1+json"), &config),
        "layers": [descriptor(labels::LAYER_MEDIA_TYPE, &layer)],
    }));
    let manifest = manifest.unwrap();
    let blob = |bytes: &[u8]| format!("/v2/a/warm/blobs/{}", sha256(bytes));
    let stream = || "application/octet-stream".to_owned();
    registry(HashMap::from([
        ("/v2/a/warm/manifests/1".to_owned(), (kind, manifest)),
        (blob(&config), (stream(), config)),
        (blob(&layer), (stream(), layer)),
    ]))
}

fn record(change: impl FnOnce(&mut Compatibility)) -> CheckpointRecord {
    let mut compatibility = Compatibility::of_this_node("1.0").unwrap();
    change(&mut compatibility);
    let file = |name: &str, size| FileRecord { name: name.into(), size, digest: sha256(b"") };
    CheckpointRecord {
        source: Source {
            container: "web".into(),
            namespace: "shop".into(),
            pod: "shop-1".into(),
            image: "r.example/web:1".into(),
            image_digest: sha256(b""),
        },
        created: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        generation: 2,
        seccomp_filters: 1,
        compatibility,
        environment: Vec::new(),
        stdio: Vec::new(),
        processes: vec![Process { pid: 300, name: "python3".into() }],
        listeners: vec![Listener { protocol: "tcp".into(), address: "0.0.0.0:8080".into() }],
        memory_mode: woodfrog_image::MemoryMode::Copied,
        after_restore: Vec::new(),
        pod_addresses: Vec::new(),
        files: Vec::new(),
        memory: vec![PageFileRecord { name: "pages-1.img".into(), size: 5 << 20 }],
        volumes: vec![VolumeRecord {
            mount_path: "/cache".into(),
            kind: VolumeKind::EmptyDir,
            archive: file("volumes/0.tar", 1),
            bytes: 7 << 20,
        }],
    }
}

fn checkpoint_labels() -> Value {
    json!({labels::FORMAT: "1", labels::ROOTFS_LAYERS: "0", labels::MEMORY_BYTES: "5242880"})
}

fn dump() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../criu/testdata/server")
}

fn inspect(address: &str, more: &[&str]) -> (i32, String, String) {
    let home = TempDir::new().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_woodfrog"))
        .args(["inspect", &format!("{address}/a/warm:1")])
        .args(more)
        .env("HOME", home.path())
        .env_remove("DOCKER_CONFIG")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn an_image_is_shown_with_its_processes_memory_files_sockets_and_volumes() {
    let json = record(|_| {}).to_json().unwrap();
    let address = with_image(&checkpoint_labels(), &json, &dump());
    let (code, out, err) = inspect(&address, &[]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for part in [
        "shop/shop-1/web (r.example/web:1)",
        "2023-11-14T22:13:20Z",
        "can be thawed here",
        "ANONYMOUS",
        "PID:FD",
        "listening",
        "/cache",
        "7.00 MiB",
    ] {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }

    let (code, out, _) = inspect(&address, &["--output", "json"]);
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &value["compatible"]), (0, &json!(true)));
    assert_eq!(value["record"]["generation"], 2);
    let root = &value["contents"]["processes"][0];
    assert!(
        root["pid"].as_u64().unwrap() >= 300 && root["memory"]["storedBytes"].as_u64().unwrap() > 0,
        "{root}"
    );
    assert!(!value["contents"]["sockets"].as_array().unwrap().is_empty());
}

#[test]
fn an_image_from_another_kind_of_machine_says_why_it_cannot_be_thawed_here() {
    let json = record(|there| there.architecture = "riscv64".into()).to_json().unwrap();
    let address = with_image(&checkpoint_labels(), &json, &dump());
    let (code, out, _) = inspect(&address, &[]);
    assert_eq!(code, 0);
    assert!(out.contains("cannot be thawed here") && out.contains("frozen on riscv64"), "{out}");
}

#[test]
fn what_criu_wrote_and_we_do_not_understand_does_not_hide_the_rest() {
    let files = TempDir::new().unwrap();
    std::fs::write(files.path().join("inventory.img"), "from the future").unwrap();
    let address = with_image(&checkpoint_labels(), &record(|_| {}).to_json().unwrap(), files.path());
    let (code, out, _) = inspect(&address, &[]);
    assert_eq!(code, 0);
    assert!(out.contains("what CRIU wrote cannot be shown: inventory.img"), "{out}");
    assert!(out.contains("shop/shop-1/web"), "{out}");
}

#[test]
fn an_ordinary_image_and_one_of_a_later_format_are_told_apart() {
    let address = with_image(&json!({}), b"", &dump());
    let (code, _, err) = inspect(&address, &[]);
    assert!(code == 1 && err.contains("an ordinary image"), "{code} {err}");

    let address = with_image(&json!({labels::FORMAT: "9"}), b"", &dump());
    let (code, _, err) = inspect(&address, &[]);
    assert!(code == 1 && err.contains("format \"9\""), "{code} {err}");
}
