//! Agents that fall silent: a node's agent is a lease that the test renews, or does not.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::*;

/// How long a renewal is good for: shorter than an agent's, and long enough for a machine under load.
const TERM: Duration = Duration::from_secs(5);

/// Renews the lease of [`NODE`] as its agent does, until it is dropped.
struct Agent(JoinHandle<()>);

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl World {
    fn agent(&self) -> Agent {
        let leases = self.api::<Lease>();
        Agent(tokio::spawn(async move {
            loop {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": names::agent_lease(NODE), "labels": {names::NODE_LABEL: NODE}},
                    "spec": {
                        "holderIdentity": NODE, "leaseDurationSeconds": TERM.as_secs(),
                        "renewTime": MicroTime(Timestamp::now()),
                    },
                });
                let agent = PatchParams::apply(names::AGENT).force();
                // What fails now is done at the next turn.
                let _ = leases.patch(&names::agent_lease(NODE), &agent, &Patch::Apply(lease)).await;
                sleep(Duration::from_millis(500)).await;
            }
        }))
    }

    /// The lease of an agent that is gone.
    async fn agent_once(&self) -> Lease {
        let _agent = self.agent();
        loop {
            if let Ok(lease) = self.api::<Lease>().get(&names::agent_lease(NODE)).await {
                return lease;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn degraded(pool: &WarmPool) -> Option<String> {
    let mut conditions = pool.status.iter().flat_map(|status| &status.conditions);
    let degraded = conditions.find(|condition| condition.type_ == "Degraded")?;
    Some(format!("{} {} {}", degraded.status, degraded.reason, degraded.message))
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_pool_says_once_that_the_agent_of_its_pods_is_silent_and_no_longer_when_it_is_back() {
    let Some(mut world) = World::new().await else { return };
    let agent = world.agent();
    world.checkpoint().await;
    let spec = json!({"checkpointRef": {"name": "web"}, "replicas": 2, "standby": "Dormant"});
    world.make::<WarmPool>("WarmPool", "web", spec).await;
    world.until("web", settled(2)).await;
    world.until("web", |pool| says(pool, "Degraded", "AllWell")).await;
    // Longer than a term.
    sleep(TERM + Duration::from_secs(1)).await;
    assert!(world.events("AgentSilent").await.is_empty(), "it was there all the time");

    drop(agent);
    let pool = world.until("web", |pool| says(pool, "Degraded", "AgentSilent")).await;
    let said = degraded(&pool).unwrap();
    assert!(said.starts_with("True AgentSilent no word from the node agents of node-1 (since 20"), "{said}");
    // Pods that are made now had better go elsewhere.
    let scaled = Patch::Merge(json!({"spec": {"replicas": 3}}));
    world.api::<WarmPool>().patch("web", &PatchParams::default(), &scaled).await.unwrap();
    world.until("web", settled(3)).await;
    let avoids = |pod: &Pod| {
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
        affinity.is_some_and(|node| node.preferred_during_scheduling_ignored_during_execution.is_some())
    };
    assert_eq!(world.pods("web").await.iter().filter(|pod| avoids(pod)).count(), 1);

    // Another operator says the same, and not again.
    world.kill_operator();
    world.start_operator().await;
    let scaled = Patch::Merge(json!({"spec": {"replicas": 2}}));
    world.api::<WarmPool>().patch("web", &PatchParams::default(), &scaled).await.unwrap();
    let all_the_time = |pool: &WarmPool| assert_eq!(degraded(pool).as_ref(), Some(&said));
    let pool = world
        .until("web", |pool| {
            all_the_time(pool);
            settled(2)(pool)
        })
        .await;
    all_the_time(&pool);
    sleep(TERM + Duration::from_secs(1)).await;
    all_the_time(&world.api::<WarmPool>().get("web").await.unwrap());
    let told = world.events("AgentSilent").await;
    assert!(told.len() == 1 && told[0].series.is_none(), "{told:?}");

    let _agent = world.agent();
    world.until("web", |pool| says(pool, "Degraded", "AllWell")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_a_checkpoint_whose_agent_is_gone_says_so_before_its_attempt_fails() {
    let Some(mut world) = World::new().await else { return };
    // Its pod gets a node, and nobody there does what is asked.
    world.stop_node();
    world.start_node_without_an_agent();
    world.agent_once().await;
    world.checkpoint().await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let checkpoint = world.api::<Checkpoint>().get("web").await.unwrap();
        let status = checkpoint.status.clone().unwrap_or_default();
        if status.conditions.iter().any(|c| c.type_ == "Ready" && c.reason == "AgentSilent") {
            assert!(status.instruction.is_some() && status.failures == Some(0), "{status:?}");
            return;
        }
        assert!(Instant::now() < deadline, "{}", serde_json::to_string_pretty(&checkpoint).unwrap());
        sleep(Duration::from_millis(50)).await;
    }
}
