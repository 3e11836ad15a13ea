//! The main job: real applications frozen and thawed, with their state, twice at a time and again.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testkubelet::{PodSpec, Security};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world};

/// freeze → two thaws at once → freeze one of them → thaw.
async fn life_of(world: &World<'_>, app: App, security: Security) -> Result<()> {
    let spec = |name: &str, image: &str| PodSpec::new(name, image).security(security);
    let warm = world.warm(spec("warm", &app.reference())).await?;
    for expected in 1..=3 {
        ensure!(warm.get("/count")? == expected.to_string());
    }
    let checksum = warm.get("/checksum")?;

    let image = world.image(app, "1");
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

    let again = world.image(app, "2");
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

/// Says back what it hears, on every connection.
const ECHO: &str = "import socketserver as s
class H(s.BaseRequestHandler):
    def handle(self):
        while b := self.request.recv(99): self.request.sendall(b)
s.ThreadingTCPServer(('0.0.0.0', 8080), H).serve_forever()";

fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == text.as_bytes(), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

#[test]
fn node_a_connection_that_is_kept_goes_on_in_the_pod_s_next_container() {
    in_world("keep", &[App::Cpython], async |world| {
        let command = ["python3.14", "-c", ECHO].map(str::to_owned).to_vec();
        let spec = PodSpec { command, ..PodSpec::new("keep", &App::Cpython.reference()) };
        let spec = spec.security(Security::Root).managed();
        world.kubelet.pull(&spec.image).await?;
        let container = world.kubelet.run(spec).await?;
        let address = SocketAddr::new(container.ip(), 8080);
        let deadline = Instant::now() + STARTUP;
        let mut stream = loop {
            match world.node.connect(address) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > deadline => return Err(e.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        stream.set_read_timeout(Some(STARTUP))?;
        echo(&mut stream, "before")?;

        let image = format!("{REGISTRY}/checkpoint/echo:1");
        let refused = world.freeze(&container, &image).unwrap_err().to_string();
        let peer = stream.local_addr()?.to_string();
        ensure!(refused.contains(&peer), "the refusal names {peer}: {refused}");
        echo(&mut stream, "still before")?;

        let freeze = ["freeze", "keep/app", "--image", &image, "--connections", "keep", "--stop"];
        world.stack.woodfrog(&freeze)?;
        // As kubelet does: what has ended is not stopped, and containerd may stumble over a container that just ends.
        container.exit_code(STARTUP).await?;
        let container = container.replace(&image).await?;
        world.assert_thawed(&container)?;
        echo(&mut stream, "after")?;
        container.remove().await
    });
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
