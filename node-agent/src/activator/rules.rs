//! The rules in a pod's network namespace that bring packets to the queue, written by the programs that every node with
//! Kubernetes has: `nft` where the kernel has nftables' own queue, `iptables-nft-restore` where it has only the xtables target.
//!
//! ```text
//!   mangle PREROUTING ─► chain of this container ─► its chain `-s`, while it is shut
//!        marked as kubelet's ─► TPROXY to the responder on loopback
//!        TCP SYN or UDP to a listener's port ─► NFQUEUE (dropped while nobody listens to the queue)
//!                                                ─► its chain `-a`, while it is ajar
//!        marked as kubelet's ─► TPROXY
//!        TCP SYN from the node to a listener's port ─► NFQUEUE (passes while nobody listens to the queue)
//! ```
//!
//! Both chains are there as long as the gate is, and one jump is all that changes (see [`turn`]).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::listeners::Listeners;
use super::turn::{self, Table};

/// Packets that the responder is to answer carry this mark, and no others do: it is set by verdict in the pod's own namespace.
pub(super) const PROBE_MARK: u32 = 0x0057_4650;

/// How the names of all chains begin.
pub(super) const PREFIX: &str = "woodfrog-";

/// How the names of a container's further chains end.
const SHUT: &str = "-s";
const AJAR: &str = "-a";

/// Why the rules cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// A program is missing.
    #[error("cannot run {program}: {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// A program refused.
    #[error("{program}: {said}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// Its standard error.
        said: String,
    },
}

/// What writes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// `nft`.
    Nftables,
    /// `iptables-nft-restore` and `ip6tables-nft-restore`.
    Iptables,
}

/// The rules of one container.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// Unique in the network namespace. With [`SHUT`] or [`AJAR`] it has at most 28 characters, the bound for a chain's name.
    pub(super) chain: String,
    /// The queue's number.
    pub(super) queue: u16,
    /// The ports.
    pub(super) listeners: Listeners,
    /// The node's own addresses.
    pub(super) node: Vec<IpAddr>,
    /// The responder's port, on loopback.
    pub(super) responder: u16,
}

/// Which packets go to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// All first packets; without a listener on the queue they are dropped.
    Shut,
    /// TCP SYNs from the node's addresses; without a listener on the queue they pass.
    Ajar,
    /// None.
    Open,
}

impl Stand {
    /// The chain with its rules.
    fn chain(self, chain: &str) -> Option<String> {
        match self {
            Self::Shut => Some(format!("{chain}{SHUT}")),
            Self::Ajar => Some(format!("{chain}{AJAR}")),
            Self::Open => None,
        }
    }
}

impl Backend {
    /// The first that works, tried in the calling thread's network namespace, which should be an empty one.
    ///
    /// # Errors
    /// None works.
    pub(super) fn probe() -> Result<Self, RulesError> {
        let listeners = Listeners { tcp: [1].into(), udp: [1].into() };
        let rules =
            Rules { chain: "woodfrog-probe".into(), queue: 1, listeners, node: Vec::new(), responder: 1 };
        if Self::Nftables.put(&rules, Stand::Shut).is_ok() {
            return Ok(Self::Nftables);
        }
        Self::Iptables.put(&rules, Stand::Shut).map(|_| Self::Iptables)
    }

    /// Puts the rules in the calling thread's network namespace, in place of earlier ones of that chain: no packet finds
    /// neither. Which generation the namespace's rules are then, for [`Backend::turn`]; none if that cannot be known.
    ///
    /// # Errors
    /// The kernel or the programs lack something.
    pub(super) fn put(self, rules: &Rules, stand: Stand) -> Result<Option<u32>, RulesError> {
        match self {
            Self::Nftables => run("nft", &["-f", "-"], &rules.nftables(stand))?,
            Self::Iptables => IPTABLES.into_iter().try_for_each(|(program, save, loopback)| {
                let linked = output(save, &["-t", "mangle"])?.contains(&jump(&rules.chain));
                run(program, &["--noflush"], &rules.iptables(stand, loopback, !linked))
            })?,
        }
        Ok(turn::generation().ok())
    }

    /// Has the rules stand otherwise, if they are those that [`Backend::put`] has put: without a program, and with nothing taken away that the
    /// kernel would have to wait for. Which generation they are then.
    ///
    /// # Errors
    /// Somebody else has changed rules in this namespace.
    pub(super) fn turn(self, chain: &str, stand: Stand, generation: u32) -> io::Result<u32> {
        let tables = match self {
            Self::Nftables => &[Table { family: INET, name: chain }][..],
            Self::Iptables => &[Table { family: IPV4, name: MANGLE }, Table { family: IPV6, name: MANGLE }],
        };
        turn::turn(generation, tables, chain, stand.chain(chain).as_deref())
    }

