//! The command against an agent that speaks the real protocol on a socket of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::thread::JoinHandle;

use tempfile::TempDir;
use woodfrog_protocol::agent::{
    Checked, Connections, Container, Containers, Error, Finding, Frozen, FrozenImage, Log, LogLine, Progress,
    Request, Response, request, response,
};
use woodfrog_protocol::frame::{self, Decoder};

/// An agent for one request.
struct Agent {
    dir: TempDir,
    asked: JoinHandle<Option<request::Kind>>,
}

impl Agent {
    fn answering(answers: Vec<response::Kind>) -> Self {
        let bytes = answers
            .into_iter()
            .flat_map(|kind| frame::encode(&Response { kind: Some(kind) }).unwrap())
            .collect();
        Self::sending(bytes)
    }

    fn sending(bytes: Vec<u8>) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut decoder = Decoder::default();
            let mut buffer = [0; 4096];
            loop {
                if let Some(Request { kind }) = decoder.pop().unwrap() {
                    // One byte at a time, as a slow network would.
                    for byte in bytes {
                        stream.write_all(&[byte]).unwrap();
                    }
                    return kind;
                }
                match stream.read(&mut buffer).unwrap() {
                    0 => return None,
                    n => decoder.push(&buffer[..n]),
                }
            }
        });
        Self { dir, asked }
    }

    fn run(self, args: &[&str]) -> (Ran, request::Kind) {
        let ran = run(self.dir.path().join("agent.sock"), args);
        (ran, self.asked.join().unwrap().unwrap())
    }
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run(socket: PathBuf, args: &[&str]) -> Ran {
    let home = TempDir::new().unwrap();
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_woodfrog"))
        .args(args)
        .env("WOODFROG_AGENT_SOCKET", socket)
        .env("HOME", home.path())
        .env_remove("DOCKER_CONFIG")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

fn container() -> Container {
    Container {
        id: "0123456789abcdef0123".into(),
        name: "web".into(),
        pod: "shop-1".into(),
        namespace: "shop".into(),
        state: "thawed".into(),
        pid: 4711,
        generation: 2,
        thaw_ms: 33.25,
        resident_bytes: 190 << 20,
        ..Container::default()
    }
}

#[test]
fn ps_lists_what_the_agent_knows() {
    let list = || {
        vec![response::Kind::Containers(Containers {
            containers: vec![container()],
            ..Containers::default()
        })]
    };
    let (ran, asked) = Agent::answering(list()).run(&["ps"]);
    assert!(matches!(asked, request::Kind::List(_)));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let lines: Vec<Vec<&str>> = ran.out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..5], ["ID", "NAMESPACE", "POD", "CONTAINER", "STATE"]);
    let row = ["0123456789ab", "shop", "shop-1", "web", "thawed", "4711", "2", "190.00", "MiB", "33.2", "ms"];
    assert_eq!(lines[1], row);

    let (ran, _) = Agent::answering(list()).run(&["ps", "--output", "json"]);
    let containers: Vec<Container> = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(containers, [container()]);
}

#[test]
fn freeze_asks_for_all_at_once_and_reports_each_image() {
    let frozen = Frozen {
        images: vec![FrozenImage {
            container: "shop/web".into(),
            image: "r.example/web:warm".into(),
            digest: "sha256:12".into(),
            memory_bytes: 1 << 20,
            standstill_ms: 80.0,
            warnings: vec!["/tmp/log changed while it was read".into()],
            ..FrozenImage::default()
        }],
        total_ms: 2500.0,
    };
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), "{\"auths\":{}}").unwrap();
    let step = |done| Progress {
        container: "shop/web".into(),
        phase: "push".into(),
        done,
        total: 9,
        ..Progress::default()
    };
    let answers = vec![
        response::Kind::Progress(step(1)),
        response::Kind::Progress(step(9)),
        response::Kind::Frozen(frozen),
    ];
    let (ran, asked) = Agent::answering(answers).run(&[
        "freeze",
        "shop/web",
        "--image",
        "r.example/web:warm",
        "shop/db=r.example/db:warm",
        "--connections",
        "keep",
        "--stop",
        "--plain-http",
        "r.example",
        "--docker-config",
        config.path().to_str().unwrap(),
        "--before-checkpoint",
        "sync -f '/a b'",
        "--after-restore",
        "http://:8080/hello",
    ]);
    assert_eq!(ran.code, 0);
    assert_eq!(
        ran.err, "woodfrog: warning: shop/web: /tmp/log changed while it was read\n",
        "no bars on a pipe"
    );
    assert!(ran.out.contains("sha256:12") && ran.out.contains("80.0 ms") && ran.out.ends_with("in 2.50 s\n"));

    let request::Kind::Freeze(asked) = asked else { panic!("{asked:?}") };
    let targets: Vec<_> = asked.targets.iter().map(|t| (t.container.as_str(), t.image.as_str())).collect();
    assert_eq!(targets, [("shop/web", "r.example/web:warm"), ("shop/db", "r.example/db:warm")]);
    assert_eq!((asked.connections(), asked.stop), (Connections::Keep, true));
    assert_eq!(
        (asked.plain_http.as_slice(), asked.docker_config.as_str()),
        (&["r.example".to_owned()][..], "{\"auths\":{}}")
    );
    assert_eq!(asked.before_checkpoint[0].exec, ["sync", "-f", "/a b"]);
    assert_eq!(
        (asked.after_restore[0].http_path.as_str(), asked.after_restore[0].http_port),
        ("/hello", 8080)
    );
}

