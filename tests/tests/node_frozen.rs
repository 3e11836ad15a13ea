//! Frozen pods: the application is in memory and does not run until the first packet.

use std::time::{Duration, Instant};

use anyhow::ensure;
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, in_world, standby};

#[test]
fn node_the_first_packet_wakes_a_frozen_pod_as_it_was() {
    in_world("frozen", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let pod = world.from_image(standby("pod", &image, "Frozen", Some("300ms"))).await?;
        world.until(&pod, "frozen").await?;
        for count in ["4", "5", "6"] {
            ensure!(pod.get("/count")? == count, "it goes on where it was");
            world.until(&pod, "frozen").await?;
        }
        let ps = world.ps(&pod)?;
        ensure!(ps["generation"] == 1 && ps["wakes"] == 3, "{ps}");

        // Whoever comes while there is no agent waits for the next one, which finds it frozen.
        world.stack.kill_agent()?;
        world.stack.start_agent()?;
        world.until(&pod, "frozen").await?;
        ensure!(pod.get("/count")? == "7");

        // What it is now can be frozen into an image.
        world.until(&pod, "frozen").await?;
        let image = world.image(App::Cpython, "refrozen");
        world.freeze(&pod, &image)?;
        let clone = world.from_image(standby("clone", &image, "Frozen", None)).await?;
        world.until(&clone, "frozen").await?;
        ensure!(clone.get("/count")? == "8");
        world.expect_state(&clone, "thawed")?;
        clone.remove().await?;

        world.until(&pod, "frozen").await?;
        let began = Instant::now();
        pod.stop(Duration::from_secs(60)).await?;
        ensure!(began.elapsed() < Duration::from_secs(30), "it hears SIGTERM");
        pod.remove().await?;

        // An agent that cannot wake it later does so at once.
        let pod = world.from_image(standby("left", &image, "Frozen", Some("300ms"))).await?;
        world.until(&pod, "frozen").await?;
        world.stack.kill_agent()?;
        let snapshots = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let damage =
            format!("for f in {snapshots}/*/fs/.woodfrog/checkpoint/woodfrog.json; do echo > $f; done");
        world.node.run("sh", &["-c", &damage])?;
        world.stack.start_agent()?;
        world.until(&pod, "thawed").await?;
        ensure!(pod.wait("/count", STARTUP)? == "8", "{}", world.log(&pod));
        pod.remove().await
    });
}