    /// The chains in the calling thread's network namespace.
    ///
    /// # Errors
    /// See [`Backend::put`].
    pub(super) fn chains(self) -> Result<BTreeSet<String>, RulesError> {
        let (text, before) = match self {
            Self::Nftables => (output("nft", &["list", "tables", "inet"])?, "table inet "),
            Self::Iptables => {
                let saved = IPTABLES.into_iter().map(|(_, save, _)| output(save, &["-t", "mangle"]));
                (saved.collect::<Result<String, _>>()?, ":")
            }
        };
        let names = text.lines().filter_map(|line| line.strip_prefix(before)?.split(' ').next());
        let ours = names.filter(|name| name.starts_with(PREFIX));
        Ok(ours.map(|name| name.trim_end_matches(SHUT).trim_end_matches(AJAR).to_owned()).collect())
    }

    /// Takes the rules away, if they are there.
    ///
    /// # Errors
    /// See [`Backend::put`].
    pub(super) fn remove(self, chain: &str) -> Result<(), RulesError> {
        match self {
            // Declared first, so that it is no error if it was not there.
            Self::Nftables => {
                let table = format!("table inet {chain}\n");
                run("nft", &["-f", "-"], &format!("add {table}delete {table}"))
            }
            Self::Iptables => IPTABLES.into_iter().try_for_each(|(program, save, _)| {
                if !output(save, &["-t", "mangle"])?.contains(&jump(chain)) {
                    return Ok(());
                }
                // Naming the chains empties them, and makes those that an earlier release did not have.
                let mut text = String::from("*mangle\n");
                let all = ["", SHUT, AJAR].map(|end| format!("{chain}{end}"));
                all.iter().for_each(|chain| text += &format!(":{chain} - [0:0]\n"));
                text += &format!("-D PREROUTING -j {chain}\n");
                all.iter().for_each(|chain| text += &format!("-X {chain}\n"));
                run(program, &["--noflush"], &(text + "COMMIT\n"))
            }),
        }
    }
}

/// Restore, save, and the loopback address, of each family.
const IPTABLES: [(&str, &str, &str); 2] = [
    ("iptables-nft-restore", "iptables-nft-save", "127.0.0.1"),
    ("ip6tables-nft-restore", "ip6tables-nft-save", "::1"),
];

/// The table of its rules there.
const MANGLE: &str = "mangle";

/// `NFPROTO_*`.
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

fn jump(chain: &str) -> String {
    format!("-A PREROUTING -j {chain}\n")
}

impl Rules {
    fn iptables(&self, stand: Stand, loopback: &str, link: bool) -> String {
        let Self { chain, queue, listeners, node, responder } = self;
        // Naming the chains empties them, in the same transaction that fills them.
        let mut text = String::from("*mangle\n");
        for end in ["", SHUT, AJAR] {
            let _ = writeln!(text, ":{chain}{end} - [0:0]");
        }
        // It stays while the gate is ajar: without TPROXY the kernel ends reassembly, and drops whatever any queue of the
        // namespace holds.
        for end in [SHUT, AJAR] {
            let _ = writeln!(
                text,
                "-A {chain}{end} -p tcp -m mark --mark {PROBE_MARK:#x} -j TPROXY --on-port {responder} --on-ip {loopback}"
            );
        }
        for port in &listeners.tcp {
            let _ =
                writeln!(text, "-A {chain}{SHUT} -p tcp --syn --dport {port} -j NFQUEUE --queue-num {queue}");
        }
        for port in &listeners.udp {
            let _ = writeln!(text, "-A {chain}{SHUT} -p udp --dport {port} -j NFQUEUE --queue-num {queue}");
        }
        let of_family = |ip: &&IpAddr| ip.is_ipv4() != loopback.contains(':');
        for (source, port) in product(node.iter().filter(of_family), &listeners.tcp) {
            let _ = writeln!(
                text,
                "-A {chain}{AJAR} -s {source} -p tcp --syn --dport {port} -j NFQUEUE --queue-num {queue} --queue-bypass"
            );
        }
        if let Some(to) = stand.chain(chain) {
            let _ = writeln!(text, "-A {chain} -j {to}");
        }
        if link {
            text += &jump(chain);
        }
        text + "COMMIT\n"
    }

    fn nftables(&self, stand: Stand) -> String {
        const SYN: &str = "tcp flags & (fin|syn|rst|ack) == syn tcp dport";
        let Self { chain, queue, listeners, node, responder } = self;
        let mut probes = String::new();
        for (family, loopback) in [("ip", "127.0.0.1"), ("ip6", "[::1]")] {
            let _ = writeln!(
                probes,
                "meta l4proto tcp meta mark {PROBE_MARK:#x} tproxy {family} to {loopback}:{responder} accept"
            );
        }
        let mut shut = probes.clone();
        for port in &listeners.tcp {
            let _ = writeln!(shut, "{SYN} {port} queue num {queue}");
        }
        for port in &listeners.udp {
            let _ = writeln!(shut, "udp dport {port} queue num {queue}");
        }
        let mut ajar = probes;
        for (source, port) in product(node.iter(), &listeners.tcp) {
            let family = if source.is_ipv4() { "ip" } else { "ip6" };
            let _ = writeln!(ajar, "{family} saddr {source} {SYN} {port} queue flags bypass to {queue}");
        }
        let to = stand.chain(chain).map(|to| format!("jump {to}\n")).unwrap_or_default();
        format!(
            "add table inet {chain}\nflush table inet {chain}\ntable inet {chain} {{\n\
             chain {chain}{SHUT} {{\n{shut}}}\n\
             chain {chain}{AJAR} {{\n{ajar}}}\n\
             chain {chain} {{\n{to}}}\n\
             chain prerouting {{\ntype filter hook prerouting priority mangle; policy accept;\njump {chain}\n}}\n}}\n"
        )
    }
}

