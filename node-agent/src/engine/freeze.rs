//! A freeze: containers become images, all of them as of one moment, and run on.
//!
//! ```text
//!   preflight   every reason against it, of every container                        ─┐
//!   hooks       before the checkpoint                                               │ any failure, or the end of
//!   hold        the inits hold back signals                                         │ the agent: CRIU lets the tasks
//!   dump        each container's tasks are held until all are (see `dump`)          │ go, the inits deliver the
//!   resume      the tasks run, signals are delivered                               ─┘ signals, no image is left
//!   rehearsal   if the images are to say what is wanted first: instead of running on they are ended and thawed (see `rehearsal`)
//!   hooks       after, for the applications that run on
//!   build       layers are compressed
//!   push        to the registry
//!   stop        if that was asked for, and only now that the images are safe
//! ```
//!
//! Where connections are kept, the tasks stay held until they are stopped: an end of theirs would be told to the peers.

use std::borrow::Cow;
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::try_join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use woodfrog_criu::Dump;
use woodfrog_image::{
    BaseImage, BlobOutcome, BlobStore, CheckpointRecord, Listener, MemoryMode, Process, ProcessSet,
    PushProgress, Source, Stdio,
};
use woodfrog_protocol::agent::{
    Connections, Finding, FreezeRequest, Frozen, FrozenImage, Memory, Progress, response,
};

use super::container::{Container, Order, Phasing};
use super::dump::{self, Dumped, Gate, Job, Rest, Subject};
use super::error::FreezeError;
use super::hooks;
use super::phases::Stopwatch;
use super::publish::Destination;
use super::runtime::ImageSource;
use super::tree::{self, Tree};
use super::unshare::SharedTree;
use super::wake::WakeReason;
use super::{Engine, netns, preflight, rehearsal, restore_json, volumes};

/// How long what stands against a freeze may take to pass by itself, by the finding's category.
const PATIENCE: [(&str, Duration); 2] =
    [("connection", Duration::from_secs(3)), (MEMORY, Duration::from_secs(60))];
/// How often a dump is tried whose failure may pass by itself, such as a probe that comes after the preflight.
const TRIES: u32 = 5;
/// How long to wait before the second one; longer each time.
const PAUSE: Duration = Duration::from_millis(100);
/// Category of the finding that a thaw is not over.
const MEMORY: &str = "memory_pending";

/// Everything that would make a freeze of the container fail, or its process tree.
///
/// # Errors
/// The findings.
pub fn preflight(container: &Container, connections: Connections) -> Result<Tree, Vec<Finding>> {
    let mut findings = preflight::container(&container.info);
    let life = container.life();
    if life.memory_pending {
        findings.push(Finding {
            category: MEMORY.into(),
            message: "some of its memory is still to come from the image that it was thawed from".into(),
            advice: "wait until `woodfrog logs` says that all memory is there".into(),
        });
    }
    let tree = match life.phasing {
        Phasing::Cold | Phasing::Thawed => tree::read(life.init, life.application).map_err(|e| e.to_string()),
        other => Err(format!("its state is {:?}", other.as_str())),
    };
    match tree {
        Ok(tree) => {
            let made_anew = volumes::made_anew(&container.info);
            findings.extend(preflight::application(&tree, &made_anew, connections));
            if findings.is_empty() {
                return Ok(tree);
            }
        }
        Err(why) => findings.push(Finding {
            category: "not_running".into(),
            message: format!("its application does not run: {why}"),
            advice: "wait until it has started; `woodfrog ps` shows its state".into(),
        }),
    }
    Err(findings)
}

