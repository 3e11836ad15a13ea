//! Failures of a real CRIU, and whether their cause is understood.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::container::{Container, directory, toolchain};
use woodfrog_criu::{Cause, CriuError, DumpOptions, Toolchain, Worker};

async fn dump(toolchain: &Arc<Toolchain>, source: &Container, images: &Path) -> Result<(), CriuError> {
    let mut setup = source.setup(images);
    let given = setup.give(directory(images));
    let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
    let options = DumpOptions { ghost_limit: 4096, ..DumpOptions::new(300) };
    worker.dump(given, &options).await?.finish().await
}

async fn restore(
    toolchain: &Arc<Toolchain>,
    images: &Path,
    key: &str,
    target: &Container,
) -> Result<i32, CriuError> {
    let work = tempfile::tempdir().unwrap();
    let (mut setup, options) = target.restore_setup(work.path(), key);
    let given = setup.give(directory(images));
    let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
    worker.restore(given, &options).await?.finish().await.map(|restored| restored.pid)
}

/// A container whose application has run some lines of Perl and then sleeps.
fn prepared(script: &str) -> Container {
    // A sleep is interrupted when CRIU lets go, as by a signal.
    let command = format!("perl -e '{script}; $| = 1; print \"ready\\n\"; sleep 600 while 1'");
    let mut container = Container::running(&command);
    assert_eq!(container.line(), "ready", "for {script}");
    container
}

fn cause<T: std::fmt::Debug>(result: Result<T, CriuError>) -> Cause {
    let error = result.unwrap_err();
    eprintln!("{error}");
    error.failure().unwrap().cause.clone()
}

