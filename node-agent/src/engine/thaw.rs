//! A thaw: a container whose init waits gets its application from its checkpoint image.
//!
//! ```text
//!   prepare   (from CreateContainer on) read the image, compare the node                ─┐
//!   worker    (once the runtime has made PID 1) CRIU in its namespaces; the pager there  │
//!             (beside CRIU) PID 1 of the running container against the image; rewrite    │
//!             what is its own                                                            │
//!   check     CRIU reads the images, and waits until the kernel has moved it into the    │ any failure:
//!             container's cgroups (begun with its place), and the pager is there         │ the init starts
//!             (beside both) lay out the volumes that the image carries; may the          │ the command
//!             container's user open its files?                                           │
//!   lease     the init will start nothing while CRIU (its pidfd) lives                   │
//!   restore   until all tasks are there and none runs                                   ─┤
//!   commit    restore.json; the init knows its child                                     │
//!   resume    the tasks run                                                              ▼
//!   done      the init is told, after-restore hooks
//!   memory    the pager brings the rest; a freeze waits for that
//! ```
//!
//! If the agent dies before `commit` is acknowledged to CRIU, CRIU sees its socket close and kills what it has
//! restored; the init sees CRIU end and starts the command. After that the tasks run, and the init finds its child.

use std::collections::BTreeMap;
use std::io::{self, BufReader};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use woodfrog_criu::images::{Rebind, Rewrite};
use woodfrog_criu::{CriuError, WorkerError};
use woodfrog_image::Hook as RecordedHook;
use woodfrog_protocol::agent::Phase;
use woodfrog_protocol::{init::to_init, paths};

use super::Engine;
use super::container::Container;
use super::link::{Link, LinkError};
use super::one_cpu::OneCpu;
use super::pager::Pager;
use super::phases::{Stopwatch, monotonic_us};
use super::preparation::{Begun, Image, Preparation};
use super::prepared::{PrepareError, Prepared};
use super::restore_json::{self, Identity, RestoreFile};
use super::runtime::{Runtime, RuntimeError};
use super::volumes::LaidOut;
use super::{hooks, netns, postponed, volumes};
use crate::policy;

/// How long all may take that precedes the lease, which has a deadline of its own: also a page store that is filled.
const PREPARED_WITHIN: Duration = Duration::from_secs(60);

/// A thaw that came about.
#[derive(Debug)]
pub struct Thawed {
    /// PID of the application inside the container.
    pub application: i32,
    /// See [`woodfrog_protocol::init::Done::generation`].
    pub generation: u64,
    /// Digest of the image.
    pub image_digest: String,
    /// What the image wants done now.
    pub after_restore: Vec<RecordedHook>,
    /// Brings the rest of its memory.
    pub pager: Option<Pager>,
    /// Its memory is the image's until it writes to it, and the pager stays.
    pub shares_memory: bool,
    /// How long each phase took.
    pub phases: Vec<Phase>,
    /// What CRIU did in `restore` and `resume`.
    pub criu_steps: Vec<Phase>,
    /// When it began, microseconds of CLOCK_MONOTONIC.
    pub began_us: u64,
    /// When the tasks ran, likewise.
    pub done_us: u64,
}

