//! The rules in a pod's network namespace that bring packets to the queue, written by the programs that every node with
//! Kubernetes has: `nft` where the kernel has nftables' own queue, `iptables-nft-restore` where it has only the xtables target.
//!
//! ```text
//!   mangle PREROUTING ─► chain of this container
//!        marked as kubelet's ─► TPROXY to the responder on loopback
//!        TCP SYN or UDP to a listener's port ─► NFQUEUE (dropped while nobody listens to the queue)
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::listeners::Listeners;

/// Packets that the responder is to answer carry this mark, and no others do: it is set by verdict in the pod's own namespace.
pub(super) const PROBE_MARK: u32 = 0x0057_4650;

/// How the names of all chains begin.
pub(super) const PREFIX: &str = "woodfrog-";

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
    /// Unique in the network namespace; at most 28 characters, the bound for a chain's name.
    pub(super) chain: String,
    /// The queue's number.
    pub(super) queue: u16,
    /// The ports.
    pub(super) listeners: Listeners,
    /// Which packets to them.
    pub(super) matches: Matches,
    /// The responder's port, on loopback.
    pub(super) responder: u16,
}

/// Which packets go to the queue.
#[derive(Clone, Debug)]
pub(super) enum Matches {
    /// All first packets; without a listener on the queue they are dropped.
    All,
    /// TCP SYNs from these addresses; without a listener on the queue they pass.
    From(Vec<IpAddr>),
}

impl Backend {
    /// The first that works, tried in the calling thread's network namespace, which should be an empty one.
    ///
    /// # Errors
    /// None works.
    pub(super) fn probe() -> Result<Self, RulesError> {
        let listeners = Listeners { tcp: [1].into(), udp: [1].into() };
        let rules = Rules {
            chain: "woodfrog-probe".into(),
            queue: 1,
            listeners,
            matches: Matches::All,
            responder: 1,
        };
        if Self::Nftables.put(&rules).is_ok() {
            return Ok(Self::Nftables);
        }
        Self::Iptables.put(&rules).map(|()| Self::Iptables)
    }

    /// Puts the rules in the calling thread's network namespace, in place of earlier ones of that chain: no packet finds
    /// neither.
    ///
    /// # Errors
    /// The kernel or the programs lack something.
    pub(super) fn put(self, rules: &Rules) -> Result<(), RulesError> {
        match self {
            Self::Nftables => run("nft", &["-f", "-"], &rules.nftables()),
            Self::Iptables => IPTABLES.into_iter().try_for_each(|(program, save, loopback)| {
                let linked = output(save, &["-t", "mangle"])?.contains(&jump(&rules.chain));
                run(program, &["--noflush"], &rules.iptables(loopback, !linked))
            }),
        }
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
        Ok(names.filter(|name| name.starts_with(PREFIX)).map(str::to_owned).collect())
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
                let jump = format!("-D PREROUTING -j {chain}");
                run(program, &["--noflush"], &format!("*mangle\n{jump}\n-F {chain}\n-X {chain}\nCOMMIT\n"))
            }),
        }
    }
}

/// Restore, save, and the loopback address, of each family.
const IPTABLES: [(&str, &str, &str); 2] = [
    ("iptables-nft-restore", "iptables-nft-save", "127.0.0.1"),
    ("ip6tables-nft-restore", "ip6tables-nft-save", "::1"),
];

fn jump(chain: &str) -> String {
    format!("-A PREROUTING -j {chain}\n")
}

