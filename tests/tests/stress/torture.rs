//! An application that checks all of its memory all the time (`torture.c`) is thawed again and again in every mode, and frozen, while pagers
//! are slow or killed and agents are killed. `WOODFROG_THAWS` says how often in each mode; without it this is left out.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::{Container, Mount, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, standby};

use crate::traffic::{get, on_node};

const IDLE: &str = "100ms";
/// How often something else happens than a thaw, in thaws.
const PAGER_IS_SLOW: u64 = 5;
const FROZEN_ANEW: u64 = 10;
const AGENT_IS_KILLED: u64 = 25;
const PAGER_IS_KILLED: u64 = 40;

/// Finds the first pager that works, and does something to it. `$1`: signals with pauses after them.
const TO_PAGER: &str = "for try in $(seq 100); do
  for p in /proc/[0-9]*; do
    read -r name < $p/comm 2>/dev/null && [ \"$name\" = woodfrog-pager ] || continue
    for signal in $1; do kill -$signal ${p#/proc/}; sleep 0.05; done
    exit 0
  done
  sleep 0.002
done";

/// A way to be thawed.
#[derive(Clone, Copy)]
struct Mode {
    name: &'static str,
    memory: &'static str,
    /// With `Save` each thaw is preceded by a freeze.
    on_idle: &'static str,
}

const MODES: [Mode; 3] = [
    Mode { name: "copied", memory: "Copied", on_idle: "Discard" },
    Mode { name: "saved", memory: "Copied", on_idle: "Save" },
    Mode { name: "shared", memory: "Shared", on_idle: "Discard" },
];

/// What came of it.
#[derive(Debug, Default)]
struct Tally {
    thaws: u64,
    freezes: u64,
    slow_pagers: u64,
    killed_pagers: u64,
    ended_with_their_pager: u64,
    killed_agents: u64,
}

#[test]
fn node_not_one_byte_is_wrong_after_any_number_of_freezes_and_thaws() {
    let thaws = crate::number("WOODFROG_THAWS", 0) as u64;
    if thaws == 0 {
        return;
    }
    compile();
    in_world("stress-torture", &[App::Synthetic], async |world| {
        let warm = world.warm(spec("warm", &App::Synthetic.reference())).await?;
        let image = world.image(App::Synthetic, "torture");
        freeze(world, &warm, &image)?;
        warm.remove().await?;
        for mode in MODES {
            let began = Instant::now();
            let mut tally = Tally::default();
            let outcome = torture(world, &image, mode, thaws, &mut tally).await;
            println!("{}: {tally:?} in {:.0?}", mode.name, began.elapsed());
            outcome.context(mode.name)?;
        }
        Ok(())
    });
}

/// Where the node sees it, in the directory of the binaries.
fn compile() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stress/torture.c");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stress");
    std::fs::create_dir_all(&directory).expect("a directory");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o"]);
    let status = cc.arg(directory.join("torture")).arg(source).status();
    assert!(status.expect("a C compiler").success());
}

fn of_torture(spec: PodSpec) -> PodSpec {
    let mounted = Mount {
        host_path: "/opt/woodfrog/tmp/stress".into(),
        container_path: "/srv/torture".into(),
        readonly: true,
        ..Mount::default()
    };
    PodSpec { command: vec!["/srv/torture/torture".into(), "4096".into()], mounts: vec![mounted], ..spec }
}

fn spec(name: &str, image: &str) -> PodSpec {
    of_torture(PodSpec::new(name, image))
}

async fn sleeper(world: &World<'_>, image: &str, mode: Mode) -> Result<Container> {
    let mut spec = of_torture(standby(mode.name, image, "Dormant", Some(IDLE)));
    spec.annotations.insert("woodfrog.dev/memory".into(), mode.memory.into());
    spec.annotations.insert("woodfrog.dev/on-idle".into(), mode.on_idle.into());
    world.from_image(spec).await
}

async fn torture(world: &World<'_>, image: &str, mode: Mode, thaws: u64, tally: &mut Tally) -> Result<()> {
    let mut image = image.to_owned();
    let mut pod = sleeper(world, &image, mode).await?;
    let mut last = 0;
    for number in 1..=thaws {
        world.until(&pod, "dormant").await?;
        let is_slow = number.is_multiple_of(PAGER_IS_SLOW);
        let rounds = if is_slow { slowly(world, &pod)? } else { rounds(world, &pod)? };
        tally.slow_pagers += u64::from(is_slow);
        ensure!(mode.on_idle != "Save" || rounds >= last, "it goes on where it was: {rounds} after {last}");
        if number.is_multiple_of(PAGER_IS_KILLED) {
            to_pager(world, "KILL")?;
            tally.killed_pagers += 1;
            // With all memory there it needs no pager, if that is not shared; otherwise nobody hears of it again.
            let code = pod.exit_code(Duration::from_secs(2)).await.ok();
            ensure!(code.is_none_or(|code| code == 137), "it ended with {code:?}");
            if code.is_none() {
                self::rounds(world, &pod)?;
            }
            tally.ended_with_their_pager += u64::from(code.is_some());
            pod.remove().await?;
            pod = sleeper(world, &image, mode).await?;
            last = 0;
            continue;
        }
        let ps = world.ps(&pod)?;
        ensure!(ps["state"] == "thawed" || ps["state"] == "freezing" || ps["state"] == "dormant", "{ps}");
        ensure!(ps["reason"] == "", "{ps}");
        tally.thaws += 1;
        // It works while the rest of its memory comes, and has all of it at some of these times.
        std::thread::sleep(Duration::from_millis(number * 37 % 83));
        last = self::rounds(world, &pod)?;
        if mode.on_idle == "Save" {
            tally.freezes += 1;
        } else if number.is_multiple_of(FROZEN_ANEW) {
            image = world.image(App::Synthetic, &format!("torture-{}-{number}", mode.name));
            freeze(world, &pod, &image)?;
            tally.freezes += 1;
            pod.remove().await?;
            pod = sleeper(world, &image, mode).await?;
        }
        if number.is_multiple_of(AGENT_IS_KILLED) {
            world.stack.kill_agent()?;
            world.stack.start_agent()?;
            tally.killed_agents += 1;
        }
    }
    pod.remove().await
}

/// How many rounds it has done; an error if it has found something wrong.
fn rounds(world: &World<'_>, pod: &Container) -> Result<u64> {
    let answer = on_node(world, || get(pod.ip(), "/"))?;
    answer.parse().with_context(|| answer.clone())
}

/// The same, while its pager is held for a moment now and then.
fn slowly(world: &World<'_>, pod: &Container) -> Result<u64> {
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| to_pager(world, "STOP CONT STOP CONT"));
        let rounds = rounds(world, pod);
        slow.join().expect("a thread").and(rounds)
    })
}

fn to_pager(world: &World<'_>, signals: &str) -> Result<()> {
    // It may have ended in between.
    world
        .node
        .run("sh", &["-c", &format!("({TO_PAGER}) 2>/dev/null || true"), "sh", signals])
        .map(drop)
        .map_err(Into::into)
}

/// Once nothing stands against it: a child that has just been forked does not live long.
fn freeze(world: &World<'_>, pod: &Container, image: &str) -> Result<()> {
    let deadline = Instant::now() + STARTUP;
    loop {
        // Awake.
        rounds(world, pod)?;
        match world.freeze(pod, image) {
            Ok(_) => return Ok(()),
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
