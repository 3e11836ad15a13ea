//! Many dormant pods that are woken at the same moment.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::PodSpec;
use woodfrog_testnode::App;
use woodfrog_tests::{in_world, standby};

use crate::traffic::{get, on_node};

#[test]
fn node_many_dormant_pods_woken_at_once_all_answer_and_none_starts_cold() {
    let count = crate::number("WOODFROG_PODS", 8);
    in_world("stress-crowd", &[App::Synthetic], async |world| {
        let warm = world.warm(PodSpec::new("warm", &App::Synthetic.reference()).args(&["4", "2"])).await?;
        ensure!(warm.get("/count")? == "1");
        let image = world.image(App::Synthetic, "crowd");
        world.freeze(&warm, &image)?;
        warm.remove().await?;
        let mut pods = Vec::new();
        for number in 0..count {
            pods.push(world.from_image(standby(&format!("pod-{number}"), &image, "Dormant", None)).await?);
        }
        let together = Barrier::new(count);
        let ask = |pod: &woodfrog_testkubelet::Container| {
            together.wait();
            let began = Instant::now();
            let answer = get(pod.ip(), "/count").with_context(|| pod.pod_name().to_owned())?;
            ensure!(answer == "2", "{} counts {answer}", pod.pod_name());
            Ok(began.elapsed())
        };
        let mut times: Vec<Duration> = on_node(world, || {
            std::thread::scope(|scope| {
                let clients: Vec<_> = pods.iter().map(|pod| scope.spawn(|| ask(pod))).collect();
                clients.into_iter().map(|client| client.join().expect("a client")).collect::<Result<_>>()
            })
        })?;
        times.sort();
        println!("{count} pods woke: median {:.0?}, last {:.0?}", times[count / 2], times[count - 1]);
        for pod in &pods {
            let ps = world.ps(pod)?;
            ensure!(ps["state"] == "thawed" && ps["wakes"] == 1 && ps["generation"] == 1, "{ps}");
        }
        for pod in &pods {
            pod.remove().await?;
        }
        Ok(())
    });
}
