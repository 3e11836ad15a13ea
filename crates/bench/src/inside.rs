//! What this program does in the node, started there by itself: plain CRIU in a container's namespaces, and commands
//! whose start is to be known exactly.
//!
//! CRIU runs through its own loader with its own libraries, all by descriptor, since the container's image need not
//! have them.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, WaitIdStatus, pidfd_open};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use woodfrog_sys::process::{Child, HELPER_PIDS, Place, Program};

use crate::clock::now_us;

const LOADER: &str =
    if cfg!(target_arch = "aarch64") { "/lib/ld-linux-aarch64.so.1" } else { "/lib64/ld-linux-x86-64.so.2" };
const LIBRARIES: &str =
    if cfg!(target_arch = "aarch64") { "/usr/lib/aarch64-linux-gnu" } else { "/usr/lib/x86_64-linux-gnu" };
const CRIU: &str = "/usr/sbin/criu";
/// In the image directory: what the application's descriptors 0 to 2 were.
const STDIO: &str = "stdio.json";

/// When something was started, and when that command was over: microseconds of CLOCK_MONOTONIC.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) started_us: u64,
    pub(crate) done_us: u64,
}

/// A dump.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Dumped {
    /// When CRIU was started, microseconds of CLOCK_MONOTONIC.
    pub(crate) started_us: u64,
    /// When it had ended.
    pub(crate) done_us: u64,
    /// Microseconds for which it held the tasks, as it says itself.
    pub(crate) held_us: u64,
}

