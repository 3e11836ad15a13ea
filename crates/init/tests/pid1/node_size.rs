//! What init costs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use woodfrog_protocol::init::{Empty, Start, to_init::Kind as Told};

use crate::agent::Agent;
use crate::sandbox::{Plan, can_run, children, eventually, status};

/// The build that is shipped: `WOODFROG_INIT`, or made here.
fn static_init() -> PathBuf {
    if let Some(path) = std::env::var_os("WOODFROG_INIT") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = Command::new(env!("CARGO"))
        .current_dir(&root)
        .args(["build", "--quiet", "--profile", "init", "-p", "woodfrog-init", "--target", &target])
        .args(["--target-dir", "target/static"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .unwrap();
    assert!(status.success());
    root.join(format!("target/static/{target}/init/woodfrog-init"))
}

fn kib(pid: u32, field: &str) -> u64 {
    status(pid, field).split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn init_stays_under_one_mebibyte_and_ten_thousand_orphans_leave_nothing_behind() {
    if !can_run() {
        return;
    }
    let plan = Plan::command(&["sleep", "1000"]).binary(&static_init());
    let agent = Agent::listen(plan.dir());
    let sandbox = plan.start();
    let (mut connection, _) = agent.accept();
    connection.welcome(Start::Cold, None);
    connection.started();
    connection.begin_dump();
    connection.say(Told::EndDump(Empty {}));
    std::thread::sleep(Duration::from_millis(100));

    let init = sandbox.init();
    let pss = || {
        let rollup = std::fs::read_to_string(format!("/proc/{init}/smaps_rollup")).unwrap();
        rollup.lines().find_map(|line| line.strip_prefix("Pss:")).map(|rest| rest.trim().to_owned()).unwrap()
    };
    let measure = || (kib(init, "VmRSS"), kib(init, "RssAnon"), pss());
    let before = measure();
    // Children of a process that has no subreaper above it but PID 1.
    let began = Instant::now();
    sandbox.enter("i=0; while [ $i -lt 10000 ]; do (: &); i=$((i+1)); done; echo").finish();
    eventually("all are reaped", || children(init).len() == 1);
    let after = measure();
    eprintln!(
        "VmRSS, RssAnon in KiB, Pss: {before:?}, after 10,000 orphans in {:?}: {after:?}",
        began.elapsed()
    );
    for (resident, anonymous, _) in [&before, &after] {
        assert!(*resident < 1024 && *anonymous < 256, "{before:?} {after:?}");
    }
    assert_eq!(before.1, after.1, "anonymous memory has grown");
}
