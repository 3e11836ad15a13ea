//! Push and pull against the real registry program, and against servers that fail in every way that registries do.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use support::{Base, build, deleting_registry, options, registry};
use woodfrog_image::*;

fn reference(host: &str, name: &str) -> Reference {
    format!("{host}/{name}").parse().unwrap()
}

struct Scene {
    store: BlobStore,
    base: Base,
    image: BuiltImage,
    _directory: tempfile::TempDir,
}

fn scene() -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let base = Base::new(&store);
    let image = build(&store, base.image());
    Scene { store, base, image, _directory: directory }
}

impl Scene {
    async fn push(&self, registry: &Registry, to: &Reference) -> Result<Pushed, RegistryError> {
        registry.push(&self.image, to, None, &[Arc::new(self.store.clone())], &NoProgress).await
    }
}

/// Remembers what it is told.
#[derive(Default)]
struct Seen {
    sent: Mutex<Vec<(String, u64, u64)>>,
    finished: Mutex<Vec<(String, BlobOutcome)>>,
}

impl PushProgress for Seen {
    fn sent(&self, digest: &str, done: u64, total: u64) {
        self.sent.lock().unwrap().push((digest.to_owned(), done, total));
    }
    fn finished(&self, digest: &str, _total: u64, outcome: BlobOutcome) {
        self.finished.lock().unwrap().push((digest.to_owned(), outcome));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_an_image_is_pushed_and_read_back() {
    let Some(process) = registry(false) else { return };
    let scene = scene();
    let client = Registry::new(options(&process.host)).unwrap();
    let to = reference(&process.host, "shop/web:frozen");
    let seen = Seen::default();
    let sources: [Arc<dyn BlobSource>; 1] = [Arc::new(scene.store.clone())];
    let pushed = client.push(&scene.image, &to, None, &sources, &seen).await.unwrap();
    assert_eq!(pushed.digest, scene.image.digest);
    assert!(pushed.blobs.iter().all(|(_, outcome)| *outcome == BlobOutcome::Uploaded), "{pushed:?}");
    assert!(seen.sent.lock().unwrap().iter().any(|(_, done, total)| done == total && *total > 5_000_000));
    assert_eq!(seen.finished.lock().unwrap().len(), 4);

    let pulled = client.pull(&to).await.unwrap();
    assert_eq!(pulled.digest, scene.image.digest);
    assert_eq!(pulled.manifest_json, scene.image.manifest);
    let labels = pulled.checkpoint().unwrap().unwrap();
    assert_eq!((labels.rootfs_layers, labels.memory_bytes), (1, 12_000_000));
    assert_eq!(labels.memory_layers(&pulled.manifest).len(), 1);
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = BlobStore::open(elsewhere.path()).unwrap();
    let record = client.record(&to, &pulled, &elsewhere).await.unwrap().unwrap();
    assert_eq!(record, scene.image.record);

    let again = scene.push(&client, &to).await.unwrap();
    assert!(again.blobs.iter().all(|(_, outcome)| *outcome == BlobOutcome::Present), "{again:?}");
    assert_eq!(again.sent, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_base_layers_are_mounted_across_repositories_of_one_registry() {
    let Some(process) = registry(false) else { return };
    let scene = scene();
    let client = Registry::new(options(&process.host)).unwrap();
    let base = reference(&process.host, "library/base:1");
    // Any image with the base layer will do.
    scene.push(&client, &base).await.unwrap();
    let without_base = tempfile::tempdir().unwrap();
    let store = BlobStore::open(without_base.path()).unwrap();
    let image = build(&store, scene.base.image());
    store.remove(&scene.base.layer).unwrap();
    let to = reference(&process.host, "shop/web:1");
    let sources: [Arc<dyn BlobSource>; 1] = [Arc::new(store)];
    let pushed = client.push(&image, &to, Some(&base), &sources, &NoProgress).await.unwrap();
    assert!(pushed.blobs.contains(&(scene.base.layer.clone(), BlobOutcome::Mounted)), "{pushed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_base_layers_of_another_registry_are_streamed_from_there() {
    let (Some(one), Some(other)) = (registry(false), registry(false)) else { return };
    let scene = scene();
    let both =
        RegistryOptions { plain_http: vec![one.host.clone(), other.host.clone()], ..options(&one.host) };
    let client = Registry::new(both).unwrap();
    let base = reference(&one.host, "library/base:1");
    scene.push(&client, &base).await.unwrap();
    scene.store.remove(&scene.base.layer).unwrap();
    let to = reference(&other.host, "shop/web:1");
    let sources: [Arc<dyn BlobSource>; 2] = [
        Arc::new(scene.store.clone()),
        Arc::new(RepositorySource { registry: client.clone(), image: base.clone() }),
    ];
    let pushed = client.push(&scene.image, &to, Some(&base), &sources, &NoProgress).await.unwrap();
    assert!(pushed.blobs.contains(&(scene.base.layer.clone(), BlobOutcome::Uploaded)), "{pushed:?}");
    assert_eq!(client.pull(&to).await.unwrap().digest, scene.image.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_a_base_layer_that_nobody_has_is_named() {
    let Some(process) = registry(false) else { return };
    let scene = scene();
    scene.store.remove(&scene.base.layer).unwrap();
    let client = Registry::new(options(&process.host)).unwrap();
    let to = reference(&process.host, "shop/web:1");
    let error = scene.push(&client, &to).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::MissingLayer { digest, .. } if *digest == scene.base.layer),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn node_a_password_is_asked_for_and_used() {
    let Some(process) = registry(true) else { return };
    let scene = scene();
    let to = reference(&process.host, "shop/web:1");
    let anonymous = Registry::new(options(&process.host)).unwrap();
    for error in [scene.push(&anonymous, &to).await.unwrap_err(), anonymous.pull(&to).await.unwrap_err()] {
        let text = error.to_string();
        assert!(
            matches!(error, RegistryError::Unauthorized { status: 401, logged_in: false, .. }),
            "{error:?}"
        );
        assert!(
            text.contains(&process.host) && text.contains("shop/web") && text.contains("pull secret"),
            "{text}"
        );
    }
    let login = |password: &str| {
        let login = Login::Password { user: "frog".into(), password: password.into() };
        let credentials = Credentials::default().with(&process.host, login);
        Registry::new(RegistryOptions { credentials, ..options(&process.host) }).unwrap()
    };
    let error = scene.push(&login("falsch"), &to).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { logged_in: true, .. }), "{error:?}");
    assert!(error.to_string().contains("were not accepted"), "{error}");
    scene.push(&login("geheim"), &to).await.unwrap();
    assert_eq!(login("geheim").pull(&to).await.unwrap().digest, scene.image.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_an_image_that_is_not_there_is_named() {
    let Some(process) = registry(false) else { return };
    let client = Registry::new(options(&process.host)).unwrap();
    let error = client.pull(&reference(&process.host, "shop/none:1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("shop/none"), "{error}");
}

fn as_frog(host: &str) -> Registry {
    let login = Login::Password { user: "frog".into(), password: "geheim".into() };
    let credentials = Credentials::default().with(host, login);
    Registry::new(RegistryOptions { credentials, ..options(host) }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn node_an_image_is_deleted_by_its_digest_and_again_without_harm() {
    let Some(process) = deleting_registry() else { return };
    let scene = scene();
    let client = as_frog(&process.host);
    let (old, other) =
        (reference(&process.host, "shop/web:warm"), reference(&process.host, "shop/other:warm"));
    let digest = scene.push(&client, &old).await.unwrap().digest;
    scene.push(&client, &other).await.unwrap();
    let anonymous = Registry::new(options(&process.host)).unwrap();
    let error = anonymous.delete(&old, &digest).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error:?}");
    assert_eq!(client.delete(&old, &digest).await.unwrap(), Deletion::Deleted);
    assert_eq!(client.delete(&old, &digest).await.unwrap(), Deletion::Absent);
    assert!(matches!(client.pull(&old).await.unwrap_err(), RegistryError::NotFound { .. }));
    // The same manifest in another repository is another image.
    assert_eq!(client.pull(&other).await.unwrap().digest, digest);
    let nowhere = reference(&process.host, "shop/none:1");
    assert_eq!(client.delete(&nowhere, &digest).await.unwrap(), Deletion::Absent);
}

#[tokio::test(flavor = "multi_thread")]
async fn node_a_registry_that_deletes_nothing_is_told_from_one_that_fails() {
    let Some(process) = registry(false) else { return };
    let scene = scene();
    let client = Registry::new(options(&process.host)).unwrap();
    let image = reference(&process.host, "shop/web:warm");
    let digest = scene.push(&client, &image).await.unwrap().digest;
    let error = client.delete(&image, &digest).await.unwrap_err();
    assert!(matches!(error, RegistryError::DeletionUnsupported { status: 405, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("shop/web") && text.contains("REGISTRY_STORAGE_DELETE_ENABLED=true"), "{text}");
    assert_eq!(client.pull(&image).await.unwrap().digest, digest);
    let absent = format!("sha256:{}", "0".repeat(64));
    assert_eq!(client.delete(&image, &absent).await.unwrap(), Deletion::Absent);
}

/// A source whose blobs end too early or go on too long.
struct Damaged(BlobStore, i64);

#[async_trait]
impl BlobSource for Damaged {
    async fn open(&self, digest: &str, size: u64) -> std::io::Result<Option<BlobReader>> {
        let Some(file) = self.0.get(digest, size).unwrap() else { return Ok(None) };
        let mut bytes = Vec::new();
        std::io::BufReader::new(file).read_to_end(&mut bytes)?;
        bytes.resize((bytes.len() as i64 + self.1) as usize, 0);
        Ok(Some(Box::pin(std::io::Cursor::new(bytes))))
    }
    fn name(&self) -> String {
        "a damaged disk".into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_a_layer_of_the_wrong_length_never_becomes_part_of_an_image() {
    let Some(process) = registry(false) else { return };
    let scene = scene();
    let client = Registry::new(options(&process.host)).unwrap();
    let to = reference(&process.host, "shop/web:1");
    for by in [-1, 1] {
        let sources: [Arc<dyn BlobSource>; 1] = [Arc::new(Damaged(scene.store.clone(), by))];
        let error = client.push(&scene.image, &to, None, &sources, &NoProgress).await.unwrap_err();
        assert!(matches!(error, RegistryError::Length { .. }), "{error:?}");
        assert!(matches!(client.pull(&to).await.unwrap_err(), RegistryError::NotFound { .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down_is_named_and_tried_again() {
    let scene = scene();
    let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let client = Registry::new(options(&host)).unwrap();
    let started = Instant::now();
    let error = scene.push(&client, &reference(&host, "shop/web:1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&host) && error.to_string().contains("shop/web"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// A server whose every request is answered by a closure; `None` never answers.
struct Fake {
    host: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    fn start(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || serve(connection.unwrap(), &seen, answer.as_ref()));
            }
        });
        Self { host, requests }
    }
}

/// One request a connection; heads are read whole, bodies not at all.
fn serve(
    mut connection: TcpStream,
    seen: &Mutex<Vec<String>>,
    answer: &(dyn Fn(&str) -> Option<String> + Sync),
) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(head.clone());
    match answer(&head) {
        Some(answer) => drop(connection.write_all(answer.as_bytes())),
        None => std::thread::sleep(Duration::from_secs(30)),
    }
}

fn respond(status: &str, headers: &str, body: &str) -> Option<String> {
    Some(format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    ))
}

fn hurried(host: &str) -> RegistryOptions {
    let timeouts = Timeouts {
        connect: Duration::from_secs(1),
        request: Duration::from_millis(400),
        stall: Duration::from_millis(400),
    };
    RegistryOptions { timeouts, ..options(host) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_accepts_and_then_says_nothing_is_given_up() {
    let fake = Fake::start(|_| None);
    let scene = scene();
    let client = Registry::new(hurried(&fake.host)).unwrap();
    let started = Instant::now();
    let error = scene.push(&client, &reference(&fake.host, "shop/web:1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Slow { .. }), "{error:?}");
    assert!(error.to_string().contains("0.4 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stalls_is_given_up() {
    let fake = Fake::start(|head| {
        if head.starts_with("POST") {
            respond("202 Accepted", "Location: /v2/shop/web/blobs/uploads/1\r\n", "")
        } else if head.starts_with("HEAD") {
            respond("404 Not Found", "", "")
        } else if head.starts_with("PUT") {
            None
        } else {
            respond("200 OK", "", "{}")
        }
    });
    let scene = scene();
    let client = Registry::new(hurried(&fake.host)).unwrap();
    let started = Instant::now();
    let error = scene.push(&client, &reference(&fake.host, "shop/web:1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Slow { operation: "take a layer into", .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_in_trouble_is_tried_again_but_not_for_ever() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let fake = Fake::start(move |head| {
        if head.starts_with("HEAD") {
            counter.fetch_add(1, Ordering::Relaxed);
            return respond("503 Service Unavailable", "", "");
        }
        respond("200 OK", "", "{}")
    });
    let scene = scene();
    let one_at_a_time = RegistryOptions { uploads: 1, attempts: 3, ..hurried(&fake.host) };
    let client = Registry::new(one_at_a_time).unwrap();
    let error = scene.push(&client, &reference(&fake.host, "shop/web:1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 503, .. }), "{error:?}");
    assert_eq!(count.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_token_is_fetched_for_both_repositories_and_used() {
    let host = Arc::new(Mutex::new(String::new()));
    let realm = Arc::clone(&host);
    let fake = Fake::start(move |head| {
        let path = head.split(' ').nth(1).unwrap();
        if path == "/v2/" {
            let realm = realm.lock().unwrap();
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\",service=\"pond\"\r\n");
            return respond("401 Unauthorized", &challenge, "");
        }
        if path.starts_with("/token") {
            return respond("200 OK", "", r#"{"access_token": "opaque"}"#);
        }
        if !head.to_lowercase().contains("authorization: bearer opaque") {
            return respond("401 Unauthorized", "", "");
        }
        if head.starts_with("HEAD") && path.contains("/blobs/") {
            return respond("404 Not Found", "", "");
        }
        if head.starts_with("POST") {
            return respond("201 Created", "Location: /somewhere\r\n", "");
        }
        respond("201 Created", "Location: /somewhere\r\n", "")
    });
    host.lock().unwrap().clone_from(&fake.host);
    let scene = scene();
    let login = Login::Password { user: "frog".into(), password: "geheim".into() };
    let credentials = Credentials::default().with(&fake.host, login);
    let client = Registry::new(RegistryOptions { credentials, ..options(&fake.host) }).unwrap();
    let base = reference(&fake.host, "library/base:1");
    let to = reference(&fake.host, "shop/web:1");
    let pushed = client.push(&scene.image, &to, Some(&base), &[], &NoProgress).await.unwrap();
    assert!(pushed.blobs.iter().all(|blob| blob.1 == BlobOutcome::Mounted));
    let requests = fake.requests.lock().unwrap();
    let tokens: Vec<_> = requests.iter().filter(|head| head.contains(" /token")).collect();
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    let decoded = tokens[0].replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    assert!(decoded.contains("scope=repository:shop/web:pull,push"), "{decoded}");
    assert!(decoded.contains("scope=repository:library/base:pull"), "{decoded}");
    assert!(decoded.to_lowercase().contains("authorization: basic"), "{decoded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_to_delete_asks_for_all_that_registries_call_it() {
    let host = Arc::new(Mutex::new(String::new()));
    let realm = Arc::clone(&host);
    let fake = Fake::start(move |head| {
        let path = head.split(' ').nth(1).unwrap();
        if path == "/v2/" {
            let realm = realm.lock().unwrap();
            let challenge =
                format!("WWW-Authenticate: Bearer realm=\"http://{realm}/token\",service=\"pond\"\r\n");
            respond("401 Unauthorized", &challenge, "")
        } else if path.starts_with("/token") {
            respond("200 OK", "", r#"{"token": "opaque"}"#)
        } else if head.to_lowercase().contains("authorization: bearer opaque") {
            respond("202 Accepted", "", "")
        } else {
            respond("401 Unauthorized", "", "")
        }
    });
    host.lock().unwrap().clone_from(&fake.host);
    let client = Registry::new(options(&fake.host)).unwrap();
    let digest = sha256(b"manifest");
    let deleted = client.delete(&reference(&fake.host, "shop/web:warm"), &digest).await.unwrap();
    assert_eq!(deleted, Deletion::Deleted);
    let requests = fake.requests.lock().unwrap();
    assert!(
        requests.iter().any(|head| head.starts_with(&format!("DELETE /v2/shop/web/manifests/{digest} ")))
    );
    let token = requests.iter().find(|head| head.contains(" /token")).unwrap();
    let decoded = token.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
    assert!(decoded.contains("scope=repository:shop/web:pull,push,delete"), "{decoded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_its_digest_says_is_not_kept() {
    let scene = scene();
    let manifest = String::from_utf8(scene.image.manifest.clone()).unwrap();
    let config_path = scene.store.path(scene.image.config.digest().as_ref()).unwrap();
    let config = std::fs::read_to_string(config_path).unwrap();
    let state = scene.image.new_layers[0].clone();
    let (length, digest) = (state.size as usize, state.digest.clone());
    let fake = Fake::start(move |head| {
        let path = head.split(' ').nth(1).unwrap();
        if path.contains("/manifests/") {
            return respond(
                "200 OK",
                "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n",
                &manifest,
            );
        }
        if path.contains(&digest) {
            let body = if head.starts_with("HEAD") { 0 } else { length };
            return respond("200 OK", "", &"x".repeat(body));
        }
        respond("200 OK", "", &config)
    });
    let client = Registry::new(options(&fake.host)).unwrap();
    let image = reference(&fake.host, "shop/web:1");
    let pulled = client.pull(&image).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let store = BlobStore::open(elsewhere.path()).unwrap();
    let error = client.record(&image, &pulled, &store).await.unwrap_err();
    assert!(matches!(error, RegistryError::Store(StoreError::WrongDigest { .. })), "{error:?}");
    assert!(store.get(&state.digest, state.size).unwrap().is_none());
}
