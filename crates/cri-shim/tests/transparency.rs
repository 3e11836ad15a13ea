//! What passes through the shim passes unchanged.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response};
use support::*;
use tokio::sync::{mpsc, oneshot};

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const EVENTS: &str = "/runtime.v1.RuntimeService/GetContainerEvents";

/// The methods of `pkg/apis/runtime/v1/api.proto` of kubernetes/cri-api, its streaming variants among them.
const RUNTIME_SERVICE: &[&str] = &[
    "Version",
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "PodSandboxStatus",
    "ListPodSandbox",
    "StreamPodSandboxes",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ListContainers",
    "StreamContainers",
    "ContainerStatus",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "ExecSync",
    "Exec",
    "Attach",
    "PortForward",
    "ContainerStats",
    "ListContainerStats",
    "StreamContainerStats",
    "PodSandboxStats",
    "ListPodSandboxStats",
    "StreamPodSandboxStats",
    "UpdateRuntimeConfig",
    "Status",
    "CheckpointContainer",
    "CheckpointPod",
    "RestorePod",
    "GetContainerEvents",
    "ListMetricDescriptors",
    "ListPodSandboxMetrics",
    "StreamPodSandboxMetrics",
    "RuntimeConfig",
    "UpdatePodSandboxResources",
    "NotYetInvented",
];
const IMAGE_SERVICE: &[&str] = &[
    "ListImages",
    "StreamImages",
    "ImageStatus",
    "PullImage",
    "RemoveImage",
    "ImageFsInfo",
    "NotYetInvented",
];

fn methods() -> Vec<String> {
    let of = |service: &str, methods: &[&str]| -> Vec<String> {
        methods.iter().map(|method| format!("/{service}/{method}")).collect()
    };
    let mut all = of("runtime.v1.RuntimeService", RUNTIME_SERVICE);
    all.extend(of("runtime.v1.ImageService", IMAGE_SERVICE));
    all.extend(of("runtime.v1alpha2.RuntimeService", &["Version", "CreateContainer"]));
    all.extend(of("containerd.services.snapshots.v1.Snapshots", &["List"]));
    all
}

/// A message of fields that no release of CRI has: a string, a varint, 8 bytes and 4 bytes.
fn unknown_fields(seed: u8) -> Vec<u8> {
    let mut message = vec![0x92, 0x89, 0x02, 3, seed, b'a', b'b', 0x98, 0x89, 0x02, 0xff, 0x01];
    message.extend([0xa1, 0x89, 0x02, 1, 2, 3, 4, 5, 6, 7, seed]);
    message.extend([0xad, 0x89, 0x02, 1, 2, 3, seed]);
    message
}

/// Copies what it is asked into its answer: the body, and the headers that begin with `x-` into head and trailers.
fn echo(node: &Node, seen: Shared<Vec<(String, HeaderMap, Bytes)>>) -> Runtime {
    Runtime::start(&node.runtime(), move |request, mut respond| {
        let seen = seen.clone();
        async move {
            let (parts, mut body) = request.into_parts();
            let (body, _) = read(&mut body).await.unwrap();
            seen.lock().unwrap().push((parts.uri.path().to_owned(), parts.headers.clone(), body.clone()));
            let mut head = Response::new(());
            let mut trailers = map(&[("grpc-status", "0")]);
            for (name, value) in parts.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-")) {
                head.headers_mut().append(name, value.clone());
                trailers.append(name, value.clone());
            }
            let mut stream = respond.send_response(head, false).unwrap();
            send(&mut stream, body, false).await.unwrap();
            stream.send_trailers(trailers).unwrap();
        }
    })
}

