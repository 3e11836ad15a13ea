//! The gate of one container: shut while it sleeps, ajar while it is awake and may fall asleep again.
//!
//! ```text
//!   shut    first packets to its ports are held: knock ─► … awake … ─► release
//!   ajar    SYNs from the node are looked at, to tell kubelet's probes from traffic, and let through at once
//!   gone    no rules
//! ```

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::task::{JoinError, spawn_blocking};
use tracing::debug;

use super::kubelet::Kubelet;
use super::listeners::Listeners;
use super::packet::Packet;
use super::queue::{MAX_HELD, MAX_HELD_DATAGRAMS, Queue};
use super::responder::{self, Answers, Leave, Responder};
use super::rules::{Backend, PREFIX, Rules, RulesError, Stand};
use crate::engine::netns;
use crate::metrics::Metrics;

/// How many queues a container tries.
const QUEUES_TRIED: u16 = 4;

/// Why packets cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The rules.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The queue, the responder, or the way into the pod's network namespace.
    #[error("the pod's network namespace: {0}")]
    Io(#[from] io::Error),
    /// A bug.
    #[error("the agent failed inside: {0}")]
    Panic(#[from] JoinError),
}

/// What all gates of a node need.
#[derive(Debug)]
pub struct Activator {
    backend: Backend,
    /// Whose connections are probes.
    kubelet: Kubelet,
    /// What probes are answered.
    answers: Arc<Answers>,
    metrics: Metrics,
}

/// Who wants a container awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Knock {
    /// Where the packet came from.
    pub from: SocketAddr,
    /// Where it goes.
    pub to: SocketAddr,
}

impl Knock {
    /// Whether it comes from the pod itself: from loopback, or from the address to which it goes.
    fn is_from_within(self) -> bool {
        self.from.ip().is_loopback() || self.from.ip() == self.to.ip()
    }
}

/// See the module's documentation. When it is dropped its rules stay: what matches them is dropped until there is a gate
/// again.
#[derive(Debug)]
pub struct Gate {
    activator: Arc<Activator>,
    namespace: Arc<File>,
    rules: Rules,
    stand: Stand,
    /// Which the namespace's rules were when this gate last changed them.
    generation: Option<u32>,
    queue: Queue,
    _responder: Responder,
    /// The newest packet that was read.
    newest: u32,
    /// Somebody came while nobody asked.
    knocked: Option<Knock>,
    /// Connections of kubelet's that were let through while ajar.
    pub probes: u64,
}

impl Activator {
    /// Finds out how this node's kernel holds packets. `kubelet`: names of the processes whose connections are probes.
    ///
    /// # Errors
    /// It does not: no container can be dormant here.
    pub async fn probe(kubelet: Vec<String>, metrics: Metrics) -> Result<Arc<Self>, GateError> {
        let backend =
            spawn_blocking(|| netns::within_new(|| Ok::<_, GateError>(Backend::probe()?))).await??;
        let answers = Arc::new(Answers::counted(metrics.clone()));
        Ok(Arc::new(Self { backend, kubelet: Kubelet::new(kubelet), answers, metrics }))
    }

    /// A gate in the network namespace of process `pid`, for the container with this token. It has no rules of its own yet, but
    /// takes over those that an earlier agent left. Rules of containers that are not among `alive`, by token, are taken away. Hooks of
    /// kubelet's by HTTP are left with `leave` while it is shut.
    ///
    /// # Errors
    /// The process has ended, or another process holds its packets.
    pub async fn gate(
        self: &Arc<Self>,
        pid: i32,
        token: &str,
        listeners: Listeners,
        alive: &[String],
        leave: Leave,
    ) -> Result<Gate, GateError> {
        let chain = chain(token);
        let alive: Vec<String> = alive.iter().map(|token| self::chain(token)).collect();
        let (backend, namespace, first) = (self.backend, Arc::new(netns::of(pid)?), first_queue(token));
        let entered = namespace.clone();
        let max_held = if listeners.udp.is_empty() { MAX_HELD } else { MAX_HELD_DATAGRAMS };
        let opened = spawn_blocking(move || {
            netns::inside(&entered, || {
                for dead in backend.chains()?.iter().filter(|chain| !alive.contains(chain)) {
                    backend.remove(dead)?;
                }
                Ok::<_, GateError>((open_queue(first, max_held)?, responder::listen()?))
            })
        });
        let ((queue, number), listening) = opened.await??;
        let responder = Responder::serve(listening, &self.answers, leave)?;
        let (node, port) = (Vec::new(), responder.port);
        let rules = Rules { chain, queue: number, listeners, node, responder: port };
        let queue = Queue::register(queue, number)?;
        Ok(Gate {
            activator: self.clone(),
            namespace,
            rules,
            stand: Stand::Shut,
            generation: None,
            queue,
            _responder: responder,
            newest: 0,
            knocked: None,
            probes: 0,
        })
    }

