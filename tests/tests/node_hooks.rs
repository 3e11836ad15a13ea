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

/// Notes each `GET` of kubelet's, over HTTP on 8080 and over HTTPS on 8443, half a second after it came. Others are told what is noted.
const NOTES: &str = "import base64, http.server as h, json, os, ssl, threading, time
noted = []
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        hook = self.headers.get('User-Agent', '').startswith('kube-lifecycle/')
        if hook:
            time.sleep(0.5)
            noted.append([self.path, self.headers['Host'], self.headers.get('X-Colour'), self.server.server_port])
        self.send_response(500 if hook else 200); self.end_headers(); self.wfile.write(json.dumps(noted).encode())
    def log_message(self, *args): pass
with open('/tmp/identity', 'w') as file:
    for name in 'PRIVATE KEY', 'CERTIFICATE':
        text = base64.encodebytes(bytes.fromhex(os.environ[name.replace(' ', '_')])).decode()
        file.write(f'-----BEGIN {name}-----\\n{text}-----END {name}-----\\n')
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('/tmp/identity')
https = h.ThreadingHTTPServer(('0.0.0.0', 8443), H)
https.socket = context.wrap_socket(https.socket, server_side=True)
threading.Thread(target=https.serve_forever, daemon=True).start()
h.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()";

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

#[test]
fn node_a_hook_by_http_waits_for_the_wake_and_is_sent_as_kubelet_sent_it() {
    in_world("http-hooks", &[App::Cpython], async |world| {
        let command = ["python3.14", "-c", NOTES].map(str::to_owned).to_vec();
        let mut spec = PodSpec { command, ..PodSpec::new("warm", &App::Cpython.reference()) };
        // Whom nobody has vouched for.
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(["x".to_owned()])?;
        let hex = |der: &[u8]| der.iter().map(|byte| format!("{byte:02x}")).collect();
        spec.env.push(("CERTIFICATE".into(), hex(cert.der())));
        spec.env.push(("PRIVATE_KEY".into(), hex(&signing_key.serialize_der())));
        let warm = world.warm(spec).await?;
        let image = format!("{REGISTRY}/checkpoint/notes:1");
        world.freeze(&warm, &image)?;
        warm.remove().await?;
        // The kernel names a process after the file that it was started from.
        world.node.run("cp", &["/usr/bin/curl", "/run/kubelet"])?;
        let hook = |url: &str| {
            let common = ["--silent", "--fail", "--insecure", "--max-time", "10", "--http1.1"];
            let headers = ["--user-agent", "kube-lifecycle/1.36", "--header", "X-Colour: green"];
            world.node.run("/run/kubelet", &[&common[..], &headers, &[url]].concat())
        };

        for (scheme, port) in [("http", 8080), ("https", 8443)] {
            let pod = world.from_image(standby(&format!("pod-{scheme}"), &image, "Dormant", None)).await?;
            world.expect_state(&pod, "dormant")?;
            let host = format!("{}:{port}", pod.ip());
            hook(&format!("{scheme}://{host}/started?with=care"))?;
            world.expect_state(&pod, "dormant").context("it is not woken by its hook")?;
            let noted = told(world, &pod)?;
            let expected = serde_json::json!([["/started?with=care", host, "green", port]]);
            ensure!(noted == expected, "before anybody else: {noted}\n{}", world.log(&pod));
            // Awake, it hears of hooks at once, and says itself what it thinks of them.
            ensure!(hook(&format!("{scheme}://{host}/again")).is_err(), "it answers 500");
            ensure!(told(world, &pod)?.as_array().is_some_and(|noted| noted.len() == 2));
            pod.remove().await?;
        }

        // A pod that ends in its sleep: its preStop is answered, and nobody waits for it.
        let pod = world.from_image(standby("ends", &image, "Dormant", None)).await?;
        hook(&format!("http://{}:8080/stopping", pod.ip()))?;
        let began = Instant::now();
        pod.stop(Duration::from_secs(30)).await?;
        ensure!(began.elapsed() < Duration::from_secs(10), "SIGTERM ends it");
        let log = world.log(&pod);
        ensure!(!log.contains("thawed"), "it was not woken for that\n{log}");
        pod.remove().await
    });
}
