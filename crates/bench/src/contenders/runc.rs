//! `runc checkpoint` and `runc restore` of the same application in a plain container of runc.
//!
//! Its configuration is the one that containerd makes for a pod, so security and file systems are the same. It has the network
//! namespace of a pod sandbox, as containers have, and what else lies in a sandbox (`/etc/hosts`, IPC) is its own.
//! cgroups are ignored on both ways, which is the fastest, and `/tmp` is laid out before the clock starts.

use anyhow::{Context, Result};
use async_trait::async_trait;
use serde_json::{Value as Json, json};
use woodfrog_testkubelet::Pod;

use super::{Contender, PATIENCE, Place, Value};
use crate::client::FirstAnswer;
use crate::clock::ms;
use crate::inside::Started;
use crate::report::Metric;
use crate::workload::{State, Workload};

/// See the module.
#[derive(Debug)]
pub(crate) struct Runc {
    place: Place,
    pod: Pod,
    id: String,
    directory: String,
    state: State,
}

impl Runc {
    /// Warms the application up and checkpoints it.
    pub(crate) async fn prepare(place: Place, workload: Workload) -> Result<Self> {
        let directory = place.directory(&workload, "runc")?;
        let pod = place.direct.sandbox(place.pod_for_runtime(&workload, "runc")).await?;
        // Never started: its configuration is what is wanted.
        let model = pod.create().await?;
        let spec = model.runtime_spec().await?;
        let id = format!("{}-bench", workload.name());
        place.node.run("runc", &["delete", "--force", &id])?;
        let config = plain(spec, &id, &directory)?;
        let path = |name: &str| format!("{directory}/{name}");
        place.node.run("mkdir", &["-p", &path("rootfs"), &path("images"), &path("work")])?;
        place.node.run("mkdir", &["-m", "0777", &path("tmp")])?;
        place.node.run("chmod", &["0777", &path("tmp")])?;
        let image = workload.image();
        place.node.run("ctr", &["--namespace", "k8s.io", "images", "mount", &image, &path("rootfs")])?;
        std::fs::write(place.node.path(&path("config.json")), serde_json::to_vec(&config)?)?;

        let mut runc = Self { place, pod, id, directory: directory.clone(), state: State::default() };
        match runc.checkpoint(&workload).await {
            Ok(()) => Ok(runc),
            Err(error) => {
                runc.clean().await?;
                Err(error)
            }
        }
    }

    async fn checkpoint(&mut self, workload: &Workload) -> Result<()> {
        self.run("run", &[])?;
        FirstAnswer::from(&self.place.node, self.pod.ip, PATIENCE).at().await?;
        self.state = workload.warm_up(&self.place.node, self.pod.ip)?;
        self.run("checkpoint", &["--file-locks"])?;
        self.place.copy(&format!("{}/tmp", self.directory), &format!("{}/tmp-dumped", self.directory))
    }

    /// Runs `runc VERB`; an error has what CRIU or runc said.
    fn run(&self, verb: &str, more: &[&str]) -> Result<Started> {
        let path = |name: &str| format!("{}/{name}", self.directory);
        let (log, bundle, images, work) =
            (path("runc.log"), self.directory.clone(), path("images"), path("work"));
        let mut arguments = vec!["run", "--", "runc", "--log", &log, verb];
        if verb != "run" {
            arguments.extend([
                "--image-path",
                &images,
                "--work-path",
                &work,
                "--manage-cgroups-mode",
                "ignore",
            ]);
        }
        if verb != "checkpoint" {
            arguments.extend(["--detach", "--bundle", &bundle]);
        }
        arguments.extend(more);
        arguments.push(&self.id);
        let report = self.place.inside(&arguments).map_err(|error| {
            let log = std::fs::read_to_string(self.place.node.path(&log)).unwrap_or_default();
            let work = format!("{work}/{}.log", if verb == "restore" { "restore" } else { "dump" });
            let criu = std::fs::read_to_string(self.place.node.path(&work)).unwrap_or_default();
            let criu: Vec<_> = criu.lines().filter(|line| line.contains("Error")).collect();
            error.context(format!("{}\n{}", log.trim(), criu.join("\n")))
        })?;
        serde_json::from_str(&report).with_context(|| report.clone())
    }

    fn delete(&self) -> Result<()> {
        self.place.node.run("runc", &["delete", "--force", &self.id])?;
        Ok(())
    }
}

#[async_trait]
impl Contender for Runc {
    async fn once(&self) -> Result<Vec<Value>> {
        let (tmp, dumped) = (format!("{}/tmp", self.directory), format!("{}/tmp-dumped", self.directory));
        self.place.copy(&dumped, &tmp)?;
        let answer = FirstAnswer::from(&self.place.node, self.pod.ip, PATIENCE);
        let started = self.run("restore", &[])?;
        let restored = ms(started.started_us, started.done_us);
        let mut values = vec![
            (Metric::Restored, restored),
            (Metric::Full, restored),
            (Metric::Response, ms(started.started_us, answer.at().await?)),
        ];
        let state = self.place.node.run("runc", &["state", &self.id])?;
        let state: Json = serde_json::from_str(&state)?;
        let pid = state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).context("no PID")?;
        // It is in no cgroup of its own.
        values.extend(self.place.usage(pid)?.into_iter().filter(|(metric, _)| *metric != Metric::Cpu));
        self.state.check(&self.place.node, self.pod.ip)?;
        self.delete()?;
        Ok(values)
    }

    async fn clean(&self) -> Result<()> {
        self.delete()?;
        self.place.node.run(
            "ctr",
            &["--namespace", "k8s.io", "images", "unmount", "--rm", &format!("{}/rootfs", self.directory)],
        )?;
        self.place.node.run("rm", &["-rf", &self.directory])?;
        self.pod.remove().await
    }
}

/// The configuration of a pod's container, made to stand alone.
fn plain(mut spec: Json, id: &str, directory: &str) -> Result<Json> {
    spec["root"]["path"] = json!(format!("{directory}/rootfs"));
    spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    spec["annotations"] = json!({});
    for namespace in spec["linux"]["namespaces"].as_array_mut().context("no namespaces")? {
        if namespace["type"] != "network" {
            namespace.as_object_mut().context("a namespace is no object")?.remove("path");
        }
    }
    let mounts = spec["mounts"].as_array_mut().context("no mounts")?;
    mounts.retain_mut(|mount| {
        let shared = mount["type"] == "bind";
        match mount["destination"].as_str() {
            Some("/dev/shm") => *mount = json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
            Some("/tmp") => mount["source"] = json!(format!("{directory}/tmp")),
            _ if shared => return false,
            _ => {}
        }
        true
    });
    Ok(spec)
}
