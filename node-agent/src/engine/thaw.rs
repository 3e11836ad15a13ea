//! A thaw: a container whose init waits gets its application from its checkpoint image.
//!
//! ```text
//!   prepare   (from CreateContainer on) read the image, compare the node                ─┐
//!             (once the runtime has made PID 1) take a seat in its namespaces            │
//!   worker    CRIU in the seat                                                           │
//!   check     (beside both) lay out the volumes that the image carries; PID 1 of the     │ any failure:
//!             running container against it; rewrite what is its own                      │ the init starts
//!   lease     the init will start nothing while CRIU (its pidfd) lives                   │ the command
//!   restore   CRIU reads the images, and waits until the kernel has moved it into the    │
//!             container's cgroups (begun with the seat), and the pager, which brings the │
//!             memory later, is there; then … until all tasks are there and none runs    ─┤
//!   commit    what CRIU left out of mapped files is written; restore.json; the init      │
//!             knows its child                                                            │
//!   resume    the tasks run                                                              ▼
//!   done      the init is told, after-restore hooks
//!   memory    the pager brings the rest; a freeze waits for that
//! ```
//!
//! If the agent dies before `commit` is acknowledged to CRIU, CRIU sees its socket close and kills what it has
//! restored; the init sees CRIU end and starts the command. After that the tasks run, and the init finds its child.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use woodfrog_criu::images::{Rebind, Rewrite};
use woodfrog_criu::{
    Connections, CriuError, Given, LogLevel, RestoreOptions, Seat, Setup, Worker, WorkerError,
};
use woodfrog_image::Hook as RecordedHook;
use woodfrog_protocol::agent::Phase;
use woodfrog_protocol::{init::to_init, paths};

use super::Engine;
use super::container::Container;
use super::link::{Link, LinkError};
use super::one_cpu::OneCpu;
use super::pager::Pager;
use super::phases::{Stopwatch, monotonic_us};
use super::preparation::{Image, Preparation};
use super::prepared::{PrepareError, Prepared};
use super::restore_json::{self, Identity, RestoreFile};
use super::runtime::{Runtime, RuntimeError};
use super::volumes::LaidOut;
use super::{hooks, netns, postponed, volumes};
use crate::policy;

/// First PID of an application; the ones below are for helpers.
const FIRST_PID: i32 = 300;
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
    let started = async {
        let seat =
            timeout(PREPARED_WITHIN, preparation.seat(engine, link.pid, &image)).await.map_err(late)??;
        watch.lap("prepare");
        let started = Started::new(engine, seat, link.pid, &image).await?;
        watch.lap("worker");
        Ok::<_, ThawError>(started)
    };
    // Both to their ends: nobody may start the command while volumes are laid out.
    let (started, checked) = tokio::join!(started, check(container, link.pid, &image));
    let (started, checked) = (started?, checked?);
    let Checked { laid_out, addresses, shared } = checked;
    let prepared = &image.prepared;
    let shares_memory = !shared.is_empty();
    watch.lap("check");
    let Started { worker, images, stdio, stored } = started;
    let memory = shared.into_iter().filter_map(|(key, pid)| Some((key, *stored.get(&pid)?)));
    let options = RestoreOptions {
        connections: if keeps_connections(prepared) { Connections::Keep } else { Connections::Close },
        log_level: LogLevel::Warnings,
        lazy_pages: image.planned.is_some(),
        inherit: stdio.into_iter().chain(memory).collect(),
        ..RestoreOptions::default()
    };

    if let Some(pidfd) = worker.pidfd()
        && let Some(refusal) = link.request_lease(pidfd).await?
    {
        return Err(ThawError::Lease(refusal));
    }
    watch.lap("lease");

    let criu = worker.pid();
    let mut restore = worker.restore(images, &options).await?;
    restore.before_tasks().await?;
    let mut pager = timeout(PREPARED_WITHIN, preparation.pager()).await.map_err(late)??;
    if let Some(socket) = pager.as_ref().and_then(Pager::for_init) {
        link.send(to_init::Kind::Pager(Default::default()), Some(socket)).await?;
    }
    let application = restore.restored().await?;
    let held = OneCpu::hold(container, link.pid, criu, pager.as_ref().and_then(Pager::pid));
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
        restore_file(container, link.pid, prepared, addresses, generation)
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

/// CRIU, which waits to be told what to do.
struct Started {
    worker: Worker,
    /// The image directory.
    images: Given,
    /// The container's standard streams, by CRIU's keys for them.
    stdio: Vec<(String, Given)>,
    /// The files of shared memory, by PID.
    stored: BTreeMap<i32, Given>,
}

impl Started {
    /// Starts it with all that it may be told to use.
    async fn new(engine: &Engine, seat: Seat, init: i32, image: &Image) -> Result<Self, ThawError> {
        let handed = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed("hand CRIU its files"));
        let mut setup = Setup::new(handed(image.work.as_fd())?)
            .seat(seat)
            .last_pid(highest_pid(&image.prepared))
            .light(!keeps_connections(&image.prepared) && has_cache(init));
        let images = setup.give(handed(image.images.as_fd())?);
        let mut stdio: Vec<(String, Given)> = Vec::new();
        for stream in &image.prepared.record.stdio {
            let given = setup.give(open_stdio(init, stream.fd)?);
            if !stdio.iter().any(|(key, _)| *key == stream.key) {
                stdio.push((stream.key.clone(), given));
            }
        }
        let mut stored = BTreeMap::new();
        for (pid, file) in image.sharing.iter().flat_map(|sharing| sharing.stored.files()) {
            stored.insert(pid, setup.give(handed(file.as_fd())?));
        }
        let worker = Worker::spawn(engine.criu.clone(), setup).await?;
        Ok(Self { worker, images, stdio, stored })
    }
}