/// Why a thaw did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ThawError {
    /// The image cannot be restored here.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The runtime did not tell what is needed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The image asks for what the container may not do.
    #[error("the image asks for what this container may not do: {}", .0.first().map(ToString::to_string).unwrap_or_default())]
    Policy(Vec<policy::Violation>),
    /// The first filters of the image's tasks are the runtime's; with another number of them they would be mistaken.
    #[error(
        "the image was frozen under {there} seccomp filters of the runtime, this container has {here}: use the seccomp profile of the pod that was frozen"
    )]
    Seccomp {
        /// In the image.
        there: usize,
        /// In the container.
        here: usize,
    },
    /// PID 1 of the container cannot be looked at.
    #[error(transparent)]
    Target(#[from] policy::TargetError),
    /// CRIU failed.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// CRIU did not start.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The init granted no lease.
    #[error("the container's init granted no lease: {0}")]
    Lease(String),
    /// The conversation with the init broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Something of the container is not as it should be.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// A volume's contents.
    #[error(transparent)]
    Volume(#[from] woodfrog_image::LayOutError),
    /// Its image has failed again and again, so it was not tried.
    #[error("{0}")]
    Quarantined(String),
    /// A bug.
    #[error("the agent failed inside: {0}")]
    Panic(#[from] JoinError),
}

impl ThawError {
    /// One of a bounded set of words, for metrics and Events.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Prepare(PrepareError::Incompatible(_)) => "incompatible",
            Self::Prepare(_) => "image",
            Self::Runtime(_) => "runtime",
            Self::Policy(_) => "policy",
            Self::Seccomp { .. } => "seccomp",
            Self::Target(_) | Self::Io { .. } => "container",
            Self::Criu(e) => e.category(),
            Self::Worker(_) => "criu-unavailable",
            Self::Lease(_) | Self::Link(_) => "init",
            Self::Volume(_) => "volume",
            Self::Quarantined(_) => "quarantined",
            Self::Panic(_) => "internal",
        }
    }

    /// More, a line each: every violation, CRIU's own lines.
    pub fn details(&self) -> Vec<String> {
        match self {
            Self::Policy(violations) => violations.iter().map(ToString::to_string).collect(),
            Self::Criu(e) => e.failure().map(|f| f.lines.clone()).unwrap_or_default(),
            _ => Vec::new(),
        }
    }
}

pub(super) fn failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> ThawError {
    let action = action.into();
    |source| ThawError::Io { action, source }
}

/// Whether the image of a container is a checkpoint image, by its labels.
pub async fn is_checkpoint(runtime: &dyn Runtime, id: &str) -> bool {
    let Ok(image) = runtime.image(id).await else { return false };
    let config: serde_json::Value = serde_json::from_slice(&image.config).unwrap_or_default();
    config["config"]["Labels"].get(woodfrog_image::labels::FORMAT).is_some()
}

/// Thaws a container whose init waits on `link`.
///
/// # Errors
/// Nothing of the tree is left; the init is to start the command.
pub async fn thaw(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    link: &mut Link,
    preparation: Preparation,
) -> Result<Thawed, ThawError> {
    let from_image = !preparation.saved;
    if from_image && let Some(quarantined) = engine.quarantined(container) {
        return Err(ThawError::Quarantined(quarantined.why));
    }
    let thawed = attempt(engine, container, link, preparation).await;
    if let Err(e) = &thawed {
        container.thaw_failed(e.into());
    }
    if from_image {
        engine.judge(container, thawed.as_ref().err());
    }
    thawed
}

