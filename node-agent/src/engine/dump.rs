//! One container's part of a freeze: CRIU writes its tree, and everything else of its state is read meanwhile.
//!
//! ```text
//!   this container     CRIU dumps ─► tasks held ─► arrived ─┐          ┌─► diff, volumes ─► finish ─► run on
//!   the other ones     CRIU dumps ─► tasks held ─► arrived ─┤ all held ├─► …
//!   one fails                                      ─────────┘   or not └─► refuse ─► run on
//! ```
//!
//! The root file system and volumes are read while the tasks are held, for CRIU compares sizes of open files when it
//! restores.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use woodfrog_criu::images::{ImageDir, zeros};
use woodfrog_criu::{
    Connections as CriuConnections, CriuError, Dump, DumpOptions, Given, Setup, Toolchain, Worker,
};
use woodfrog_image::{
    Ahead, BaseImage, BlobStore, BuildError, BuiltImage, CheckpointRecord, Compression, DiffOptions,
    ImageBuilder, ProcessSet, VolumeSource, labels,
};
use woodfrog_protocol::agent::{Connections, Phase};
use woodfrog_protocol::pager::Standing;

use super::dump_dir::DumpDir;
use super::error::FreezeError;
use super::phases::Stopwatch;
use super::rehearsal::Script;
use super::runtime::Layers;
use super::tree::Tree;
use super::unshare::SharedTree;
use super::volumes::{self, Volume};
use super::{container::Container, preflight, saves};

/// What a container that arrives at "held" waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Others are not held yet.
    Closed,
    /// All are held.
    Open,
    /// One has failed: everybody runs on.
    Abandoned,
}

/// What CRIU is to dump.
pub struct Subject {
    /// The container.
    pub container: Arc<Container>,
    /// Its process tree, as the preflight saw it.
    pub tree: Tree,
    /// Directory for this dump on the disk: CRIU's log, and the images if they do not fit into memory.
    pub dir: PathBuf,
    /// What is to become of connections.
    pub connections: Connections,
    /// What of its memory is shared.
    pub shared: Option<Arc<SharedTree>>,
}

/// A container that is about to become an image.
pub struct Job {
    /// What is dumped.
    pub subject: Subject,
    /// Where blobs of this freeze go.
    pub store: Arc<BlobStore>,
    /// Where its root file system lies.
    pub layers: Layers,
    /// The image that it was made from.
    pub base: BaseImage,
    /// What is known of the checkpoint before the dump.
    pub record: CheckpointRecord,
    /// Leave the tasks held.
    pub stay: bool,
    /// It is to be thawed from the dump, for which the tasks stay held, too.
    pub rehearse: bool,
}

/// A dump that is written, while the tasks are held.
pub struct Held {
    /// It.
    pub dump: Dump,
    /// Its images.
    pub images: DumpDir,
    /// What its pager says of the memory that is shared.
    pub standing: Option<Standing>,
}

/// What a dump has come to.
pub struct Dumped {
    /// Builds the image; [`Build::finish`] reads the memory.
    pub build: Build,
    /// The dump that holds the tasks, if they were to stay held.
    pub held: Option<Dump>,
    /// If it is to be thawed from the dump, and can: what that takes.
    pub rehearsal: Option<Script>,
    /// How long the tasks were held, in milliseconds.
    pub standstill_ms: f64,
    /// How long each phase took.
    pub phases: Vec<Phase>,
}

