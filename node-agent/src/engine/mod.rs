//! The engine: what the agent does, without knowing who asks for it.
//!
//! It keeps the managed containers of this node ([`container`]), talks to their inits ([`link`], [`keeper`]),
//! freezes them ([`freeze`]) and thaws them ([`thaw`]). The container runtime is behind a trait ([`runtime`]); it knows no
//! Kubernetes and no gRPC.

pub mod ahead;
pub mod cgroups;
pub mod container;
pub mod criu;
pub mod dump;
pub mod dump_dir;
pub mod error;
pub mod freeze;
mod freezer;
pub mod hooks;
pub mod http;
mod image_set;
mod images;
pub mod keeper;
pub mod link;
pub mod netns;
mod one_cpu;
mod page_plan;
pub mod page_store;
pub mod pager;
pub mod phases;
mod postponed;
pub mod preflight;
pub mod preparation;
pub mod prepared;
pub mod publish;
mod quarantine;
pub mod rehearsal;
pub mod restore_json;
pub mod runtime;
pub mod saves;
mod sleep;
pub(crate) mod sock_diag;
mod spans;
pub mod standby;
pub mod standing;
pub mod tcp;
pub mod thaw;
pub mod tree;
pub mod unix;
pub mod unshare;
pub mod volumes;
pub mod wake;
mod wide_awake;
pub mod working_sets;
mod written;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use futures::StreamExt as _;
use tokio::sync::{broadcast, mpsc};
use tracing::{info, warn};
use woodfrog_criu::Toolchain;
use woodfrog_image::Compatibility;
use woodfrog_protocol::agent::{
    CheckRequest, Checked, Connections, Container as Listed, ContainerCreated, FreezeRequest, Frozen,
    Outcome, Started, StoredImage, response,
};
use woodfrog_protocol::paths;

use crate::activator::Activator;
use crate::metrics::Metrics;
use container::{Container, Order, Phasing};
pub use error::EngineError;
use page_store::PageStore;
use pager::PagerProgram;
use publish::Publisher;
use quarantine::Quarantine;
pub use quarantine::Quarantined;
use runtime::{Runtime, RuntimeError};
use saves::Saves;
use wake::{Change, WakeReason, What};
use wide_awake::WideAwake;
use working_sets::WorkingSets;

/// How many containers are thawed at a time when all are woken.
const WOKEN_AT_ONCE: usize = 8;

/// Where things lie; the defaults are those of [`paths`].
#[derive(Clone, Debug)]
pub struct Dirs {
    /// Parent of the control directories.
    pub containers: PathBuf,
    /// Dumps and images under construction, on a disk.
    pub freezes: PathBuf,
    /// Rewritten image files of thaws under way, in memory.
    pub scratch: PathBuf,
    /// Sockets of pagers that share memory.
    pub pagers: PathBuf,
    /// States of applications that sleep, on a disk.
    pub saves: Saves,
    /// A file that is there while no container may sleep.
    pub wide_awake: PathBuf,
}

/// What this node can do.
pub struct Means {
    /// CRIU.
    pub criu: Arc<Toolchain>,
    /// None: a thaw copies all memory first.
    pub pager: Option<Arc<PagerProgram>>,
    /// None: no memory is shared.
    pub page_store: Option<PageStore>,
    /// None: no container can be dormant.
    pub activator: Option<Arc<Activator>>,
    /// What is counted.
    pub metrics: Metrics,
    /// What it can thaw.
    pub node: Compatibility,
}

/// The engine of one node.
pub struct Engine {
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    publisher: Arc<dyn Publisher>,
    criu: Arc<Toolchain>,
    /// None: a thaw copies all memory first.
    pager: Option<Arc<PagerProgram>>,
    /// None: no container can be dormant.
    activator: Option<Arc<Activator>>,
    images: images::Images,
    /// None: no memory is shared.
    page_store: Option<PageStore>,
    working_sets: WorkingSets,
    /// What is counted.
    pub metrics: Metrics,
    /// What this node can thaw.
    pub node: Compatibility,
    dirs: Dirs,
    quarantine: Quarantine,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// No container may sleep any more.
    wide_awake: WideAwake,
    changes: broadcast::Sender<Change>,
}

