//! Pods that sleep and wake again and again while they are asked, of each kind of standby.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use woodfrog_testkubelet::stack::AGENT;
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, standby};

use crate::leaks::{self, Holdings};
use crate::traffic::{get_and_from, on_node, syns_again};

/// How many pods of a kind there are, unless `WOODFROG_SLEEPERS` says otherwise.
const PODS: usize = 4;
/// Pauses are longer than this, by so much more or less that requests come at any moment of falling asleep.
const IDLE: Duration = Duration::from_millis(100);
/// What the applications have counted in their image.
const COUNTED: u64 = 3;
/// How often it is asked how many wakes there were.
const LOOK: Duration = Duration::from_millis(250);

/// A way to stand by.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    standby: &'static str,
    on_idle: &'static str,
    /// What `woodfrog ps` says while it sleeps.
    asleep: &'static str,
    /// The application goes on where it was, and is not what it was in its image.
    remembers: bool,
    /// A wake is a thaw.
    thaws: bool,
    /// Every other pause is so much longer, and by what a slow machine takes: a state that is being saved gives way to whoever comes.
    rest: Duration,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "discard",
        standby: "Dormant",
        on_idle: "Discard",
        asleep: "dormant",
        remembers: false,
        thaws: true,
        rest: Duration::from_millis(250),
    },
    Kind {
        name: "save",
        standby: "Dormant",
        on_idle: "Save",
        asleep: "dormant",
        remembers: true,
        thaws: true,
        rest: Duration::from_millis(600),
    },
    Kind {
        name: "frozen",
        standby: "Frozen",
        on_idle: "Discard",
        asleep: "frozen",
        remembers: true,
        thaws: false,
        rest: Duration::from_millis(250),
    },
];

/// What one client saw of its pod.
#[derive(Debug, Default)]
struct Seen {
    /// Answers of an application that was as in its image.
    fresh: u64,
    answers: u64,
    /// And who asked, to find in the agent's log what it waited for.
    slowest: Option<(Duration, SocketAddr)>,
    last: Option<u64>,
}

impl Seen {
    /// What the agent did while the slowest answer was waited for.
    fn waited_for(&self, log: &str) -> String {
        let Some((_, from)) = self.slowest else { return String::new() };
        let from = format!("a packet from {from} to ");
        let lines = log.lines().filter(|line| line.contains(&from));
        let said = lines.filter_map(|line| line.split_once("container: ")?.1.split_once(" container="));
        said.map(|(said, _)| said).collect::<Vec<_>>().join("; ")
    }
}

#[test]
fn node_pods_sleep_and_wake_under_traffic_and_lose_no_answer_and_leak_nothing() {
    let cycles = crate::number("WOODFROG_CYCLES", 8) as u64;
    in_world("stress-cycles", &[App::Synthetic], async |world| {
        let image = image(world).await?;
        // All, unless there is time for some only.
        let wanted = std::env::var("WOODFROG_KINDS").ok();
        for kind in KINDS {
            if wanted.as_ref().is_some_and(|wanted| !wanted.split(',').any(|name| name == kind.name)) {
                continue;
            }
            sleep_and_wake(world, &image, kind, cycles).await.context(kind.name)?;
        }
        Ok(())
    });
}

async fn sleep_and_wake(world: &World<'_>, image: &str, kind: Kind, cycles: u64) -> Result<()> {
    let pods = pods(world, image, kind).await?;
    let mut seen: Vec<Seen> = pods.iter().map(|_| Seen::default()).collect();
    // Whatever is made once is there after one cycle each.
    traffic(world, &pods, kind, pods.len() as u64, &mut seen)?;
    asleep(world, &pods, kind).await?;
    let (before, memory) = (Holdings::of(world, &pods).await?, leaks::agent_memory(world.node)?);
    let (began, lost) = (Instant::now(), syns_again(world)?);
    traffic(world, &pods, kind, cycles, &mut seen)?;
    let (elapsed, lost) = (began.elapsed(), syns_again(world)? - lost);
    asleep(world, &pods, kind).await?;
    before.assert_again(world, &pods).await?;
    let after = leaks::agent_memory(world.node)?;
    let name = kind.name;
    println!(
        "{name}: {cycles} cycles in {elapsed:.0?}, agent {memory} to {after} bytes, {lost} SYNs came again"
    );
    let log = world.node.logs(AGENT)?;
    for seen in &seen {
        println!("{seen:?}: {}", seen.waited_for(&log));
    }
    leaks::assert_memory(memory, after)?;
    for (pod, seen) in pods.iter().zip(&seen) {
        let ps = world.ps(pod)?;
        let fresh = if kind.remembers { Value::from(1) } else { ps["wakes"].clone() };
        ensure!(fresh == seen.fresh, "{seen:?} but {ps}");
        let generation = if kind.thaws { ps["wakes"].clone() } else { Value::from(1) };
        ensure!(ps["generation"] == generation, "{ps}");
        pod.remove().await?;
    }
    Ok(())
}

