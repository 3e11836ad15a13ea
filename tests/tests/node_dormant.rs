//! Dormant pods: nothing runs until the first packet, which the application itself answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use woodfrog_testcluster::cluster::REGISTRY;
use woodfrog_testkubelet::stack::AGENT;
use woodfrog_testkubelet::{Container, PodSpec, Security};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, standby};

fn dormant(name: &str, image: &str, idle: Option<&str>) -> PodSpec {
    standby(name, image, "Dormant", idle)
}

/// Appends a line to a log in its root file system for each request, and answers with the number of requests.
const LOGGER: &str = "import http.server as h
log, count = open('/var/log/requests', 'a'), 0
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        print('request', count, file=log, flush=True)
        self.send_response(200); self.end_headers(); self.wfile.write(str(count).encode())
h.HTTPServer(('0.0.0.0', 8080), H).serve_forever()";

#[test]
fn node_a_pod_that_has_written_its_log_sleeps_and_wakes_again() {
    in_world("log", &[App::Cpython], async |world| {
        let command = ["python3.14", "-c", LOGGER].map(str::to_owned).to_vec();
        let spec = PodSpec { command, ..PodSpec::new("warm", &App::Cpython.reference()) };
        let warm = world.warm(spec.security(Security::Root)).await?;
        let image = format!("{REGISTRY}/checkpoint/logger:1");
        world.freeze(&warm, &image)?;
        warm.remove().await?;
        let pod = world.from_image(dormant("pod", &image, Some("300ms")).security(Security::Root)).await?;
        for _ in 0..3 {
            ensure!(pod.get("/")? == "2", "it is thawed from the image, after the one request before");
            world.expect_state(&pod, "thawed")?;
            world.until(&pod, "dormant").await?;
        }
        pod.remove().await
    });
}

/// The PIDs in a container besides its init's.
async fn processes(world: &World<'_>, container: &Container) -> Result<Vec<String>> {
    let init = container.pid().await?;
    let children = world.node.run("cat", &[&format!("/proc/{init}/task/{init}/children")])?;
    Ok(children.split_whitespace().map(str::to_owned).collect())
}

#[test]
fn node_the_first_packet_wakes_a_dormant_pod_which_sleeps_again() {
    in_world("dormant", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let pod = world.from_image(dormant("pod", &image, Some("500ms"))).await?;
        world.expect_state(&pod, "dormant")?;

        ensure!(pod.get("/count")? == "4", "the first request is answered by the application itself");
        world.expect_state(&pod, "thawed")?;
        let log = pod.logs()?;
        world.until(&pod, "dormant").await?;
        ensure!(pod.get("/count")? == "4", "it went back to its image");
        ensure!(pod.get("/count")? == "5", "awake, it goes on");
        ensure!(world.ps(&pod)?["generation"] == 2 && world.ps(&pod)?["wakes"] == 2, "{log}");

        pod.stop(Duration::from_secs(20)).await?;
        pod.remove().await
    });
}

#[test]
fn node_a_pod_that_has_slept_through_an_upgrade_of_criu_wakes() {
    in_world("upgraded-criu", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let pod = world.from_image(dormant("pod", &image, None)).await?;
        // The node has a new cache of kernel features, and the container one that is of no use to the new CRIU.
        let renew =
            "cp -p /run/criu.kdat /run/new && printf old > /run/criu.kdat && mv /run/new /run/criu.kdat";
        world.node.run("sh", &["-c", renew])?;
        ensure!(pod.get("/count")? == "4");
        let ps = world.ps(&pod)?;
        ensure!(ps["state"] == "thawed" && ps["reason"] == "", "{ps}");
        pod.remove().await
    });
}

#[test]
fn node_kubelet_s_probes_find_a_dormant_pod_well_and_do_not_wake_it() {
    in_world("probes", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let pod = world.from_image(dormant("pod", &image, Some("1s"))).await?;
        let url = format!("http://{}:8080/count", pod.ip());
        // The kernel names a process after the file that it was started from.
        world.node.run("cp", &["/usr/bin/curl", "/run/kubelet"])?;
        let probe = || world.node.run("/run/kubelet", &["--silent", "--fail", "--max-time", "10", &url]);
        for _ in 0..3 {
            ensure!(!probe()?.trim().eq("4"), "the answer is not the application's");
        }
        let https = format!("https://{}:8080/healthz", pod.ip());
        world.node.run("/run/kubelet", &["--silent", "--fail", "--insecure", "--max-time", "10", &https])?;
        let grpc = ["--http2-prior-knowledge", "--header", "content-type: application/grpc"];
        let answer =
            world.node.run("/run/kubelet", &[&grpc[..], &["--silent", "--include", &url]].concat())?;
        ensure!(answer.contains("grpc-status: 0"), "{answer:?}");
        ensure!(pod.exec(&["false"]).await? == (0, String::new()), "a probe by command finds it well");
        world.expect_state(&pod, "dormant")?;

        ensure!(pod.get("/count")? == "4", "anybody else wakes it");
        ensure!(probe()?.trim() == "5", "awake, it answers probes itself");
        ensure!(pod.exec(&["false"]).await?.0 == 1, "and one that fails fails");
        let probed = async {
            loop {
                probe()?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            asleep = world.until(&pod, "dormant") => asleep?,
            failed = probed => return failed,
        }
        pod.remove().await
    });
}

