//! What the guide on clone safety says of random generators, tokens, clocks and connections, for the languages of the test node. A long
//! test: only with `WOODFROG_CLONES=1`.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, standby};

/// Answers on connections that clients keep: where [`Language::kept`] goes.
const UPSTREAM: &str = "import http.server as h
class H(h.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        self.send_response(200); self.send_header('Content-Length', 2); self.end_headers()
        self.wfile.write(b'ok')
h.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()";

/// A server that answers `POST` with a recipe of the guide, and `GET` with an object: random numbers, by their generator; a `token` that it has made
/// at its start; by how many seconds its monotonic clock `lag`s behind the wall clock since then; what became of a request on the
/// connection to `UPSTREAM` that it has `kept` since then, and closes if the path is `/clone`.
struct Language {
    app: App,
    command: &'static [&'static str],
    /// Alike in all clones, if there is no hook.
    alike: &'static [&'static str],
    /// Different in all clones in any case.
    different: &'static [&'static str],
    /// Different in all clones after the recipe.
    mended: &'static [&'static str],
    /// What becomes of a request on a connection that was in the image, if there is no hook: `ok`, or the error's name.
    kept: &'static str,
}

const PYTHON: Language = Language {
    app: App::Cpython,
    command: &[
        "python3.14",
        "-c",
        "import http.client, http.server as h, json, os, random, secrets, ssl, time, uuid
random.random(), ssl.RAND_bytes(8)
token = secrets.token_hex()
clocks = lambda: time.time() - time.monotonic()
start = clocks()
pool = http.client.HTTPConnection('UPSTREAM', 8080)
def ask():
    pool.request('GET', '/')
    return pool.getresponse().read().decode()
def kept():
    try: return ask()
    except OSError as e: return type(e).__name__
    finally: pool.close()
ask()
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(json.dumps({
            'random': random.random(), 'openssl': ssl.RAND_bytes(16).hex(),
            'secrets': secrets.token_hex(), 'uuid': str(uuid.uuid4()),
            'token': token, 'lag': clocks() - start, 'kept': kept() if self.path == '/clone' else None,
        }).encode())
    def do_POST(self):
        global token
        random.seed(); ssl.RAND_add(os.urandom(32), 32.0)
        token = secrets.token_hex(); pool.close()
        self.send_response(204); self.end_headers()
h.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()",
    ],
    alike: &["random", "openssl", "token"],
    different: &["secrets", "uuid"],
    mended: &["random", "openssl", "token"],
    kept: "BrokenPipeError",
};

const NODE: Language = Language {
    app: App::Node,
    command: &[
        "node",
        "-e",
        "const crypto = require('crypto'), fs = require('fs'), http = require('http');
const kernel = size => {
  const file = fs.openSync('/dev/urandom'), bytes = Buffer.alloc(size);
  fs.readSync(file, bytes); fs.closeSync(file); return bytes.toString('hex');
};
Math.random(); crypto.randomBytes(8); crypto.randomUUID();
let token = kernel(16);
const clocks = () => (Date.now() - performance.now()) / 1000, start = clocks();
const pool = new http.Agent({ keepAlive: true });
const kept = () => new Promise(resolve => {
  http.get({ host: 'UPSTREAM', port: 8080, agent: pool }, answer => {
    let text = '';
    answer.on('data', bytes => text += bytes).on('end', () => resolve(text));
  }).on('error', error => resolve(error.code));
});
kept().then(() => http.createServer(async (request, response) => {
  if (request.method === 'POST') {
    token = kernel(16); pool.destroy();
    response.statusCode = 204; return response.end();
  }
  const answer = {
    math: Math.random(), crypto: crypto.randomBytes(16).toString('hex'), uuid: crypto.randomUUID(),
    kernel: kernel(16), token, lag: clocks() - start,
  };
  if (request.url === '/clone') { answer.kept = await kept(); pool.destroy(); }
  response.end(JSON.stringify(answer));
}).listen(8080));",
    ],
    alike: &["math", "crypto", "uuid", "token"],
    different: &["kernel"],
    mended: &["token"],
    kept: "ok",
};

