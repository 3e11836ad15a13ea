//! Wakes by UDP and over IPv6.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use woodfrog_testkubelet::{Container, PodSpec};
use woodfrog_testnode::App;
use woodfrog_tests::{STARTUP, World, in_world, standby};

use crate::traffic::{get, on_node};

const UDP_PORT: u16 = 5353;
const NODE: &str = "fd57:4650::1/64";
const POD: &str = "fd57:4650::2/64";

/// HTTP and an echo over UDP, both for both families.
const SERVER: &str = "import http.server as h, socket, threading
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(self.client_address[0].encode())
class S(h.ThreadingHTTPServer):
    address_family = socket.AF_INET6
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
u.bind(('::', 5353))
def echo():
    while True:
        data, peer = u.recvfrom(2000)
        u.sendto(data, peer)
threading.Thread(target=echo, daemon=True).start()
S(('::', 8080), H).serve_forever()";

#[test]
fn node_datagrams_and_connections_of_both_families_wake_a_pod() {
    in_world("stress-families", &[App::Cpython], async |world| {
        let command = ["python3.14", "-c", SERVER].map(str::to_owned).to_vec();
        let spec = PodSpec { command, ..PodSpec::new("warm", &App::Cpython.reference()) };
        let warm = world.warm(spec).await?;
        let image = world.image(App::Cpython, "families");
        world.freeze(&warm, &image)?;
        warm.remove().await?;
        let pod = world.from_image(standby("pod", &image, "Dormant", Some("300ms"))).await?;
        let v6 = give_address(world, &pod).await?;
        for ip in [pod.ip(), v6] {
            world.until(&pod, "dormant").await?;
            let answer = on_node(world, || echo(SocketAddr::new(ip, UDP_PORT)))?;
            ensure!(answer == b"hello", "{answer:?}");
            world.until(&pod, "dormant").await?;
            let client = on_node(world, || get(ip, "/"))?;
            ensure!(
                ip.is_ipv4() || client == NODE.trim_end_matches("/64"),
                "the client's address is {client}"
            );
        }
        let ps = world.ps(&pod)?;
        ensure!(ps["wakes"] == 4, "{ps}");
        pod.remove().await
    });
}

/// Gives node and pod addresses of IPv6; the pod's.
async fn give_address(world: &World<'_>, pod: &Container) -> Result<IpAddr> {
    let add = |address| ["-6", "address", "add", address, "nodad", "dev"];
    world.node.run("ip", &[&add(NODE)[..], &["cni0"]].concat())?;
    let init = pod.pid().await?.to_string();
    let enter = ["--net", "--target", &init, "ip"];
    world.node.run("nsenter", &[&enter[..], &add(POD), &["eth0"]].concat())?;
    Ok(POD.trim_end_matches("/64").parse::<Ipv6Addr>()?.into())
}

/// Sends one datagram, once, and returns the answer.
fn echo(to: SocketAddr) -> Result<Vec<u8>> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(STARTUP))?;
    socket.send_to(b"hello", to)?;
    let mut answer = [0; 16];
    let (length, from) = socket.recv_from(&mut answer)?;
    ensure!(from == to, "{from} answers in place of {to}");
    Ok(answer[..length].to_vec())
}
