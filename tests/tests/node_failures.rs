//! Whatever fails, the application runs: thawed, or cold with a reason.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use woodfrog_testkubelet::{Container, Kubelet, PodSpec, Stack};
use woodfrog_testnode::{App, Node, Options};
use woodfrog_tests::{STARTUP, World, in_world};

/// The image of [`frozen`].
fn image(world: &World<'_>) -> String {
    world.image(App::Synthetic, "failures")
}

/// A warm synthetic server that has counted to 3, and its image.
async fn frozen(world: &World<'_>) -> Result<Container> {
    let warm = world.warm(PodSpec::new("warm", &App::Synthetic.reference())).await?;
    for _ in 1..=3 {
        warm.get("/count")?;
    }
    world.freeze(&warm, &image(world))?;
    Ok(warm)
}

/// The state of a container, once it is one that lasts.
fn settled(world: &World<'_>, container: &Container) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let ps = world.ps(container)?;
        if ps["state"] == "thawed" || ps["state"] == "cold" {
            return Ok(ps);
        }
        ensure!(Instant::now() < deadline, "{} stays {}", container.pod_name(), ps["state"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A pod from the image must come up cold, for a reason that has `words` in it.
async fn starts_cold(world: &World<'_>, name: &str, words: &str) -> Result<()> {
    // One that has not seen the image fail before: it would put it into quarantine, and say that.
    world.stack.kill_agent()?;
    world.stack.start_agent()?;
    let pod = world.from_image(PodSpec::new(name, &image(world))).await?;
    ensure!(pod.wait("/count", STARTUP)? == "1", "{name}: a cold start counts from 1");
    let ps = settled(world, &pod)?;
    let reason = ps["reason"].as_str().unwrap_or_default();
    ensure!(ps["state"] == "cold" && reason.contains(words), "{name}: {} because of {reason:?}", ps["state"]);
    pod.remove().await
}

#[test]
fn node_an_agent_killed_in_any_phase_of_a_thaw_leaves_a_running_application() {
    in_world("killed-thaw", &[App::Synthetic], async |world| {
        frozen(world).await?;
        let phases = ["prepare", "worker", "check", "lease", "restore", "commit", "resume"];
        for phase in phases {
            world.stack.kill_agent()?;
            world.stack.start_agent_that_crashes(&format!("thaw:{phase}"))?;
            let name = format!("thaw-{phase}");
            let pod = world.from_image(PodSpec::new(&name, &image(world))).await?;
            let count = pod.wait("/count", STARTUP).with_context(|| name.clone())?;
            ensure!(world.node.service_pid("node-agent").is_none(), "{name}: the agent was to crash");
            world.stack.start_agent()?;
            let state = settled(world, &pod)?["state"].clone();
            let expected = if state == "thawed" { "4" } else { "1" };
            ensure!(count == expected, "{name}: {state}, but it counts {count}");
            ensure!(pod.get("/count")? == (count.parse::<u32>()? + 1).to_string(), "{name}: one application");
            runs_where_it_may(world, pod.pid().await?).await.context(name)?;
            pod.remove().await?;
        }

        // As an agent leaves it that is killed while it holds the threads on one CPU.
        let pod = world.from_image(PodSpec::new("held", &image(world))).await?;
        pod.wait("/count", STARTUP)?;
        world.stack.kill_agent()?;
        let init = pod.pid().await?;
        let hold = format!(
            "read application rest < /proc/{init}/task/{init}/children
            taskset -ap 1 $application
            for container in /run/woodfrog/containers/*; do : > $container/one-cpu; done"
        );
        world.node.run("sh", &["-c", &hold])?;
        world.stack.start_agent()?;
        runs_where_it_may(world, init).await
    });
}

/// Waits until all threads of the application of a container's init may run where the init may: a thaw holds them on one CPU for a moment.
async fn runs_where_it_may(world: &World<'_>, init: i32) -> Result<()> {
    let affinities = format!(
        "read application rest < /proc/{init}/task/{init}/children
        sed -n 's/^Cpus_allowed:\\t//p' /proc/{init}/status /proc/$application/task/*/status"
    );
    let until = Instant::now() + STARTUP;
    loop {
        let affinities = world.node.run("sh", &["-c", &affinities])?;
        let (of_init, of_threads) = affinities.split_once('\n').context("no application")?;
        ensure!(!of_threads.is_empty(), "no application");
        if of_threads.lines().all(|of_thread| of_thread == of_init) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "CPUs of init: {of_init}, of its threads: {of_threads}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// PID on the host of the pager that works for a container of this world: a child of the agent.
fn pager(world: &World<'_>) -> Option<i32> {
    let (agent, _) = world.node.service_pid("node-agent")?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().find(|pid| {
        // `PID (name) STATE PPID …`
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((head, tail)) = stat.rsplit_once(") ") else { return false };
        head.ends_with("(woodfrog-pager") && tail.split(' ').nth(1) == Some(&agent.to_string())
    })
}

#[test]
fn node_an_application_whose_pager_is_killed_ends_and_never_goes_on_without_its_memory() {
    in_world("killed-pager", &[App::Synthetic], async |world| {
        frozen(world).await?;
        let killed = async |attempt: u32| {
            // What the first thaw wants is found out, so its pager has nothing to do but to wait for a while.
            world.node.run("sh", &["-c", "rm -f /var/lib/woodfrog/working-sets/*"])?;
            let pod = world.from_image(PodSpec::new(&format!("first-{attempt}"), &image(world))).await?;
            let pager = pager(world).and_then(rustix::process::Pid::from_raw);
            let killed = pager
                .is_some_and(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok());
            if killed {
                let code = pod.exit_code(Duration::from_secs(10)).await?;
                ensure!(code == 137, "it ended with {code}, not as if it had been killed itself");
            }
            pod.remove().await?;
            Ok(killed)
        };
        let mut attempt = 0;
        while !killed(attempt).await? {
            attempt += 1;
            ensure!(attempt < 10, "the pagers have always gone already");
        }

        let pod = world.from_image(PodSpec::new("second", &image(world))).await?;
        world.assert_thawed(&pod)?;
        ensure!(pod.wait("/count", STARTUP)? == "4", "the next one has all of its memory");
        let log = world.stack.woodfrog(&["logs", "second/app"])?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while !world.stack.woodfrog(&["logs", "second/app"])?.contains("all memory is there") {
            ensure!(Instant::now() < deadline, "its memory never comes:\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(pager(world).is_none(), "nothing of the thaw is left");
        pod.remove().await
    });
}

#[test]
fn node_an_agent_killed_in_any_phase_of_a_freeze_leaves_a_running_application() {
    in_world("killed-freeze", &[App::Synthetic], async |world| {
        let warm = frozen(world).await?;
        let mut count = 3;
        for phase in ["worker", "dump", "wait", "files", "resume", "build", "push"] {
            world.stack.kill_agent()?;
            world.stack.start_agent_that_crashes(&format!("freeze:{phase}"))?;
            settled(world, &warm)?;
            if world.freeze(&warm, &image(world)).is_ok() {
                bail!("{phase}: the agent was to crash");
            }
            for _ in 0..2 {
                count += 1;
                let answer = warm.wait("/count", STARTUP).with_context(|| phase.to_owned())?;
                ensure!(answer == count.to_string(), "{phase}: the application goes on, but counts {answer}");
            }
            world.stack.start_agent()?;
            let left = fs::read_dir(world.node.path("/var/lib/woodfrog/freezes"))?.count();
            ensure!(left == 0, "{phase}: {left} unfinished freezes are left");
        }
        settled(world, &warm)?;
        world.freeze(&warm, &image(world))?;
        Ok(())
    });
}

#[test]
fn node_without_an_agent_a_checkpoint_image_starts_cold_at_once() {
    in_world("no-agent", &[App::Synthetic], async |world| {
        frozen(world).await?;
        world.stack.kill_agent()?;
        let began = Instant::now();
        let pod = world.from_image(PodSpec::new("alone", &image(world))).await?;
        ensure!(pod.wait("/count", STARTUP)? == "1");
        ensure!(began.elapsed() < Duration::from_secs(5), "nothing waits for an agent that is not there");
        world.stack.start_agent()?;
        ensure!(settled(world, &pod)?["state"] == "cold", "a later agent takes it over");
        world.freeze(&pod, &image(world))?;
        Ok(())
    });
}

#[test]
fn node_an_image_thaws_on_a_second_node() {
    in_world("first", &[App::Synthetic], async |world| {
        frozen(world).await?;
        let second = Node::up("second", &Options::default())?.into_guard();
        let stack = Stack::start(&second, "debug")?;
        let kubelet = Kubelet::connect(&second, &stack.cri_socket()).await?;
        let there = World { node: &second, stack, kubelet };
        let pod = there.from_image(PodSpec::new("away", &image(world))).await?;
        there.assert_thawed(&pod)?;
        ensure!(pod.wait("/count", STARTUP)? == "4");
        Ok(())
    });
}

#[test]
fn node_damaged_and_foreign_images_start_cold_and_say_why() {
    in_world("damaged", &[App::Synthetic], async |world| {
        frozen(world).await?;
        world.kubelet.pull(&image(world)).await?;
        let record = checkpoint_file(world, "woodfrog.json")?;
        let text = fs::read_to_string(&record)?;
        let edits: [(&str, &str, Value, &str); 6] = [
            ("version", "/version", 9.into(), "version 9"),
            ("arch", "/compatibility/architecture", "riscv64".into(), "riscv64"),
            ("cpu", "/compatibility/cpuFeatures", vec!["warp_drive"].into(), "warp_drive"),
            ("criu", "/compatibility/criu", "99.0.0".into(), "99.0.0"),
            ("kernel", "/compatibility/kernel", "99.0.0".into(), "99.0.0"),
            ("seccomp", "/seccompFilters", 7.into(), "7 seccomp filters"),
        ];
        for (name, field, value, words) in edits {
            let mut json: Value = serde_json::from_str(&text)?;
            *json.pointer_mut(field).with_context(|| field.to_owned())? = value;
            fs::write(&record, serde_json::to_vec(&json)?)?;
            starts_cold(world, name, words).await?;
        }
        fs::write(&record, "no json")?;
        starts_cold(world, "json", "woodfrog.json").await?;
        fs::write(&record, &text)?;

        for (name, file, words) in
            [("core", "core-300.img", "not what was frozen"), ("pages", "pages-1.img", "bytes instead of")]
        {
            let path = checkpoint_file(world, file)?;
            let bytes = fs::read(&path)?;
            let mut damaged = bytes.clone();
            if name == "core" {
                damaged[40] ^= 1;
            } else {
                damaged.truncate(bytes.len() - 4096);
            }
            fs::write(&path, damaged)?;
            starts_cold(world, name, words).await?;
            fs::write(&path, bytes)?;
        }
        let pod = world.from_image(PodSpec::new("whole", &image(world))).await?;
        world.assert_thawed(&pod)
    });
}

/// A file of the checkpoint in the node's unpacked layers.
fn checkpoint_file(world: &World<'_>, name: &str) -> Result<PathBuf> {
    let snapshots = world.node.path("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
    for snapshot in fs::read_dir(&snapshots)? {
        let path = snapshot?.path().join("fs/.woodfrog/checkpoint").join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("no layer of the image has {name}")
}

#[test]
fn node_what_cannot_be_frozen_is_named_and_runs_on() {
    in_world("refused", &[App::Synthetic], async |world| {
        let warm = frozen(world).await?;
        let freeze = |arguments: &[&str]| {
            let all = [&["freeze", "warm/app", "--image"], arguments].concat();
            world.stack.woodfrog(&all).map_err(|e| e.to_string())
        };
        let peer = world.node.connect((warm.ip(), 8080).into())?;
        std::thread::sleep(Duration::from_millis(200));
        let refused = freeze(&[&image(world)]).unwrap_err();
        let ours = peer.local_addr()?.to_string();
        ensure!(refused.contains(&ours) && refused.contains("connections"), "{refused}");
        let closed = &world.image(App::Synthetic, "closed");
        // The server talks to one client at a time, so nobody accepts this one, and CRIU cannot dump that.
        let waiting = world.node.connect((warm.ip(), 8080).into())?;
        let hang_up = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(600));
            drop((peer, waiting));
        });
        freeze(&[closed, "--connections", "close"]).map_err(anyhow::Error::msg)?;
        let _ = hang_up.join();
        let pod = world.from_image(PodSpec::new("closed", closed)).await?;
        world.assert_thawed(&pod)?;
        ensure!(pod.wait("/count", STARTUP)? == "4", "a thaw does without the connections");

        let down = freeze(&["127.0.0.1:5999/nobody:1"]).unwrap_err();
        ensure!(down.contains("127.0.0.1:5999"), "{down}");
        let wrong = freeze(&["NOT A REFERENCE"]).unwrap_err();
        ensure!(wrong.contains("NOT A REFERENCE"), "{wrong}");
        let nobody = world.stack.woodfrog(&["freeze", "nobody/app", "--image", &image(world)]).unwrap_err();
        ensure!(nobody.to_string().contains("nobody/app"), "{nobody}");
        ensure!(warm.get("/count")? == "4", "the application never noticed");
        Ok(())
    });
}
