//! What restarts around pods that sleep or are awake: the agent, the shim, containerd, kubelet.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1::ContainerState;
use rustix::process::Signal;
use woodfrog_testkubelet::http::PORT;
use woodfrog_testkubelet::stack::{AGENT, SHIM};
use woodfrog_testkubelet::{Container, Kubelet, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, standby};

use crate::requests::PYTHON;
use crate::traffic::{Kept, get, on_node, wait};

const CONTAINERD: &str = "containerd";
const IDLE: &str = "300ms";
/// A command that takes longer than anybody waits for.
const SILENCE: &str = "import time; time.sleep(600)";

#[test]
fn node_pods_wake_and_stay_awake_through_restarts_of_agent_shim_and_containerd() {
    in_world("stress-restarts", &[App::Cpython], async |world| {
        let image = image(world, "restarts", PORT).await?;
        let asleep = world.from_image(standby("asleep", &image, "Dormant", Some(IDLE))).await?;
        let awake = world.from_image(standby("awake", &image, "Dormant", Some(IDLE))).await?;
        // Held through all of it: a pod with an open connection does not sleep, whoever looks at it.
        let mut kept = Kept::connect(world, awake.ip())?;
        kept.get("/")?;
        let pid = world.ps(&awake)?["pid"].clone();
        let mut wakes = async |what: &str| {
            world.until(&asleep, "dormant").await.context(what.to_owned())?;
            on_node(world, || get(asleep.ip(), "/")).context(what.to_owned())?;
            kept.get("/").with_context(|| format!("{what}, and the one that is awake"))
        };
        wakes("nothing is restarted").await?;

        world.node.stop(AGENT, Signal::TERM)?;
        world.stack.start_agent()?;
        wakes("the agent ended and was started again").await?;
        world.stack.kill_agent()?;
        world.stack.start_agent()?;
        wakes("the agent was killed").await?;
        world.node.stop(SHIM, Signal::TERM)?;
        world.stack.start_shim()?;
        wakes("the shim was started again").await?;

        world.until(&asleep, "dormant").await?;
        world.node.stop(CONTAINERD, Signal::KILL)?;
        wakes("there is no containerd").await?;
        world.node.start_again(CONTAINERD)?;
        wakes("containerd was started again").await?;

        let ps = world.ps(&awake)?;
        ensure!(ps["pid"] == pid && ps["generation"] == 1, "it was {pid} and is {ps}");
        asleep.remove().await?;
        awake.remove().await
    });
}

#[test]
fn node_containers_of_one_pod_sleep_and_wake_each_for_itself_also_after_restarts() {
    const SECOND: u16 = 8081;
    in_world("stress-two", &[App::Cpython], async |world| {
        let images = [image(world, "first", PORT).await?, image(world, "second", SECOND).await?];
        let pod = world.kubelet.sandbox(standby("pod", &images[0], "Dormant", None)).await?;
        let first = pod.create().await?;
        first.start().await?;
        let second = pod.create_beside("second", &images[1]).await?;
        second.start().await?;
        let ask = |port| on_node(world, || wait(SocketAddr::new(pod.ip, port)));
        restart(world, &[&first, &second]).await?;
        ask(SECOND)?;
        world.expect_state(&first, "dormant")?;
        world.expect_state(&second, "thawed")?;
        restart(world, &[&first]).await?;
        world.until(&second, "thawed").await?;
        ask(PORT)?;
        ask(SECOND)?;
        for container in [&first, &second] {
            ensure!(world.ps(container)?["generation"] == 1, "thawed once: {}", world.ps(container)?);
        }
        pod.remove().await
    });
}