#[test]
fn a_refusal_is_1_with_every_detail() {
    let error = Error {
        category: "preflight".into(),
        message: "shop/web cannot be frozen".into(),
        details: vec!["connection to 10.0.0.7:5432".into(), "io_uring in process 300".into()],
    };
    let agent = Agent::answering(vec![response::Kind::Error(error)]);
    let (ran, _) = agent.run(&["freeze", "shop/web=r.example/web:1"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(
        ran.err,
        "woodfrog: shop/web cannot be frozen\n  connection to 10.0.0.7:5432\n  io_uring in process 300\n"
    );
}

#[test]
fn check_is_0_when_nothing_was_found_and_3_when_something_was() {
    let clean = Agent::answering(vec![response::Kind::Checked(Checked::default())]);
    let (ran, asked) = clean.run(&["check", "web", "--connections", "close"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "web: nothing stands against a freeze\n"));
    let request::Kind::Check(asked) = asked else { panic!("{asked:?}") };
    assert_eq!((asked.container.as_str(), asked.connections()), ("web", Connections::Close));

    let finding = Finding {
        category: "connection".into(),
        message: "established to 10.0.0.7:5432".into(),
        advice: "close it".into(),
    };
    let found = || vec![response::Kind::Checked(Checked { findings: vec![finding.clone()] })];
    let (ran, _) = Agent::answering(found()).run(&["check", "web"]);
    assert_eq!(ran.code, 3);
    assert!(ran.out.contains("established to 10.0.0.7:5432") && ran.out.contains("close it"), "{}", ran.out);
    let (ran, _) = Agent::answering(found()).run(&["check", "web", "-o", "json"]);
    assert_eq!((ran.code, serde_json::from_str::<Checked>(&ran.out).unwrap().findings), (3, vec![finding]));
}

#[test]
fn logs_are_shown_with_their_times() {
    let lines = vec![LogLine { unix_ms: 1_700_000_000_123, message: "thawed in 33 ms".into() }];
    let (ran, asked) =
        Agent::answering(vec![response::Kind::Log(Log { lines })]).run(&["logs", "shop-1/web"]);
    assert!(matches!(asked, request::Kind::Log(name) if name.container == "shop-1/web"));
    assert_eq!((ran.code, ran.out.as_str()), (0, "2023-11-14T22:13:20.123Z  thawed in 33 ms\n"));
}

#[test]
fn an_agent_that_is_not_there_is_4_and_its_socket_is_named() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("agent.sock");
    let ran = run(socket.clone(), &["ps"]);
    assert_eq!(ran.code, 4);
    assert!(
        ran.err.contains(&socket.display().to_string()) && ran.err.contains("--agent-socket"),
        "{}",
        ran.err
    );

    drop(UnixListener::bind(&socket).unwrap());
    let ran = run("/nowhere".into(), &["--agent-socket", socket.to_str().unwrap(), "ps"]);
    assert_eq!(ran.code, 4);
    assert!(ran.err.contains("refused"), "{}", ran.err);
}

#[test]
fn an_agent_that_hangs_up_or_talks_nonsense_is_1() {
    let (ran, _) = Agent::sending(Vec::new()).run(&["ps"]);
    assert!(ran.code == 1 && ran.err.contains("hung up"), "{}", ran.err);
    let (ran, _) = Agent::sending(b"HTTP/1.1 400 Bad Request\r\n".to_vec()).run(&["ps"]);
    assert!(ran.code == 1 && ran.err.contains("not a woodfrog frame"), "{}", ran.err);
    let (ran, _) = Agent::answering(vec![response::Kind::Log(Log::default())]).run(&["ps"]);
    assert!(ran.code == 1 && ran.err.contains("something else"), "{}", ran.err);
}

#[test]
fn a_command_line_without_sense_is_2() {
    for args in [
        &["freeze", "web"][..],
        &["freeze"],
        &["thaw", "web"],
        &["freeze", "web=r/web", "--after-restore", "https://:1/"],
        &["inspect", "not an image"],
        &[],
    ] {
        let ran = run("/nowhere".into(), args);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}");
        assert!(!ran.err.is_empty());
    }
}

#[test]
fn help_has_examples_and_the_exit_codes() {
    let ran = run("/nowhere".into(), &["--help"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.out.contains("Examples:") && ran.out.contains("4  the node agent cannot be reached"),
        "{}",
        ran.out
    );
    assert!(run("/nowhere".into(), &["freeze", "--help"]).out.contains("--connections close"));
}

#[test]
fn inspect_names_a_registry_that_is_not_there() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let ran = run("/nowhere".into(), &["inspect", &format!("{address}/a/b:1")]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains(&address.to_string()), "{}", ran.err);
}

#[test]
fn a_host_without_systemd_is_told_what_to_do() {
    let host = TempDir::new().unwrap();
    let root = host.path().to_str().unwrap();
    for args in [&["node", "status", "--root", root][..], &["node", "uninstall", "--root", root]] {
        std::fs::create_dir_all(host.path().join("run")).unwrap();
        std::fs::create_dir_all(host.path().join("opt/woodfrog")).unwrap();
        _ = std::os::unix::fs::symlink("1", host.path().join("opt/woodfrog/current"));
        let ran = run("/nowhere".into(), args);
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(ran.err.contains("does not run systemd"), "{}", ran.err);
    }
}