const RUBY: Language = Language {
    app: App::Rails,
    command: &[
        "ruby",
        "-e",
        "require 'json'; require 'net/http'; require 'openssl'; require 'securerandom'; require 'socket'
rand; OpenSSL::Random.random_bytes(8)
token = SecureRandom.hex
clocks = -> { Process.clock_gettime(Process::CLOCK_REALTIME) - Process.clock_gettime(Process::CLOCK_MONOTONIC) }
start = clocks.call
pool = Net::HTTP.start('UPSTREAM', 8080)
pool.get('/')
kept = lambda do
  pool.get('/').body
rescue StandardError => e
  e.class.name
ensure
  pool.finish if pool.started?
end
server = TCPServer.new('0.0.0.0', 8080)
loop do
  client = server.accept
  request = client.gets.to_s
  nil until client.gets.to_s.strip.empty?
  if request.start_with?('POST')
    Random.srand; OpenSSL::Random.seed(Random.urandom(32))
    token = SecureRandom.hex
    pool.finish if pool.started?
    client.write \"HTTP/1.1 204 No Content\\r\\nConnection: close\\r\\n\\r\\n\"
  else
    body = { random: rand, openssl: OpenSSL::Random.random_bytes(16).unpack1('H*'),
             secure: SecureRandom.hex, uuid: SecureRandom.uuid,
             token: token, lag: clocks.call - start,
             kept: (kept.call if request.include?('/clone')) }.to_json
    client.write \"HTTP/1.1 200 OK\\r\\nContent-Length: #{body.bytesize}\\r\\nConnection: close\\r\\n\\r\\n#{body}\"
  end
  client.close
end",
    ],
    alike: &["random", "openssl", "token"],
    different: &["secure", "uuid"],
    mended: &["random", "openssl", "token"],
    kept: "ok",
};

