//! The gate of a dormant container, with real packets between two network namespaces. Needs root, iproute2 and iptables.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use node_agent::activator::{Activator, Gate, Leave, Listeners};
use node_agent::engine::{netns, tcp};
use node_agent::metrics::Metrics;

const TOKEN: &str = "00112233445566778899aabbccddeeff";
/// Of another container of the pod.
const OTHER: &str = "ffeeddccbbaa99887766554433221100";
const POD: &str = "10.11.12.2";
const NODE: &str = "10.11.12.1";

/// A process that sleeps in a network namespace of its own.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let child =
            Command::new("unshare").args(["--net", "sleep", "infinity"]).stdout(Stdio::null()).spawn();
        let namespace = Self(child.expect("unshare runs"));
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let entered = || std::fs::read_link(format!("/proc/{}/ns/net", namespace.pid())).unwrap() != own;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !entered() {
            assert!(Instant::now() < deadline, "unshare does not enter its namespace");
            std::thread::yield_now();
        }
        namespace
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    fn run(&self, command: &str) {
        let enter = format!("nsenter --net=/proc/{}/ns/net {command}", self.pid());
        let status = Command::new("sh").args(["-c", &enter]).status().unwrap();
        assert!(status.success(), "{command}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node's and a pod's network, joined.
struct Net {
    node: Namespace,
    pod: Namespace,
    activator: Arc<Activator>,
}

impl Net {
    async fn new() -> Self {
        let (node, pod) = (Namespace::new(), Namespace::new());
        node.run(&format!("ip link add eth0 type veth peer name eth0 netns {}", pod.pid()));
        for (namespace, address) in [(&node, NODE), (&pod, POD)] {
            namespace.run(&format!("ip address add {address}/24 dev eth0"));
            namespace.run("ip link set eth0 up");
            namespace.run("ip link set lo up");
        }
        Self {
            node,
            pod,
            activator: Activator::probe(vec!["kubelet".into()], Metrics::default()).await.unwrap(),
        }
    }

    async fn gate(&self) -> Gate {
        self.gate_of(TOKEN, Listeners { tcp: [80].into(), udp: [53].into() }).await
    }

    async fn gate_of(&self, token: &str, listeners: Listeners) -> Gate {
        let leave: Leave = Arc::new(|_| Box::pin(std::future::ready(())));
        let alive = [TOKEN.into(), OTHER.into()];
        self.activator.gate(self.pod.pid(), token, listeners, &alive, leave).await.unwrap()
    }

    fn listen(&self) -> TcpListener {
        netns::within(self.pod.pid(), || TcpListener::bind(("0.0.0.0", 80))).unwrap()
    }

    fn connect(&self, timeout: Duration) -> io::Result<TcpStream> {
        let address = SocketAddr::new(POD.parse().unwrap(), 80);
        netns::within(self.node.pid(), || TcpStream::connect_timeout(&address, timeout))
    }
}

fn node_addresses() -> Vec<IpAddr> {
    vec![NODE.parse().unwrap()]
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

const SOON: Duration = Duration::from_millis(900);

#[tokio::test(flavor = "multi_thread")]
async fn node_first_packets_are_held_until_they_are_released() {
    if !is_root() {
        return;
    }
    let net = Arc::new(Net::new().await);
    let mut gate = net.gate().await;
    gate.shut(node_addresses()).await.unwrap();
    let client = net.clone();
    // Nobody listens yet: without the gate it would be refused.
    let connecting = tokio::task::spawn_blocking(move || client.connect(SOON));
    let knock = gate.knock().await.unwrap();
    assert_eq!((knock.from.ip(), knock.to.port()), (NODE.parse::<IpAddr>().unwrap(), 80));
    let _listener = net.listen();
    gate.release().unwrap();
    connecting.await.unwrap().expect("the first SYN is answered, not one sent again a second later");

    let sender = netns::within(net.node.pid(), || UdpSocket::bind((NODE, 0))).unwrap();
    sender.send_to(b"question", (POD, 53)).unwrap();
    gate.knock().await.unwrap();
    let server = netns::within(net.pod.pid(), || UdpSocket::bind((POD, 53))).unwrap();
    gate.release().unwrap();
    let mut bytes = [0; 8];
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(server.recv(&mut bytes).unwrap(), 8);

    gate.remove().await.unwrap();
    net.connect(SOON).expect("nothing is in between any more");
    assert!(rules(&net).is_empty(), "{:?}", rules(&net));
}

/// With how many packets they have seen.
fn rules(net: &Net) -> Vec<String> {
    let save = || Command::new("iptables-nft-save").arg("--counters").output();
    let saved = netns::within(net.pod.pid(), save).unwrap();
    let text = String::from_utf8_lossy(&saved.stdout).into_owned();
    text.lines().filter(|line| line.contains("woodfrog")).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ajar_everything_passes_at_once_while_the_gate_opens_and_shuts() {
    if !is_root() {
        return;
    }
    let net = Arc::new(Net::new().await);
    let listener = net.listen();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    let mut gate = net.gate().await;
    for _ in 0..20 {
        gate.shut(node_addresses()).await.unwrap();
        let client = net.clone();
        let connecting = tokio::task::spawn_blocking(move || {
            for _ in 0..20 {
                client.connect(SOON)?;
            }
            Ok::<_, io::Error>(())
        });
        gate.ajar(node_addresses()).await.unwrap();
        tokio::select! {
            connected = connecting => connected.unwrap().expect("every first SYN passes"),
            broken = gate.watch() => match broken.unwrap() {},
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_rules_are_written_once_and_again_if_somebody_else_has_changed_them() {
    if !is_root() {
        return;
    }
    let net = Arc::new(Net::new().await);
    let _listener = net.listen();
    let mut gate = net.gate().await;
    gate.shut(node_addresses()).await.unwrap();
    let held = |rules: &[String]| {
        let rule = rules.iter().find(|rule| rule.contains("--dport 80") && !rule.contains("--queue-bypass"));
        rule.unwrap_or_else(|| panic!("{rules:?}")).starts_with("[1:")
    };
    for _ in 0..3 {
        let client = net.clone();
        let connecting = tokio::task::spawn_blocking(move || client.connect(SOON));
        gate.knock().await.unwrap();
        assert!(held(&rules(&net)), "{:?}", rules(&net));
        gate.ajar(node_addresses()).await.unwrap();
        connecting.await.unwrap().expect("it was released");
        assert!(held(&rules(&net)), "what was written is there still: {:?}", rules(&net));
        net.pod.run("iptables-nft -t mangle -F");
        gate.shut(node_addresses()).await.unwrap();
        assert!(!held(&rules(&net)), "it is written anew: {:?}", rules(&net));
    }
    gate.remove().await.unwrap();
    assert!(rules(&net).is_empty(), "{:?}", rules(&net));
}

#[tokio::test(flavor = "multi_thread")]
async fn node_many_packets_at_once_are_held_though_nobody_has_time_to_read_of_them() {
    if !is_root() {
        return;
    }
    const MANY: usize = 500;
    let net = Net::new().await;
    let mut gate = net.gate().await;
    gate.shut(node_addresses()).await.unwrap();
    let sender = netns::within(net.node.pid(), || UdpSocket::bind((NODE, 0))).unwrap();
    for _ in 0..MANY {
        sender.send_to(b"question", (POD, 53)).unwrap();
    }
    for _ in 0..MANY {
        gate.knock().await.unwrap();
    }
    let read = || std::fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_queue");
    let queues = netns::within(net.pod.pid(), read).unwrap();
    // Its number, whose it is, how many packets wait, two settings, and how many were dropped by the queue and for want of memory.
    let columns: Vec<&str> = queues.split_whitespace().collect();
    assert_eq!((columns[2], columns[5], columns[6]), (MANY.to_string().as_str(), "0", "0"), "{queues}");
    gate.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn node_what_is_held_outlives_the_gates_of_other_containers() {
    if !is_root() {
        return;
    }
    let net = Arc::new(Net::new().await);
    let mut gate = net.gate().await;
    gate.shut(node_addresses()).await.unwrap();
    let client = net.clone();
    let connecting = tokio::task::spawn_blocking(move || client.connect(SOON));
    gate.knock().await.unwrap();
    let mut other = net.gate_of(OTHER, Listeners { tcp: [81].into(), udp: [].into() }).await;
    other.shut(node_addresses()).await.unwrap();
    other.ajar(node_addresses()).await.unwrap();
    other.remove().await.unwrap();
    let _listener = net.listen();
    gate.release().unwrap();
    connecting.await.unwrap().expect("the first SYN is answered");
    gate.remove().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn node_ajar_nobody_waits_for_a_look_at_what_the_application_does() {
    if !is_root() {
        return;
    }
    let net = Arc::new(Net::new().await);
    let _listener = net.listen();
    let mut gate = net.gate().await;
    gate.ajar(node_addresses()).await.unwrap();
    let client = net.clone();
    // It ends no sooner than the connection is made.
    let look = move || client.connect(Duration::from_secs(30));
    gate.watch_while(look).await.unwrap().expect("it is let through meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_sockets_are_counted_without_being_looked_at() {
    if !is_root() {
        return;
    }
    let net = Net::new().await;
    let pod = net.pod.pid();
    assert_eq!((tcp::in_use(pod).unwrap(), tcp::sockets(pod).unwrap()), (0, vec![]));
    let listener = net.listen();
    let listeners = tcp::listeners(pod).unwrap();
    assert_eq!((tcp::in_use(pod).unwrap(), &listeners), (1, &tcp::sockets(pod).unwrap()));
    assert!(listeners.len() == 1 && listeners[0].listens && listeners[0].local.port() == 80);
    let client = net.connect(Duration::from_secs(30)).unwrap();
    assert_eq!((tcp::in_use(pod).unwrap(), tcp::listeners(pod).unwrap()), (2, listeners));
    let accepts = tcp::sockets(pod).unwrap().into_iter().find(|socket| !socket.listens).unwrap();
    assert_eq!(
        (accepts.remote, accepts.inode),
        (client.local_addr().unwrap(), 0),
        "nobody has accepted it yet"
    );
    let accepted = listener.accept().unwrap();
    let accepts = tcp::sockets(pod).unwrap().into_iter().find(|socket| !socket.listens).unwrap();
    assert_ne!(accepts.inode, 0);
    // The client ends: what is left of its connection is no socket that is in use.
    drop(client);
    drop(accepted);
    let v6 = netns::within(pod, || TcpListener::bind(("::", 81))).unwrap();
    let found = tcp::listeners(pod).unwrap();
    assert!(found.iter().any(|socket| socket.local == v6.local_addr().unwrap()), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_while_hooks_run_the_pod_s_own_packets_pass_and_others_wait() {
    if !is_root() {
        return;
    }
    let net = Arc::new(Net::new().await);
    let _listener = net.listen();
    let mut gate = net.gate().await;
    gate.shut(node_addresses()).await.unwrap();
    let client = net.clone();
    let connecting = tokio::task::spawn_blocking(move || client.connect(Duration::from_secs(30)));
    gate.knock().await.unwrap();
    let hook = net.clone();
    let asking = tokio::task::spawn_blocking(move || {
        netns::within(hook.pod.pid(), || {
            for ip in ["127.0.0.1", POD] {
                let address = SocketAddr::new(ip.parse().unwrap(), 80);
                TcpStream::connect_timeout(&address, Duration::from_secs(30))?;
            }
            Ok::<_, io::Error>(())
        })
    });
    tokio::select! {
        asked = asking => asked.unwrap().expect("a hook reaches the application"),
        broken = gate.hold_others() => match broken.unwrap() {},
    }
    assert!(!connecting.is_finished(), "nobody else is answered yet");
    gate.release().unwrap();
    connecting.await.unwrap().expect("it is answered when the hooks have ended");
    gate.remove().await.unwrap();
}