/// What is said of an application that is to be dumped, and what it does, in Perl. Numbers of system calls are those of
/// x86-64.
const DUMPS: &[(&str, &str)] = &[
    ("io-uring", r#"my $b = "\0" x 120; syscall(425, 4, $b) > 0 or die $!"#),
    (
        "external-unix-socket",
        r#"use Socket; socketpair(my $x, my $y, AF_UNIX, SOCK_STREAM, 0) or die $!;
        if (!fork) { if (!fork) { close $x; sleep 600 } exit } wait; close $y"#,
    ),
    ("unsupported-socket", r#"socket(my $s, 2, 1, 262) or die $!; listen($s, 1) or die $!"#),
    ("device", r#"open(my $f, "<", "/dev/fuse") or die $!"#),
    ("unsupported-descriptor", r#"syscall(323, 0) > 0 or die $!"#),
    (
        "deleted-file",
        r#"open(my $f, ">", "/tmp/woodfrog-ghost") or die $!; syswrite($f, "x" x 100000);
        unlink "/tmp/woodfrog-ghost""#,
    ),
    ("foreign-mount", r#"my $n = "woodfrog"; syscall(240, $n, 0102, 0600, 0) > 0 or die $!"#),
    ("namespace", r#"syscall(272, 0x40000000) == 0 or die $!"#),
    ("namespace", r#"syscall(272, 0x20000000) == 0 or die $!; if (!fork) { sleep 600 }"#),
    (
        "terminal",
        r#"open(my $m, "+<", "/dev/ptmx") or die $!; my $n = pack("i", 0);
        ioctl($m, 0x40045431, $n) or die $!; ioctl($m, 0x80045430, $n) or die $!;
        open(my $s, "+<", "/dev/pts/" . unpack("i", $n)) or die $!; ioctl($s, 0x540e, 0);
        if (!fork) { if (!fork) { close $s; sleep 600 } exit } wait; close $m"#,
    ),
];

#[tokio::test]
async fn node_a_dump_that_fails_tells_why_and_the_application_runs_on() {
    let Some(toolchain) = toolchain() else { return };
    for (expected, script) in DUMPS {
        let mut source = prepared(script);
        let images = tempfile::tempdir().unwrap();
        let cause = cause(dump(&toolchain, &source, images.path()).await);
        assert_eq!(cause.category(), *expected, "{cause} for {script}");
        source.eventually("the application is let go", |source| source.status(300, "TracerPid") == "0");
        source.eventually("it sleeps again", |source| source.status(300, "State").starts_with('S'));
    }
}

#[tokio::test]
async fn node_a_dump_that_fails_for_a_connection_names_both_ends() {
    let Some(toolchain) = toolchain() else { return };
    let source = prepared(
        r#"use Socket; my ($l, $c, $a);
        socket($_, AF_INET, SOCK_STREAM, 0) or die $! for $l, $c;
        bind($l, sockaddr_in(8080, INADDR_LOOPBACK)) or die $!; listen($l, 1);
        bind($c, sockaddr_in(40000, INADDR_LOOPBACK)) or die $!;
        connect($c, sockaddr_in(8080, INADDR_LOOPBACK)) or die $!; accept($a, $l) or die $!;"#,
    );
    let images = tempfile::tempdir().unwrap();
    let error = dump(&toolchain, &source, images.path()).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:40000 to 127.0.0.1:8080"), "{error}");
}

#[tokio::test]
async fn node_a_process_that_is_not_there_is_named() {
    let Some(toolchain) = toolchain() else { return };
    let source = Container::waiting();
    let images = tempfile::tempdir().unwrap();
    assert_eq!(cause(dump(&toolchain, &source, images.path()).await), Cause::NoProcess { pid: 300 });
}

#[tokio::test]
async fn node_a_process_of_another_user_needs_the_capability_or_its_ids() {
    let Some(toolchain) = toolchain() else { return };
    let mut source = prepared("use POSIX; setgid(4321); setuid(1234)");
    let images = tempfile::tempdir().unwrap();
    let result = dump(&toolchain, &source, images.path()).await;
    if woodfrog_criu::can_override_resource_limits() {
        return result.unwrap();
    }
    assert_eq!(cause(result), Cause::ResourceLimits { pid: Some(300) });
    source.eventually("the application is let go", |source| source.status(300, "TracerPid") == "0");

    let images = tempfile::tempdir().unwrap();
    let mut setup = source.setup(images.path()).real_ids(1234, 4321);
    let given = setup.give(directory(images.path()));
    let worker = Worker::spawn(toolchain.clone(), setup).await.unwrap();
    worker.dump(given, &DumpOptions::new(300)).await.unwrap().finish().await.unwrap();
    let target = Container::waiting();
    restore(&toolchain, images.path(), &source.stdout_key(), &target).await.unwrap();
    assert_eq!(target.status(300, "Uid"), "1234\t1234\t1234\t1234");
    assert_eq!(target.status(300, "Gid"), "4321\t4321\t4321\t4321");
}

#[tokio::test]
async fn node_a_restore_that_fails_tells_what_is_different() {
    let Some(toolchain) = toolchain() else { return };
    let path = Path::new("/tmp/woodfrog-open");
    let source = prepared(r#"open(my $f, ">", "/tmp/woodfrog-open") or die $!; syswrite($f, "123")"#);
    let images = tempfile::tempdir().unwrap();
    dump(&toolchain, &source, images.path()).await.unwrap();
    let images = images.path();
    let key = source.stdout_key();

    assert_eq!(cause(restore(&toolchain, images, &key, &source).await), Cause::PidTaken { pid: 300 });

    let target = Container::waiting();
    fs::write(path, "12345").unwrap();
    let size = Cause::FileSize { path: path.display().to_string(), found: 5, expected: 3 };
    assert_eq!(cause(restore(&toolchain, images, &key, &target).await), size);

    fs::write(path, "123").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    let category = cause(restore(&toolchain, images, &key, &target).await).category();
    assert_eq!(category, "file-changed");

    fs::remove_file(path).unwrap();
    assert_eq!(cause(restore(&toolchain, images, &key, &target).await).category(), "file-gone");

    for (file, damage) in [("core-300.img", 100), ("pstree.img", 6), ("inventory.img", 0)] {
        let whole = fs::read(images.join(file)).unwrap();
        fs::write(images.join(file), &whole[..damage]).unwrap();
        let category = cause(restore(&toolchain, images, &key, &target).await).category();
        assert_eq!(category, "broken-image", "{file}");
        fs::write(images.join(file), whole).unwrap();
    }
    fs::write(path, "123").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(restore(&toolchain, images, &key, &target).await.unwrap(), 300);
    fs::remove_file(path).unwrap();
}