#[tokio::test]
async fn every_method_passes_byte_for_byte() {
    let node = Node::up().await;
    let seen = Shared::default();
    let _runtime = echo(&node, seen.clone());
    let client = node.client().await;
    let metadata = map(&[
        ("x-text", "one"),
        ("x-text", "two"),
        ("x-octets-bin", "AAEC/w=="),
        ("grpc-timeout", "1234567u"),
        ("user-agent", "grpc-go/1.2.3"),
        ("grpc-accept-encoding", "gzip"),
        ("traceparent", "00-0af7-b7ad-01"),
    ]);
    for (n, path) in methods().iter().enumerate() {
        let body = frame(&unknown_fields(n as u8));
        let outcome = soon(client.call(path, &metadata, body.clone())).await.unwrap();
        assert_eq!(outcome.body, body, "{path}");
        let echoed = |map: &HeaderMap| -> Vec<_> { map.get_all("x-text").iter().cloned().collect() };
        assert_eq!(echoed(outcome.head.headers()), ["one", "two"]);
        assert_eq!(echoed(&outcome.trailers), ["one", "two"]);
        assert_eq!(outcome.trailers["x-octets-bin"], "AAEC/w==");

        let seen = seen.lock().unwrap();
        let (_, headers, got) = seen.iter().find(|(p, ..)| p == path).unwrap();
        assert_eq!(got, &body, "{path}");
        let mut expected = metadata.clone();
        expected.extend(map(&[("content-type", "application/grpc"), ("te", "trailers")]));
        assert_eq!(headers, &expected, "{path}");
    }
}

#[tokio::test]
async fn a_compressed_message_stays_compressed() {
    let node = Node::up().await;
    let _runtime = echo(&node, Shared::default());
    let client = node.client().await;
    for path in methods() {
        let mut body = frame(b"\x1f\x8b not a message").to_vec();
        body[0] = 1;
        let outcome = soon(client.call(&path, &HeaderMap::new(), body.clone().into())).await.unwrap();
        assert_eq!(outcome.body, body, "{path}");
    }
}

#[tokio::test]
async fn an_error_passes_with_its_details_and_in_its_form() {
    let node = Node::up().await;
    let _runtime = Runtime::start(&node.runtime(), |_, mut respond| async move {
        let mut head = Response::new(());
        *head.headers_mut() = map(&[
            ("content-type", "application/grpc"),
            ("grpc-status", "5"),
            ("grpc-message", "no %22it%22"),
            ("grpc-status-details-bin", "CAUSBG5vIGl0"),
        ]);
        respond.send_response(head, true).unwrap();
    });
    let client = node.client().await;
    for path in methods() {
        let outcome = soon(client.call(&path, &HeaderMap::new(), frame(b""))).await.unwrap();
        assert!(outcome.head_only, "{path}");
        assert_eq!((outcome.status(), outcome.message()), ("5", "no %22it%22"), "{path}");
        assert_eq!(outcome.head.headers()["grpc-status-details-bin"], "CAUSBG5vIGl0");
        assert_eq!(outcome.head.headers().len(), 4, "{path}");
    }
}