impl Rules {
    fn iptables(&self, loopback: &str, link: bool) -> String {
        let Self { chain, queue, listeners, matches, responder } = self;
        // Naming the chain empties it, in the same transaction that fills it.
        let mut text = format!("*mangle\n:{chain} - [0:0]\n");
        // It stays while the gate is ajar: without TPROXY the kernel ends reassembly, and drops whatever any queue of the
        // namespace holds.
        let _ = writeln!(
            text,
            "-A {chain} -p tcp -m mark --mark {PROBE_MARK:#x} -j TPROXY --on-port {responder} --on-ip {loopback}"
        );
        match matches {
            Matches::All => {
                for port in &listeners.tcp {
                    let _ = writeln!(
                        text,
                        "-A {chain} -p tcp --syn --dport {port} -j NFQUEUE --queue-num {queue}"
                    );
                }
                for port in &listeners.udp {
                    let _ = writeln!(text, "-A {chain} -p udp --dport {port} -j NFQUEUE --queue-num {queue}");
                }
            }
            Matches::From(sources) => {
                let of_family = |ip: &&IpAddr| ip.is_ipv4() != loopback.contains(':');
                for (source, port) in product(sources.iter().filter(of_family), &listeners.tcp) {
                    let _ = writeln!(
                        text,
                        "-A {chain} -s {source} -p tcp --syn --dport {port} -j NFQUEUE --queue-num {queue} --queue-bypass"
                    );
                }
            }
        }
        if link {
            text += &jump(chain);
        }
        text + "COMMIT\n"
    }

    fn nftables(&self) -> String {
        const SYN: &str = "tcp flags & (fin|syn|rst|ack) == syn tcp dport";
        let Self { chain, queue, listeners, matches, responder } = self;
        let mut text = format!("add table inet {chain}\nflush table inet {chain}\ntable inet {chain} {{\n");
        text += "chain prerouting {\ntype filter hook prerouting priority mangle; policy accept;\n";
        for (family, loopback) in [("ip", "127.0.0.1"), ("ip6", "[::1]")] {
            let _ = writeln!(
                text,
                "meta l4proto tcp meta mark {PROBE_MARK:#x} tproxy {family} to {loopback}:{responder} accept"
            );
        }
        match matches {
            Matches::All => {
                for port in &listeners.tcp {
                    let _ = writeln!(text, "{SYN} {port} queue num {queue}");
                }
                for port in &listeners.udp {
                    let _ = writeln!(text, "udp dport {port} queue num {queue}");
                }
            }
            Matches::From(sources) => {
                for (source, port) in product(sources.iter(), &listeners.tcp) {
                    let family = if source.is_ipv4() { "ip" } else { "ip6" };
                    let _ =
                        writeln!(text, "{family} saddr {source} {SYN} {port} queue flags bypass to {queue}");
                }
            }
        }
        text + "}\n}\n"
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
        Rules { chain: "woodfrog-0123".into(), queue: 7, listeners, matches: Matches::All, responder: 4000 }
    }

    #[test]
    fn iptables_rules_queue_first_packets_and_hand_probes_over() {
        assert_eq!(
            rules().iptables("127.0.0.1", true),
            "*mangle\n\
             :woodfrog-0123 - [0:0]\n\
             -A woodfrog-0123 -p tcp -m mark --mark 0x574650 -j TPROXY --on-port 4000 --on-ip 127.0.0.1\n\
             -A woodfrog-0123 -p tcp --syn --dport 80 -j NFQUEUE --queue-num 7\n\
             -A woodfrog-0123 -p tcp --syn --dport 8080 -j NFQUEUE --queue-num 7\n\
             -A woodfrog-0123 -p udp --dport 53 -j NFQUEUE --queue-num 7\n\
             -A PREROUTING -j woodfrog-0123\n\
             COMMIT\n"
        );
        assert!(!rules().iptables("::1", false).contains("-A PREROUTING"));
    }

    #[test]
    fn nftables_rules_say_the_same() {
        let text = rules().nftables();
        assert!(text.contains("tcp flags & (fin|syn|rst|ack) == syn tcp dport 8080 queue num 7\n"));
        assert!(text.contains("udp dport 53 queue num 7\n"));
        assert!(text.contains("tproxy ip6 to [::1]:4000"));
    }

    #[test]
    fn ajar_only_the_node_s_own_are_looked_at_and_pass_without_an_agent() {
        let sources = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        let rules = Rules { matches: Matches::From(sources), ..rules() };
        let v6 = rules.iptables("::1", false);
        assert!(v6.contains("-s fd00::1 -p tcp --syn --dport 80 -j NFQUEUE --queue-num 7 --queue-bypass\n"));
        assert!(!v6.contains("10.0.0.1") && !v6.contains("udp") && v6.contains("TPROXY"));
        assert!(rules.nftables().contains("ip saddr 10.0.0.1 tcp flags"));
    }
}