impl Engine {
    /// An engine that knows no container yet; see [`Engine::adopt`].
    pub fn new(
        runtime: Arc<dyn Runtime>,
        publisher: Arc<dyn Publisher>,
        means: Means,
        working_sets: WorkingSets,
        dirs: Dirs,
    ) -> Arc<Self> {
        let Means { criu, pager, page_store, activator, metrics, node } = means;
        let (images, quarantine, containers) = Default::default();
        let wide_awake = WideAwake::remembered(dirs.wide_awake.clone());
        Arc::new(Self {
            runtime,
            publisher,
            criu,
            pager,
            activator,
            images,
            page_store,
            working_sets,
            metrics,
            node,
            dirs,
            quarantine,
            containers,
            wide_awake,
            changes: broadcast::Sender::new(wake::CHANGES),
        })
    }

    /// Takes over the containers that an earlier agent managed.
    ///
    /// # Errors
    /// The runtime does not answer.
    pub async fn adopt(self: &Arc<Self>) -> Result<(), EngineError> {
        for id in self.runtime.containers().await? {
            // A container that is removed meanwhile needs nobody.
            let Ok(info) = self.runtime.container(&id).await else { continue };
            let Some(token) = info.annotations.get(paths::TOKEN_ANNOTATION).cloned() else { continue };
            if !paths::is_token(&token) || !self.dirs.containers.join(&token).is_dir() {
                warn!(container = %info.display(), "its control directory is gone: it cannot be frozen");
                continue;
            }
            let checkpoint_image = thaw::is_checkpoint(&*self.runtime, &id).await;
            info!(container = %info.display(), "taken over");
            self.keep(&token, info, checkpoint_image)?;
        }
        if let Err(e) = self.tokens().and_then(|alive| self.dirs.saves.keep_only(&alive)) {
            warn!("states of containers that are no more may be left: {e}");
        }
        Ok(())
    }

    /// A container was created: its init may connect from now on.
    ///
    /// # Errors
    /// The runtime does not know it, or its control directory cannot be used.
    pub async fn created(self: &Arc<Self>, created: ContainerCreated) -> Result<(), EngineError> {
        if !paths::is_token(&created.token) {
            return Err(EngineError::Token(created.token));
        }
        let info = self.runtime.container(&created.container_id).await?;
        self.keep(&created.token, info, created.checkpoint_image)
    }

    fn keep(
        self: &Arc<Self>,
        token: &str,
        info: runtime::ContainerInfo,
        checkpoint_image: bool,
    ) -> Result<(), EngineError> {
        let (container, orders) = Container::new(
            &self.dirs.containers,
            token,
            info,
            checkpoint_image,
            self.changes.clone(),
            &self.metrics,
        );
        let container = Arc::new(container);
        // Left by an earlier agent's thaw.
        let shares_memory = self.standing(&container).exists();
        container.update(|life| life.shares_memory = shares_memory);
        let sockets = keeper::Sockets::bind(&container)
            .map_err(|source| EngineError::ControlDirectory { path: container.dir.clone(), source })?;
        self.lock().insert(token.into(), container.clone());
        tokio::spawn(keeper::keep(Arc::downgrade(self), Arc::downgrade(&container), sockets, orders));
        Ok(())
    }

    /// Waits until a started container is thawed or cold.
    ///
    /// # Errors
    /// No such container.
    pub async fn await_start(&self, token: &str) -> Result<Started, EngineError> {
        let container = self.by_token(token).ok_or_else(|| EngineError::Token(token.into()))?;
        let life = container.started().await;
        Ok(Started { outcome: life.outcome().unwrap_or(Outcome::Unknown).into(), reason: life.reason })
    }

    /// Wakes a container and waits until it is awake.
    ///
    /// # Errors
    /// No such container, or no connection to its init.
    pub async fn wake(&self, name: &str, reason: WakeReason) -> Result<Started, EngineError> {
        let life = self.find(name)?.wake(reason).await.map_err(EngineError::NoConnection)?;
        Ok(Started { outcome: life.outcome().unwrap_or(Outcome::Unknown).into(), reason: life.reason })
    }