#[tokio::test]
async fn a_reset_by_the_runtime_keeps_its_code() {
    let node = Node::up().await;
    let _runtime = Runtime::start(&node.runtime(), |_, mut respond| async move {
        respond.send_reset(Reason::ENHANCE_YOUR_CALM);
    });
    let client = node.client().await;
    for path in [VERSION, EVENTS, "/runtime.v1.RuntimeService/StartContainer"] {
        let error = soon(client.call(path, &HeaderMap::new(), frame(b""))).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{path}");
    }
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_runtime_at_once() {
    let node = Node::up().await;
    let (begun, mut began) = mpsc::unbounded_channel();
    let (cancelled, mut was_cancelled) = mpsc::unbounded_channel();
    let _runtime = Runtime::start(&node.runtime(), move |request, mut respond| {
        let (begun, cancelled) = (begun.clone(), cancelled.clone());
        async move {
            let path = request.uri().path().to_owned();
            let mut stream = None;
            if path == EVENTS {
                stream = Some(respond.send_response(Response::new(()), false).unwrap());
            }
            begun.send(()).unwrap();
            let reason = match &mut stream {
                Some(stream) => std::future::poll_fn(|cx| stream.poll_reset(cx)).await,
                None => std::future::poll_fn(|cx| respond.poll_reset(cx)).await,
            };
            cancelled.send(reason.unwrap()).unwrap();
        }
    });
    let client = node.client().await;
    for path in [VERSION, EVENTS, "/runtime.v1.RuntimeService/RemovePodSandbox"] {
        let (response, mut stream) = client.open(path, &HeaderMap::new()).await;
        send(&mut stream, frame(b"x"), true).await.unwrap();
        soon(began.recv()).await.unwrap();
        stream.send_reset(Reason::CANCEL);
        assert_eq!(soon(was_cancelled.recv()).await, Some(Reason::CANCEL), "{path}");
        drop(response);
    }
}

#[tokio::test]
async fn calls_of_a_client_that_vanishes_are_cancelled() {
    let node = Node::up().await;
    let (begun, mut began) = mpsc::unbounded_channel();
    let (ended, mut was_ended) = mpsc::unbounded_channel();
    let _runtime = Runtime::start(&node.runtime(), move |_, mut respond| {
        let (begun, ended) = (begun.clone(), ended.clone());
        async move {
            begun.send(()).unwrap();
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            ended.send(()).unwrap();
        }
    });
    let client = node.client().await;
    let (_response, _stream) = client.open(VERSION, &HeaderMap::new()).await;
    soon(began.recv()).await.unwrap();
    drop(client);
    soon(was_ended.recv()).await.unwrap();
}

#[tokio::test]
async fn streams_pass_message_by_message_in_both_directions() {
    let node = Node::up().await;
    let _runtime = Runtime::start(&node.runtime(), |request, mut respond| async move {
        let mut body = request.into_body();
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        while let Some(Ok(data)) = body.data().await {
            body.flow_control().release_capacity(data.len()).unwrap();
            send(&mut stream, data, false).await.unwrap();
        }
        stream.send_trailers(map(&[("grpc-status", "0")])).unwrap();
    });
    let client = node.client().await;
    let (response, mut stream) = client.open("/future.v1.Service/Bidirectional", &HeaderMap::new()).await;
    let mut body = soon(response).await.unwrap().into_body();
    for n in 0..100u8 {
        send(&mut stream, frame(&[n; 10]), false).await.unwrap();
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), frame(&[n; 10]));
        body.flow_control().release_capacity(15).unwrap();
    }
    stream.send_data(Bytes::new(), true).unwrap();
    assert!(soon(body.data()).await.is_none());
    assert_eq!(soon(body.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn messages_of_sixteen_mebibytes_pass_and_larger_ones_are_refused_with_the_limit() {
    let node = Node::up().await;
    let _runtime = echo(&node, Shared::default());
    let client = node.client().await;
    let largest = frame(&vec![7; 16 << 20]);
    let larger = frame(&vec![7; (16 << 20) + 1]);
    for path in [VERSION, "/runtime.v1.RuntimeService/CreateContainer"] {
        let outcome = soon(client.call(path, &HeaderMap::new(), largest.clone())).await.unwrap();
        assert!(outcome.body == largest, "{path}");
        let outcome = soon(client.call(path, &HeaderMap::new(), larger.clone())).await.unwrap();
        assert_eq!(outcome.status(), "8", "{path}");
        assert!(outcome.message().contains("(16777217 vs. 16777216 bytes)"), "{}", outcome.message());
    }
    let outcome = soon(client.call(VERSION, &HeaderMap::new(), frame(b"still there"))).await.unwrap();
    assert_eq!(outcome.body, frame(b"still there"));
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_the_runtime_and_nobody_else() {
    let node = Node::up().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let _runtime = Runtime::start(&node.runtime(), {
        let sent = sent.clone();
        move |request, mut respond| {
            let sent = sent.clone();
            async move {
                if request.uri().path() == VERSION {
                    return reply(&mut respond, frame(b"")).await;
                }
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                while send(&mut stream, frame(&[0; 10_000]), false).await.is_ok() {
                    sent.fetch_add(10_005, Ordering::SeqCst);
                }
            }
        }
    });
    let client = node.client().await;
    let (response, _stream) = client.open(EVENTS, &HeaderMap::new()).await;
    let _unread = soon(response).await.unwrap();
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(before < 4 << 20, "{before} bytes are buffered somewhere");
    let other = node.client().await;
    assert_eq!(soon(other.call(VERSION, &HeaderMap::new(), frame(b""))).await.unwrap().status(), "0");
}

#[tokio::test]
async fn a_restart_of_the_runtime_costs_the_calls_under_way_and_no_others() {
    let node = Node::up().await;
    let client = node.client().await;
    let down = soon(client.call(VERSION, &HeaderMap::new(), frame(b""))).await.unwrap();
    assert_eq!(down.status(), "14");
    assert!(down.message().contains("runtime.sock"), "{}", down.message());

    let runtime = Runtime::start(&node.runtime(), |request, mut respond| async move {
        if request.uri().path() == VERSION {
            return reply(&mut respond, frame(b"one")).await;
        }
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        send(&mut stream, frame(b"event"), false).await.unwrap();
        std::future::pending().await
    });
    let first = soon(client.call(VERSION, &HeaderMap::new(), frame(b""))).await.unwrap();
    assert_eq!(first.body, frame(b"one"));
    let (response, _stream) = client.open(EVENTS, &HeaderMap::new()).await;
    let mut events = soon(response).await.unwrap().into_body();
    assert_eq!(soon(events.data()).await.unwrap().unwrap(), frame(b"event"));

    drop(runtime);
    assert!(soon(events.data()).await.is_none());
    assert_eq!(soon(events.trailers()).await.unwrap().unwrap()["grpc-status"], "14");

    let _runtime = Runtime::answering(&node.runtime(), |_, _| Ok(frame(b"two")));
    let second = soon(client.call(VERSION, &HeaderMap::new(), frame(b""))).await.unwrap();
    assert_eq!(second.body, frame(b"two"));
}

#[tokio::test]
async fn a_runtime_that_speaks_no_http2_is_unavailable() {
    let node = Node::up().await;
    let listener = std::os::unix::net::UnixListener::bind(node.runtime()).unwrap();
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            _ = stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let client = node.client().await;
    for _ in 0..2 {
        let outcome = soon(client.call(VERSION, &HeaderMap::new(), frame(b""))).await.unwrap();
        assert_eq!(outcome.status(), "14");
    }
    server.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_its_own_connection_only() {
    let node = Node::up().await;
    let _runtime = Runtime::answering(&node.runtime(), |_, body| Ok(body));
    let good = node.client().await;
    for garbage in [&b"\x00\xff\x00\xff garbage"[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[b'P'; 100_000]]
    {
        let mut socket = std::os::unix::net::UnixStream::connect(&node.config.listen).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        // The shim may hang up before everything is written.
        _ = socket.write_all(garbage);
        let mut rest = Vec::new();
        match socket.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "the connection must be closed")
            }
        }
        let outcome = soon(good.call(VERSION, &HeaderMap::new(), frame(b"x"))).await.unwrap();
        assert_eq!(outcome.body, frame(b"x"));
    }
}

#[tokio::test]
async fn the_socket_is_roots_and_takes_the_place_of_a_stale_one() {
    let mut node = Node::new();
    drop(std::os::unix::net::UnixListener::bind(&node.config.listen).unwrap());
    node.start().await;
    let _runtime = Runtime::answering(&node.runtime(), |_, body| Ok(body));
    let listen = node.config.listen.clone();
    until("the stale socket is replaced", || std::os::unix::net::UnixStream::connect(&listen).is_ok()).await;
    assert_eq!(std::fs::metadata(&listen).unwrap().permissions().mode() & 0o777, 0o660);
    let outcome = soon(node.client().await.call(VERSION, &HeaderMap::new(), frame(b"x"))).await.unwrap();
    assert_eq!(outcome.body, frame(b"x"));
    soon(node.stop()).await.unwrap();
    assert!(!listen.exists());
}

#[tokio::test]
async fn calls_under_way_are_ended_before_the_shim() {
    let mut node = Node::up().await;
    let (finish, finished) = oneshot::channel::<()>();
    let (begun, began) = oneshot::channel::<()>();
    let channels = Arc::new(Mutex::new(Some((begun, finished))));
    let _runtime = Runtime::start(&node.runtime(), move |_, mut respond| {
        let channels = channels.lock().unwrap().take();
        async move {
            let (begun, finished) = channels.expect("one call");
            begun.send(()).unwrap();
            finished.await.unwrap();
            reply(&mut respond, frame(b"late")).await;
        }
    });
    let client = node.client().await;
    let metadata = HeaderMap::new();
    let call = client.call(VERSION, &metadata, frame(b""));
    let end = async {
        began.await.unwrap();
        let stopped = node.stop();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!stopped.is_finished());
        finish.send(()).unwrap();
        Some(stopped)
    };
    let (outcome, stopped) = soon(async { tokio::join!(call, end) }).await;
    assert_eq!(outcome.unwrap().body, frame(b"late"));
    drop(client);
    soon(stopped.unwrap()).await.unwrap();
}