#[test]
fn node_a_dormant_pod_wakes_by_command_and_ends_quickly_when_it_is_deleted() {
    in_world("wake", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let pod = world.from_image(dormant("pod", &image, None)).await?;
        world.expect_state(&pod, "dormant")?;
        world.stack.woodfrog(&["wake", "pod/app"])?;
        world.expect_state(&pod, "thawed")?;
        ensure!(pod.get("/count")? == "4");
        pod.remove().await?;

        let pod = world.from_image(dormant("forwarded", &image, None)).await?;
        let inside = format!("--net=/proc/{}/ns/net", pod.pid().await?);
        let url = "http://127.0.0.1:8080/count";
        let answer = world.node.run("nsenter", &[&inside, "curl", "--silent", "--max-time", "60", url])?;
        ensure!(answer.trim() == "4", "a packet over loopback, as of kubectl port-forward: {answer}");
        pod.remove().await?;

        let pod = world.from_image(dormant("visited", &image, None)).await?;
        pod.ask_for_exec(&["true"]).await?;
        world.expect_state(&pod, "thawed")?;
        pod.remove().await?;

        let pod = world.from_image(dormant("other", &image, None)).await?;
        let began = Instant::now();
        pod.stop(Duration::from_secs(30)).await?;
        ensure!(began.elapsed() < Duration::from_secs(10), "SIGTERM ends a dormant pod");
        pod.remove().await
    });
}

#[test]
fn node_an_agent_that_dies_while_it_wakes_a_pod_leaves_it_in_reach() {
    in_world("dies", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        world.stack.kill_agent()?;
        world.stack.start_agent_that_crashes("thaw:restore")?;
        let pod = world.from_image(dormant("pod", &image, None)).await?;
        world.expect_state(&pod, "dormant")?;
        let (node, address) = (world.node.clone(), SocketAddr::new(pod.ip(), 8080));
        let client = std::thread::spawn(move || node.connect(address));
        let deadline = Instant::now() + STARTUP;
        while world.node.service_pid(AGENT).is_some() {
            ensure!(Instant::now() < deadline, "the agent does not die");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.stack.start_agent()?;
        pod.wait("/count", STARTUP)?;
        drop(client.join().expect("the client"));
        pod.remove().await
    });
}

#[test]
fn node_many_connections_at_once_wake_a_dormant_pod_once() {
    const CLIENTS: usize = 1000;
    in_world("crowd", &[App::Synthetic], async |world| {
        let warm = world.warm(PodSpec::new("warm", &App::Synthetic.reference())).await?;
        let image = world.image(App::Synthetic, "crowd");
        world.freeze(&warm, &image)?;
        warm.remove().await?;
        let pod = world.from_image(dormant("pod", &image, None)).await?;
        let address = SocketAddr::new(pod.ip(), 8080);
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&address, STARTUP)?;
            stream.set_read_timeout(Some(STARTUP))?;
            write!(stream, "GET / HTTP/1.0\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer.contains(" 200 "), "{answer:?}");
            Ok(())
        };
        let answered: Result<()> = world.node.in_network(|| {
            std::thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
                clients.into_iter().try_for_each(|client| client.join().expect("a client"))
            })
        })?;
        answered?;
        ensure!(world.ps(&pod)?["wakes"] == 1, "{:?}", world.ps(&pod)?);
        pod.remove().await
    });
}