const JAVA: Language = Language {
    app: App::Tomcat,
    command: &[
        "sh",
        "-c",
        "cat > /tmp/Clones.java <<'END'
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.security.SecureRandom;
import java.util.Random;
import java.util.UUID;
public class Clones {
    static Random random = new Random();
    static SecureRandom drbg;
    static final SecureRandom system = new SecureRandom();
    static long token = system.nextLong();
    static double clocks() { return System.currentTimeMillis() / 1e3 - System.nanoTime() / 1e9; }
    static HttpClient pool = HttpClient.newHttpClient();
    static String ask() throws Exception {
        return pool.send(HttpRequest.newBuilder(URI.create(\"http://UPSTREAM:8080/\")).version(HttpClient.Version.HTTP_1_1).build(), BodyHandlers.ofString()).body();
    }
    static void renew() { pool.shutdownNow(); pool = HttpClient.newHttpClient(); }
    static String kept() {
        try { return ask(); } catch (Exception e) { return e.getClass().getSimpleName(); } finally { renew(); }
    }
    public static void main(String[] arguments) throws Exception {
        drbg = SecureRandom.getInstance(\"DRBG\");
        double start = clocks();
        ask();
        drbg.nextLong(); system.nextLong(); Math.random(); UUID.randomUUID();
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.createContext(\"/\", exchange -> {
            byte[] body = new byte[0];
            if (exchange.getRequestMethod().equals(\"POST\")) {
                byte[] seed = new byte[64];
                system.nextBytes(seed);
                random = new Random(); drbg.setSeed(seed);
                token = system.nextLong(); renew();
                exchange.sendResponseHeaders(204, -1);
            } else {
                body = (\"{\\\"random\\\":\" + random.nextInt() + \",\\\"math\\\":\" + Math.random()
                    + \",\\\"drbg\\\":\" + drbg.nextInt() + \",\\\"secure\\\":\" + system.nextInt()
                    + \",\\\"uuid\\\":\\\"\" + UUID.randomUUID() + \"\\\",\\\"token\\\":\" + token
                    + \",\\\"lag\\\":\" + (clocks() - start) + \",\\\"kept\\\":\\\"\" + (exchange.getRequestURI().getPath().equals(\"/clone\") ? kept() : null) + \"\\\"}\").getBytes();
                exchange.sendResponseHeaders(200, body.length);
                exchange.getResponseBody().write(body);
            }
            exchange.close();
        });
        server.start();
    }
}
END
exec java /tmp/Clones.java",
    ],
    alike: &["math", "drbg", "random", "token"],
    different: &["secure", "uuid"],
    mended: &["random", "drbg", "token"],
    kept: "ok",
};

const GO: Language = Language {
    app: App::Go,
    command: &[
        "/bin/sh",
        "/srv/app/start.sh",
        r#"package main

import (
    crypto "crypto/rand"
    "encoding/hex"
    "encoding/json"
    "io"
    math "math/rand"
    "math/rand/v2"
    "net/http"
    "time"
)

var (
    token  = hex.EncodeToString(kernel(16))
    seeded = generator()
    start  = time.Now()
)

func kernel(size int) []byte {
    bytes := make([]byte, size)
    crypto.Read(bytes)
    return bytes
}

func generator() *rand.Rand {
    return rand.New(rand.NewChaCha8([32]byte(kernel(32))))
}

func kept() string {
    response, err := http.Get("http://UPSTREAM:8080/")
    if err != nil {
        return err.Error()
    }
    defer response.Body.Close()
    body, _ := io.ReadAll(response.Body)
    return string(body)
}

func main() {
    kept()
    http.ListenAndServe(":8080", http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
        if request.Method == "POST" {
            seeded, token = generator(), hex.EncodeToString(kernel(16))
            http.DefaultClient.CloseIdleConnections()
            answer.WriteHeader(204)
            return
        }
        said := map[string]any{
            "math": math.Int31(), "math/v2": rand.Int32(), "seeded": seeded.Int32(),
            "crypto": hex.EncodeToString(kernel(16)), "token": token,
            // Without its monotonic reading a time is one of the wall clock.
            "lag": (time.Now().Round(0).Sub(start.Round(0)) - time.Since(start)).Seconds(),
        }
        if request.URL.Path == "/clone" {
            said["kept"] = kept()
            http.DefaultClient.CloseIdleConnections()
        }
        json.NewEncoder(answer).Encode(said)
    }))
}"#,
    ],
    alike: &["seeded", "token"],
    different: &["crypto"],
    mended: &["seeded", "token"],
    kept: "ok",
};

/// What a pod from an image says at two wakes.
async fn twice(world: &World<'_>, name: &str, image: &str) -> Result<[Value; 2]> {
    let pod = world.from_image(standby(name, image, "Dormant", Some("300ms"))).await?;
    let mut said = [Value::Null, Value::Null];
    for said in &mut said {
        world.until(&pod, "dormant").await?;
        let url = format!("http://{}:8080/clone", pod.ip());
        let answer = world.node.run("curl", &["--silent", "--fail", "--max-time", "60", &url])?;
        *said = serde_json::from_str(&answer).with_context(|| answer)?;
        world.expect_state(&pod, "thawed")?;
    }
    pod.remove().await?;
    Ok(said)
}

async fn clones(world: &World<'_>, language: &Language, upstream: &Container) -> Result<()> {
    let name = language.app.name();
    let upstream = upstream.ip().to_string();
    let command = language.command.iter().map(|word| word.replace("UPSTREAM", &upstream)).collect();
    let warm = world.warm(PodSpec { command, ..PodSpec::new(name, &language.app.reference()) }).await?;
    let container = format!("{name}/app");
    let [bare, mended] = ["bare", "mended"].map(|tag| format!("{REGISTRY}/checkpoint/clones-{name}:{tag}"));
    let hook: &[&str] = &["--after-restore", "http://:8080/restored"];
    for (image, hook) in [(&bare, &[][..]), (&mended, hook)] {
        let freeze = ["freeze", &container, "--connections", "close", "--image", image];
        world.stack.woodfrog(&[&freeze[..], hook].concat())?;
    }
    warm.remove().await?;
    let [first, second] = twice(world, &format!("{name}-bare"), &bare).await?;
    println!("{name}: {first} {second}");
    for key in language.alike {
        ensure!(first[key] == second[key] && !first[key].is_null(), "{name}: {key}: {first} {second}");
    }
    for key in language.different {
        ensure!(first[key] != second[key], "{name}: {key}: {first} {second}");
    }
    for said in [&first, &second] {
        ensure!(said["kept"] == language.kept, "{name}: {said}");
    }
    let lag = |said: &Value| said["lag"].as_f64().unwrap_or(0.0);
    ensure!(0.0 < lag(&first) && lag(&first) < lag(&second), "{name}: {first} {second}");
    let [first, second] = twice(world, &format!("{name}-mended"), &mended).await?;
    println!("{name}, after the recipe: {first} {second}");
    for key in language.different.iter().chain(language.mended) {
        ensure!(first[key] != second[key], "{name}, after the recipe: {key}: {first} {second}");
    }
    for said in [&first, &second] {
        ensure!(said["kept"] == "ok", "{name}, after the recipe: {said}");
    }
    Ok(())
}

/// Whether Puma's first process, which hears of its workers every two seconds, takes one for hung after a thaw: with this `worker_timeout`, of an
/// image that is older than six seconds.
async fn kills_workers(world: &World<'_>, name: &str, worker_timeout: &str) -> Result<bool> {
    let config = format!("worker_check_interval 2\nworker_timeout {worker_timeout}");
    let start = format!(
        "(cat /srv/app/puma.rb; printf '\n{config}\n') > /tmp/puma.rb
         sed s:/srv/app/puma.rb:/tmp/puma.rb: /srv/app/start.sh > /tmp/start.sh; exec sh /tmp/start.sh"
    );
    let command = ["sh".to_owned(), "-c".to_owned(), start].to_vec();
    let warm = world.warm(PodSpec { command, ..PodSpec::new(name, &App::Rails.reference()) }).await?;
    let image = world.image(App::Rails, name);
    world.freeze(&warm, &image)?;
    warm.remove().await?;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let thawed = world.from_image(PodSpec::new(&format!("{name}-thawed"), &image)).await?;
    thawed.wait("/", STARTUP)?;
    world.expect_state(&thawed, "thawed")?;
    // Until each worker has been heard of.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let logs = thawed.logs()?;
    thawed.remove().await?;
    println!("{name}: {logs}");
    Ok(logs.contains("Terminating timed out worker"))
}

#[test]
fn node_puma_takes_no_worker_for_hung_if_its_timeout_is_longer_than_the_image_is_old() {
    if std::env::var_os("WOODFROG_CLONES").is_none() {
        eprintln!("skipped: a long test, set WOODFROG_CLONES=1");
        return;
    }
    in_world("puma", &[App::Rails], async |world| {
        ensure!(kills_workers(world, "impatient", "6").await?, "it need not be told of any more");
        ensure!(!kills_workers(world, "patient", "10 * 365 * 86_400").await?, "the guide's recipe");
        Ok(())
    });
}

#[test]
fn node_clones_share_what_the_guide_says_and_the_recipes_end_that() {
    let Ok(wanted) = std::env::var("WOODFROG_CLONES") else {
        eprintln!("skipped: a long test, set WOODFROG_CLONES=1");
        return;
    };
    let mut languages = vec![PYTHON, NODE, RUBY, JAVA, GO];
    if wanted != "1" {
        languages.retain(|language| wanted.split(',').any(|name| name == language.app.name()));
    }
    let mut apps: Vec<App> = languages.iter().map(|language| language.app).collect();
    apps.push(App::Cpython);
    in_world("clones", &apps, async |world| {
        let command = ["python3.14", "-c", UPSTREAM].map(str::to_owned).to_vec();
        let spec = PodSpec { command, ..PodSpec::new("upstream", &App::Cpython.reference()) };
        world.kubelet.pull(&spec.image).await?;
        let upstream = world.kubelet.run(spec).await?;
        upstream.wait("/", STARTUP)?;
        for language in &languages {
            clones(world, language, &upstream).await.with_context(|| language.app.name().to_owned())?;
        }
        Ok(())
    });
}