    /// Takes away what an earlier agent left for a container that needs no gate.
    ///
    /// # Errors
    /// See [`GateError`].
    pub async fn clear(&self, pid: i32, token: &str) -> Result<(), GateError> {
        let (backend, chain) = (self.backend, chain(token));
        spawn_blocking(move || netns::within(pid, || Ok(backend.remove(&chain)?))).await?
    }
}

impl Gate {
    /// From now on first packets are held. `node`: the node's own addresses, where probes come from.
    ///
    /// # Errors
    /// See [`GateError`]; the rules are as they were.
    pub async fn shut(&mut self, node: Vec<IpAddr>) -> Result<(), GateError> {
        self.put(node, Stand::Shut).await
    }

    /// Lets through what is held; from now on only SYNs from the node's own addresses are looked at.
    ///
    /// # Errors
    /// See [`GateError`]; the rules are as they were.
    pub async fn ajar(&mut self, node: Vec<IpAddr>) -> Result<(), GateError> {
        self.release()?;
        self.put(node, Stand::Ajar).await
    }

    /// Changes the rules. Whoever comes while they change from or to those of the time awake belongs to it.
    async fn put(&mut self, node: Vec<IpAddr>, stand: Stand) -> Result<(), GateError> {
        let awake = self.stand != Stand::Shut || stand != Stand::Shut;
        let (backend, namespace) = (self.activator.backend, self.namespace.clone());
        let known = self.generation.filter(|_| self.rules.node == node);
        let rules = Rules { node, ..self.rules.clone() };
        let put = spawn_blocking(move || {
            netns::inside(&namespace, || {
                let turned = known.map(|generation| backend.turn(&rules.chain, stand, generation));
                let generation = match turned {
                    Some(Ok(generation)) => Some(generation),
                    refused => {
                        debug!(chain = rules.chain, ?refused, "all rules are written");
                        backend.put(&rules, stand)?
                    }
                };
                Ok::<_, GateError>((rules, generation))
            })
        });
        tokio::pin!(put);
        (self.rules, self.generation) = loop {
            tokio::select! {
                done = &mut put => break done??,
                // Rules of before go on sending packets here.
                next = self.next() => {
                    let Next { id, knock } = next?;
                    self.newest = id;
                    if awake {
                        self.probes += u64::from(knock.is_none());
                        self.queue.accept_until(id)?;
                    } else {
                        self.hold_back(id, knock)?;
                        self.knocked = knock.or(self.knocked);
                    }
                }
            }
        };
        self.stand = stand;
        Ok(())
    }

    /// Waits for somebody, whose packet is held then. Probes are answered meanwhile. Cancel-safe.
    ///
    /// # Errors
    /// The queue broke.
    pub async fn knock(&mut self) -> io::Result<Knock> {
        if let Some(knock) = self.knocked.take() {
            return Ok(knock);
        }
        loop {
            let Next { id, knock } = self.next().await?;
            self.newest = id;
            self.hold_back(id, knock)?;
            if let Some(knock) = knock {
                return Ok(knock);
            }
        }
    }

    /// Whether somebody waits already, who is to be let in with all others.
    ///
    /// # Errors
    /// The queue broke.
    pub async fn is_awaited(&mut self) -> io::Result<bool> {
        tokio::select! {
            biased;
            knock = self.knock() => knock.map(|_| true),
            () = std::future::ready(()) => Ok(false),
        }
    }

    /// Holds whatever comes. Cancel-safe.
    ///
    /// # Errors
    /// The queue broke.
    pub async fn hold(&mut self) -> io::Result<Infallible> {
        loop {
            self.knock().await?;
        }
    }