/// Freezes containers together; see the module's documentation.
///
/// # Errors
/// The first failure. All applications run on.
pub async fn freeze(
    engine: &Engine,
    containers: &[Arc<Container>],
    request: &FreezeRequest,
    progress: &mpsc::Sender<response::Kind>,
) -> Result<Frozen, FreezeError> {
    let began = Instant::now();
    let connections = Connections::try_from(request.connections).unwrap_or(Connections::Refuse);
    if connections == Connections::Keep && !request.stop {
        let why =
            "connections can only be kept if the containers are stopped: nobody is connected to two programs";
        return Err(FreezeError::Request(why.into()));
    }
    if connections == Connections::Keep && request.rehearsal.is_some() {
        let why = "connections that are kept do not outlast the thaw by which is recorded which memory is wanted first";
        return Err(FreezeError::Request(why.into()));
    }
    let mut warning = None;
    let mut request = Cow::Borrowed(request);
    let sleeps = |container: &&Arc<Container>| container.checkpoint_image && container.standby.is_some();
    if let Some(container) = containers.iter().find(sleeps)
        && request.rehearsal.is_some()
    {
        warning = Some(not_told(&format!("{} may sleep", container.info.display())));
        request.to_mut().rehearsal = None;
    }
    let request = &*request;
    let destinations = destinations(engine, containers, request)?;
    let _busy = containers.iter().map(Busy::begin).collect::<Result<Vec<_>, _>>()?;
    for container in containers.iter().filter(|container| container.life().phasing == Phasing::Frozen) {
        let failed = |message| FreezeError::Init { container: container.info.display(), message };
        container.wake(WakeReason::Freeze).await.map_err(failed)?;
    }
    let trees = patient_preflight(containers, connections).await?;
    let work = tempfile::tempdir_in(&engine.dirs.freezes)
        .map_err(|source| FreezeError::Directory { path: engine.dirs.freezes.clone(), source })?;
    let store = Arc::new(BlobStore::open(work.path().join("blobs"))?);
    let mut held = dump_all(engine, containers, trees, request, work.path(), &store, progress).await;
    let mut sets = Vec::new();
    if let (Ok((dumped, _)), Some(rehearsal)) = (&mut held, &request.rehearsal) {
        say_all(progress, request, "rehearse");
        match rehearsal::record(engine, containers, dumped, rehearsal).await {
            Ok(recorded) => sets = recorded,
            Err(e) => warning = Some(not_told(&e)),
        }
    }
    // Thawed, they had theirs.
    let ran_on = sets.is_empty();
    // An application that runs on is as it was before the hooks, whether its dump came about or not.
    if ran_on && (!request.stop || held.is_err()) {
        for container in containers {
            hooks::after_restore(&*engine.runtime, container, &request.after_restore).await;
        }
    }
    let (mut dumped, bases) = held?;
    let held: Vec<Dump> = dumped.iter_mut().filter_map(|dumped| dumped.held.take()).collect();
    let finishing = dumped.into_iter().zip(destinations).zip(bases).enumerate().map(
        |(number, ((dumped, destination), base))| {
            let name = request.targets[number].container.clone();
            let working_set = sets.get(number).cloned().unwrap_or_default();
            let place = Place { destination, base, store: store.clone() };
            finish(engine, name, dumped, working_set, place, progress)
        },
    );
    let images = match try_join_all(finishing).await {
        Ok(mut images) => {
            images.iter_mut().for_each(|image| image.warnings.extend(warning.clone()));
            images
        }
        Err(e) => {
            for dump in held {
                let _ = dump.refuse().await;
            }
            return Err(e);
        }
    };
    for (container, image) in containers.iter().zip(&images) {
        container.note(format!(
            "frozen into {} ({}), {} bytes of memory, {:.0} ms standstill",
            image.image, image.digest, image.memory_bytes, image.standstill_ms
        ));
        if request.stop {
            let name = container.info.display();
            container.order(Order::Stop).map_err(|message| FreezeError::Init { container: name, message })?;
        }
    }
    for dump in held {
        let _ = dump.ended().await;
    }
    Ok(Frozen { images, total_ms: began.elapsed().as_secs_f64() * 1e3 })
}

/// What the maker of an image hears that does not say what is wanted first, though it was to.
fn not_told(why: &dyn Display) -> String {
    format!("the image does not say which memory is wanted first: {why}")
}

