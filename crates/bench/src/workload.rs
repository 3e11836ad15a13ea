//! What is measured: an application with its arguments, how it is warmed up, and whether its state is still there.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use woodfrog_testkubelet::http;
use woodfrog_testnode::{App, Node};

use crate::args::{Application, Size};

/// As many requests as a warm-up makes.
const REQUESTS: usize = 100;
/// Servers close a connection some time after their client has; one that is half closed cannot be restored.
const SETTLE: Duration = Duration::from_secs(1);

/// An application with its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    app: App,
    name: String,
    args: Vec<String>,
    megabytes: Option<u32>,
}

impl From<App> for Workload {
    fn from(app: App) -> Self {
        Self { app, name: app.name().into(), args: Vec::new(), megabytes: None }
    }
}

impl Workload {
    /// A server of so many megabytes (2²⁰ bytes) of memory and so many threads.
    pub(crate) fn synthetic(megabytes: u32, threads: u32) -> Self {
        let app = App::Synthetic;
        let name = format!("{}-{megabytes}m-{threads}t", app.name());
        Self { app, name, args: vec![megabytes.to_string(), threads.to_string()], megabytes: Some(megabytes) }
    }

    /// What tables, pods and images call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Of a synthetic server, what it was told to fill.
    pub(crate) fn megabytes(&self) -> Option<u32> {
        self.megabytes
    }

    /// The application's own image.
    pub(crate) fn image(&self) -> String {
        self.app.reference()
    }

    /// The image that a freeze makes of it, for a way to give it its memory.
    pub(crate) fn frozen_image(&self, memory: &str) -> String {
        self.app.reference().replace(self.app.name(), &format!("frozen-{}-{memory}", self.name))
    }

    /// Warms it up.
    pub(crate) fn warm_up(&self, node: &Node, ip: IpAddr) -> Result<State> {
        for _ in 0..REQUESTS {
            http::get(node, ip, "/")?;
        }
        let checksum = http::get(node, ip, "/checksum")?;
        // Its workers would collect garbage in every second request, and a first answer wait for that (see its puma.rb).
        if self.app == App::Rails {
            http::get(node, ip, "/collect")?;
        }
        let state = State { count: count(node, ip)?, checksum };
        std::thread::sleep(SETTLE);
        Ok(state)
    }

    /// Arguments in place of those of the image; empty: the image's own.
    pub(crate) fn args(&self) -> Vec<String> {
        self.args.clone()
    }

    /// Program and arguments.
    pub(crate) fn command(&self) -> Vec<String> {
        let entrypoint = self.app.entrypoint().iter().map(|part| (*part).to_owned());
        entrypoint.chain(self.args()).collect()
    }
}

/// What was chosen on a command line.
pub(crate) fn chosen(applications: &[Application], sizes: &[Size]) -> Vec<Workload> {
    let applications = applications.iter().map(|application| App::from(*application).into());
    applications.chain(sizes.iter().map(|size| Workload::synthetic(size.megabytes, size.threads))).collect()
}

/// The applications whose images the node must have for these.
pub(crate) fn apps(workloads: &[Workload]) -> Vec<App> {
    let mut apps = Vec::new();
    for workload in workloads {
        if !apps.contains(&workload.app) {
            apps.push(workload.app);
        }
    }
    apps
}

/// What an application held in memory when it was dumped.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    count: u64,
    checksum: String,
}

impl State {
    /// Fails unless the application goes on where it was: the counter by one further, the memory the same.
    pub(crate) fn check(&self, node: &Node, ip: IpAddr) -> Result<()> {
        let count = count(node, ip)?;
        ensure!(count == self.count + 1, "its state is lost: the counter was {} and is {count}", self.count);
        let checksum = http::get(node, ip, "/checksum")?;
        ensure!(
            checksum == self.checksum,
            "its memory changed: the checksum was {} and is {checksum}",
            self.checksum
        );
        Ok(())
    }
}

fn count(node: &Node, ip: IpAddr) -> Result<u64> {
    let body = http::get(node, ip, "/count")?;
    body.parse().with_context(|| format!("/count answered {body:?}"))
}
