//! Memory that is shared between the applications that are thawed from an image on a node.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::{Container, PodSpec, Security};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world};

/// Bytes that only this container's application has, of all that it has in memory.
async fn memory(container: &Container) -> Result<(u64, u64)> {
    let (_, text) = container.exec(&["sh", "-c", "cat /proc/[3-9][0-9][0-9]/smaps_rollup"]).await?;
    let sum = |names: &[&str]| -> u64 {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        let wanted = fields.filter(|(name, _)| names.contains(name));
        wanted.filter_map(|(_, rest)| rest.trim().split(' ').next()?.parse::<u64>().ok()).sum::<u64>() * 1024
    };
    Ok((sum(&["Anonymous"]), sum(&["Rss"])))
}

fn log(world: &World<'_>, container: &Container) -> String {
    world.stack.woodfrog(&["logs", &format!("{}/app", container.pod_name())]).unwrap_or_default()
}

/// freeze → two thaws that share → freeze one of them → thaw.
async fn life_of(world: &World<'_>, app: App) -> Result<()> {
    let spec = |name: &str, image: &str| PodSpec::new(name, image).security(Security::Restricted);
    let warm = world.warm(spec("warm", &app.reference())).await?;
    for expected in 1..=3 {
        ensure!(warm.get("/count")? == expected.to_string());
    }
    let checksum = warm.get("/checksum")?;
    let image = world.image(app, "shared");
    let frozen = world.freeze_shared(&warm, &image)?;
    let whole = frozen["images"][0]["memory_bytes"].as_u64().context("the image's size")?;

    let (first, second) =
        tokio::try_join!(world.from_image(spec("first", &image)), world.from_image(spec("second", &image)))?;
    for thawed in [&first, &second] {
        world.assert_thawed(thawed)?;
        ensure!(thawed.wait("/count", STARTUP)? == "4", "each goes on from the freeze");
        let (own, all) = memory(thawed).await?;
        ensure!(world.ps(thawed)?["shares_memory"] == true, "it shares its memory:\n{}", log(world, thawed));
        eprintln!(
            "{}: {own} of its own, {all} in memory, {whole} in the image\n{}",
            thawed.pod_name(),
            log(world, thawed)
        );
        ensure!(own < whole / 2, "{own} bytes of its own, of an image of {whole}:\n{}", log(world, thawed));
        ensure!(thawed.get("/checksum")? == checksum, "its memory is as it was");
    }
    let again = world.image(app, "shared-again");
    // What it has written to, and what not, is in the new image; that it forgets what it gives up is not undone.
    world.freeze_shared(&first, &again)?;
    ensure!(first.get("/count")? == "5");
    let third = world.from_image(spec("third", &again)).await?;
    world.assert_thawed(&third)?;
    ensure!(third.wait("/count", STARTUP)? == "5", "a thawed application thaws again");
    ensure!(third.get("/checksum")? == checksum, "its memory is as it was");

    for container in [warm, first, second, third] {
        container.stop(Duration::from_secs(20)).await?;
        let code = container.exit_code(Duration::from_secs(5)).await?;
        ensure!(code != 137, "{} ends by SIGTERM, but was killed", container.pod_name());
        container.remove().await?;
    }
    Ok(())
}

macro_rules! lives {
    ($($test:ident: $app:ident;)*) => {
        $(#[test]
        fn $test() {
            let name = format!("shared-{}", App::$app.name());
            in_world(&name, &[App::$app], async |world| life_of(world, App::$app).await);
        })*
    };
}

lives! {
    node_cpython_shares_its_memory: Cpython;
    node_tomcat_shares_its_memory: Tomcat;
    node_nodejs_shares_its_memory: Node;
    node_rails_shares_its_memory: Rails;
    node_synthetic_shares_its_memory: Synthetic;
}