/// What the check leaves.
struct Checked {
    laid_out: LaidOut,
    /// The pod's.
    addresses: Vec<IpAddr>,
    /// The processes whose memory is shared, by CRIU's keys for their files.
    shared: Vec<(String, i32)>,
}

/// Lays the volumes out and checks the image against the container's PID 1.
async fn check(container: &Container, init: i32, image: &Arc<Image>) -> Result<Checked, ThawError> {
    let carried = image.prepared.clone();
    let laid_out = spawn_blocking(move || lay_out_volumes(&carried, init)).await??;
    // After the volumes, for it asks whether the container's user may open what lies there.
    let addresses = netns::addresses(init).map_err(failed("read the pod's addresses"))?;
    let (of, devices) = (image.clone(), policy::spec_devices(&container.info.spec));
    let at = addresses.clone();
    let shared = spawn_blocking(move || complete(&of, init, &devices, &at)).await??;
    Ok(Checked { laid_out, addresses, shared })
}

/// Checks the image against the container's PID 1, and puts into the image directory what is this container's own.
fn complete(
    image: &Image,
    init: i32,
    devices: &[policy::Device],
    addresses: &[IpAddr],
) -> Result<Vec<(String, i32)>, ThawError> {
    let prepared = &image.prepared;
    let mut target = policy::Target::read(init, devices)?;
    target.connections = !keeps_connections(prepared) || has_addresses_of_connections(prepared, addresses);
    let (there, here) = (prepared.record.seccomp_filters as usize, target.seccomp.len());
    if there != here {
        return Err(ThawError::Seccomp { there, here });
    }
    let plan = prepared.policy.check(&prepared.images, &target).map_err(ThawError::Policy)?;
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
}

/// Whether the state of established connections is in the image: only a freeze that keeps them writes it.
fn keeps_connections(prepared: &Prepared) -> bool {
    !prepared.images.tcp_streams.is_empty()
}

/// Whether a container has the node's newest cache of kernel features, not one of a CRIU before that: without it CRIU looks at more than a light one can.
fn has_cache(init: i32) -> bool {
    let file = |path: String| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let node = file(paths::KDAT.to_owned());
    node.is_some() && node == file(format!("/proc/{init}/root{}", paths::KDAT))
}

/// Connections go on only where they were.
fn has_addresses_of_connections(prepared: &Prepared, addresses: &[IpAddr]) -> bool {
    let connected = prepared.images.sockets().filter(|socket| socket.peer.is_some());
    connected
        .map(|socket| socket.local.ip().to_canonical())
        .all(|ip| ip.is_loopback() || addresses.contains(&ip))
}

fn lay_out_volumes(prepared: &Prepared, init: i32) -> Result<LaidOut, ThawError> {
    let mut laid_out = LaidOut::default();
    for volume in &prepared.record.volumes {
        let path = Path::new(&volume.mount_path);
        let dir = volumes::open(init, path).map_err(failed(format!(
            "find {}, whose contents the image carries, in the container",
            path.display()
        )))?;
        let archive = prepared.open(&volume.archive.name).map_err(failed("open a volume's archive"))?;
        laid_out
            .begin(dir.try_clone().map_err(failed("keep a volume open"))?)
            .map_err(failed("look into a volume"))?;
        woodfrog_image::lay_out(archive, dir.as_fd(), volumes::MAX_BYTES)?;
    }
    Ok(laid_out)
}

fn highest_pid(prepared: &Prepared) -> i32 {
    let tasks = prepared.images.tasks.iter();
    let pids = tasks.flat_map(|task| task.threads.iter().map(|t| t.tid).chain([task.pid()]));
    pids.max().map_or(FIRST_PID, |pid| (pid as i32).max(FIRST_PID))
}

/// Standard streams of the init: the runtime's pipes. A new description of the same pipe serves as well.
fn open_stdio(init: i32, fd: u32) -> Result<OwnedFd, ThawError> {
    let path = format!("/proc/{init}/fd/{fd}");
    let access = if fd == 0 { OFlags::RDONLY } else { OFlags::WRONLY };
    rustix::fs::open(&path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .and_then(|stream| {
            rustix::fs::fcntl_setfl(&stream, rustix::fs::fcntl_getfl(&stream)? - OFlags::NONBLOCK)?;
            Ok(stream)
        })
        .map_err(|e| failed(format!("open stream {fd} of the container"))(e.into()))
}

fn restore_file(
    container: &Container,
    init: i32,
    prepared: &Prepared,
    addresses: Vec<IpAddr>,
    generation: u64,
) -> io::Result<RestoreFile> {
    let info = &container.info;
    let environment: BTreeMap<_, _> = restore_json::environment(init)?;
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
            addresses,
        },
        environment,
    })
}