async fn attempt(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    link: &mut Link,
    mut preparation: Preparation,
) -> Result<Thawed, ThawError> {
    let began_us = monotonic_us();
    let mut watch = Stopwatch::start("thaw");
    let late = |_| failed("prepare a thaw in time")(io::ErrorKind::TimedOut.into());
    let image = timeout(PREPARED_WITHIN, preparation.image(link.pid)).await.map_err(late)??;
    let prepared = &image.prepared;
    watch.lap("prepare");

    // To its end: nobody may start the command while volumes are laid out.
    let (of, init) = (image.clone(), link.pid);
    let volumes = spawn_blocking(move || lay_out_volumes(&of.prepared, init));
    let measure = match measure(container, link.pid, &image).await {
        Ok(measure) => measure,
        Err(e) => {
            drop(volumes.await);
            return Err(e);
        }
    };
    let read = async {
        let begun = timeout(PREPARED_WITHIN, preparation.begun(engine, link.pid, &image));
        let (begun, changed) = tokio::join!(begun, change(image.clone(), measure.clone()));
        let (Begun { criu, pager, .. }, shared) = (begun.map_err(late)??, changed?);
        let shares_memory = !shared.is_empty();
        watch.lap("worker");
        let restore = timeout(PREPARED_WITHIN, criu.read(&image, shared)).await.map_err(late)??;
        let pager = timeout(PREPARED_WITHIN, pager).await.map_err(late)???;
        Ok::<_, ThawError>((restore, pager, shares_memory))
    };
    let files = async {
        let laid_out = volumes.await??;
        check_files(image.clone(), measure.clone()).await?;
        Ok(laid_out)
    };
    // Both to their ends, so that all violations are told.
    let (read, laid_out) = match tokio::join!(read, files) {
        (Ok(read), Ok(laid_out)) => (read, laid_out),
        (Err(ThawError::Policy(mut all)), Err(ThawError::Policy(more))) => {
            all.extend(more);
            return Err(ThawError::Policy(all));
        }
        (Err(e), _) | (_, Err(e)) => return Err(e),
    };
    let (mut restore, mut pager, shares_memory) = read;
    watch.lap("check");

    if let Some(pidfd) = restore.worker().pidfd()
        && let Some(refusal) = link.request_lease(pidfd).await?
    {
        return Err(ThawError::Lease(refusal));
    }
    if let Some(socket) = pager.as_ref().and_then(Pager::for_init) {
        link.send(to_init::Kind::Pager(Default::default()), Some(socket)).await?;
    }
    watch.lap("lease");

    let application = restore.restored().await?;
    let held = OneCpu::hold(container, link.pid, restore.worker().pid(), pager.as_ref().and_then(Pager::pid));
    if let Some(pager) = &pager {
        if held.is_none() {
            // Nobody would do it if this agent ended.
            pager.take_turns();
        }
        pager.restored()?;
    }
    watch.lap("restore");

    // One that has slept goes on counting.
    let generation = prepared.record.generation.max(container.life().generation) + 1;
    let committed = async {
        restore_file(container, prepared, &measure, generation)
            .and_then(|file| file.write(&container.control(paths::RESTORE_JSON)))
            .map_err(failed("write restore.json"))?;
        let hooks = prepared.record.after_restore.iter().map(hooks::runnable).collect();
        postponed::note_due(container, hooks).map_err(failed("note which hooks are due"))?;
        Ok::<_, ThawError>(link.commit(application).await?)
    };
    if let Err(e) = committed.await {
        restore.refuse().await?;
        return Err(e);
    }
    watch.lap("commit");
    restore.before_resume().await?;
    if let Some(pager) = &mut pager {
        pager.ready().await?;
        pager.take_turns();
    }
    drop(held);
    let restored = restore.finish().await?;
    laid_out.keep();
    watch.lap("resume");
    let criu_steps = [
        ("images", restored.images),
        ("tasks", restored.tasks),
        ("catch", restored.catch),
        ("release", restored.release),
    ];
    Ok(Thawed {
        application,
        generation,
        image_digest: prepared.digest.clone(),
        after_restore: prepared.record.after_restore.clone(),
        pager,
        shares_memory,
        phases: watch.phases(),
        criu_steps: criu_steps
            .map(|(name, took)| Phase { name: name.into(), ms: took.as_secs_f64() * 1e3 })
            .into(),
        began_us,
        done_us: monotonic_us(),
    })
}

/// What the image is checked against.
struct Measure {
    target: policy::Target,
    /// PID 1 of the container, as the node numbers it.
    init: i32,
    /// The pod's.
    addresses: Vec<IpAddr>,
}

async fn measure(container: &Container, init: i32, image: &Arc<Image>) -> Result<Arc<Measure>, ThawError> {
    let (image, devices) = (image.clone(), policy::spec_devices(&container.info.spec));
    let read = move || {
        let prepared = &image.prepared;
        let addresses = netns::addresses(init).map_err(failed("read the pod's addresses"))?;
        let mut target = policy::Target::read(init, &devices)?;
        target.connections =
            !prepared.keeps_connections() || has_addresses_of_connections(prepared, &addresses);
        Ok::<_, ThawError>(Arc::new(Measure { target, init, addresses }))
    };
    spawn_blocking(read).await?
}

