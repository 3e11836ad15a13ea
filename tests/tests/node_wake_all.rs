//! Before Woodfrog leaves a node: nobody is left asleep, and no rules are.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::Container;
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world, standby};

/// The rules of ours in a pod's network namespace.
async fn rules(world: &World<'_>, pod: &Container) -> Result<Vec<String>> {
    let namespace = format!("--net=/proc/{}/ns/net", pod.pid().await?);
    let mut rules = Vec::new();
    for save in ["iptables-nft-save", "ip6tables-nft-save"] {
        let text = world.node.run("nsenter", &[&namespace, save])?;
        rules.extend(text.lines().filter(|line| line.contains("woodfrog")).map(str::to_owned));
    }
    Ok(rules)
}

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
        ensure!(!rules(world, asleep).await?.is_empty(), "its packets are held");

        let woken = world.stack.woodfrog(&["wake", "--all", "--for-good"])?;
        ensure!(woken.contains("/asleep/app: thawed"), "{woken:?}");
        // Longer than they may be idle.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for pod in &pods {
            world.expect_state(pod, "thawed")?;
            let left = rules(world, pod).await?;
            ensure!(left.is_empty(), "{} has rules: {left:?}", pod.pod_name());
        }
        world.stack.kill_agent()?;
        for pod in &pods {
            pod.get("/count").with_context(|| pod.pod_name().to_owned())?;
        }
        for pod in pods {
            pod.remove().await?;
        }
        Ok(())
    });
}
