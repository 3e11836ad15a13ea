//! What strangers may send to a pod that sleeps, or has just woken.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::ip_number;
use woodfrog_testkubelet::http::PORT;
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{World, in_world, standby};

use crate::leaks::{agent_cpu, agent_memory};
use crate::packets::Sender;
use crate::traffic::{get, on_node};

const SYNS: u32 = 20_000;
/// What the agent's memory may grow by under any of this.
const MAX_GROWTH: u64 = 32 << 20;
/// Whoever means it well is answered within this, beside all of it: a lost SYN comes again after 1, 3 and 7 seconds.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// How long after that its wake is counted, at most.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn node_scans_and_malformed_packets_do_not_wake_a_pod() {
    in_world("stress-scan", &[App::Synthetic], async |world| {
        let pod = pod(world, &image(world).await?).await?;
        on_node(world, || scan(address(&pod)?))?;
        // Whatever the last of them may have caused would have begun by now.
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.expect_state(&pod, "dormant")?;
        on_node(world, || get(pod.ip(), "/"))?;
        world.expect_state(&pod, "thawed")?;
        pod.remove().await
    });
}

#[test]
fn node_floods_of_syns_wake_a_pod_once_and_keep_no_client_from_it() {
    in_world("stress-flood", &[App::Synthetic], async |world| {
        let image = image(world).await?;
        let strangers = |number: u32| SocketAddrV4::new(Ipv4Addr::from_bits(0xc612_0000 + number), 1025);
        flooded(world, &image, "strangers", strangers).await?;
        // Those are the ones that the agent looks at while a pod is awake.
        let node: Ipv4Addr = gateway(world)?;
        flooded(world, &image, "node", |number| SocketAddrV4::new(node, 1025 + (number % 60_000) as u16))
            .await
    });
}

/// A flood of half-open connections of a dormant pod, with clients after its beginning.
async fn flooded(
    world: &World<'_>,
    image: &str,
    name: &str,
    from: impl Fn(u32) -> SocketAddrV4 + Sync,
) -> Result<()> {
    let pod = pod(world, image).await?;
    let (memory, cpu) = (agent_memory(world.node)?, agent_cpu(world.node)?);
    let began = Instant::now();
    let (sent_in, slowest) = on_node(world, || {
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let sender = Sender::to(address(&pod)?)?;
                (0..SYNS).try_for_each(|number| sender.syn(from(number)))?;
                Ok::<_, anyhow::Error>(began.elapsed())
            });
            let mut slowest = Duration::ZERO;
            while !flood.is_finished() || slowest.is_zero() {
                let asked = Instant::now();
                get(pod.ip(), "/").context("a client beside the flood")?;
                slowest = slowest.max(asked.elapsed());
            }
            Ok((flood.join().expect("the flood")?, slowest))
        })
    })?;
    let cpu = agent_cpu(world.node)?.saturating_sub(cpu);
    println!(
        "{SYNS} SYNs of {name} in {sent_in:.1?}: slowest client {slowest:.1?}, agent's CPU time {cpu:.1?}"
    );
    ensure!(slowest < ANSWERED_WITHIN, "a client waited for {slowest:?}");
    let grown = agent_memory(world.node)?.saturating_sub(memory);
    ensure!(grown < MAX_GROWTH, "the agent's memory grew by {grown} bytes");
    // A client may be answered before the agent, whose CPUs the flood takes, has counted the wake.
    let counted = Instant::now() + COUNTED_WITHIN;
    let mut ps = world.ps(&pod)?;
    while ps["wakes"] == 0 && Instant::now() < counted {
        tokio::time::sleep(Duration::from_millis(50)).await;
        ps = world.ps(&pod)?;
    }
    ensure!(ps["state"] == "thawed" && ps["wakes"] == 1, "{ps}");
    pod.remove().await
}

async fn image(world: &World<'_>) -> Result<String> {
    let image = world.image(App::Synthetic, "hostile");
    let warm = world.warm(PodSpec::new("warm", &App::Synthetic.reference()).args(&["1", "1"])).await?;
    world.freeze(&warm, &image)?;
    warm.remove().await?;
    Ok(image)
}

/// A dormant pod that looks whether it may fall asleep while it is awake.
async fn pod(world: &World<'_>, image: &str) -> Result<Container> {
    let pod = world.from_image(standby("pod", image, "Dormant", Some("1m"))).await?;
    world.expect_state(&pod, "dormant")?;
    Ok(pod)
}

fn address(pod: &Container) -> Result<SocketAddrV4> {
    match pod.ip() {
        IpAddr::V4(ip) => Ok(SocketAddrV4::new(ip, PORT)),
        IpAddr::V6(ip) => bail!("{ip} is not of IPv4"),
    }
}

/// The node's address on the bridge of its pods.
fn gateway(world: &World<'_>) -> Result<Ipv4Addr> {
    let shown = world.node.run("ip", &["-4", "-oneline", "address", "show", "dev", "cni0"])?;
    let address = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1);
    let address = address.and_then(|address| address.split('/').next()).context("no address")?;
    Ok(address.parse()?)
}

/// Everything that is no first packet to the port that the pod listens on.
fn scan(to: SocketAddrV4) -> Result<()> {
    const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    let from = SocketAddrV4::new(STRANGER, 40_000);
    for port in (1..=1024).chain(8000..8080).chain(8081..8200) {
        Sender::to(SocketAddrV4::new(*to.ip(), port))?.syn(from)?;
    }
    let sender = Sender::to(to)?;
    sender.tcp(from, |_| {})?;
    sender.tcp(from, |tcp| tcp.fin = true)?;
    sender.tcp(from, |tcp| tcp.ack = true)?;
    sender.tcp(from, |tcp| tcp.rst = true)?;
    sender.tcp(from, |tcp| (tcp.syn, tcp.fin) = (true, true))?;
    sender.tcp(from, |tcp| (tcp.syn, tcp.rst) = (true, true))?;
    sender.tcp(from, |tcp| (tcp.syn, tcp.ack) = (true, true))?;
    sender.tcp(from, |tcp| (tcp.fin, tcp.psh, tcp.urg) = (true, true, true))?;
    sender.udp(from, b"to the port of a TCP listener")?;
    for length in [0, 1, 4, 13, 19] {
        // The beginnings of a SYN: ports, numbers, and no whole header.
        let syn = [0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0];
        sender.ip(STRANGER, ip_number::TCP, &syn[..length])?;
    }
    // A header that claims to be longer than the packet.
    sender.ip(
        STRANGER,
        ip_number::TCP,
        &[0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0xf0, 2, 4, 0, 0, 0, 0, 0],
    )?;
    for protocol in [ip_number::ICMP, ip_number::UDP, ip_number::SCTP, ip_number::GRE, ip_number::IPV6] {
        sender.ip(STRANGER, protocol, &[0xff; 40])?;
        sender.ip(STRANGER, protocol, &[])?;
    }
    Ok(())
}
