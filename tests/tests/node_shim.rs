//! The shim before a real containerd: what it changes is what it means to change, and nothing needs the agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::json;
use woodfrog_testkubelet::{Kubelet, PodSpec, Security};
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world};

const SOON: Duration = Duration::from_secs(30);
/// errno of `io_uring_setup(1, NULL)`: EFAULT where the kernel lets it.
const IO_URING: &str = "import ctypes; c = ctypes.CDLL(None, use_errno=True); c.syscall(425, 1, None); \
                        print(ctypes.get_errno())";

fn shell(name: &str, script: &str, security: Security) -> PodSpec {
    let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    PodSpec { command, ..PodSpec::new(name, &App::Cpython.reference()) }.security(security)
}

fn control_dirs(world: &World<'_>) -> Result<String> {
    Ok(world.node.run("ls", &["/run/woodfrog/containers"])?.trim().to_owned())
}

#[test]
fn node_a_managed_container_lives_as_any_other_without_an_agent() {
    in_world("shim-cold", &[App::Cpython], async |world| {
        world.stack.kill_agent()?;
        world.kubelet.pull(&App::Cpython.reference()).await?;
        for security in [Security::Restricted, Security::Root] {
            let script = "echo warm; trap 'exit 7' TERM; while :; do sleep 0.1; done";
            let container = world.kubelet.run(shell("cold", script, security).managed()).await?;
            let (code, name) = container.exec(&["cat", "/proc/1/comm"]).await?;
            ensure!((code, name.as_str()) == (0, "init"), "PID 1 is {name}");
            let (_, read_only) = container.exec(&["sh", "-c", "echo x > /run/woodfrog/x; echo $?"]).await?;
            ensure!(read_only != "0", "the container must not write into its control directory");
            if security == Security::Root {
                let (_, errno) = container.exec(&["python3.14", "-c", IO_URING]).await?;
                ensure!(errno == "38", "io_uring without a profile: errno {errno}");
            }
            ensure!(container.logs()?.contains("warm"), "{}", container.logs()?);
            container.stop(SOON).await?;
            ensure!(container.exit_code(SOON).await? == 7, "the application's exit status");
            container.remove().await?;
            ensure!(control_dirs(world)?.is_empty(), "a control directory is left");
        }
        Ok(())
    });
}

#[test]
fn node_the_runtime_sees_the_same_request_for_other_containers() {
    in_world("shim-same", &[App::Cpython], async |world| {
        let direct = Kubelet::connect(world.node, &world.node.containerd_socket()).await?;
        direct.pull(&App::Cpython.reference()).await?;
        let mut specs = Vec::new();
        for kubelet in [&direct, &world.kubelet] {
            let container = kubelet.run(shell("same", "sleep 60", Security::Restricted)).await?;
            let mut spec = container.runtime_spec().await?;
            // What is a container's own: namespaces and files of its sandbox, and its place among control groups.
            spec["annotations"] = json!(null);
            spec["linux"]["cgroupsPath"] = json!(null);
            spec["linux"]["namespaces"] = json!(null);
            for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
                mount["source"] = json!(null);
            }
            specs.push(spec);
            container.remove().await?;
        }
        ensure!(specs[0] == specs[1], "{:#}\n{:#}", specs[0], specs[1]);
        Ok(())
    });
}

#[test]
fn node_a_restart_of_containerd_is_survived_on_the_same_connection() {
    in_world("shim-restart", &[App::Cpython], async |world| {
        world.kubelet.pull(&App::Cpython.reference()).await?;
        let container =
            world.kubelet.run(shell("stays", "sleep 600", Security::Restricted).managed()).await?;
        world.node.stop("containerd", Signal::KILL)?;
        ensure!(container.status().await.is_err(), "nobody can answer");
        world.node.start_again("containerd")?;
        world.kubelet.ready().await?;
        let (code, _) = container.exec(&["true"]).await?;
        ensure!(code == 0, "exec after the restart");
        container.remove().await
    });
}