/// Checks the image, but for its files, and puts into the image directory what is this container's own. The processes whose memory
/// is shared, by CRIU's keys for their files.
async fn change(image: Arc<Image>, measure: Arc<Measure>) -> Result<Vec<(String, i32)>, ThawError> {
    let change = move || {
        let (prepared, Measure { target, addresses, .. }) = (&image.prepared, &*measure);
        let (there, here) = (prepared.record.seccomp_filters as usize, target.seccomp.len());
        if there != here {
            return Err(ThawError::Seccomp { there, here });
        }
        let plan = prepared.policy.check(&prepared.images, target).map_err(ThawError::Policy)?;
        let mut rewrite = Rewrite::new(&prepared.images);
        plan.apply(&mut rewrite);
        // A container that has slept finds its logs as it left them, not as its image has them.
        rewrite.let_appended_files_grow();
        for from in &prepared.record.pod_addresses {
            let same_family = addresses.iter().find_map(|to| Rebind::new(*from, *to));
            if let Some(rebind) = same_family {
                rewrite.rebind(rebind);
            }
        }
        let stored = image.sharing.iter().flat_map(|sharing| sharing.stored.files());
        let shared =
            stored.filter_map(|(pid, _)| Some((rewrite.share(u32::try_from(pid).ok()?)?, pid))).collect();
        if image.planned.is_some() {
            rewrite.map_in_place();
        }
        image.change(&rewrite)?;
        Ok(shared)
    };
    spawn_blocking(change).await?
}

/// Whether the container's user may open what the image has open. The volumes that it carries have been laid out.
async fn check_files(image: Arc<Image>, measure: Arc<Measure>) -> Result<(), ThawError> {
    let check = move || image.prepared.policy.check_files(&measure.target).map_err(ThawError::Policy);
    spawn_blocking(check).await?
}

/// Connections go on only where they were.
fn has_addresses_of_connections(prepared: &Prepared, addresses: &[IpAddr]) -> bool {
    let connected = prepared.images.sockets().filter(|socket| socket.peer.is_some());
    connected
        .map(|socket| socket.local.ip().to_canonical())
        .all(|ip| ip.is_loopback() || addresses.contains(&ip))
}

/// Lays out the volumes that the image carries.
fn lay_out_volumes(prepared: &Prepared, init: i32) -> Result<LaidOut, ThawError> {
    let mut laid_out = LaidOut::default();
    for volume in &prepared.record.volumes {
        let path = Path::new(&volume.mount_path);
        let dir = volumes::open(init, path).map_err(failed(format!(
            "find {}, whose contents the image carries, in the container",
            path.display()
        )))?;
        let archive = prepared.open(&volume.archive.name).map_err(failed("open a volume's archive"))?;
        let archive = BufReader::new(archive);
        laid_out
            .begin(dir.try_clone().map_err(failed("keep a volume open"))?)
            .map_err(failed("look into a volume"))?;
        woodfrog_image::lay_out(archive, dir.as_fd(), volumes::MAX_BYTES)?;
    }
    Ok(laid_out)
}

fn restore_file(
    container: &Container,
    prepared: &Prepared,
    measure: &Measure,
    generation: u64,
) -> io::Result<RestoreFile> {
    let info = &container.info;
    let environment: BTreeMap<_, _> = restore_json::environment(measure.init)?;
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    Ok(RestoreFile {
        generation,
        id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
        image: info.image.clone(),
        image_digest: prepared.digest.clone(),
        identity: Identity {
            namespace: info.namespace.clone(),
            pod: info.pod.clone(),
            pod_uid: info.pod_uid.clone(),
            container: info.name.clone(),
            hostname: info.spec.hostname().clone().unwrap_or_default(),
            addresses: measure.addresses.clone(),
        },
        environment,
    })
}