/// Dumps the child of a container's PID 1, and ends it unless it is to run on.
pub(crate) fn dump(init: i32, images: &Path, leave_running: bool) -> Result<Dumped> {
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
    let pid: i32 = children.trim().parse().with_context(|| format!("children of {init}: {children:?}"))?;
    let mut stdio = BTreeMap::new();
    for fd in 0..3 {
        let target = fs::read_link(format!("/proc/{pid}/fd/{fd}"))?.to_string_lossy().into_owned();
        if target.starts_with("pipe:") {
            stdio.insert(fd, target);
        }
    }
    fs::write(images.join(STDIO), serde_json::to_vec(&stdio)?)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        Ok(line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    let inner = *field("NSpid:")?.last().with_context(|| format!("process {pid} is gone"))?;
    let (uid, gid) = (field("Uid:")?[0], field("Gid:")?[0]);
    let inner = inner.to_string();
    let mut arguments = vec!["dump", "--tree", &inner, "--file-locks", "--link-remap"];
    if leave_running {
        arguments.push("--leave-running");
    }
    // With its target's real ids CRIU may read the limits of its target without CAP_SYS_RESOURCE.
    let Started { started_us, done_us } =
        Criu::start(init, images, Some((uid, gid)), &arguments, &[])?.finish()?;
    Ok(Dumped { started_us, done_us, held_us: held_us(images)? })
}

/// CRIU's `images/stats.proto`: times in microseconds.
#[derive(Clone, PartialEq, Message)]
struct DumpStats {
    #[prost(uint32, tag = "1")]
    freezing_time: u32,
    #[prost(uint32, tag = "2")]
    frozen_time: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Stats {
    #[prost(message, optional, tag = "1")]
    dump: Option<DumpStats>,
}

/// How long a dump held its tasks, from CRIU's statistics in the image directory.
fn held_us(images: &Path) -> Result<u64> {
    /// Two magic numbers and the entry's length come before it.
    const HEADER: usize = 12;
    let path = images.join("stats-dump");
    let file = fs::read(&path).with_context(|| path.display().to_string())?;
    let stats = Stats::decode(file.get(HEADER..).unwrap_or_default())?.dump.unwrap_or_default();
    Ok(u64::from(stats.freezing_time) + u64::from(stats.frozen_time))
}

/// A restore.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Restored {
    /// When CRIU was started, microseconds of CLOCK_MONOTONIC.
    pub(crate) started_us: u64,
    /// When all tasks were there.
    pub(crate) done_us: u64,
    /// When their memory was.
    pub(crate) full_us: u64,
}

/// Restores what [`dump`] dumped into another container; `lazy`: `criu lazy-pages` is there before it, and brings memory.
pub(crate) fn restore(init: i32, images: &Path, lazy: bool) -> Result<Restored> {
    let stdio: BTreeMap<i32, String> = serde_json::from_slice(&fs::read(images.join(STDIO))?)?;
    let pipes = stdio
        .into_iter()
        .map(|(fd, key)| {
            let path = format!("/proc/{init}/fd/{fd}");
            let pipe = File::options().read(fd == 0).write(fd != 0).open(&path).with_context(|| path)?;
            Ok((key, pipe))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut arguments = vec!["restore", "--restore-detached"];
    let mut server = None;
    if lazy {
        // It makes its socket only where none is.
        let socket = images.join("lazy-pages.socket");
        let _ = fs::remove_file(&socket);
        let started = Criu::start(init, images, None, &["lazy-pages"], &[])?;
        while !socket.exists() {
            if started.child.try_wait()?.is_some() {
                bail!("criu lazy-pages has ended: {}", fs::read_to_string(&started.log)?);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        server = Some(started);
        arguments.push("--lazy-pages");
    }
    let Started { started_us, done_us } = Criu::start(init, images, None, &arguments, &pipes)?.finish()?;
    let full_us = server.map_or(Ok(done_us), |server| server.finish().map(|server| server.done_us))?;
    Ok(Restored { started_us, done_us, full_us })
}

/// What the processes of a container use.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Memory that they share with nobody.
    pub(crate) private_bytes: u64,
    /// All of theirs.
    pub(crate) threads: u64,
    /// CPU time of the container's cgroup, in microseconds.
    pub(crate) cpu_us: u64,
}

/// Looks at all processes below a container's PID 1, and at that.
pub(crate) fn usage(init: i32) -> Result<Usage> {
    let mut usage = Usage { private_bytes: 0, threads: 0, cpu_us: cgroup_cpu_us(init)? };
    let mut pids = vec![init.to_string()];
    while let Some(pid) = pids.pop() {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            usage.threads += 1;
            let children = fs::read_to_string(task?.path().join("children"))?;
            pids.extend(children.split_whitespace().map(str::to_owned));
        }
        usage.private_bytes += private_bytes(&fs::read_to_string(format!("/proc/{pid}/smaps"))?)?;
    }
    Ok(usage)
}

/// Memory of a process that no other has. What is mapped from the page store is the store's, also while only one uses it.
fn private_bytes(smaps: &str) -> Result<u64> {
    let (mut bytes, mut stored) = (0, false);
    for line in smaps.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        // The first line of a mapping: addresses, protection, offset, device, inode and path.
        if name.contains('-') {
            stored = line.rsplit('/').next().is_some_and(|name| name.starts_with("mem-"));
        } else if if stored {
            name == "Anonymous"
        } else {
            name.starts_with("Private_") && !name.ends_with("Hugetlb")
        } {
            let kilobytes: u64 = rest.split_whitespace().next().context("smaps")?.parse()?;
            bytes += kilobytes << 10;
        }
    }
    Ok(bytes)
}

/// CPU time of a process's cgroup, by version 1 or 2.
pub(crate) fn cgroup_cpu_us(pid: i32) -> Result<u64> {
    for directory in cgroups(pid)? {
        if let Ok(nanoseconds) = fs::read_to_string(directory.join("cpuacct.usage")) {
            return Ok(nanoseconds.trim().parse::<u64>()? / 1000);
        }
        let stat = fs::read_to_string(directory.join("cpu.stat")).unwrap_or_default();
        if let Some(usage) = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
            return Ok(usage.parse()?);
        }
    }
    bail!("no cgroup of process {pid} counts its CPU time")
}

/// What it takes to read memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Read {
    pub(crate) bytes: u64,
    /// CPU time of this process for it, in microseconds.
    pub(crate) cpu_us: u64,
    /// From the first to the last byte.
    pub(crate) took_us: u64,
}

/// Reads the page files of a container's checkpoint image into memory that is new each time.
pub(crate) fn read(init: i32) -> Result<Read> {
    let images = format!("/proc/{init}/root/.woodfrog/checkpoint");
    let mut read = Read { bytes: 0, cpu_us: 0, took_us: 0 };
    for entry in fs::read_dir(&images).with_context(|| images.clone())? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("pages-") {
            continue;
        }
        let file = File::open(entry.path())?;
        let length = file.metadata()?.len();
        // An allocation of this size is a mapping of its own, of pages that have never been touched.
        let mut memory = Vec::with_capacity(usize::try_from(length)?);
        let (cpu, began) = (process_cpu_us(), now_us());
        while (memory.len() as u64) < length {
            ensure!(rustix::io::read(&file, spare_capacity(&mut memory))? > 0, "{}", entry.path().display());
        }
        read.cpu_us += process_cpu_us() - cpu;
        read.took_us += now_us() - began;
        read.bytes += length;
    }
    ensure!(read.bytes > 0, "there are no page files in {images}");
    Ok(read)
}

