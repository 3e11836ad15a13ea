//! Another release of the agent takes the place of one that runs, under pods in every state.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use woodfrog_testkubelet::stack::AGENT;
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, standby};

use crate::traffic::{Kept, get, on_node};

const IDLE: &str = "300ms";
/// As the installer lays releases out.
const NEXT: &str = "/var/lib/releases/99.0.0+next";
/// Takes long enough for an agent to end while a packet waits for it.
const SLOW: &str = "/slow";

/// Counts `GET`s and `POST`s; a `POST` to [`SLOW`] takes a while.
const SERVER: &str = "import http.server as h, threading, time
counts, lock = {'GET': 0, 'POST': 0}, threading.Lock()
class H(h.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        if self.path == '/slow': time.sleep(1.5)
        with lock:
            counts[self.command] += 1
            body = f\"{counts['GET']} {counts['POST']}\".encode()
        self.send_response(200); self.send_header('Content-Length', len(body)); self.end_headers(); self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *args): pass
h.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()";

#[test]
fn node_another_release_of_the_agent_finds_pods_in_every_state_and_none_notices() {
    in_world("stress-upgrade", &[App::Cpython], async |world| {
        let [plain, hooked] = images(world).await?;
        let dormant = world.from_image(standby("dormant", &plain, "Dormant", Some(IDLE))).await?;
        let awake = world.from_image(standby("awake", &plain, "Dormant", Some(IDLE))).await?;
        let frozen = world.from_image(standby("frozen", &plain, "Frozen", Some(IDLE))).await?;
        let waking = world.from_image(standby("waking", &hooked, "Dormant", Some(IDLE))).await?;
        let mut spec = standby("saved", &plain, "Dormant", Some(IDLE));
        spec.annotations.insert("woodfrog.dev/on-idle".into(), "Save".into());
        let saved = world.from_image(spec).await?;
        ensure!(ask(world, &saved)? == "2 0");
        world.until(&saved, "dormant").await?;
        world.until(&frozen, "frozen").await?;
        ensure!(ask(world, &frozen)? == "2 0");
        world.until(&frozen, "frozen").await?;
        world.stack.place_release(NEXT)?;

        let mut kept = Kept::connect(world, awake.ip())?;
        kept.get("/")?;
        let before = world.ps(&awake)?;
        let over = AtomicBool::new(false);
        let (answers, slowest) = std::thread::scope(|scope| {
            let noticing = scope.spawn(|| until_over(&mut kept, &over));
            let upgraded = upgrade(world, &dormant, &awake, &waking);
            over.store(true, Ordering::Relaxed);
            let noticed = noticing.join().expect("a client").context("the one that is awake");
            upgraded.and(noticed)
        })?;
        println!("{answers} answers on one connection meanwhile, the slowest after {slowest:.1?}");
        let after = world.ps(&awake)?;
        ensure!(before["pid"] == after["pid"] && before["generation"] == after["generation"], "{after}");

        ensure!(ask(world, &frozen)? == "3 0", "it goes on where it was\n{}", world.log(&frozen));
        ensure!(ask(world, &saved)? == "3 0", "it goes on where it was\n{}", world.log(&saved));
        drop(kept);
        for pod in [&dormant, &awake, &waking, &saved] {
            world.until(pod, "dormant").await?;
            ask(world, pod)?;
        }
        for pod in [dormant, awake, frozen, waking, saved] {
            pod.remove().await?;
        }
        Ok(())
    });
}

/// The server as it was after one request, without hooks, and with two slow ones.
async fn images(world: &World<'_>) -> Result<[String; 2]> {
    let command = ["python3.14", "-c", SERVER].map(str::to_owned).to_vec();
    let warm = world.warm(PodSpec { command, ..PodSpec::new("warm", &App::Cpython.reference()) }).await?;
    let images = ["plain", "hooked"].map(|tag| world.image(App::Cpython, tag));
    let slow = format!("http://:8080{SLOW}");
    let hooks: [&[&str]; 2] = [&[], &["--after-restore", &slow, "--after-restore", &slow]];
    for (image, hooks) in images.iter().zip(hooks) {
        let freeze = ["freeze", "warm/app", "--connections", "close", "--image", image];
        world.stack.woodfrog(&[&freeze[..], hooks].concat())?;
    }
    warm.remove().await?;
    Ok(images)
}

fn ask(world: &World<'_>, pod: &Container) -> Result<String> {
    on_node(world, || get(pod.ip(), "/")).with_context(|| world.log(pod))
}

/// Stops the agent while a packet is held for `waking`, asks around, and starts the next.
fn upgrade(world: &World<'_>, dormant: &Container, awake: &Container, waking: &Container) -> Result<()> {
    std::thread::scope(|scope| {
        let held = scope.spawn(|| ask(world, waking));
        let deadline = Instant::now() + STARTUP;
        while world.ps(waking)?["state"] != "thawed" {
            ensure!(Instant::now() < deadline, "it does not wake\n{}", world.log(waking));
            std::thread::sleep(Duration::from_millis(5));
        }
        world.node.stop(AGENT, Signal::TERM)?;
        ensure!(!held.is_finished(), "a packet is held until the hooks have ended");
        let early = scope.spawn(|| ask(world, dormant));
        ask(world, awake).context("a new connection to a pod that is awake, without an agent")?;
        ensure!(!early.is_finished(), "nobody answers for a dormant pod, and nobody is refused");
        world.stack.start_agent_from(NEXT)?;
        let (agent, _) = world.node.service_pid(AGENT).context("the agent does not run")?;
        let program = std::fs::read_link(format!("/proc/{agent}/exe"))?;
        ensure!(program.starts_with(NEXT), "{} runs", program.display());
        let early = early.join().expect("a client")?;
        ensure!(early == "2 0", "it is thawed from its image: {early}");
        let held = held.join().expect("a client")?;
        // The first of the earlier agent's and both of the next one's, but for those that were cut off.
        let posts = held.strip_prefix("2 ").and_then(|posts| posts.parse::<u32>().ok());
        ensure!(posts >= Some(2), "its hooks had ended before it answered: {held}\n{}", world.log(waking));
        Ok(())
    })
}

/// Asks on one connection, and says how often and how long the longest answer took.
fn until_over(kept: &mut Kept, over: &AtomicBool) -> Result<(u64, Duration)> {
    let (mut answers, mut slowest) = (0, Duration::ZERO);
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        kept.get("/")?;
        slowest = slowest.max(asked.elapsed());
        answers += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok((answers, slowest))
}
