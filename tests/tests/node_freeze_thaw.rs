//! The main job: real applications frozen and thawed, with their state, twice at a time and again.

use std::time::Duration;

use anyhow::{Result, ensure};
use woodfrog_testkubelet::{PodSpec, Security};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world};

const REGISTRY: &str = "127.0.0.1:5000";

/// freeze → two thaws at once → freeze one of them → thaw.
async fn life_of(world: &World<'_>, app: App, security: Security) -> Result<()> {
    let spec = |name: &str, image: &str| PodSpec::new(name, image).security(security);
    let warm = world.warm(spec("warm", &app.reference())).await?;
    for expected in 1..=3 {
        ensure!(warm.get("/count")? == expected.to_string());
    }
    let checksum = warm.get("/checksum")?;

    let image = format!("{REGISTRY}/checkpoint/{}:1", app.name());
    world.freeze(&warm, &image)?;
    ensure!(warm.get("/count")? == "4", "the frozen application runs on");

    let (first, second) =
        tokio::try_join!(world.from_image(spec("first", &image)), world.from_image(spec("second", &image)))?;
    for thawed in [&first, &second] {
        world.assert_thawed(thawed)?;
        ensure!(thawed.wait("/count", STARTUP)? == "4", "each goes on from the freeze");
        ensure!(thawed.get("/checksum")? == checksum, "its memory is as it was");
        let (code, hostname) = thawed.exec(&["hostname"]).await?;
        ensure!((code, hostname.as_str()) == (0, thawed.pod_name()), "exec sees the new pod's name");
        let (_, generation) = thawed.exec(&["cat", "/run/woodfrog/restore.json"]).await?;
        let restored: serde_json::Value = serde_json::from_str(&generation)?;
        ensure!(restored["generation"] == 1 && restored["identity"]["pod"] == thawed.pod_name());
    }

    let again = format!("{REGISTRY}/checkpoint/{}:2", app.name());
    world.freeze(&first, &again)?;
    ensure!(first.get("/count")? == "5");
    let third = world.from_image(spec("third", &again)).await?;
    world.assert_thawed(&third)?;
    ensure!(third.wait("/count", STARTUP)? == "5", "a thawed application thaws again");
    ensure!(third.get("/checksum")? == checksum);

    for container in [warm, first, second, third] {
        container.stop(Duration::from_secs(20)).await?;
        let code = container.exit_code(Duration::from_secs(5)).await?;
        ensure!(code != 137, "{} ends by SIGTERM, but was killed", container.pod_name());
        container.remove().await?;
    }
    Ok(())
}

macro_rules! lives {
    ($($test:ident: $app:ident, $security:ident;)*) => {
        $(#[test]
        fn $test() {
            let name = format!("life-{}-{}", App::$app.name(), stringify!($security).to_lowercase());
            in_world(&name, &[App::$app], async |world| life_of(world, App::$app, Security::$security).await);
        })*
    };
}

lives! {
    node_cpython_thaws_with_its_state_locked_down: Cpython, Restricted;
    node_cpython_thaws_with_its_state_as_root: Cpython, Root;
    node_tomcat_thaws_with_its_state_locked_down: Tomcat, Restricted;
    node_tomcat_thaws_with_its_state_as_root: Tomcat, Root;
    node_nodejs_thaws_with_its_state_locked_down: Node, Restricted;
    node_nodejs_thaws_with_its_state_as_root: Node, Root;
    node_rails_thaws_with_its_state_locked_down: Rails, Restricted;
    node_rails_thaws_with_its_state_as_root: Rails, Root;
}