async fn image(world: &World<'_>) -> Result<String> {
    let spec = PodSpec::new("warm", &App::Synthetic.reference()).args(&["1", "2"]);
    let warm = world.warm(spec).await?;
    for expected in 1..=COUNTED {
        ensure!(warm.get("/count")? == expected.to_string());
    }
    let image = world.image(App::Synthetic, "cycles");
    world.freeze(&warm, &image)?;
    warm.remove().await?;
    Ok(image)
}

/// Pods of a kind that sleep, from one image.
async fn pods(world: &World<'_>, image: &str, kind: Kind) -> Result<Vec<Container>> {
    let mut pods = Vec::new();
    for number in 0..crate::number("WOODFROG_SLEEPERS", PODS) {
        let idle = format!("{}ms", IDLE.as_millis());
        let mut spec = standby(&format!("{}-{number}", kind.name), image, kind.standby, Some(&idle));
        spec.annotations.insert("woodfrog.dev/on-idle".into(), kind.on_idle.into());
        pods.push(world.from_image(spec).await?);
    }
    asleep(world, &pods, kind).await?;
    Ok(pods)
}

async fn asleep(world: &World<'_>, pods: &[Container], kind: Kind) -> Result<()> {
    for pod in pods {
        world.until(pod, kind.asleep).await?;
    }
    Ok(())
}

/// Asks all pods, each from a thread of its own, until they have woken so often together.
fn traffic(world: &World<'_>, pods: &[Container], kind: Kind, cycles: u64, seen: &mut [Seen]) -> Result<()> {
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = pods
            .iter()
            .zip(seen)
            .map(|(pod, seen)| {
                let enough = &enough;
                scope.spawn(move || {
                    let asked = on_node(world, || client(pod.ip(), enough, kind, seen));
                    // The others have nothing to ask any more.
                    enough.fetch_or(asked.is_err(), Ordering::Relaxed);
                    asked.with_context(|| format!("client of {}", pod.pod_name()))
                })
            })
            .collect();
        let counted = until_woken(world, pods, cycles, &enough);
        enough.store(true, Ordering::Relaxed);
        let asked = clients.into_iter().map(|client| client.join().expect("a client"));
        asked.collect::<Result<()>>().and(counted)
    })
}

/// Waits until the pods have woken so often together, or it is enough.
fn until_woken(world: &World<'_>, pods: &[Container], cycles: u64, enough: &AtomicBool) -> Result<()> {
    let wakes =
        || pods.iter().map(|pod| Ok(world.ps(pod)?["wakes"].as_u64().unwrap_or(0))).sum::<Result<u64>>();
    let until = wakes()? + cycles;
    let (mut last, mut since) = (0, Instant::now());
    while !enough.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        let now = wakes()?;
        if now >= until {
            break;
        }
        if now != last {
            (last, since) = (now, Instant::now());
        }
        ensure!(since.elapsed() < STARTUP, "no pod has woken for {STARTUP:?}");
    }
    Ok(())
}

fn client(ip: IpAddr, enough: &AtomicBool, kind: Kind, seen: &mut Seen) -> Result<()> {
    while !enough.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = get_and_from(ip, "/count");
        let (answer, from) = answer.with_context(|| format!("after {seen:?}, {:?}", began.elapsed()))?;
        seen.slowest = seen.slowest.max(Some((began.elapsed(), from)));
        seen.answers += 1;
        let count: u64 = answer.parse().with_context(|| answer.clone())?;
        if count == COUNTED + 1 && (seen.last.is_none() || !kind.remembers) {
            seen.fresh += 1;
        } else {
            let expected = seen.last.map(|last| last + 1);
            ensure!(expected == Some(count), "{count} came: {seen:?}");
        }
        seen.last = Some(count);
        // Around the time at which it falls asleep, in steps that do not repeat for long: most find it asleep.
        let slow = seen.slowest.map_or(Duration::ZERO, |(slowest, _)| slowest);
        let rest = if seen.answers.is_multiple_of(2) { kind.rest + slow } else { Duration::ZERO };
        std::thread::sleep(IDLE + Duration::from_millis(seen.answers * 37 % 211) + rest);
    }
    Ok(())
}