    /// Holds what comes from outside of the pod, and lets through what comes from within, such as a hook's request. Cancel-safe.
    ///
    /// # Errors
    /// The queue broke.
    pub async fn hold_others(&mut self) -> io::Result<Infallible> {
        loop {
            let Next { id, knock } = self.next().await?;
            self.newest = id;
            match knock {
                Some(knock) if knock.is_from_within() => self.queue.accept(id)?,
                knock => self.hold_back(id, knock)?,
            }
        }
    }

    /// While ajar: lets everything through and counts probes. Cancel-safe.
    ///
    /// # Errors
    /// The queue broke.
    pub async fn watch(&mut self) -> io::Result<Infallible> {
        loop {
            let Next { id, knock } = self.next().await?;
            self.newest = id;
            self.probes += u64::from(knock.is_none());
            self.queue.accept_until(id)?;
        }
    }

    /// While ajar: the same until `work` is done, which may block. Nobody waits for it.
    ///
    /// # Errors
    /// The queue broke, or `work` panicked.
    pub async fn watch_while<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let working = spawn_blocking(work);
        tokio::select! {
            broken = self.watch() => match broken? {},
            done = working => Ok(done?),
        }
    }

    /// Lets through what is held.
    ///
    /// # Errors
    /// The queue broke.
    pub fn release(&mut self) -> io::Result<()> {
        // Numbers grow by one: so far ahead of the newest that was read is all that has not been read yet.
        self.queue.accept_until(self.newest.wrapping_add(1 << 30))
    }

    /// From now on nothing is held or looked at. What still comes meanwhile is let through.
    ///
    /// # Errors
    /// See [`GateError`]; the rules are as they were.
    pub async fn open(&mut self) -> Result<(), GateError> {
        self.release()?;
        self.put(self.rules.node.clone(), Stand::Open).await?;
        // Nothing comes any more. What came last, and closing the queue would drop, may be unread still.
        Ok(self.release()?)
    }

    /// Takes the rules away.
    ///
    /// # Errors
    /// See [`GateError`].
    pub async fn remove(mut self) -> Result<(), GateError> {
        if self.stand != Stand::Open {
            self.open().await?;
        }
        let Self { activator, namespace, rules, .. } = &self;
        let (backend, namespace, rules) = (activator.backend, namespace.clone(), rules.clone());
        spawn_blocking(move || netns::inside(&namespace, || Ok(backend.remove(&rules.chain)?))).await?
    }

    /// What becomes of a packet while it sleeps: a probe goes to the responder, all else stays held.
    fn hold_back(&self, id: u32, knock: Option<Knock>) -> io::Result<()> {
        match knock {
            None => self.queue.mark(id)?,
            Some(_) => self.activator.metrics.packet_held(),
        }
        Ok(())
    }

    /// The next held packet and who knocks with it; a probe knocks not.
    async fn next(&self) -> io::Result<Next> {
        let (id, packet) = self.readable().await?;
        // Who asks whose connection that is pays for it: only the node's own packets are worth it.
        let probe = packet.tcp
            && self.rules.node.contains(&packet.from.ip())
            && self.activator.kubelet.owns(packet.from, packet.to);
        let knock = (!probe).then_some(Knock { from: packet.from, to: packet.to });
        debug!(?knock, "a packet is held");
        Ok(Next { id, knock })
    }

    /// The next held packet with whole headers. Others are dropped: the application would never hear of them.
    async fn readable(&self) -> io::Result<(u32, Packet)> {
        loop {
            let held = self.queue.next().await?;
            match Packet::parse(&held.bytes) {
                Some(packet) => return Ok((held.id, packet)),
                None => self.queue.discard(held.id)?,
            }
        }
    }
}

struct Next {
    id: u32,
    /// None: a probe.
    knock: Option<Knock>,
}

/// Name of a container's chain.
fn chain(token: &str) -> String {
    PREFIX.chars().chain(token.chars().take(16)).collect()
}

/// The queue that a container tries first.
fn first_queue(token: &str) -> u16 {
    token.get(..4).and_then(|digits| u16::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Opens the first queue from this number on that nobody has, such as another container of the pod, in the calling thread's network
/// namespace.
fn open_queue(first: u16, max_held: u32) -> io::Result<(OwnedFd, u16)> {
    let numbers = (0..QUEUES_TRIED).map(|more| first.wrapping_add(more));
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for number in numbers {
        match Queue::open(number, max_held) {
            Ok(queue) => return Ok((queue, number)),
            Err(e) if matches!(e.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied) => {
                last = e
            }
            Err(e) => return Err(e),
        }
    }
    Err(last)
}
