//! Whether an application that is awake has nothing to do: from counters and sockets that the kernel keeps, never by asking it.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use procfs::net::{Snmp, Snmp6};
use procfs::process::Process;
use procfs::{FromRead, ProcError, ProcResult};

use super::listeners::Listeners;
use crate::engine::{cgroups, tcp, tree};

/// CPU time that an application may use while nobody wants anything of it, as a part of one CPU: timers, garbage collection.
const AT_REST: f64 = 0.1;

/// What an application has had to do so far.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counters {
    /// TCP connections that were accepted and UDP datagrams that came, in its network namespace.
    asked: u64,
    /// CPU time of its processes.
    cpu: Duration,
    at: Instant,
}

/// Why it is not idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Busy {
    /// It has connections open.
    Connections(usize),
    /// Somebody has connected, or sent a datagram.
    Asked,
    /// It computes.
    Computing,
    /// Other processes are in its container for longer than between two looks: a command of `kubectl exec`, and hardly a probe.
    Guests(usize),
}

/// Watches one application.
#[derive(Debug)]
pub struct Idle {
    init: i32,
    application: i32,
    listeners: Listeners,
    last: Counters,
    probes: u64,
    /// Other processes that were in its container.
    guests: BTreeSet<i32>,
}

impl Idle {
    /// From now on. `application` is its PID inside the container, `probes` the gate's count so far.
    ///
    /// # Errors
    /// It has ended.
    pub fn watch(init: i32, application: i32, listeners: Listeners, probes: u64) -> io::Result<Self> {
        let last = tree::pids(init, application).and_then(|pids| counters(init, &pids));
        let last = last.map_err(io::Error::other)?;
        Ok(Self { init, application, listeners, last, probes, guests: BTreeSet::new() })
    }

    /// Why it was not idle since the last look; none: it was. `probes` is the gate's count by now.
    ///
    /// # Errors
    /// It has ended.
    pub fn look(&mut self, probes: u64) -> io::Result<Option<Busy>> {
        self.busy(probes).map_err(io::Error::other)
    }

    /// Whether it may not fall asleep now: it was not idle since the last look, or has a guest or half a connection at this moment.
    ///
    /// # Errors
    /// It has ended.
    pub fn is_wanted(&mut self, probes: u64) -> io::Result<bool> {
        let mut wanted = || {
            let pids = tree::pids(self.init, self.application)?;
            let busy = self.busy(probes)?.is_some();
            Ok::<_, ProcError>(busy || self.connections(&pids)? > 0 || !self.guests(&pids)?.is_empty())
        };
        wanted().map_err(io::Error::other)
    }

    fn busy(&mut self, probes: u64) -> ProcResult<Option<Busy>> {
        let pids = tree::pids(self.init, self.application)?;
        let now = counters(self.init, &pids)?;
        let before = std::mem::replace(&mut self.last, now);
        let probed = probes - std::mem::replace(&mut self.probes, probes);
        if now.asked.saturating_sub(before.asked) > probed {
            return Ok(Some(Busy::Asked));
        }
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        if now.cpu.saturating_sub(before.cpu).as_secs_f64() > seconds * AT_REST {
            return Ok(Some(Busy::Computing));
        }
        // Mostly there are listeners only, which is cheap to know.
        if tcp::in_use(self.init)? > tcp::listeners(self.init)?.len() {
            let open = self.connections(&pids)?;
            if open > 0 {
                return Ok(Some(Busy::Connections(open)));
            }
        }
        let guests = self.guests(&pids)?;
        let staying = guests.intersection(&self.guests).count();
        self.guests = guests;
        Ok((staying > 0).then_some(Busy::Guests(staying)))
    }

    /// Connections of the application, and those to its ports that it has not accepted yet or that outlive their descriptor.
    fn connections(&self, pids: &[i32]) -> ProcResult<usize> {
        let (to_its_ports, others): (Vec<_>, Vec<_>) = tcp::sockets(self.init)?
            .into_iter()
            .filter(|socket| !socket.listens)
            .partition(|socket| self.listeners.tcp.contains(&socket.local.port()));
        if others.is_empty() {
            return Ok(to_its_ports.len());
        }
        // A process that ends meanwhile has none.
        let its: BTreeSet<u64> =
            pids.iter().flat_map(|pid| tree::open_sockets(*pid).unwrap_or_default()).collect();
        Ok(to_its_ports.len() + others.iter().filter(|socket| its.contains(&socket.inode)).count())
    }

    /// Processes in the container's cgroup that are neither its init nor the application's, nor a pager: that is in the agent's PID namespace.
    fn guests(&self, pids: &[i32]) -> ProcResult<BTreeSet<i32>> {
        let ours: BTreeSet<i32> = pids.iter().copied().chain([self.init]).collect();
        let mut found = BTreeSet::new();
        for directory in cgroups::of(self.init)? {
            let procs = rustix::fs::openat(
                &directory,
                "cgroup.procs",
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            );
            let text = io::read_to_string(std::fs::File::from(procs.map_err(io::Error::from)?))?;
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
        let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let inside = namespace(self.init);
        Ok(found.difference(&ours).copied().filter(|pid| namespace(*pid) == inside).collect())
    }
}

/// Whether somebody listens on all TCP ports, in the network namespace of process `init`.
pub fn listens(init: i32, ports: &Listeners) -> bool {
    let listening: BTreeSet<u16> =
        tcp::listeners(init).into_iter().flatten().map(|socket| socket.local.port()).collect();
    ports.tcp.is_subset(&listening)
}

fn counters(init: i32, pids: &[i32]) -> ProcResult<Counters> {
    let directory = format!("/proc/{init}/net");
    let udp6 = Snmp6::from_file(format!("{directory}/snmp6")).map_or(0, |snmp| snmp.udp_in_datagrams);
    let snmp = Snmp::from_file(format!("{directory}/snmp"))?;
    let mut ticks = 0;
    for pid in pids {
        if let Ok(stat) = Process::new(*pid).and_then(|process| process.stat()) {
            ticks += stat.utime + stat.stime + stat.cutime.max(0) as u64 + stat.cstime.max(0) as u64;
        }
    }
    let cpu = Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64);
    Ok(Counters { asked: snmp.tcp_passive_opens + snmp.udp_in_datagrams + udp6, cpu, at: Instant::now() })
}
