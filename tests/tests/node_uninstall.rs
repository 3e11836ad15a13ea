//! Woodfrog leaves a node on which its agent works: what the chart's DaemonSets run there to install and to uninstall, with their own
//! arguments. systemd is a stand-in, and so is kubelet: a service that reads its configuration when it starts.
#![forbid(unsafe_code)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use woodfrog_testkubelet::stack::{AGENT, SHIM};
use woodfrog_testkubelet::{Container, Kubelet};
use woodfrog_testnode::{App, Node, Options};
use woodfrog_tests::helm::Helm;
use woodfrog_tests::{World, in_world, rules, standby};

const SYSTEMCTL: &str = include_str!("../scripts/systemctl.sh");
/// Where the agent's image has what is installed.
const RELEASE: &str = "/usr/local/lib/woodfrog";
const CONFIG: &str = "/var/lib/kubelet/config.yaml";
const KUBELET_CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
kind: KubeletConfiguration
";
const KUBELET_UNIT: &str = "[Service]\nExecStart=/usr/local/bin/kubelet-stand-in\n";
/// Which endpoint a kubelet uses that has started is in a file.
const KUBELET: &str = "#!/bin/sh
sed -n 's/^containerRuntimeEndpoint: //p' /var/lib/kubelet/config.yaml >/run/kubelet-endpoint
exec sleep infinity
";

/// A host as kubeadm leaves it, with the agent's image unpacked on it.
fn prepare(node: &Node) -> Result<()> {
    let write = |path: &str, text: &str, mode: u32| -> Result<()> {
        let path = node.path(path);
        std::fs::create_dir_all(path.parent().context("a directory")?)?;
        std::fs::write(&path, text)?;
        Ok(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?)
    };
    write("/usr/local/bin/systemctl", SYSTEMCTL, 0o755)?;
    write("/usr/local/bin/kubelet-stand-in", KUBELET, 0o755)?;
    write("/etc/systemd/system/kubelet.service", KUBELET_UNIT, 0o644)?;
    write("/run/systemd/system/is-there", "", 0o644)?;
    write(CONFIG, KUBELET_CONFIG, 0o644)?;
    write("/var/lib/kubelet/kubeadm-flags.env", "KUBELET_KUBEADM_ARGS=\"\"\n", 0o644)?;

    let built = Options::default().binaries;
    let static_ = built.join(format!("static/{}-unknown-linux-gnu/init", std::env::consts::ARCH));
    std::fs::create_dir_all(node.path(RELEASE))?;
    for (program, from) in
        [("node-agent", built.join("debug")), ("woodfrog-init", static_.clone()), ("woodfrog-pager", static_)]
    {
        smaller(&from.join(program), &node.path(&format!("{RELEASE}/{program}")))?;
    }
    // What is installed for people; the one that is run is in the path.
    write(&format!("{RELEASE}/woodfrog"), "#!/bin/sh\nexec /srv/build/debug/woodfrog \"$@\"\n", 0o755)?;
    write("/usr/local/bin/woodfrog", "#!/bin/sh\nexec /srv/build/debug/woodfrog \"$@\"\n", 0o755)?;
    // The build is where releases go on a real host.
    let move_away = "mkdir -p /srv/build && mount --bind /opt/woodfrog /srv/build && mount -t tmpfs tmpfs /opt/woodfrog \
         && ln -s /srv/build/debug /srv/build/static /opt/woodfrog/";
    node.run("sh", &["-euc", move_away])?;
    Ok(())
}

