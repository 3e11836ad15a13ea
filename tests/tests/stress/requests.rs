//! Requests and connections that last longer than the idle timeout: the pod must not fall asleep below them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use woodfrog_testkubelet::http::PORT;
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world, standby};

use crate::traffic::{Kept, connect, get, head, on_node};

const IDLE: Duration = Duration::from_millis(300);
/// How long each answer takes, and each client is silent.
const LONG: Duration = Duration::from_millis(1200);

const HTTP2_PORT: u16 = 8081;

/// In the places of [`LONG`] in what the servers below do.
const SECONDS: &str = "1.2";

/// Answers after a while (`/slow`), in pieces (`/drip`), and at once; keeps connections.
pub(crate) const PYTHON: &str = "import http.server as h, time
class H(h.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        time.sleep(SECONDS if self.path == '/slow' else 0)
        body = b'0123456789'
        self.send_response(200); self.send_header('Content-Length', len(body)); self.end_headers()
        for byte in body:
            time.sleep(SECONDS / len(body) if self.path == '/drip' else 0)
            self.wfile.write(bytes([byte])); self.wfile.flush()
h.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()";

/// HTTP/1.1 with long polls (a head at once, the body after a while) and WebSockets that echo one frame at a time; HTTP/2 on
/// [`HTTP2_PORT`].
const NODE: &str = r"
const crypto = require('crypto'), http = require('http'), http2 = require('http2');
const answer = (request, response) => {
  response.writeHead(200);
  if (request.url === '/') return response.end('well');
  response.write('wait ');
  setTimeout(() => response.end('for it'), SECONDS * 1000);
};
const one = http.createServer(answer);
one.on('upgrade', (request, socket) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  const accept = crypto.createHash('sha1').update(key).digest('base64');
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  socket.on('error', () => {}).on('end', () => socket.end());
  socket.on('data', (frame) => {
    const [length, mask] = [frame[1] & 127, frame.subarray(2, 6)];
    const text = Buffer.from(frame.subarray(6, 6 + length).map((byte, at) => byte ^ mask[at % 4]));
    socket.write(Buffer.concat([Buffer.from([0x81, length]), text]));
  });
});
one.listen(8080, '0.0.0.0');
http2.createServer(answer).listen(8081, '0.0.0.0');";

