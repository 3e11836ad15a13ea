//! What an image says of the memory that is wanted first.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use woodfrog_testkubelet::{Container, PodSpec, Security};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world};

fn log(world: &World<'_>, container: &Container) -> String {
    world.stack.woodfrog(&["logs", &format!("{}/app", container.pod_name())]).unwrap_or_default()
}

fn spec(name: &str, image: &str) -> PodSpec {
    PodSpec::new(name, image).security(Security::Restricted)
}

/// Freezes a container, which goes on thawed, into an image that says what `/count` needs.
fn freeze_rehearsed(world: &World<'_>, container: &Container, image: &str) -> Result<Value> {
    let name = format!("{}/app", container.pod_name());
    let rehearse = ["--record-working-set", "--request", "http://:8080/count", "--output", "json"];
    let output = world.stack.woodfrog(&[&["freeze", &name, "--image", image], &rehearse[..]].concat())?;
    serde_json::from_str(&output).with_context(|| output)
}

/// How many faults a pod from an image had by its first answer, when all memory is there; and what the answer was.
async fn faults(world: &World<'_>, name: &str, image: &str) -> Result<(u64, String)> {
    // As on a node that has never seen it.
    world.node.run("sh", &["-c", "rm -rf /var/lib/woodfrog/working-sets/*"])?;
    let thawed = world.from_image(spec(name, image)).await?;
    world.assert_thawed(&thawed)?;
    let count = thawed.wait("/count", STARTUP)?;
    let deadline = std::time::Instant::now() + STARTUP;
    let faults = loop {
        let ps = world.ps(&thawed)?;
        if let Some(faults) = ps["memory"]["faults"].as_u64() {
            break faults;
        }
        ensure!(std::time::Instant::now() < deadline, "its memory never comes:\n{}", log(world, &thawed));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let said = log(world, &thawed).contains("its image says that");
    ensure!(said == (name == "told"), "{}", log(world, &thawed));
    thawed.remove().await?;
    Ok((faults, count))
}

#[test]
fn node_an_image_says_what_it_wants_first_to_nodes_that_have_never_seen_it() {
    in_world("sets-image", &[App::Cpython], async |world| {
        let warm = world.warm(spec("warm", &App::Cpython.reference())).await?;
        for expected in 1..=3 {
            ensure!(warm.get("/count")? == expected.to_string());
        }
        let (plain, told) = (world.image(App::Cpython, "plain"), world.image(App::Cpython, "told"));
        let frozen = world.freeze(&warm, &plain)?;
        ensure!(frozen["images"][0]["working_set_bytes"] == 0);
        let frozen = freeze_rehearsed(world, &warm, &told)?;
        let image = &frozen["images"][0];
        let (whole, set) = (image["memory_bytes"].as_u64(), image["working_set_bytes"].as_u64());
        ensure!(image["warnings"].as_array().is_some_and(Vec::is_empty), "{image}\n{}", log(world, &warm));
        ensure!(set > Some(0) && set < whole, "{set:?} of {whole:?}");
        ensure!(world.ps(&warm)?["state"] == "thawed", "{}", log(world, &warm));
        ensure!(warm.get("/count")? == "5", "it goes on from its rehearsal, in which it counted");
        let kept = world.node.run("ls", &["/var/lib/woodfrog/working-sets"])?;
        ensure!(kept.is_empty(), "nothing is left of the rehearsal: {kept}");
        warm.remove().await?;

        let (asked, count) = faults(world, "untold", &plain).await?;
        ensure!(count == "4", "the image is what was frozen, not what was rehearsed");
        let (asked_when_told, count) = faults(world, "told", &told).await?;
        ensure!(count == "4", "the image is what was frozen, not what was rehearsed");
        ensure!(asked_when_told < asked / 2, "{asked_when_told} faults, {asked} without the set");
        Ok(())
    });
}
