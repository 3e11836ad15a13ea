//! What restarts around pods that sleep or are awake: the agent, the shim, containerd.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use woodfrog_testkubelet::http::PORT;
use woodfrog_testkubelet::stack::{AGENT, SHIM};
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world, standby};

use crate::requests::PYTHON;
use crate::traffic::{Kept, get, on_node, wait};

const CONTAINERD: &str = "containerd";
const IDLE: &str = "300ms";

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
    let image = world.image(App::Cpython, tag);
    world.freeze(&warm, &image)?;
    warm.remove().await?;
    world.kubelet.pull(&image).await?;
    Ok(image)
}