/// The preflight, once more while all that stands against the freeze may pass by itself, such as a probe of kubelet's.
async fn patient_preflight(
    containers: &[Arc<Container>],
    connections: Connections,
) -> Result<Vec<Tree>, FreezeError> {
    let began = Instant::now();
    loop {
        match preflight_all(containers, connections) {
            Err(FreezeError::Preflight { findings, .. })
                if findings.iter().all(|finding| {
                    let patience = PATIENCE.iter().find(|(category, _)| finding.category == *category);
                    patience.is_some_and(|(_, patience)| began.elapsed() < *patience)
                }) => {}
            result => return result,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Every reason against the freeze, of every container.
fn preflight_all(containers: &[Arc<Container>], connections: Connections) -> Result<Vec<Tree>, FreezeError> {
    let (mut trees, mut refused, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    for container in containers {
        match preflight(container, connections) {
            Ok(tree) => trees.push(tree),
            Err(found) => {
                let name = container.info.display();
                let named = |f: Finding| Finding { message: format!("{name}: {}", f.message), ..f };
                findings.extend(found.into_iter().map(named));
                refused.push(name.clone());
            }
        }
    }
    if refused.is_empty() { Ok(trees) } else { Err(FreezeError::Preflight { containers: refused, findings }) }
}

/// From the hooks to the moment at which all tasks run again.
async fn dump_all(
    engine: &Engine,
    containers: &[Arc<Container>],
    mut trees: Vec<Tree>,
    request: &FreezeRequest,
    work: &Path,
    store: &Arc<BlobStore>,
    progress: &mpsc::Sender<response::Kind>,
) -> Result<(Vec<Dumped>, Vec<String>), FreezeError> {
    before_hooks(engine, containers, request).await?;
    let connections = Connections::try_from(request.connections).unwrap_or(Connections::Refuse);
    let mut tries = 1;
    loop {
        // Each has a directory of its own: what a dump leaves that has failed is of no use.
        let work = work.join(tries.to_string());
        match dump_once(engine, containers, trees, request, &work, store, progress).await {
            Err(e) if e.may_pass() && tries < TRIES => tracing::info!("{e}; tries again"),
            result => return result,
        }
        tokio::time::sleep(PAUSE * tries).await;
        tries += 1;
        trees = patient_preflight(containers, connections).await?;
    }
}

async fn dump_once(
    engine: &Engine,
    containers: &[Arc<Container>],
    trees: Vec<Tree>,
    request: &FreezeRequest,
    work: &Path,
    store: &Arc<BlobStore>,
    progress: &mpsc::Sender<response::Kind>,
) -> Result<(Vec<Dumped>, Vec<String>), FreezeError> {
    let mut jobs = Vec::new();
    let mut bases = Vec::new();
    for (number, (container, tree)) in containers.iter().zip(trees).enumerate() {
        let dir = work.join(number.to_string());
        let (job, base) = job(engine, container, tree, &dir, store, request).await?;
        jobs.push(job);
        bases.push(base);
    }
    Ok((dump_together(engine, jobs, progress, request).await?, bases))
}

fn destinations(
    engine: &Engine,
    containers: &[Arc<Container>],
    request: &FreezeRequest,
) -> Result<Vec<Destination>, FreezeError> {
    if containers.is_empty() {
        return Err(FreezeError::Request("no container to freeze".into()));
    }
    for (number, container) in containers.iter().enumerate() {
        if containers[..number].iter().any(|other| Arc::ptr_eq(other, container)) {
            return Err(FreezeError::Request(format!("{} is named twice", container.info.display())));
        }
    }
    let mut destinations = Vec::new();
    for target in &request.targets {
        let destination = Destination {
            reference: target.image.clone(),
            plain_http: request.plain_http.clone(),
            docker_config: request.docker_config.clone(),
        };
        engine
            .publisher
            .check(&destination)
            .map_err(|source| FreezeError::Publish { image: target.image.clone(), source })?;
        destinations.push(destination);
    }
    Ok(destinations)
}

async fn before_hooks(
    engine: &Engine,
    containers: &[Arc<Container>],
    request: &FreezeRequest,
) -> Result<(), FreezeError> {
    for container in containers {
        for hook in &request.before_checkpoint {
            hooks::run(&*engine.runtime, &container.info.id, container.life().init, hook)
                .await
                .map_err(|source| FreezeError::Hook { container: container.info.display(), source })?;
        }
    }
    Ok(())
}

async fn job(
    engine: &Engine,
    container: &Arc<Container>,
    tree: Tree,
    dir: &Path,
    store: &Arc<BlobStore>,
    request: &FreezeRequest,
) -> Result<(Job, String), FreezeError> {
    let id = &container.info.id;
    let connections = Connections::try_from(request.connections).unwrap_or(Connections::Refuse);
    let (layers, source) = tokio::try_join!(engine.runtime.layers(id), engine.runtime.image(id))?;
    let base = BaseImage::new(&source.manifest, &source.config)
        .map_err(|source| FreezeError::Base { container: container.info.display(), source })?;
    let record = CheckpointRecord {
        after_restore: request.after_restore.iter().map(hooks::recorded).collect(),
        memory_mode: match request.memory() {
            Memory::Copied => MemoryMode::Copied,
            Memory::Shared => MemoryMode::Shared,
        },
        ..record(engine, container, &tree, &source)?
    };
    let shared = shared(engine, container, &tree)?;
    let subject = Subject { container: container.clone(), tree, dir: dir.to_owned(), connections, shared };
    let stay = connections == Connections::Keep;
    let rehearse = request.rehearsal.is_some();
    let job = Job { subject, store: store.clone(), layers, base, record, stay, rehearse };
    Ok((job, source.reference))
}

/// What of the tree's memory is shared.
pub(super) fn shared(
    engine: &Engine,
    container: &Container,
    tree: &Tree,
) -> Result<Option<Arc<SharedTree>>, FreezeError> {
    let Some(store) = &engine.page_store else { return Ok(None) };
    let device = store.device().map_err(|source| FreezeError::Directory { path: "/run".into(), source })?;
    let shared = SharedTree::of(tree, device, engine.standing(container));
    let shared =
        shared.map_err(|source| FreezeError::Shared { container: container.info.display(), source })?;
    Ok(shared.map(Arc::new))
}

/// What is known of a checkpoint before its dump.
pub(super) fn record(
    engine: &Engine,
    container: &Container,
    tree: &Tree,
    source: &ImageSource,
) -> Result<CheckpointRecord, FreezeError> {
    let life = container.life();
    let failed = |source| FreezeError::Directory { path: "/proc".into(), source };
    let stdio = (0..=2).filter_map(|fd| {
        let target = std::fs::read_link(format!("/proc/{}/fd/{fd}", life.init)).ok()?;
        let key = target.to_str().filter(|t| t.starts_with("pipe:["))?.to_owned();
        Some(Stdio { fd, key })
    });
    let processes = tree.processes.iter();
    let environment = restore_json::environment(life.init).map_err(failed)?;
    Ok(CheckpointRecord {
        source: Source {
            container: container.info.name.clone(),
            namespace: container.info.namespace.clone(),
            pod: container.info.pod.clone(),
            image: container.info.image.clone(),
            image_digest: source.digest.clone(),
        },
        created: whole_seconds(SystemTime::now()),
        generation: life.generation,
        seccomp_filters: seccomp_filters(life.init).map_err(failed)?,
        compatibility: engine.node.clone(),
        environment: environment.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        stdio: stdio.collect(),
        processes: processes.map(|p| Process { pid: p.inner_pid as u32, name: p.name.clone() }).collect(),
        listeners: tree
            .listeners
            .iter()
            .map(|address| Listener { protocol: "tcp".into(), address: address.to_string() })
            .collect(),
        after_restore: Vec::new(),
        pod_addresses: netns::addresses(life.init).map_err(failed)?,
        files: Vec::new(),
        memory: Vec::new(),
        memory_mode: MemoryMode::Copied,
        volumes: Vec::new(),
    })
}

/// How many seccomp filters a process has (Linux 5.9 and later tell).
fn seccomp_filters(pid: i32) -> io::Result<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
    Ok(line.and_then(|count| count.trim().parse().ok()).unwrap_or(0))
}

fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

async fn dump_together(
    engine: &Engine,
    jobs: Vec<Job>,
    progress: &mpsc::Sender<response::Kind>,
    request: &FreezeRequest,
) -> Result<Vec<Dumped>, FreezeError> {
    let count = jobs.len();
    let mut holds = Vec::new();
    for job in &jobs {
        holds.push(Hold::begin(&job.subject.container).await?);
    }
    let (gate, opened) = watch::channel(Gate::Closed);
    let (arrived, mut arrivals) = mpsc::channel(count);
    let mut dumps = JoinSet::new();
    for (number, job) in jobs.into_iter().enumerate() {
        say(progress, &request.targets[number].container, "dump", 0, 0);
        let (criu, arrived, opened) = (engine.criu.clone(), arrived.clone(), opened.clone());
        dumps.spawn(async move { (number, dump::dump(criu, job, arrived, opened).await) });
    }
    drop(arrived);
    let mut done: Vec<Option<Dumped>> = (0..count).map(|_| None).collect();
    let mut failure = None;
    let mut held = 0;
    while !dumps.is_empty() {
        tokio::select! {
            Some(()) = arrivals.recv() => {
                held += 1;
                if held == count {
                    gate.send_replace(Gate::Open);
                }
            }
            Some(finished) = dumps.join_next() => match finished {
                Ok((number, Ok(dumped))) => done[number] = Some(dumped),
                Ok((_, Err(e))) => {
                    gate.send_replace(Gate::Abandoned);
                    // What comes later is only a consequence.
                    failure.get_or_insert(e);
                }
                Err(_) => {
                    gate.send_replace(Gate::Abandoned);
                    failure.get_or_insert(FreezeError::Panic);
                }
            },
        }
    }
    drop(holds);
    match failure {
        Some(e) => Err(e),
        None => Ok(done.into_iter().flatten().collect()),
    }
}

/// Where an image goes, and what it is made with.
struct Place {
    destination: Destination,
    base: String,
    store: Arc<BlobStore>,
}

async fn finish(
    engine: &Engine,
    name: String,
    dumped: Dumped,
    working_set: Vec<ProcessSet>,
    Place { destination, base, store }: Place,
    progress: &mpsc::Sender<response::Kind>,
) -> Result<FrozenImage, FreezeError> {
    let spans = working_set.iter().flat_map(|process| &process.spans);
    let working_set_bytes = spans.map(|(_, length)| length).sum();
    let mut watch = Stopwatch::start("freeze");
    let (report, container) = (progress.clone(), name.clone());
    let progress_of_memory = Arc::new(move |bytes| say(&report, &container, "compress", bytes, 0));
    let built = dumped.build.finish(Rest { progress: progress_of_memory, working_set }).await?;
    watch.lap("build");
    let image = built.image;
    // Who has to know what was begun gets this in any case.
    let begins = Progress {
        container: name.clone(),
        phase: "push".into(),
        digest: image.digest.clone(),
        ..Progress::default()
    };
    let _ = progress.send(response::Kind::Progress(begins)).await;
    let push = Push { container: name.clone(), progress: progress.clone() };
    engine
        .publisher
        .publish(&image, &destination, &base, vec![store, engine.runtime.blobs()], &push)
        .await
        .map_err(|source| FreezeError::Publish { image: destination.reference.clone(), source })?;
    watch.lap("push");
    let (layer_bytes, compressed_bytes) = image.new_bytes();
    Ok(FrozenImage {
        container: name,
        image: destination.reference,
        digest: image.digest.clone(),
        memory_bytes: image.record.memory_bytes(),
        layer_bytes,
        compressed_bytes,
        standstill_ms: dumped.standstill_ms,
        phases: dumped.phases.into_iter().chain(watch.phases()).collect(),
        warnings: built.warnings,
        working_set_bytes,
    })
}

/// Progress is for people who watch: what a slow reader misses is not waited for.
fn say(progress: &mpsc::Sender<response::Kind>, container: &str, phase: &str, done: u64, total: u64) {
    let message =
        Progress { container: container.into(), phase: phase.into(), done, total, digest: String::new() };
    let _ = progress.try_send(response::Kind::Progress(message));
}

fn say_all(progress: &mpsc::Sender<response::Kind>, request: &FreezeRequest, phase: &str) {
    request.targets.iter().for_each(|target| say(progress, &target.container, phase, 0, 0));
}

struct Push {
    container: String,
    progress: mpsc::Sender<response::Kind>,
}

impl PushProgress for Push {
    fn sent(&self, _digest: &str, done: u64, total: u64) {
        say(&self.progress, &self.container, "push", done, total);
    }

    fn finished(&self, _digest: &str, total: u64, _outcome: BlobOutcome) {
        say(&self.progress, &self.container, "push", total, total);
    }
}

/// Marks a container as being frozen.
pub(super) struct Busy(Arc<Container>);

impl Busy {
    pub(super) fn begin(container: &Arc<Container>) -> Result<Self, FreezeError> {
        let mut was = false;
        container.update(|life| was = std::mem::replace(&mut life.freezing, true));
        if was { Err(FreezeError::Busy(container.info.display())) } else { Ok(Self(container.clone())) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.update(|life| life.freezing = false);
    }
}

/// While it lives, the container's init holds back signals.
struct Hold(Arc<Container>);

impl Hold {
    async fn begin(container: &Arc<Container>) -> Result<Self, FreezeError> {
        let failed = |message| FreezeError::Init { container: container.info.display(), message };
        let (reply, answer) = oneshot::channel();
        container.order(Order::BeginDump(reply)).map_err(failed)?;
        let hung_up = |_| "its init hung up".to_owned();
        answer.await.map_err(hung_up).and_then(|begun| begun).map_err(failed)?;
        Ok(Self(container.clone()))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // An init that hung up delivers its signals by itself.
        let _ = self.0.order(Order::EndDump);
    }
}