fn product<'a>(
    sources: impl Iterator<Item = &'a IpAddr>,
    ports: &'a BTreeSet<u16>,
) -> impl Iterator<Item = (&'a IpAddr, u16)> {
    sources.flat_map(move |source| ports.iter().map(move |port| (source, *port)))
}

fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<(), RulesError> {
    let failed = |source| RulesError::Program { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // A program that ends early says why; that it did not read all is no news.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(RulesError::Refused { program, said: String::from_utf8_lossy(&output.stderr).trim().into() })
}

fn output(program: &'static str, arguments: &[&str]) -> Result<String, RulesError> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|source| RulesError::Program { program, source })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        let listeners = Listeners { tcp: [80, 8080].into(), udp: [53].into() };
        let node = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        Rules { chain: "woodfrog-0123".into(), queue: 7, listeners, node, responder: 4000 }
    }

    #[test]
    fn iptables_rules_queue_first_packets_and_hand_probes_over() {
        assert_eq!(
            rules().iptables(Stand::Shut, "127.0.0.1", true),
            "*mangle\n\
             :woodfrog-0123 - [0:0]\n\
             :woodfrog-0123-s - [0:0]\n\
             :woodfrog-0123-a - [0:0]\n\
             -A woodfrog-0123-s -p tcp -m mark --mark 0x574650 -j TPROXY --on-port 4000 --on-ip 127.0.0.1\n\
             -A woodfrog-0123-a -p tcp -m mark --mark 0x574650 -j TPROXY --on-port 4000 --on-ip 127.0.0.1\n\
             -A woodfrog-0123-s -p tcp --syn --dport 80 -j NFQUEUE --queue-num 7\n\
             -A woodfrog-0123-s -p tcp --syn --dport 8080 -j NFQUEUE --queue-num 7\n\
             -A woodfrog-0123-s -p udp --dport 53 -j NFQUEUE --queue-num 7\n\
             -A woodfrog-0123-a -s 10.0.0.1 -p tcp --syn --dport 80 -j NFQUEUE --queue-num 7 --queue-bypass\n\
             -A woodfrog-0123-a -s 10.0.0.1 -p tcp --syn --dport 8080 -j NFQUEUE --queue-num 7 --queue-bypass\n\
             -A woodfrog-0123 -j woodfrog-0123-s\n\
             -A PREROUTING -j woodfrog-0123\n\
             COMMIT\n"
        );
        assert!(!rules().iptables(Stand::Shut, "::1", false).contains("-A PREROUTING"));
    }

    #[test]
    fn nftables_rules_say_the_same() {
        let text = rules().nftables(Stand::Shut);
        assert!(text.contains("tcp flags & (fin|syn|rst|ack) == syn tcp dport 8080 queue num 7\n"));
        assert!(text.contains("udp dport 53 queue num 7\n"));
        assert!(text.contains("tproxy ip6 to [::1]:4000"));
        assert!(text.contains("chain woodfrog-0123 {\njump woodfrog-0123-s\n}"));
    }

    #[test]
    fn ajar_only_the_node_s_own_are_looked_at_and_pass_without_an_agent() {
        let v6 = rules().iptables(Stand::Ajar, "::1", false);
        assert!(
            v6.contains("-a -s fd00::1 -p tcp --syn --dport 80 -j NFQUEUE --queue-num 7 --queue-bypass\n")
        );
        assert!(v6.contains("-A woodfrog-0123 -j woodfrog-0123-a\n"));
        assert!(!v6.contains("10.0.0.1") && !v6.contains("-a -p udp"));
        assert!(rules().nftables(Stand::Ajar).contains("ip saddr 10.0.0.1 tcp flags"));
    }

    #[test]
    fn open_nothing_is_looked_at() {
        assert!(!rules().iptables(Stand::Open, "127.0.0.1", false).contains("-A woodfrog-0123 "));
        assert!(rules().nftables(Stand::Open).contains("chain woodfrog-0123 {\n}"));
    }

    #[test]
    fn chain_names_fit() {
        let longest = format!("{PREFIX}{}{SHUT}", "0".repeat(16));
        assert!(longest.len() <= 28, "{longest}");
    }
}
