//! Probes as clients send them, to a responder on loopback.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;

use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::engine::http::{self as client, Believes, Target};
use hyper_util::rt::{TokioExecutor, TokioIo};

/// A responder that listens on an address of loopback, without the right to stand in for others.
fn responder(address: IpAddr) -> (Responder, SocketAddr) {
    let (responder, address, _) = responder_and_hooks(address);
    (responder, address)
}

/// The same, and the hooks that it leaves.
fn responder_and_hooks(address: IpAddr) -> (Responder, SocketAddr, Arc<Mutex<Vec<Hook>>>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let hooks: Arc<Mutex<Vec<Hook>>> = Arc::default();
    let into = hooks.clone();
    let leave: Leave = Arc::new(move |hook| {
        into.lock().unwrap().push(hook);
        Box::pin(std::future::ready(()))
    });
    (Responder::serve(vec![listener], &Arc::default(), leave).unwrap(), address, hooks)
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// `GET /healthz`; the answer's body.
async fn get<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, http_2: bool) -> String {
    let request = http::Request::get("https://pod/healthz").body(Empty::<bytes::Bytes>::new()).unwrap();
    let io = TokioIo::new(stream);
    let response = if http_2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    assert_eq!(response.status(), 200);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn http_is_answered_over_both_families() {
    for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        let (_responder, address) = responder(address);
        for http_2 in [false, true] {
            assert_eq!(get(connect(address).await, http_2).await, "asleep, and ready\n");
        }
    }
}

#[tokio::test]
async fn https_is_answered_with_every_version_of_tls_and_http() {
    let (_responder, address) = responder(Ipv4Addr::LOCALHOST.into());
    for version in rustls::ALL_VERSIONS {
        for (http_2, protocol) in [(false, &b"http/1.1"[..]), (true, b"h2")] {
            let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Believes))
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            let name = ServerName::from(address.ip());
            let stream = TlsConnector::from(Arc::new(config)).connect(name, connect(address).await).await;
            let stream = stream.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
            assert_eq!(get(stream, http_2).await, "asleep, and ready\n");
        }
    }
}

#[tokio::test]
async fn grpc_s_health_check_says_serving() {
    let (_responder, address) = responder(Ipv6Addr::LOCALHOST.into());
    let channel = tonic::transport::Endpoint::new(format!("http://{address}")).unwrap().connect().await;
    let mut client = HealthClient::new(channel.unwrap());
    let answer = client.check(HealthCheckRequest { service: "any".into() }).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn a_hook_of_kubelet_s_is_left_as_it_came_and_a_probe_is_not() {
    let (_responder, address, hooks) = responder_and_hooks(Ipv4Addr::LOCALHOST.into());
    let init = std::process::id() as i32;
    for (agent, https) in
        [("kube-probe/1.36", false), ("kube-lifecycle/1.36", false), ("kube-lifecycle/1.36", true)]
    {
        let request = http::Request::get("/started?really")
            .header("host", "the-pod")
            .header("user-agent", agent)
            .header("x-colour", "green")
            .body(Default::default())
            .unwrap();
        let target = Target { address: address.ip(), port: address.port(), https };
        assert_eq!(client::send(init, target, request, DEADLINE).await.unwrap(), 200);
    }
    let hooks = hooks.lock().unwrap();
    assert_eq!(hooks.len(), 2, "{hooks:?}");
    for (hook, https) in hooks.iter().zip([false, true]) {
        let get = hook.get.as_ref().unwrap();
        let to = (get.address.as_str(), get.port, get.https, get.path.as_str());
        assert_eq!(to, ("127.0.0.1", address.port().into(), https, "/started?really"));
        for (name, value) in
            [("host", "the-pod"), ("x-colour", "green"), ("user-agent", "kube-lifecycle/1.36")]
        {
            let named = get.headers.iter().find(|header| header.name == name);
            assert_eq!(named.map(|header| &*header.value), Some(value.as_bytes()), "{get:?}");
        }
    }
}

#[tokio::test]
async fn those_that_say_nothing_are_bounded_and_make_room_when_they_go() {
    let (_responder, address) = responder(Ipv4Addr::LOCALHOST.into());
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        silent.push(connect(address).await);
    }
    let waiting = tokio::spawn(async move { get(connect(address).await, false).await });
    tokio::task::yield_now().await;
    silent.pop();
    assert_eq!(waiting.await.unwrap(), "asleep, and ready\n");
}
