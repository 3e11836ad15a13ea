//! Before Woodfrog leaves a node: nobody is left asleep, and no rules are.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use woodfrog_testnode::App;
use woodfrog_tests::{in_world, rules, standby};

#[test]
fn node_before_the_agent_leaves_for_good_all_are_awake_and_stay_so() {
    in_world("leaving", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let mut pods = Vec::new();
        for (name, kind) in [("asleep", "Dormant"), ("awake", "Dormant"), ("held", "Frozen")] {
            pods.push(world.from_image(standby(name, &image, kind, Some("300ms"))).await?);
        }
        let [asleep, _, held] = &pods[..] else { anyhow::bail!("three pods") };
        world.until(held, "frozen").await?;
        world.stack.woodfrog(&["wake", "awake/app"])?;
        world.expect_state(asleep, "dormant")?;
        ensure!(!rules(world.node, asleep).await?.is_empty(), "its packets are held");

        let woken = world.stack.woodfrog(&["wake", "--all", "--for-good"])?;
        ensure!(woken.contains("/asleep/app: thawed"), "{woken:?}");
        // Longer than they may be idle.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for pod in &pods {
            world.expect_state(pod, "thawed")?;
            let left = rules(world.node, pod).await?;
            ensure!(left.is_empty(), "{} has rules: {left:?}", pod.pod_name());
        }
        world.stack.kill_agent()?;
        for pod in &pods {
            pod.get("/count").with_context(|| pod.pod_name().to_owned())?;
        }

        // The next agent knows it, and so does every pod that is made under it, until that is taken back.
        world.stack.start_agent()?;
        pods.push(world.from_image(standby("late", &image, "Dormant", Some("300ms"))).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        for pod in &pods {
            world.until(pod, "thawed").await?;
            ensure!(rules(world.node, pod).await?.is_empty(), "{} has rules again", pod.pod_name());
        }
        world.stack.woodfrog(&["wake", "--sleep-again"])?;
        world.stack.kill_agent()?;
        world.stack.start_agent()?;
        for (pod, state) in pods.iter().zip(["dormant", "dormant", "frozen", "dormant"]) {
            world.until(pod, state).await?;
        }
        for pod in pods {
            pod.remove().await?;
        }
        Ok(())
    });
}
