//! Pods that sleep and wake again and again while they are asked.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world, standby};

use crate::leaks::{self, Holdings};
use crate::traffic::{get, on_node};

const PODS: usize = 4;
/// Pauses are longer than this, by so much more or less that requests come at any moment of falling asleep.
const IDLE: Duration = Duration::from_millis(100);
/// What the applications have counted in their image.
const COUNTED: u64 = 3;

/// What one client saw of its pod.
#[derive(Debug, Default)]
struct Seen {
    wakes: u64,
    answers: u64,
    slowest: Duration,
}

#[test]
fn node_pods_sleep_and_wake_under_traffic_and_lose_no_answer_and_leak_nothing() {
    let cycles = crate::number("WOODFROG_CYCLES", 24);
    in_world("stress-cycles", &[App::Synthetic], async |world| {
        let pods = pods(world).await?;
        // Whatever is made once is there after one cycle each.
        let mut woken = traffic(world, &pods, PODS)?;
        asleep(world, &pods).await?;
        let (before, memory) = (Holdings::of(world, &pods).await?, leaks::agent_memory(world.node)?);
        let began = Instant::now();
        for (sum, seen) in woken.iter_mut().zip(traffic(world, &pods, cycles)?) {
            sum.wakes += seen.wakes;
            sum.answers += seen.answers;
            sum.slowest = sum.slowest.max(seen.slowest);
        }
        let elapsed = began.elapsed();
        asleep(world, &pods).await?;
        before.assert_again(world, &pods).await?;
        let after = leaks::agent_memory(world.node)?;
        println!("{cycles} cycles in {elapsed:.0?}, agent {memory} to {after} bytes: {woken:#?}");
        leaks::assert_memory(memory, after)?;
        for (pod, seen) in pods.iter().zip(&woken) {
            let ps = world.ps(pod)?;
            ensure!(ps["wakes"] == seen.wakes && ps["generation"] == seen.wakes, "{seen:?} but {ps}");
            pod.remove().await?;
        }
        Ok(())
    });
}

/// Pods that sleep, from one image.
async fn pods(world: &World<'_>) -> Result<Vec<Container>> {
    let spec = PodSpec::new("warm", &App::Synthetic.reference()).args(&["1", "2"]);
    let warm = world.warm(spec).await?;
    for expected in 1..=COUNTED {
        ensure!(warm.get("/count")? == expected.to_string());
    }
    let image = world.image(App::Synthetic, "cycles");
    world.freeze(&warm, &image)?;
    warm.remove().await?;
    let mut pods = Vec::new();
    for number in 0..PODS {
        let idle = format!("{}ms", IDLE.as_millis());
        let spec = standby(&format!("pod-{number}"), &image, "Dormant", Some(&idle));
        pods.push(world.from_image(spec).await?);
    }
    Ok(pods)
}

async fn asleep(world: &World<'_>, pods: &[Container]) -> Result<()> {
    for pod in pods {
        world.until(pod, "dormant").await?;
    }
    Ok(())
}

/// Asks all pods, each from a thread of its own, until they have woken so often together.
fn traffic(world: &World<'_>, pods: &[Container], cycles: usize) -> Result<Vec<Seen>> {
    let woken = AtomicUsize::new(0);
    on_node(world, || {
        std::thread::scope(|scope| {
            let clients: Vec<_> =
                pods.iter().map(|pod| scope.spawn(|| client(pod.ip(), &woken, cycles))).collect();
            let client = |(number, client): (usize, std::thread::ScopedJoinHandle<'_, Result<Seen>>)| {
                client.join().expect("a client").with_context(|| format!("client of pod-{number}"))
            };
            clients.into_iter().enumerate().map(client).collect()
        })
    })
}

fn client(ip: IpAddr, woken: &AtomicUsize, cycles: usize) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut last = None;
    while woken.load(Ordering::Relaxed) < cycles {
        let began = Instant::now();
        let answer = get(ip, "/count").with_context(|| format!("after {seen:?}, {:?}", began.elapsed()))?;
        seen.slowest = seen.slowest.max(began.elapsed());
        seen.answers += 1;
        let count: u64 = answer.parse().with_context(|| answer.clone())?;
        if count == COUNTED + 1 {
            // It is thawed from its image at each wake.
            seen.wakes += 1;
            woken.fetch_add(1, Ordering::Relaxed);
        } else {
            ensure!(last.map(|last| last + 1) == Some(count), "{count} came after {last:?}: {seen:?}");
        }
        last = Some(count);
        // Around the time at which it falls asleep, in steps that do not repeat for long: most find it asleep.
        std::thread::sleep(IDLE + Duration::from_millis(seen.answers * 37 % 211));
    }
    Ok(seen)
}