#[test]
fn node_a_kubelet_that_is_started_again_finds_its_pods_asleep_and_awake_as_they_were() {
    in_world("stress-kubelet", &[App::Cpython], async |world| {
        let image = image(world, "kubelet", PORT).await?;
        let specs = [("asleep", "Dormant"), ("awake", "Dormant"), ("frozen", "Frozen"), ("half", "Dormant")]
            .map(|(name, rest)| standby(name, &image, rest, Some(IDLE)));
        let [asleep, awake, frozen, half] = specs;

        // A kubelet that can end in the middle of what it does: all of its connections are of this runtime.
        let process = tokio::runtime::Runtime::new()?;
        let (node, socket) = (world.node.clone(), world.stack.cri_socket());
        let earlier = process.spawn(async move { Kubelet::connect(&node, &socket).await }).await??;
        let mut containers = Vec::new();
        for spec in [&asleep, &awake, &frozen] {
            let (kubelet, spec) = (earlier.clone(), spec.clone());
            containers.push(process.spawn(async move { kubelet.run(spec).await }).await??);
        }
        let mut kept = Kept::connect(world, containers[1].ip())?;
        kept.get("/")?;
        world.until(&containers[2], "frozen").await?;
        let before = [world.ps(&containers[1])?, world.ps(&containers[2])?];
        let (kubelet, spec) = (earlier.clone(), half.clone());
        let created = process.spawn(async move { kubelet.sandbox(spec).await?.create().await }).await??;
        let starting = process.spawn(async move { created.start().await });
        let visited = containers[1].clone();
        let visit = process.spawn(async move { visited.exec(&["python3.14", "-c", SILENCE]).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        let ids: Vec<String> = containers.drain(..).map(|container| container.id.clone()).collect();
        drop(earlier);
        process.shutdown_background();
        ensure!(starting.await.is_err() || visit.await.is_err(), "it has ended in the middle of something");
        kept.get("/")?;

        // What it was about to do it does again, as kubelet does.
        let mut adopted = world.kubelet.adopt(half).await?;
        let deadline = Instant::now() + STARTUP;
        loop {
            match adopted.status().await?.state() {
                ContainerState::ContainerRunning => break,
                // A start that is cut off is one that failed.
                ContainerState::ContainerExited => adopted = adopted.replace(&image).await?,
                // The runtime may be about to start it still.
                _ => drop(adopted.start().await),
            }
            ensure!(Instant::now() < deadline, "it does not start");
        }
        let mut found = Vec::new();
        for (spec, id) in [asleep, awake, frozen].into_iter().zip(ids) {
            let container = world.kubelet.adopt(spec).await?;
            ensure!(container.id == id, "{} is another container", container.pod_name());
            ensure!(container.status().await?.state() == ContainerState::ContainerRunning);
            found.push(container);
        }
        kept.get("/")?;
        let after = [world.ps(&found[1])?, world.ps(&found[2])?];
        for (before, after) in before.iter().zip(&after) {
            ensure!(before["pid"] == after["pid"] && before["generation"] == after["generation"], "{after}");
        }
        found.push(adopted);
        for container in [&found[0], &found[2], &found[3]] {
            on_node(world, || get(container.ip(), "/")).with_context(|| world.log(container))?;
            ensure!(world.ps(container)?["generation"] == 1, "{}", world.ps(container)?);
        }
        ensure!(found[1].exec(&["true"]).await?.0 == 0);
        for container in found {
            container.remove().await?;
        }
        Ok(())
    });
}

/// Starts the agent again, and waits until it knows that these sleep.
async fn restart(world: &World<'_>, asleep: &[&Container]) -> Result<()> {
    world.stack.kill_agent()?;
    world.stack.start_agent()?;
    for container in asleep {
        world.until(container, "dormant").await?;
    }
    // The gates of all containers are put by then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(())
}

/// A checkpoint image of the server, which listens on this port.
async fn image(world: &World<'_>, tag: &str, port: u16) -> Result<String> {
    let server = PYTHON.replace("SECONDS", "0").replace("8080", &port.to_string());
    let command = ["python3.14", "-c", &server].map(str::to_owned).to_vec();
    let spec = PodSpec { command, ..PodSpec::new("warm", &App::Cpython.reference()) };
    world.kubelet.pull(&spec.image).await?;
    let warm = world.kubelet.run(spec.managed()).await?;
    on_node(world, || wait(SocketAddr::new(warm.ip(), port)))?;
    world.until(&warm, "cold").await?;
    let image = world.image(App::Cpython, tag);
    world.freeze(&warm, &image)?;
    warm.remove().await?;
    world.kubelet.pull(&image).await?;
    Ok(image)
}
