//! What the guide on clone safety says of random generators, for the languages of the test node. A long test: only with
//! `WOODFROG_CLONES=1`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testkubelet::PodSpec;
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world, standby};

/// A server that answers `GET` with an object of random numbers, by their generator, and `POST` with a recipe of the guide.
struct Language {
    app: App,
    command: &'static [&'static str],
    /// Alike in all clones, if there is no hook.
    alike: &'static [&'static str],
    /// Different in all clones in any case.
    different: &'static [&'static str],
    /// Different in all clones after the recipe.
    mended: &'static [&'static str],
}

const PYTHON: Language = Language {
    app: App::Cpython,
    command: &[
        "python3.14",
        "-c",
        "import http.server as h, json, os, random, secrets, ssl, uuid
random.random(), ssl.RAND_bytes(8)
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(json.dumps({
            'random': random.random(), 'openssl': ssl.RAND_bytes(16).hex(),
            'secrets': secrets.token_hex(), 'uuid': str(uuid.uuid4()),
        }).encode())
    def do_POST(self):
        random.seed(); ssl.RAND_add(os.urandom(32), 32.0)
        self.send_response(204); self.end_headers()
h.ThreadingHTTPServer(('0.0.0.0', 8080), H).serve_forever()",
    ],
    alike: &["random", "openssl"],
    different: &["secrets", "uuid"],
    mended: &["random", "openssl"],
};

const NODE: Language = Language {
    app: App::Node,
    command: &[
        "node",
        "-e",
        "const crypto = require('crypto'), fs = require('fs');
const kernel = size => {
  const file = fs.openSync('/dev/urandom'), bytes = Buffer.alloc(size);
  fs.readSync(file, bytes); fs.closeSync(file); return bytes.toString('hex');
};
Math.random(); crypto.randomBytes(8); crypto.randomUUID();
require('http').createServer((request, response) => {
  if (request.method === 'POST') { response.statusCode = 204; return response.end(); }
  response.end(JSON.stringify({
    math: Math.random(), crypto: crypto.randomBytes(16).toString('hex'), uuid: crypto.randomUUID(),
    kernel: kernel(16),
  }));
}).listen(8080);",
    ],
    alike: &["math", "crypto", "uuid"],
    different: &["kernel"],
    mended: &[],
};

const RUBY: Language = Language {
    app: App::Rails,
    command: &[
        "ruby",
        "-e",
        "require 'json'; require 'openssl'; require 'securerandom'; require 'socket'
rand; OpenSSL::Random.random_bytes(8)
server = TCPServer.new('0.0.0.0', 8080)
loop do
  client = server.accept
  request = client.gets.to_s
  nil until client.gets.to_s.strip.empty?
  if request.start_with?('POST')
    Random.srand; OpenSSL::Random.seed(Random.urandom(32))
    client.write \"HTTP/1.1 204 No Content\\r\\nConnection: close\\r\\n\\r\\n\"
  else
    body = { random: rand, openssl: OpenSSL::Random.random_bytes(16).unpack1('H*'),
             secure: SecureRandom.hex, uuid: SecureRandom.uuid }.to_json
    client.write \"HTTP/1.1 200 OK\\r\\nContent-Length: #{body.bytesize}\\r\\nConnection: close\\r\\n\\r\\n#{body}\"
  end
  client.close
end",
    ],
    alike: &["random", "openssl"],
    different: &["secure", "uuid"],
    mended: &["random", "openssl"],
};

const JAVA: Language = Language {
    app: App::Tomcat,
    command: &[
        "sh",
        "-c",
        "cat > /tmp/Clones.java <<'END'
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.security.SecureRandom;
import java.util.Random;
import java.util.UUID;
public class Clones {
    static Random random = new Random();
    static SecureRandom drbg;
    static final SecureRandom system = new SecureRandom();
    public static void main(String[] arguments) throws Exception {
        drbg = SecureRandom.getInstance(\"DRBG\");
        drbg.nextLong(); system.nextLong(); Math.random(); UUID.randomUUID();
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.createContext(\"/\", exchange -> {
            byte[] body = new byte[0];
            if (exchange.getRequestMethod().equals(\"POST\")) {
                byte[] seed = new byte[64];
                system.nextBytes(seed);
                random = new Random(); drbg.setSeed(seed);
                exchange.sendResponseHeaders(204, -1);
            } else {
                body = (\"{\\\"random\\\":\" + random.nextInt() + \",\\\"math\\\":\" + Math.random()
                    + \",\\\"drbg\\\":\" + drbg.nextInt() + \",\\\"secure\\\":\" + system.nextInt()
                    + \",\\\"uuid\\\":\\\"\" + UUID.randomUUID() + \"\\\"}\").getBytes();
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
    alike: &["math", "drbg", "random"],
    different: &["secure", "uuid"],
    mended: &["random", "drbg"],
};

/// What a pod from an image says at two wakes.
async fn twice(world: &World<'_>, name: &str, image: &str) -> Result<[Value; 2]> {
    let pod = world.from_image(standby(name, image, "Dormant", Some("300ms"))).await?;
    let mut said = [Value::Null, Value::Null];
    for said in &mut said {
        world.until(&pod, "dormant").await?;
        let url = format!("http://{}:8080/", pod.ip());
        let answer = world.node.run("curl", &["--silent", "--fail", "--max-time", "60", &url])?;
        *said = serde_json::from_str(&answer).with_context(|| answer)?;
        world.expect_state(&pod, "thawed")?;
    }
    pod.remove().await?;
    Ok(said)
}

async fn clones(world: &World<'_>, language: &Language) -> Result<()> {
    let name = language.app.name();
    let command = language.command.iter().map(|word| (*word).to_owned()).collect();
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
    let [first, second] = twice(world, &format!("{name}-mended"), &mended).await?;
    println!("{name}, after the recipe: {first} {second}");
    for key in language.different.iter().chain(language.mended) {
        ensure!(first[key] != second[key], "{name}, after the recipe: {key}: {first} {second}");
    }
    Ok(())
}

#[test]
fn node_clones_share_what_the_guide_says_and_the_recipes_end_that() {
    if std::env::var_os("WOODFROG_CLONES").is_none() {
        eprintln!("skipped: a long test, set WOODFROG_CLONES=1");
        return;
    }
    let languages = [PYTHON, NODE, RUBY, JAVA];
    in_world("clones", &languages.each_ref().map(|language| language.app), async |world| {
        for language in &languages {
            clones(world, language).await.with_context(|| language.app.name().to_owned())?;
        }
        Ok(())
    });
}