    /// Wakes all containers that sleep, and says which they were, as they are then. If it is `for_good`, none falls asleep any more,
    /// under no later agent either, and no rules are left.
    ///
    /// # Errors
    /// One has no connection to its init; the others are awake. Or it cannot be remembered; nothing was done then.
    pub async fn wake_all(&self, for_good: bool) -> Result<Vec<Listed>, EngineError> {
        if for_good {
            self.wide_awake.begin().map_err(|source| self.cannot_remember(source))?;
        }
        let containers = self.containers().into_iter();
        let sleepers: Vec<_> = containers.filter(|container| container.is_asleep()).collect();
        let wakes = sleepers
            .into_iter()
            .map(|container| async move { container.wake(WakeReason::Command).await.map(|_| container) });
        let woken: Vec<Result<Arc<Container>, String>> =
            futures::stream::iter(wakes).buffered(WOKEN_AT_ONCE).collect().await;
        if for_good {
            for container in self.containers() {
                container.when(|life| !life.guarded || life.phasing == Phasing::Exited).await;
            }
        }
        let woken: Vec<_> = woken.into_iter().collect::<Result<_, _>>().map_err(EngineError::NoConnection)?;
        Ok(woken.iter().map(|c| listed(c, self.quarantined(c))).collect())
    }

    /// Takes back that containers may sleep no more. Those that stay awake for that reason do so until they are taken over by
    /// another agent.
    ///
    /// # Errors
    /// The file is there still.
    pub fn sleep_again(&self) -> Result<(), EngineError> {
        self.wide_awake.end().map_err(|source| self.cannot_remember(source))
    }

    fn cannot_remember(&self, source: std::io::Error) -> EngineError {
        EngineError::State { path: self.wide_awake.path(), source }
    }

    /// kubelet stops a container.
    pub fn stopping(&self, id: &str) {
        if let Some(container) = self.by_id(id) {
            container.note("being stopped");
            // One that has no connection to its init needs no word.
            let _ = container.order(Order::Stopping);
        }
    }

    /// kubelet removed a container.
    pub fn removed(&self, id: &str) {
        self.lock().retain(|_, container| {
            let stays = container.info.id != id;
            if !stays {
                self.forget(container);
            }
            stays
        });
    }

    /// Whether the image of a container is not thawed now, as far as it is known which one that is.
    pub fn quarantined(&self, container: &Container) -> Option<Quarantined> {
        self.quarantine.look(container.image_digest.get()?, Instant::now())
    }

    /// Draws conclusions from a thaw: `error` says why it has not come about.
    fn judge(&self, container: &Container, error: Option<&thaw::ThawError>) {
        let Some(digest) = container.image_digest.get() else { return };
        let changed = match error {
            None => !self.quarantine.is_empty() && self.quarantine.succeeded(digest),
            Some(error) => self.quarantine.failed(digest, error, Instant::now()),
        };
        if changed {
            let containers = self.containers();
            let of_the_image = containers.iter().filter(|other| other.image_digest.get() == Some(digest));
            of_the_image.for_each(|other| other.tell(What::Quarantine));
        }
    }

    /// Leaves nothing of a container that is no more.
    fn forget(&self, container: &Container) {
        if container.standby.is_some() {
            self.dirs.saves.forget(container);
        }
        if let Err(e) = standing::forget(&self.standing(container)) {
            warn!(container = %container.info.display(), "cannot remove the socket of its pager: {e}");
        }
        container.tell(What::Removed);
    }

    /// Where the pager of a container that shares memory is asked how things stand.
    fn standing(&self, container: &Container) -> PathBuf {
        self.dirs.pagers.join(&container.token)
    }

    /// How many images are in quarantine.
    pub(crate) fn quarantined_images(&self) -> usize {
        self.quarantine.count(Instant::now())
    }

    /// The page store's budget in bytes, if there is one.
    pub(crate) fn page_store_budget(&self) -> Option<u64> {
        self.page_store.as_ref().map(PageStore::budget)
    }

    /// The images in the page store.
    pub fn stored(&self) -> Vec<StoredImage> {
        self.page_store.as_ref().map(PageStore::list).unwrap_or_default()
    }

    /// The managed containers, for people.
    pub fn list(&self) -> Vec<Listed> {
        self.containers().iter().map(|c| listed(c, self.quarantined(c))).collect()
    }