/// A copy without what only debuggers read: the installer reads all of it several times.
fn smaller(from: &PathBuf, to: &PathBuf) -> Result<()> {
    let output = Command::new("strip").arg("-o").arg(to).arg(from).output().context("strip, of binutils")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The command of an init container of the chart.
fn command(objects: &[Value], container: &str) -> Result<Vec<String>> {
    let all = objects.iter().flat_map(|object| {
        object["spec"]["template"]["spec"]["initContainers"].as_array().into_iter().flatten()
    });
    let found = all.clone().find(|found| found["name"] == container);
    let words = found.and_then(|found| found["command"].as_array()).context("not in the chart")?;
    Ok(words.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect())
}

/// Runs it as in a container that has the host's root at /host.
fn in_a_pod(node: &Node, command: &[String]) -> Result<String> {
    let script = "mkdir -p /host && mount --rbind / /host && exec \"$@\"";
    let mut arguments = vec!["--mount", "sh", "-euc", script, "sh"];
    arguments.extend(command.iter().map(String::as_str));
    Ok(node.run("unshare", &arguments)?)
}

/// A connection to where kubelet goes.
async fn kubelet(node: &Node) -> Result<(String, Kubelet)> {
    let endpoint = std::fs::read_to_string(node.path("/run/kubelet-endpoint"))?;
    let socket = endpoint.trim().trim_start_matches("unix://").to_owned();
    let kubelet = Kubelet::connect(node, &node.path(&socket)).await?;
    Ok((socket, kubelet))
}

/// Programs of ours that run on the node.
fn processes(node: &Node) -> Result<Vec<String>> {
    let list = "for process in /proc/[0-9]*; do readlink $process/exe || true; done";
    let all = node.run("sh", &["-c", list])?;
    let ours = |line: &&str| line.contains("woodfrog") || line.contains("node-agent");
    Ok(all.lines().filter(ours).map(str::to_owned).collect())
}

#[test]
fn node_uninstalling_beside_a_live_agent_leaves_dormant_pods_awake_and_kubelet_with_containerd() {
    let Some(helm) = Helm::look() else { return };
    in_world("uninstall", &[App::Cpython], async |world| {
        let World { node, stack, .. } = world;
        let objects = helm.render("woodfrog-system", &json!({}))?;
        let image = world.counted_to_three().await?;
        prepare(node)?;
        node.stop(SHIM, Signal::TERM)?;
        let said = in_a_pod(node, &command(&objects, "installer")?)?;
        ensure!(said.contains("kubelet"), "{said}");
        node.run("systemctl", &["restart", "kubelet.service"])?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (socket, through_shim) = kubelet(node).await?;
        ensure!(socket == "/run/woodfrog/cri.sock", "kubelet goes to {socket}");

        through_shim.pull(&image).await?;
        let mut pods: Vec<Container> = Vec::new();
        for kind in ["Dormant", "Frozen"] {
            let spec = standby(&kind.to_lowercase(), &image, kind, Some("300ms"));
            pods.push(through_shim.run(spec).await?);
        }
        for (pod, asleep) in pods.iter().zip(["dormant", "frozen"]) {
            world.until(pod, asleep).await?;
            ensure!(!rules(node, pod).await?.is_empty(), "{}'s packets are held", pod.pod_name());
        }

        let said = in_a_pod(node, &command(&objects, "uninstaller")?)?;
        ensure!(said.starts_with("uninstalled; containers still run"), "{said}");
        for pod in &pods {
            world.expect_state(pod, "thawed")?;
        }
        let (socket, direct) = kubelet(node).await?;
        let pods: Vec<Container> = pods.iter().map(|pod| pod.through(&direct)).collect();
        ensure!(socket == "/run/containerd/containerd.sock", "kubelet goes to {socket}");
        ensure!(std::fs::read_to_string(node.path(CONFIG))? == KUBELET_CONFIG);
        ensure!(!node.path("/etc/systemd/system/woodfrog-shim.service").exists(), "the shim's unit is left");

        // As when its DaemonSet goes.
        node.stop(AGENT, Signal::TERM)?;
        let left = processes(node)?;
        let inits = left.iter().filter(|path| path.contains("init")).count();
        ensure!(inits == pods.len() && left.len() == pods.len(), "{left:?}");
        for pod in &pods {
            ensure!(rules(node, pod).await?.is_empty(), "rules of {} are left", pod.pod_name());
            ensure!(pod.get("/count")? == "4", "{} does not go on", pod.pod_name());
            let (code, said) = pod.exec(&["echo", "here"]).await?;
            ensure!((code, said.as_str()) == (0, "here"), "{code}: {said}");
        }
        // One that comes back, before its DaemonSet is gone, puts nobody to sleep.
        stack.start_agent()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for pod in &pods {
            world.until(pod, "thawed").await?;
            ensure!(rules(node, pod).await?.is_empty(), "rules of {} are back", pod.pod_name());
        }
        node.stop(AGENT, Signal::TERM)?;

        for pod in pods {
            pod.remove().await?;
        }
        let left = processes(node)?;
        ensure!(left.is_empty(), "{left:?}");
        // The binaries that they ran.
        in_a_pod(node, &command(&objects, "uninstaller")?)?;
        let releases = node.run("find", &["/opt/woodfrog", "-mindepth", "1", "-type", "d"])?;
        ensure!(releases.is_empty(), "{releases}");
        Ok(())
    });
}