/// Dumps a container. `arrived` hears when its tasks are held; `gate` says how it goes on.
///
/// # Errors
/// The dump failed or was abandoned. The application runs on in that case.
pub async fn dump(
    criu: Arc<Toolchain>,
    job: Job,
    arrived: mpsc::Sender<()>,
    mut gate: watch::Receiver<Gate>,
) -> Result<Dumped, FreezeError> {
    let mut watch = Stopwatch::start("freeze");
    let name = job.subject.container.info.display();
    let criu_failed = |source: CriuError| FreezeError::Dump { container: name.clone(), source };
    // In memory it could be seen by no overlay. The application stands still for the rehearsal in any case.
    let images = match job.rehearse {
        true => DumpDir::on_disk(saves::memory(&job.subject.dir).join(labels::CHECKPOINT_DIR)),
        false => DumpDir::new(&job.subject.tree, job.subject.dir.join("images")),
    };
    let directory_failed = |source| FreezeError::Directory { path: job.subject.dir.clone(), source };
    let images = images.map_err(directory_failed)?;
    // What is shared comes into the page files later, and a disk has enough to do.
    let ahead = match images.in_memory() && job.subject.shared.is_none() {
        true => Some(Ahead::start(images.open().map_err(directory_failed)?, Compression::default())),
        false => None,
    };
    let began = Instant::now();
    let never = CancellationToken::new();
    let Held { dump, images, standing } = hold(criu, &job.subject, images, &never, &mut watch).await?;

    // Whoever counts arrivals may have given up: then the gate says so.
    let _ = arrived.send(()).await;
    let opened = gate.wait_for(|gate| *gate != Gate::Closed).await.map_or(Gate::Abandoned, |gate| *gate);
    if opened != Gate::Open {
        dump.refuse().await.map_err(criu_failed)?;
        return Err(FreezeError::Abandoned { container: name });
    }
    watch.lap("wait");
    let stay = job.stay || job.rehearse;
    let script = || Script { dir: job.subject.dir.clone(), record: job.record.clone() };
    let rehearsal = (job.rehearse && job.subject.shared.is_none()).then(script);
    let build = Build::start(job, standing, images, ahead);
    let captured = build.captured().await;
    let build = match captured {
        Ok(build) => build,
        Err(e) => {
            dump.refuse().await.map_err(criu_failed)?;
            return Err(e);
        }
    };
    watch.lap("files");
    let held = if stay {
        Some(dump)
    } else {
        dump.finish().await.map_err(criu_failed)?;
        watch.lap("resume");
        None
    };
    let standstill_ms = began.elapsed().as_secs_f64() * 1e3;
    Ok(Dumped { build, held, rehearsal, standstill_ms, phases: watch.phases() })
}

/// Dumps a container into `images`, up to the moment at which all is written and the tasks are still held. It gives way at the next
/// stage of CRIU's once `wanted` is cancelled.
///
/// # Errors
/// The dump failed or gave way. The application runs on.
pub async fn hold(
    criu: Arc<Toolchain>,
    subject: &Subject,
    images: DumpDir,
    wanted: &CancellationToken,
    watch: &mut Stopwatch,
) -> Result<Held, FreezeError> {
    let name = subject.container.info.display();
    let criu_failed = |source: CriuError| FreezeError::Dump { container: name.clone(), source };
    let (worker, given) = worker(criu, subject, &images).await?;
    watch.lap("worker");
    let options = DumpOptions {
        connections: match subject.connections {
            Connections::Refuse => CriuConnections::Refuse,
            Connections::Close => CriuConnections::Close,
            Connections::Keep => CriuConnections::Keep,
        },
        ghost_limit: preflight::GHOST_LIMIT,
        external: subject.shared.iter().flat_map(|shared| shared.keys()).collect(),
        ..DumpOptions::new(subject.tree.processes.first().map_or(0, |root| root.inner_pid))
    };
    let mut dump = worker.dump(given, &options).await.map_err(criu_failed)?;
    if !dump.written(|| wanted.is_cancelled()).await.map_err(criu_failed)? {
        dump.refuse().await.map_err(criu_failed)?;
        return Err(FreezeError::GaveWay { container: name });
    }
    watch.lap("dump");
    // Now, while nothing changes.
    let standing = match &subject.shared {
        None => None,
        Some(shared) => {
            let shared = shared.clone();
            let asked = spawn_blocking(move || shared.ask()).await.map_err(|_| FreezeError::Panic)?;
            match asked {
                Ok(standing) => Some(standing),
                Err(source) => {
                    dump.refuse().await.map_err(criu_failed)?;
                    return Err(FreezeError::Shared { container: name, source });
                }
            }
        }
    };
    Ok(Held { dump, images, standing })
}

async fn worker(
    criu: Arc<Toolchain>,
    subject: &Subject,
    images: &DumpDir,
) -> Result<(Worker, Given), FreezeError> {
    let failed = |source: std::io::Error| FreezeError::Directory { path: subject.dir.clone(), source };
    let open = |name: &str| {
        let path = subject.dir.join(name);
        std::fs::create_dir_all(&path)?;
        Ok(rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    };
    let life = subject.container.life();
    let init = Pid::from_raw(life.init)
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|e| failed(e.into()))?;
    let mut setup = Setup::new(open("work").map_err(failed)?).container(Arc::new(init));
    if !woodfrog_criu::can_override_resource_limits()
        && let Some((uid, gid)) = subject.tree.processes.first().map(|root| root.ids)
    {
        setup = setup.real_ids(uid, gid);
    }
    let given = setup.give(images.open().map_err(failed)?);
    let worker = Worker::spawn(criu, setup)
        .await
        .map_err(|source| FreezeError::Worker { container: subject.container.info.display(), source })?;
    Ok((worker, given))
}