#[test]
fn node_packets_outlive_the_agent_and_open_connections_keep_a_pod_awake() {
    in_world("gate", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let pod = world.from_image(dormant("pod", &image, Some("300ms"))).await?;
        world.stack.kill_agent()?;
        let address = SocketAddr::new(pod.ip(), 8080);
        let node = world.node.clone();
        // A refusal would end it at once; without an agent the client's kernel tries again.
        let client = std::thread::spawn(move || node.connect(address));
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(!client.is_finished(), "nobody is refused while there is no agent");
        world.stack.start_agent()?;
        let mut stream = client.join().expect("the client").context("the connection outlives the agent")?;
        world.until(&pod, "thawed").await?;
        let pids = processes(world, &pod).await?;

        // Half a request: five times the idle timeout later it is still being waited for.
        write!(stream, "GET /count HTTP/1.1\r\n")?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        world.expect_state(&pod, "thawed")?;
        ensure!(processes(world, &pod).await? == pids, "it was not thawed again meanwhile");
        drop(stream);
        world.until(&pod, "dormant").await?;
        ensure!(processes(world, &pod).await?.is_empty(), "nothing runs while it sleeps");
        pod.remove().await
    });
}

#[test]
fn node_a_pod_that_saves_its_state_goes_on_where_it_was() {
    in_world("save", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let mut spec = dormant("pod", &image, Some("300ms"));
        spec.annotations.insert("woodfrog.dev/on-idle".into(), "Save".into());
        let pod = world.from_image(spec).await?;
        world.expect_state(&pod, "dormant")?;
        for (generation, count) in [(1, "4"), (2, "5"), (3, "6")] {
            ensure!(pod.get("/count")? == count, "it goes on where it was\n{}", world.log(&pod));
            ensure!(world.ps(&pod)?["generation"] == generation, "a wake is a thaw");
            world.until(&pod, "dormant").await?;
            ensure!(processes(world, &pod).await?.is_empty(), "nothing runs while it sleeps");
        }
        let saves = "/var/lib/woodfrog/saves";
        let saved = world.node.run("ls", &[saves])?;
        ensure!(saved.lines().count() == 1, "one state is kept: {saved}");

        // The next agent finds it.
        world.stack.kill_agent()?;
        world.stack.start_agent()?;
        world.until(&pod, "dormant").await?;
        ensure!(pod.get("/count")? == "7", "{}", world.log(&pod));
        world.until(&pod, "dormant").await?;

        // One that is of no use is not in the way.
        let damage = format!("truncate --size=100 {saves}/*/memory/.woodfrog/checkpoint/core-*.img");
        world.node.run("sh", &["-c", &damage])?;
        pod.wait("/", STARTUP)?;
        let count = pod.get("/count")?;
        ensure!(count == "4", "it starts from its image then, not with {count}\n{}", world.log(&pod));
        pod.remove().await?;
        ensure!(world.node.run("ls", &[saves])?.is_empty(), "nothing is left of it");
        Ok(())
    });
}

#[test]
fn node_saving_a_state_gives_way_to_whoever_comes_meanwhile() {
    const TRIES: usize = 20;
    in_world("gives-way", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let mut spec = dormant("pod", &image, Some("300ms"));
        spec.annotations.insert("woodfrog.dev/on-idle".into(), "Save".into());
        let pod = world.from_image(spec).await?;
        let mut counted = 3;
        let mut ask = || {
            counted += 1;
            let count = pod.get("/count")?;
            ensure!(count == counted.to_string(), "{count}, not {counted}\n{}", world.log(&pod));
            Ok(())
        };
        ask()?;
        for tries_left in (0..TRIES).rev() {
            world.until(&pod, "thawed").await?;
            let before = world.ps(&pod)?;
            let times = world.log(&pod).matches("falls asleep").count();
            while world.log(&pod).matches("falls asleep").count() == times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ask()?;
            let (log, after) = (world.log(&pod), world.ps(&pod)?);
            if log.contains("came while its state was being saved") {
                let same = |key: &str| before[key] == after[key];
                ensure!(same("pid") && same("generation") && same("wakes"), "{before} {after}\n{log}");
                break;
            }
            ensure!(tries_left > 0, "no packet came in time\n{log}");
        }
        // What was begun is not in the way of the next time.
        world.until(&pod, "dormant").await?;
        let saved = world.node.run("ls", &["/var/lib/woodfrog/saves"])?;
        ensure!(saved.lines().count() == 1 && !saved.contains(".new"), "{saved}");
        ask()?;
        pod.remove().await
    });
}

#[test]
fn node_nothing_of_the_node_s_own_network_is_held() {
    in_world("host-network", &[App::Cpython], async |world| {
        let image = world.counted_to_three().await?;
        let mut spec = dormant("pod", &image, Some("300ms"));
        spec.host_network = true;
        let pod = world.from_image(spec).await?;
        world.expect_state(&pod, "thawed")?;
        ensure!(pod.wait("/count", STARTUP)? == "4");
        let log = world.log(&pod);
        ensure!(log.contains("stays awake: it is in the host's network namespace"), "{log}");
        pod.remove().await
    });
}