    /// The managed containers.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.lock().values().cloned().collect()
    }

    /// The container that a person means.
    ///
    /// # Errors
    /// None or several.
    pub fn find(&self, name: &str) -> Result<Arc<Container>, EngineError> {
        let containers = self.lock();
        let found: Vec<_> = containers.values().filter(|c| is_named(c, name)).collect();
        match found[..] {
            [one] => Ok(one.clone()),
            [] => Err(EngineError::NoContainer(name.into())),
            _ => Err(EngineError::Ambiguous {
                name: name.into(),
                candidates: found.iter().map(|c| c.info.display()).collect(),
            }),
        }
    }

    /// The newest container of this name in the pod with this UID.
    pub fn in_pod(&self, pod_uid: &str, name: &str) -> Option<Arc<Container>> {
        let containers = self.lock();
        let mut found: Vec<_> =
            containers.values().filter(|c| c.info.pod_uid == pod_uid && c.info.name == name).collect();
        // One that was restarted is listed until kubelet removes it.
        found.sort_by_key(|c| c.life().phasing == Phasing::Exited);
        found.first().map(|c| Arc::clone(c))
    }

    /// The containers of the pod with this UID that may sleep.
    pub fn sleepers(&self, pod_uid: &str) -> Vec<Arc<Container>> {
        let containers = self.lock();
        let sleeps =
            |c: &&Arc<Container>| c.info.pod_uid == pod_uid && c.checkpoint_image && c.standby.is_some();
        containers.values().filter(sleeps).cloned().collect()
    }

    /// Everything that would make a freeze of a container fail.
    ///
    /// # Errors
    /// No such container.
    pub async fn check(&self, request: CheckRequest) -> Result<Checked, EngineError> {
        let container = self.find(&request.container)?;
        let connections = Connections::try_from(request.connections).unwrap_or(Connections::Refuse);
        Ok(Checked { findings: freeze::preflight(&container, connections).err().unwrap_or_default() })
    }

    /// Freezes containers together. Goes on to its end even if the caller goes away.
    ///
    /// # Errors
    /// See [`error::FreezeError`]; the applications run on.
    pub async fn freeze(
        self: &Arc<Self>,
        request: FreezeRequest,
        progress: mpsc::Sender<response::Kind>,
    ) -> Result<Frozen, EngineError> {
        let containers =
            request.targets.iter().map(|t| self.find(&t.container)).collect::<Result<Vec<_>, _>>()?;
        let engine = self.clone();
        let task = tokio::spawn(async move {
            let result = freeze::freeze(&engine, &containers, &request, &progress).await;
            engine.metrics.froze(&result);
            // What was compressed does not fit into what is asked for otherwise.
            drop(tokio::task::spawn_blocking(woodfrog_sys::heap::give_back));
            result
        });
        Ok(task.await.map_err(|_| EngineError::Panic)??)
    }

    /// Tokens of the containers that there are, those among them that are not adopted yet.
    fn tokens(&self) -> std::io::Result<Vec<String>> {
        std::fs::read_dir(&self.dirs.containers)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// The container with this control directory.
    pub fn by_token(&self, token: &str) -> Option<Arc<Container>> {
        self.lock().get(token).cloned()
    }

    /// What changes with the containers from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    fn by_id(&self, id: &str) -> Option<Arc<Container>> {
        self.lock().values().find(|c| c.info.id == id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn is_named(container: &Container, name: &str) -> bool {
    let info = &container.info;
    name == info.name
        || name == format!("{}/{}", info.pod, info.name)
        || name == info.display()
        || (name.len() >= 6 && info.id.starts_with(name))
}

fn listed(container: &Container, quarantined: Option<Quarantined>) -> Listed {
    let life = container.life();
    let processes = match life.phasing {
        Phasing::Cold | Phasing::Thawed | Phasing::Frozen => tree::pids(life.init, life.application),
        _ => Ok(Vec::new()),
    }
    .unwrap_or_default();
    let quarantine = quarantined.map(|quarantined| quarantined.why).unwrap_or_default();
    Listed {
        id: container.info.id.clone(),
        name: container.info.name.clone(),
        pod: container.info.pod.clone(),
        namespace: container.info.namespace.clone(),
        image: container.info.image.clone(),
        state: if life.freezing { "freezing" } else { life.phasing.as_str() }.into(),
        reason: Some(life.reason).filter(|reason| !reason.is_empty()).unwrap_or(quarantine),
        pid: processes.first().copied().unwrap_or(0),
        generation: life.generation,
        thaw_ms: (life.thaw_us.1 - life.thaw_us.0) as f64 / 1e3,
        thaw_phases: life.thaw_phases,
        criu_steps: life.criu_steps,
        resident_bytes: processes.iter().map(|pid| tree::resident_bytes(*pid).unwrap_or(0)).sum(),
        thaw_started_us: life.thaw_us.0,
        thaw_done_us: life.thaw_us.1,
        memory_pending: life.memory_pending,
        shares_memory: life.shares_memory,
        memory: life.memory,
        wakes: life.wakes.count,
    }
}

impl From<RuntimeError> for EngineError {
    fn from(source: RuntimeError) -> Self {
        Self::Runtime(source)
    }
}