/// The image under construction, on a thread of its own: first what must be read while the tasks are held, then the rest.
pub struct Build {
    captured: Option<oneshot::Receiver<Result<(), FreezeError>>>,
    go_on: oneshot::Sender<Rest>,
    done: JoinHandle<Result<Built, FreezeError>>,
}

/// What is known of the image once the tasks have been let go.
pub struct Rest {
    /// Hears of the memory.
    pub progress: Progress,
    /// What is wanted first of it, if that is known.
    pub working_set: Vec<ProcessSet>,
}

/// Told how many bytes of memory have been read.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// An image that is built.
pub struct Built {
    /// It.
    pub image: BuiltImage,
    /// What its maker should know.
    pub warnings: Vec<String>,
}

impl Build {
    fn start(job: Job, standing: Option<Standing>, images: DumpDir, ahead: Option<Ahead>) -> Self {
        let (captured, receiver) = oneshot::channel();
        let (go_on, wait) = oneshot::channel::<Rest>();
        let done = spawn_blocking(move || {
            let Subject { container, shared, .. } = job.subject;
            let name = container.info.display();
            let failed = |source| FreezeError::Build { container: name.clone(), source };
            let mut warnings = Vec::new();
            let init = container.life().init;
            let mut builder = ImageBuilder::new(&job.store, job.base, job.record);
            let files = capture(&mut builder, &container, &job.layers, init, &mut warnings);
            let whole = files.is_ok();
            let _ = captured.send(files);
            // Neither word comes if the freeze is abandoned.
            let (true, Ok(rest)) = (whole, wait.blocking_recv()) else {
                return Err(FreezeError::Abandoned { container: name.clone() });
            };
            if let (Some(shared), Some(standing)) = (&shared, &standing) {
                let shared = shared.convert(standing, images.path());
                shared.map_err(|source| FreezeError::Shared { container: name.clone(), source })?;
            }
            let dir = images
                .open()
                .map_err(|source| FreezeError::Directory { path: images.path().to_owned(), source })?;
            let kept = zeros::leave_out(&ImageDir::new(dir))
                .map_err(|source| FreezeError::Images { container: name.clone(), source })?;
            builder = builder.on_memory(rest.progress).keep_only(kept).working_set(rest.working_set);
            if let Some(ahead) = ahead {
                builder = builder.ahead(ahead);
            }
            builder.checkpoint_directory(images.path()).map_err(failed)?;
            let image = builder.finish().map_err(failed)?;
            Ok(Built { image, warnings })
        });
        Self { captured: Some(receiver), go_on, done }
    }

    /// Waits until everything is read that must be read while the tasks are held.
    async fn captured(mut self) -> Result<Self, FreezeError> {
        if let Some(receiver) = self.captured.take() {
            receiver.await.map_err(|_| FreezeError::Panic)??;
        }
        Ok(self)
    }

    /// Compresses the memory and finishes the image.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub async fn finish(self, rest: Rest) -> Result<Built, FreezeError> {
        let _ = self.go_on.send(rest);
        self.done.await.map_err(|_| FreezeError::Panic)?
    }
}

fn capture(
    builder: &mut ImageBuilder<'_>,
    container: &Container,
    layers: &Layers,
    init: i32,
    warnings: &mut Vec<String>,
) -> Result<(), FreezeError> {
    let name = || container.info.display();
    let failed = |source: BuildError| FreezeError::Build { container: name(), source };
    let upper = open_dir(&layers.upper)
        .map_err(|source| FreezeError::Directory { path: layers.upper.clone(), source })?;
    let options =
        DiffOptions { mount_points: volumes::mount_points(&container.info), ..DiffOptions::default() };
    let report = builder.rootfs_diff(std::os::fd::AsFd::as_fd(&upper), &options).map_err(failed)?;
    warnings
        .extend(report.skipped.iter().map(|s| format!("{} is left out: {:?}", s.path.display(), s.reason)));
    for Volume { path, kind } in volumes::carried(&container.info) {
        let directory = volumes::open(init, &path)
            .map_err(|source| FreezeError::Directory { path: path.clone(), source })?;
        let source = VolumeSource {
            mount_path: &path.to_string_lossy(),
            kind,
            directory: std::os::fd::AsFd::as_fd(&directory),
            cap: volumes::MAX_BYTES,
        };
        let report = builder.volume(&source).map_err(failed)?;
        let at = |file: &Path| path.join(file).display().to_string();
        warnings
            .extend(report.skipped.iter().map(|s| format!("{} is left out: {:?}", at(&s.path), s.reason)));
    }
    Ok(())
}

fn open_dir(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
