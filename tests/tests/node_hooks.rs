//! What is done in a pod that wakes before anybody is answered: hooks of its image, and kubelet's.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world, standby};

/// Takes half a second for a `POST`, notes it, and reads who it is now. `GET` tells what is noted.
const CLONE: &str = "import http.server as h, json, os, time
known = {'posts': []}
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(json.dumps(known).encode())
    def do_POST(self):
        time.sleep(0.5)
        known['posts'].append(self.path)
        if os.path.exists('/run/woodfrog/restore.json'):
            known.update(json.load(open('/run/woodfrog/restore.json')))
        self.send_response(204); self.end_headers()
    def log_message(self, *args): pass
h.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()";

/// A command that asks the application from within its pod.
const STARTED: &str =
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/started', data=b'', timeout=10)";

/// What it says to somebody who has as much patience as the hooks need.
fn told(world: &World<'_>, pod: &Container) -> Result<Value> {
    let url = format!("http://{}:8080/", pod.ip());
    let answer = world.node.run("curl", &["--silent", "--fail", "--max-time", "60", &url])?;
    serde_json::from_str(&answer).with_context(|| answer)
}

#[test]
fn node_a_clone_knows_who_it_is_before_it_answers_for_the_first_time() {
    in_world("hooks", &[App::Cpython], async |world| {
        let command = ["python3.14", "-c", CLONE].map(str::to_owned).to_vec();
        let warm = world.warm(PodSpec { command, ..PodSpec::new("warm", &App::Cpython.reference()) }).await?;
        let image = format!("{REGISTRY}/checkpoint/clone:1");
        let freeze = ["freeze", "warm/app", "--image", &image, "--after-restore", "http://:8080/restored"];
        world.stack.woodfrog(&freeze)?;
        warm.remove().await?;

        let mut spec = standby("pod", &image, "Dormant", Some("300ms"));
        spec.env.push(("POD_COLOUR".into(), "green".into()));
        let pod = world.from_image(spec).await?;
        world.expect_state(&pod, "dormant")?;
        // kubelet runs it right after the start.
        let began = Instant::now();
        ensure!(pod.hook(&["python3.14", "-c", STARTED]).await? == (0, String::new()));
        ensure!(began.elapsed() < Duration::from_secs(5), "it is not waited for");
        world.expect_state(&pod, "dormant")?;

        let first = told(world, &pod)?;
        ensure!(first["posts"] == serde_json::json!(["/restored", "/started"]), "{first}");
        ensure!(first["environment"]["POD_COLOUR"] == "green", "what it would have started with: {first}");
        world.until(&pod, "dormant").await?;
        let second = told(world, &pod)?;
        ensure!(second["posts"] == serde_json::json!(["/restored"]), "postStart is run once: {second}");
        let generation = |told: &Value| told["generation"].as_u64();
        ensure!(generation(&second) > generation(&first), "{first} {second}");
        ensure!(second["id"] != first["id"] && second["id"].is_string(), "{first} {second}");
        pod.remove().await
    });
}
