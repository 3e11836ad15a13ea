//! Memory that is shared between the applications that are thawed from an image on a node.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use woodfrog_testkubelet::{Container, Mount, PodSpec, Security};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, in_world_with};

/// Bytes that only this container's application has.
async fn own_memory(container: &Container) -> Result<u64> {
    let (_, text) = container.exec(&["sh", "-c", "cat /proc/[3-9][0-9][0-9]/smaps_rollup"]).await?;
    let fields = text.lines().filter_map(|line| line.strip_prefix("Anonymous:"));
    let kilobytes = fields.filter_map(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    Ok(kilobytes.sum::<u64>() << 10)
}

fn log(world: &World<'_>, container: &Container) -> String {
    world.stack.woodfrog(&["logs", &format!("{}/app", container.pod_name())]).unwrap_or_default()
}

/// freeze → two thaws that share → freeze one of them → thaw.
async fn life_of(world: &World<'_>, app: App) -> Result<()> {
    let spec = |name: &str, image: &str| PodSpec::new(name, image).security(Security::Restricted);
    let warm = world.warm(spec("warm", &app.reference())).await?;
    for expected in 1..=3 {
        ensure!(warm.get("/count")? == expected.to_string());
    }
    let checksum = warm.get("/checksum")?;
    let image = world.image(app, "shared");
    let frozen = world.freeze_shared(&warm, &image)?;
    let whole = frozen["images"][0]["memory_bytes"].as_u64().context("the image's size")?;

    let (first, second) =
        tokio::try_join!(world.from_image(spec("first", &image)), world.from_image(spec("second", &image)))?;
    for thawed in [&first, &second] {
        world.assert_thawed(thawed)?;
        ensure!(thawed.wait("/count", STARTUP)? == "4", "each goes on from the freeze");
        let own = own_memory(thawed).await?;
        ensure!(world.ps(thawed)?["shares_memory"] == true, "it shares its memory:\n{}", log(world, thawed));
        ensure!(
            own < whole * 15 / 100,
            "{own} bytes of its own, of an image of {whole}:\n{}",
            log(world, thawed)
        );
        ensure!(thawed.get("/checksum")? == checksum, "its memory is as it was");
    }
    let again = world.image(app, "shared-again");
    // What it has written to, and what not, is in the new image; that it forgets what it gives up is not undone.
    world.freeze_shared(&first, &again)?;
    ensure!(first.get("/count")? == "5");
    let third = world.from_image(spec("third", &again)).await?;
    world.assert_thawed(&third)?;
    ensure!(third.wait("/count", STARTUP)? == "5", "a thawed application thaws again");
    ensure!(third.get("/checksum")? == checksum, "its memory is as it was");

    for container in [warm, first, second, third] {
        container.stop(Duration::from_secs(20)).await?;
        let code = container.exit_code(Duration::from_secs(5)).await?;
        ensure!(code != 137, "{} ends by SIGTERM, but was killed", container.pod_name());
        container.remove().await?;
    }
    Ok(())
}

macro_rules! lives {
    ($($test:ident: $app:ident;)*) => {
        $(#[test]
        fn $test() {
            let name = format!("shared-{}", App::$app.name());
            in_world(&name, &[App::$app], async |world| life_of(world, App::$app).await);
        })*
    };
}

lives! {
    node_cpython_shares_its_memory: Cpython;
    node_tomcat_shares_its_memory: Tomcat;
    node_nodejs_shares_its_memory: Node;
    node_rails_shares_its_memory: Rails;
    node_synthetic_shares_its_memory: Synthetic;
}

/// Objects of many sizes with contents that are known. `/churn` gives half of them up and makes others, and finds memory that is to be empty
/// empty; `/checksum` looks at all.
const CHURNER: &str = "import http.server as h, itertools, random
numbers, held = itertools.count(), {}
def content(n): return n.to_bytes(8, 'little') * (random.Random(n).choice([3, 40, 900, 20000, 300000]) // 8 + 1)
def make(bytes_wanted):
    while bytes_wanted > 0:
        n = next(numbers)
        held[n] = content(n)
        bytes_wanted -= len(held[n])
def churn():
    for n in list(held)[::2]: del held[n]
    empty = [bytes(size) for size in (100, 5000, 70000, 3000000) for _ in range(5)]
    assert not any(any(block) for block in empty), 'not empty'
    make(sum(map(len, empty)))
def check():
    wrong = [n for n, block in held.items() if block != content(n)]
    assert not wrong, f'{len(wrong)} of {len(held)} are wrong'
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == '/churn': churn()
        if self.path != '/': check()
        self.send_response(200); self.end_headers(); self.wfile.write(b'well')
make(20000000)
h.HTTPServer(('0.0.0.0', 8080), H).serve_forever()";

/// What gives memory back behaves with shared memory as with its own, whatever it does when that is refused or comes late.
#[test]
fn node_allocators_share_their_memory() {
    let jemalloc = ("libjemalloc.so.2", "MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:10");
    let mimalloc = ("libmimalloc.so.3", "MIMALLOC_PURGE_DELAY", "0");
    in_world("shared-allocators", &[App::Cpython], async |world| {
        for (library, option, value) in [jemalloc, mimalloc] {
            let spec = |name: &str, image: &str| {
                let command = ["python3.14", "-c", CHURNER].map(str::to_owned).to_vec();
                let env = [("LD_PRELOAD", library), ("PYTHONMALLOC", "malloc"), (option, value)];
                let env = env.map(|(name, value)| (name.into(), value.into())).to_vec();
                PodSpec { command, env, ..PodSpec::new(name, image) }
            };
            let warm = world.warm(spec("warm", &App::Cpython.reference())).await?;
            ensure!(warm.get("/churn")? == "well");
            let maps = warm.exec(&["sh", "-c", "cat /proc/[3-9][0-9][0-9]/maps"]).await?.1;
            ensure!(maps.contains(library), "{library} is not in use:\n{maps}");
            let image = world.image(App::Cpython, library);
            world.freeze_shared(&warm, &image)?;
            warm.remove().await?;

            let thawed = world.from_image(spec("thawed", &image)).await?;
            world.assert_thawed(&thawed)?;
            for round in 0..10 {
                let path = if round % 5 == 4 { "/checksum" } else { "/churn" };
                let said = thawed.get(path).with_context(|| thawed.logs().unwrap_or_default())?;
                ensure!(said == "well");
            }
            ensure!(world.ps(&thawed)?["shares_memory"] == true, "{}", log(world, &thawed));
            thawed.remove().await?;
        }
        Ok(())
    });
}

/// Puts a blob into the registry at an address and says what it is then, by digest. `$1`: the address.
const PUSH: &str = "set -e
head -c 4000000 /dev/urandom > /run/blob
digest=sha256:$(sha256sum < /run/blob | cut -d' ' -f1)
to=$(curl -fsi -X POST http://$1:8080/v2/a/blobs/uploads/ | tr -d '\\r' | sed -n 's/^[Ll]ocation: //p')
curl -fs -X PUT --data-binary @/run/blob -H 'Content-Type: application/octet-stream' \"$to&digest=$digest\"
echo $digest";

/// What the registry at address `$1` answers for the blob `$2`: its digest, if its memory is as it was.
const FETCH: &str = "echo sha256:$(curl -fs http://$1:8080/v2/a/blobs/$2 | sha256sum | cut -d' ' -f1)";

/// Go's collector gives memory back, moves nothing, and stops its threads by signals: the program is Docker's registry, with its blobs in memory.
#[test]
fn node_a_go_program_shares_its_memory() {
    in_world("shared-go", &[App::Cpython], async |world| {
        let directory = "/run/go";
        let config =
            "version: 0.1\nstorage: {inmemory: {}, delete: {enabled: true}}\nhttp: {addr: ':8080'}\n";
        let make = "mkdir $1 && cp /usr/bin/docker-registry $1/ && printf %s \"$2\" > $1/config.yml";
        world.node.run("sh", &["-c", make, "sh", directory, config])?;
        let run = |script: &str, pod: &Container, digest: &str| {
            let address = pod.ip().to_string();
            Ok::<_, anyhow::Error>(
                world.node.run("sh", &["-c", script, "sh", &address, digest])?.trim().to_owned(),
            )
        };
        let spec = |name: &str, image: &str| PodSpec {
            command: ["/srv/go/docker-registry", "serve", "/srv/go/config.yml"].map(str::to_owned).to_vec(),
            mounts: vec![Mount {
                host_path: directory.into(),
                container_path: "/srv/go".into(),
                readonly: true,
                ..Default::default()
            }],
            // An arena is given back at once.
            env: vec![("GODEBUG".into(), "madvdontneed=1".into()), ("GOGC".into(), "20".into())],
            ..PodSpec::new(name, image)
        };
        let warm = world.warm(spec("warm", &App::Cpython.reference())).await?;
        let first = run(PUSH, &warm, "")?;
        let image = world.image(App::Cpython, "go");
        world.freeze_shared(&warm, &image)?;
        warm.remove().await?;

        let thawed = world.from_image(spec("thawed", &image)).await?;
        world.assert_thawed(&thawed)?;
        thawed.wait("/", STARTUP)?;
        ensure!(run(FETCH, &thawed, &first)? == first, "what it had in memory:\n{}", thawed.logs()?);
        for _ in 0..3 {
            let more = run(PUSH, &thawed, "")?;
            ensure!(run(FETCH, &thawed, &more)? == more, "what it has got since");
            let delete = "curl -fs -X DELETE http://$1:8080/v2/a/blobs/$2";
            run(delete, &thawed, &more)?;
        }
        ensure!(run(FETCH, &thawed, &first)? == first, "what it had in memory, after collections");
        ensure!(world.ps(&thawed)?["shares_memory"] == true, "{}", log(world, &thawed));
        thawed.remove().await
    });
}

/// Forks, and lets go of the child.
const PARENT: &str = "import http.server as h, os, signal
children = []
def fork():
    children.append(os.fork())
    if not children[-1]:
        while True: signal.pause()
def reap():
    child = children.pop()
    os.kill(child, 9)
    os.waitpid(child, 0)
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        {'/fork': fork, '/reap': reap}.get(self.path, bool)()
        self.send_response(200); self.end_headers(); self.wfile.write(b'well')
h.HTTPServer(('0.0.0.0', 8080), H).serve_forever()";

#[test]
fn node_a_freeze_is_refused_by_name_as_long_as_a_child_shares_the_memory_of_its_parent() {
    in_world("shared-child", &[App::Cpython], async |world| {
        let spec = |name: &str, image: &str| {
            let command = ["python3.14", "-c", PARENT].map(str::to_owned).to_vec();
            PodSpec { command, ..PodSpec::new(name, image) }
        };
        let warm = world.warm(spec("warm", &App::Cpython.reference())).await?;
        let (image, again) = (world.image(App::Cpython, "parent"), world.image(App::Cpython, "parent-again"));
        world.freeze_shared(&warm, &image)?;
        warm.remove().await?;

        let thawed = world.from_image(spec("thawed", &image)).await?;
        world.assert_thawed(&thawed)?;
        thawed.wait("/", STARTUP)?;
        ensure!(world.ps(&thawed)?["shares_memory"] == true, "{}", log(world, &thawed));
        thawed.get("/fork")?;
        let children = "p=$(cat /proc/1/task/1/children | cut -d' ' -f1); cat /proc/$p/task/$p/children";
        let (_, child) = thawed.exec(&["sh", "-c", children]).await?;
        let refused = world.freeze_shared(&thawed, &again).err().context("it was frozen")?;
        let said = format!("{refused:#}");
        ensure!(said.contains(&format!("process {child} was forked from one that shares")), "{said}");
        thawed.get("/reap")?;
        world.freeze_shared(&thawed, &again)?;
        ensure!(thawed.get("/")? == "well", "it lives on");
        thawed.remove().await
    });
}

/// A warm synthetic server that has counted to 3, and images of it.
async fn frozen(world: &World<'_>, images: &[&str]) -> Result<()> {
    let warm = world.warm(PodSpec::new("warm", &App::Synthetic.reference())).await?;
    for _ in 1..=3 {
        warm.get("/count")?;
    }
    for image in images {
        world.freeze_shared(&warm, image)?;
    }
    warm.remove().await
}

fn with_all_memory(world: &World<'_>, container: &Container) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while world.ps(container)?["memory_pending"] == true {
        ensure!(Instant::now() < deadline, "its memory never comes:\n{}", log(world, container));
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// PIDs of pagers, in the node.
fn pagers(world: &World<'_>) -> Result<Vec<String>> {
    let list = "for p in /proc/[0-9]*; do read -r n < $p/comm && [ \"$n\" = woodfrog-pager ] && echo ${p#/proc/}; done; true";
    Ok(world.node.run("sh", &["-c", list])?.split_whitespace().map(str::to_owned).collect())
}

/// The scheduling policy of a process: field 41 of `/proc/PID/stat`.
fn policy(world: &World<'_>, pid: &str) -> Result<String> {
    let stat = world.node.run("cat", &[&format!("/proc/{pid}/stat")])?;
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    Ok(fields.split(' ').nth(41 - 3).unwrap_or_default().to_owned())
}

#[test]
fn node_an_application_that_shares_its_memory_outlives_the_agent_and_not_its_pager() {
    in_world("shared-pager", &[App::Synthetic], async |world| {
        let image = world.image(App::Synthetic, "shared-pager");
        frozen(world, &[&image]).await?;
        let first = world.from_image(PodSpec::new("first", &image)).await?;
        world.assert_thawed(&first)?;
        with_all_memory(world, &first)?;
        world.stack.kill_agent()?;
        ensure!(first.wait("/count", STARTUP)? == "4", "it needs no agent");
        world.stack.start_agent()?;

        let again = world.image(App::Synthetic, "shared-pager-again");
        world.freeze_shared(&first, &again)?;
        let second = world.from_image(PodSpec::new("second", &again)).await?;
        world.assert_thawed(&second)?;
        ensure!(second.wait("/count", STARTUP)? == "5", "frozen by an agent that did not thaw it");
        second.remove().await?;

        let all = pagers(world)?;
        ensure!(all.len() == 1, "pagers: {all:?}");
        world.node.run("kill", &["-9", &all[0]])?;
        let code = first.exit_code(Duration::from_secs(10)).await?;
        ensure!(code == 137, "it ended with {code}, not as if it had been killed itself");
        first.remove().await
    });
}

#[test]
fn node_the_page_store_keeps_what_is_used_and_lets_go_of_the_rest() {
    // Room for one of the images.
    in_world_with("shared-store", &[App::Synthetic], &["--page-store-bytes", "50000000"], async |world| {
        let images = ["shared-store-1", "shared-store-2"].map(|tag| world.image(App::Synthetic, tag));
        frozen(world, &[&images[0], &images[1]]).await?;
        let stored = || -> Result<Vec<Value>> {
            let output = world.stack.woodfrog(&["ps", "--pages", "--output", "json"])?;
            serde_json::from_str(&output).with_context(|| output)
        };
        let shares = async |name: &str, image: &str, memory: Option<&str>| -> Result<(Container, bool)> {
            let mut spec = PodSpec::new(name, image);
            let memory = memory.map(|memory| ("woodfrog.dev/memory".to_owned(), memory.to_owned()));
            spec.annotations.extend(memory);
            let pod = world.from_image(spec).await?;
            world.assert_thawed(&pod)?;
            ensure!(pod.wait("/count", STARTUP)? == "4");
            let shares = world.ps(&pod)?["shares_memory"] == true;
            Ok((pod, shares))
        };
        let (copied, shared) = shares("copied", &images[0], Some("Copied")).await?;
        ensure!(!shared && stored()?.is_empty(), "a pod's word counts for more than its image's");
        let (first, shared) = shares("first", &images[0], None).await?;
        ensure!(shared, "{}", log(world, &first));
        let (second, shared) = shares("second", &images[1], None).await?;
        let said = log(world, &second);
        ensure!(!shared && said.contains("there is no room"), "{said}");
        let first_digest = stored()?[0]["digest"].clone();
        ensure!(stored()?[0]["used"] == true && stored()?.len() == 1);

        for pod in [copied, first, second] {
            pod.remove().await?;
        }
        let (third, shared) = shares("third", &images[1], None).await?;
        ensure!(shared, "{}", log(world, &third));
        ensure!(stored()?.len() == 1 && stored()?[0]["digest"] != first_digest, "{:?}", stored()?);
        third.remove().await
    });
}

#[test]
fn node_a_dormant_pod_shares_its_memory_each_time_that_it_wakes() {
    in_world("shared-dormant", &[App::Synthetic], async |world| {
        let image = world.image(App::Synthetic, "shared-dormant");
        frozen(world, &[&image]).await?;
        let mut spec = PodSpec::new("pod", &image);
        spec.annotations.insert("woodfrog.dev/standby".into(), "Dormant".into());
        spec.annotations.insert("woodfrog.dev/idle-timeout".into(), "500ms".into());
        let pod = world.from_image(spec).await?;
        for wakes in 1..=3 {
            ensure!(pod.get("/count")? == "4", "it wakes from its image");
            ensure!(world.ps(&pod)?["wakes"] == wakes, "{}", log(world, &pod));
            let all = pagers(world)?;
            ensure!(all.len() == 1, "one pager for what is awake: {all:?}");
            ensure!(policy(world, &all[0])? == "0", "it takes its turns (SCHED_OTHER) since the threads run");
            let deadline = Instant::now() + STARTUP;
            while world.ps(&pod)?["state"] != "dormant" {
                ensure!(Instant::now() < deadline, "it does not fall asleep:\n{}", log(world, &pod));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        let deadline = Instant::now() + STARTUP;
        while !pagers(world)?.is_empty() {
            ensure!(Instant::now() < deadline, "a pager outlives what it served");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        pod.remove().await
    });
}
