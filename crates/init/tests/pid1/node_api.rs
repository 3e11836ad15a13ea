//! The application's HTTP API.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use woodfrog_protocol::init::{Empty, Start, from_init::Kind as Say};

use crate::agent::{Agent, Connection};
use crate::sandbox::{Plan, Sandbox, can_run};

fn with_api() -> (Sandbox, Agent, Connection, PathBuf) {
    let plan = Plan::command(&["sleep", "1000"]);
    let agent = Agent::listen(plan.dir());
    let sandbox = plan.start();
    let (mut connection, hello) = agent.accept();
    assert!(!hello.has_api);
    let path = sandbox.dir().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    connection.welcome(Start::Cold, Some(listener.as_fd()));
    connection.started();
    (sandbox, agent, connection, path)
}

fn ask(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_checkpoint_is_asked_for_and_the_connection_closed_at_once() {
    if !can_run() {
        return;
    }
    let (_sandbox, _agent, mut connection, path) = with_api();
    let body = "x".repeat(100_000);
    for request in [
        "POST /checkpoint HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        format!("POST /checkpoint HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{body}"),
    ] {
        let answer = ask(&path, &request);
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        assert_eq!(connection.next(), Some(Say::CheckpointRequested(Empty {})));
    }
}

#[test]
fn without_an_agent_the_api_stays_and_a_checkpoint_is_503() {
    if !can_run() {
        return;
    }
    let (sandbox, agent, connection, path) = with_api();
    drop((connection, agent));
    std::thread::sleep(Duration::from_millis(100));
    assert!(ask(&path, "POST /checkpoint HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503 "));
    let (mut connection, hello) = Agent::listen(sandbox.dir()).accept();
    assert!(hello.has_api && !hello.warm);
    connection.welcome(Start::Cold, None);
    std::thread::sleep(Duration::from_millis(100));
    assert!(ask(&path, "POST /checkpoint HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 202 "));
    assert_eq!(connection.next(), Some(Say::CheckpointRequested(Empty {})));
    drop(connection);
    let (_connection, hello) = Agent::listen(sandbox.dir()).accept();
    assert!(hello.warm, "an agent that comes later is told");
}

#[test]
fn a_thawed_application_learns_its_generation_and_image() {
    if !can_run() {
        return;
    }
    let plan = Plan::command(&["sleep", "1000"]).thaw(20_000, 20_000);
    let agent = Agent::listen(plan.dir());
    let sandbox = plan.start();
    let path = sandbox.dir().join("api.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (mut connection, _) = agent.accept();
    connection.welcome(Start::Thaw, Some(listener.as_fd()));
    let request = "GET /generation HTTP/1.1\r\nHost: a\r\n\r\n";
    assert!(ask(&path, request).ends_with("\r\n\r\n{\"generation\":0,\"image\":\"\"}\n"));
    let checkpoint = "POST /checkpoint HTTP/1.1\r\n\r\n";
    assert!(ask(&path, checkpoint).starts_with("HTTP/1.1 503 "), "there is no application yet");
    let worker = sandbox.enter("sleep 1000 & echo $!; read x");
    connection.lease(&worker);
    connection.commit(worker.number());
    let early = std::thread::spawn({
        let path = path.clone();
        move || ask(&path, request)
    });
    std::thread::sleep(Duration::from_millis(100));
    connection.done(5);
    worker.finish();
    let early = early.join().unwrap();
    assert!(early.contains("\"generation\":5"), "one that asks too early waits: {early}");
    assert!(ask(&path, request).ends_with("\r\n\r\n{\"generation\":5,\"image\":\"sha256:abc\"}\n"));

    let url = "http://localhost/generation";
    match Command::new("curl").args(["-sS", "--fail", "--unix-socket"]).arg(&path).arg(url).output() {
        Ok(output) => {
            assert_eq!(output.stdout, b"{\"generation\":5,\"image\":\"sha256:abc\"}\n", "{output:?}")
        }
        Err(_) => eprintln!("skipped: curl is not installed"),
    }
}

#[test]
fn slow_and_huge_requests_do_not_keep_others_waiting_for_long() {
    if !can_run() {
        return;
    }
    let (_sandbox, _agent, _connection, path) = with_api();
    let idle: Vec<_> = (0..16).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let began = Instant::now();
    let answer = ask(&path, &format!("GET /generation HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(8000)));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    // Four at a time, five seconds each.
    assert!(began.elapsed() < Duration::from_secs(30));
    drop(idle);
    assert!(ask(&path, "BREW /coffee HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
}

#[test]
fn a_dump_finds_no_connection_open() {
    if !can_run() {
        return;
    }
    let (_sandbox, _agent, mut connection, path) = with_api();
    let mut open: Vec<_> = (0..6).map(|_| UnixStream::connect(&path).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    connection.begin_dump();
    for stream in &mut open {
        let _ = stream.read(&mut [0]).map(|n| assert_eq!(n, 0));
    }
}
