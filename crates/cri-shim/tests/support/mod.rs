//! A runtime and a client that speak HTTP/2 by hand, so that tests see every byte, and a shim between them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use woodfrog_cri_shim::{Config, run};

pub(crate) const SOON: Duration = Duration::from_secs(5);

/// `future`, which must not take long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("within five seconds")
}

/// `condition` becomes true before long.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within five seconds: {what}");
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    map
}

pub(crate) fn frame(message: &[u8]) -> Bytes {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat().into()
}

pub(crate) fn decode<M: Message + Default>(body: &[u8]) -> M {
    assert_eq!(u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize, body.len() - 5);
    M::decode(&body[5..]).unwrap()
}

/// A body, with the windows opened as it is read.
pub(crate) async fn read(body: &mut RecvStream) -> Result<(Bytes, Option<HeaderMap>), h2::Error> {
    let mut whole = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        whole.extend_from_slice(&data);
    }
    Ok((whole.freeze(), body.trailers().await?))
}

pub(crate) async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(e),
                None => return Err(Reason::CANCEL.into()),
            }
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        let last = end && data.is_empty();
        stream.send_data(piece, last)?;
    }
    Ok(())
}

type Handled = Pin<Box<dyn Future<Output = ()> + Send>>;
type Handler = Arc<dyn Fn(Request<RecvStream>, SendResponse<Bytes>) -> Handled + Send + Sync>;

/// A runtime on a socket; it ends when dropped, with all its connections.
pub(crate) struct Runtime {
    _server: Abort,
}

struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Runtime {
    pub(crate) fn start<F, H>(socket: &Path, handler: H) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        H: Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    {
        _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let handler: Handler = Arc::new(move |request, respond| Box::pin(handler(request, respond)));
        Self { _server: Abort(tokio::spawn(serve(listener, handler))) }
    }

    /// Answers each call by its path and its body.
    pub(crate) fn answering(
        socket: &Path,
        answer: impl Fn(&str, Bytes) -> Result<Bytes, u16> + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        Self::start(socket, move |request, mut respond| {
            let answer = answer.clone();
            async move {
                let path = request.uri().path().to_owned();
                let Ok((body, _)) = read(&mut request.into_body()).await else { return };
                match answer(&path, body) {
                    Ok(body) => reply(&mut respond, body).await,
                    Err(code) => {
                        let mut head = Response::new(());
                        *head.headers_mut() = map(&[("content-type", "application/grpc")]);
                        head.headers_mut().insert("grpc-status", code.into());
                        _ = respond.send_response(head, true);
                    }
                }
            }
        })
    }
}

async fn serve(listener: UnixListener, handler: Handler) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let handler = handler.clone();
        connections.spawn(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                // Outlives its connection, to see it end.
                tokio::spawn(handler(request, respond));
            }
        });
    }
}

/// A whole successful answer.
pub(crate) async fn reply(respond: &mut SendResponse<Bytes>, body: Bytes) {
    let mut head = Response::new(());
    *head.headers_mut() = map(&[("content-type", "application/grpc")]);
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    if send(&mut stream, body, false).await.is_ok() {
        _ = stream.send_trailers(map(&[("grpc-status", "0")]));
    }
}

/// A directory with a shim in it, which ends when dropped.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    shim: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut config = Config::new(at("cri.sock"), at("runtime.sock"));
        config.agent = at("agent.sock");
        config.containers = at("containers");
        config.init = at("woodfrog-init");
        config.kdat = at("criu.kdat");
        config.seccomp_profile = at("state/no-io-uring.json");
        std::fs::write(&config.init, "binary").unwrap();
        std::fs::write(&config.kdat, "kdat").unwrap();
        Self { dir, config, shim: None }
    }

    /// A node whose shim runs.
    pub(crate) async fn up() -> Self {
        let mut node = Self::new();
        node.start().await;
        node
    }

    pub(crate) async fn start(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let config = self.config.clone();
        let task = tokio::spawn(async move {
            run(config, async { _ = stopped.await }).await.unwrap();
        });
        self.shim = Some((stop, task));
        let listen = self.config.listen.clone();
        until("the shim listens", || listen.exists()).await;
    }

    /// Asks the shim to end and gives what to wait for.
    pub(crate) fn stop(&mut self) -> JoinHandle<()> {
        let (stop, task) = self.shim.take().unwrap();
        _ = stop.send(());
        task
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.config.runtime.clone()
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.config.listen).await
    }

    pub(crate) fn control_dirs(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.config.containers) else { return vec![] };
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

/// What a client sees of a call.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) head: Response<()>,
    /// Whether the head was all.
    pub(crate) head_only: bool,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Outcome {
    pub(crate) fn status(&self) -> &str {
        let value = self.trailers.get("grpc-status").or_else(|| self.head.headers().get("grpc-status"));
        value.map_or("", |v| v.to_str().unwrap())
    }

    pub(crate) fn message(&self) -> &str {
        let value = self.trailers.get("grpc-message").or_else(|| self.head.headers().get("grpc-message"));
        value.map_or("", |v| v.to_str().unwrap())
    }
}

pub(crate) struct Client {
    sender: SendRequest<Bytes>,
    _connection: Abort,
}

impl Client {
    pub(crate) async fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        Self { sender, _connection: Abort(tokio::spawn(async move { _ = connection.await })) }
    }

    /// Begins a call.
    pub(crate) async fn open(
        &self,
        path: &str,
        metadata: &HeaderMap,
    ) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
        let mut head = Request::post(format!("http://localhost{path}")).body(()).unwrap();
        *head.headers_mut() = metadata.clone();
        head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        head.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        self.sender.clone().ready().await.unwrap().send_request(head, false).unwrap()
    }

    /// A whole call.
    pub(crate) async fn call(
        &self,
        path: &str,
        metadata: &HeaderMap,
        body: Bytes,
    ) -> Result<Outcome, h2::Error> {
        let (response, mut stream) = self.open(path, metadata).await;
        // A server may answer without having read everything.
        _ = send(&mut stream, body, true).await;
        let (parts, mut body) = response.await?.into_parts();
        let head_only = body.is_end_stream();
        let (body, trailers) = read(&mut body).await?;
        let trailers = trailers.unwrap_or_default();
        Ok(Outcome { head: Response::from_parts(parts, ()), head_only, body, trailers })
    }

    /// A whole call of a CRI method, with types.
    pub(crate) async fn ask(&self, method: &str, request: &impl Message) -> Outcome {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        soon(self.call(&path, &HeaderMap::new(), frame(&request.encode_to_vec()))).await.unwrap()
    }
}

/// Values that a handler leaves for the test.
pub(crate) type Shared<T> = Arc<Mutex<T>>;