/// What one client does; the pod has slept before, and may afterwards.
type Client = fn(&World<'_>, IpAddr) -> Result<()>;

#[test]
fn node_a_pod_stays_awake_for_slow_answers_and_kept_connections() {
    in_world("stress-http", &[App::Cpython], async |world| {
        let server = PYTHON.replace("SECONDS", SECONDS);
        let clients: [(&str, Client); 3] = [("slow", slow), ("drip", drip), ("kept", kept)];
        long(world, App::Cpython, ["python3.14", "-c", &server], &clients).await
    });
}

#[test]
fn node_a_pod_stays_awake_for_long_polls_websockets_and_http2() {
    in_world("stress-streams", &[App::Node], async |world| {
        let server = NODE.replace("SECONDS", SECONDS);
        let clients: [(&str, Client); 4] =
            [("poll", poll), ("websocket", websocket), ("http2", http2), ("http2-kept", http2_kept)];
        long(world, App::Node, ["node", "-e", &server], &clients).await
    });
}

/// Each client has a pod of its own, all at the same time.
async fn long(
    world: &World<'_>,
    app: App,
    command: [&str; 3],
    clients: &[(&'static str, Client)],
) -> Result<()> {
    let command = command.map(str::to_owned).to_vec();
    let warm = world.warm(PodSpec { command, ..PodSpec::new("warm", &app.reference()) }).await?;
    let image = world.image(app, "requests");
    world.freeze(&warm, &image)?;
    warm.remove().await?;
    let idle = format!("{}ms", IDLE.as_millis());
    let mut pods = Vec::new();
    for (name, _) in clients {
        pods.push(world.from_image(standby(name, &image, "Dormant", Some(&idle))).await?);
    }
    std::thread::scope(|scope| {
        let asked: Vec<_> = pods
            .iter()
            .zip(clients)
            .map(|(pod, (name, client))| scope.spawn(move || asked(world, pod, *client).context(*name)))
            .collect();
        asked.into_iter().try_for_each(|asked| asked.join().expect("a client"))
    })?;
    for pod in &pods {
        world.until(pod, "dormant").await?;
        pod.remove().await?;
    }
    Ok(())
}

fn asked(world: &World<'_>, pod: &Container, client: Client) -> Result<()> {
    world.expect_state(pod, "dormant")?;
    client(world, pod.ip())?;
    let ps = world.ps(pod)?;
    ensure!(ps["wakes"] == 1, "it fell asleep on the way: {ps}");
    Ok(())
}

fn slow(world: &World<'_>, ip: IpAddr) -> Result<()> {
    let body = on_node(world, || get(ip, "/slow"))?;
    ensure!(body == "0123456789", "{body:?}");
    Ok(())
}

fn drip(world: &World<'_>, ip: IpAddr) -> Result<()> {
    let body = on_node(world, || get(ip, "/drip"))?;
    ensure!(body == "0123456789", "{body:?}");
    Ok(())
}

/// Two requests on one connection, with a long silence between.
fn kept(world: &World<'_>, ip: IpAddr) -> Result<()> {
    let mut kept = Kept::connect(world, ip)?;
    for silence in [Duration::ZERO, LONG] {
        std::thread::sleep(silence);
        ensure!(kept.get("/")? == "0123456789");
    }
    Ok(())
}

fn poll(world: &World<'_>, ip: IpAddr) -> Result<()> {
    let body = curl(world, &["--http1.1", &url(ip, PORT, "/poll")])?;
    ensure!(body == "wait for it", "{body:?}");
    Ok(())
}

/// One frame, a long silence, and another.
fn websocket(world: &World<'_>, ip: IpAddr) -> Result<()> {
    let mut stream = on_node(world, || connect(SocketAddr::new(ip, PORT)))?;
    write!(
        stream,
        "GET /socket HTTP/1.1\r\nHost: {ip}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )?;
    let head = head(&mut stream)?;
    ensure!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "the answer of RFC 6455's example: {head}");
    for silence in [Duration::ZERO, LONG] {
        std::thread::sleep(silence);
        // A final text frame of two bytes under a mask of zeros, which leaves them as they are.
        stream.write_all(&[0x81, 0x82, 0, 0, 0, 0, b'h', b'i'])?;
        let mut frame = [0; 4];
        stream.read_exact(&mut frame)?;
        ensure!(&frame == b"\x81\x02hi", "{frame:?}");
    }
    Ok(())
}

/// Two streams at once on one connection.
fn http2(world: &World<'_>, ip: IpAddr) -> Result<()> {
    let (one, two) = (url(ip, HTTP2_PORT, "/one"), url(ip, HTTP2_PORT, "/two"));
    let body = curl(world, &["--http2-prior-knowledge", "--parallel", "--no-progress-meter", &one, &two])?;
    ensure!(body.matches("wait ").count() == 2 && body.matches("for it").count() == 2, "{body:?}");
    Ok(())
}

/// A connection without a stream, between two requests.
fn http2_kept(world: &World<'_>, ip: IpAddr) -> Result<()> {
    let url = url(ip, HTTP2_PORT, "/");
    let body = curl(
        world,
        &["--http2-prior-knowledge", "--rate", "50/m", "--write-out", "%{num_connects}", &url, &url],
    )?;
    ensure!(body == "well1well0", "it is one connection: {body:?}");
    Ok(())
}

fn url(ip: IpAddr, port: u16, path: &str) -> String {
    format!("http://{ip}:{port}{path}")
}

fn curl(world: &World<'_>, arguments: &[&str]) -> Result<String> {
    let common = ["--silent", "--show-error", "--fail", "--max-time", "60"];
    Ok(world.node.run("curl", &[&common[..], arguments].concat())?)
}