fn process_cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1_000
}

/// Runs a command to its end, without input or output.
pub(crate) fn run(command: &[String]) -> Result<Started> {
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started_us = now_us();
    let status = process.status().with_context(|| command[0].clone())?;
    let done_us = now_us();
    ensure!(status.success(), "{} failed: {status}", command.join(" "));
    Ok(Started { started_us, done_us })
}

/// CRIU at work in a container.
struct Criu {
    command: String,
    log: PathBuf,
    child: Child,
    started_us: u64,
}

impl Criu {
    fn start(
        init: i32,
        images: &Path,
        ids: Option<(u32, u32)>,
        arguments: &[&str],
        inherit: &[(String, File)],
    ) -> Result<Self> {
        enter_cgroups(init)?;
        let container = Pid::from_raw(init).context("PID 0")?;
        let container =
            pidfd_open(container, PidfdFlags::empty()).with_context(|| format!("process {init}"))?;
        let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
        let (loader, program, null) =
            (open(LOADER.as_ref())?, open(CRIU.as_ref())?, open("/dev/null".as_ref())?);
        let libraries = rustix::fs::open(LIBRARIES, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let directory = open(images)?;
        let log = images.join(arguments[0]).with_extension("out");
        let output = File::create(&log).with_context(|| log.display().to_string())?;

        let mut criu = Program::new(loader.as_fd(), [null.as_fd(), output.as_fd(), output.as_fd()]);
        if let Some((uid, gid)) = ids {
            criu.real_ids(uid, gid);
        }
        let path = |number: i32| format!("/proc/self/fd/{number}");
        let libraries = path(criu.descriptor(libraries.as_fd()));
        let program = path(criu.descriptor(program.as_fd()));
        let directory = path(criu.descriptor(directory.as_fd()));
        let mut vector = vec!["ld.so".to_owned(), "--library-path".into(), libraries, program];
        vector.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        vector.extend(["--images-dir".into(), directory, "--manage-cgroups=ignore".into()]);
        for (key, file) in inherit {
            vector.extend(["--inherit-fd".into(), format!("fd[{}]:{key}", criu.descriptor(file.as_fd()))]);
        }
        for argument in vector {
            criu.argument(CString::new(argument)?);
        }
        criu.variable(c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".into());

        let started_us = now_us();
        let child = criu.start(&Place::default().inside(container.as_fd(), HELPER_PIDS))?;
        Ok(Self { command: arguments[0].to_owned(), log, child, started_us })
    }

    fn finish(self) -> Result<Started> {
        let status = self.child.wait()?;
        let done_us = now_us();
        if status.exit_status() != Some(0) {
            bail!("criu {}: {}\n{}", self.command, end(&status), fs::read_to_string(&self.log)?);
        }
        Ok(Started { started_us: self.started_us, done_us })
    }
}

fn end(status: &WaitIdStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        _ => "no status".into(),
    }
}

/// Puts this process into the cgroups of another, in every hierarchy that is mounted.
fn enter_cgroups(pid: i32) -> Result<()> {
    for directory in cgroups(pid)? {
        let file = directory.join("cgroup.procs");
        fs::write(&file, "0").with_context(|| file.display().to_string())?;
    }
    Ok(())
}

/// The directories of a process's cgroups.
pub(crate) fn cgroups(pid: i32) -> Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/cgroup"))?.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let mounts: &[PathBuf] = &match controllers.strip_prefix("name=").unwrap_or(controllers) {
            "" => ["unified", ""].map(|name| Path::new("/sys/fs/cgroup").join(name)),
            name => [Path::new("/sys/fs/cgroup").join(name), PathBuf::new()],
        };
        let path = path.trim_start_matches('/');
        let found = mounts.iter().filter(|mount| mount.is_absolute()).map(|mount| mount.join(path));
        directories.extend(found.filter(|directory| directory.join("cgroup.procs").exists()).take(1));
    }
    Ok(directories)
}
