//! The pager, with a process (`torture.c`) that hands its memory over as CRIU does and then does with it whatever it likes.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use prost::Message as _;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};
use woodfrog_protocol::pager::{
    COMPLETE, Fill, HOLD, MAPPED, MAX_MESSAGE, Plan, Process, Report, Run, Span, Standing, released,
    store_file,
};
use woodfrog_sys::process::{Place, Program};
use woodfrog_sys::{scm, userfault};

const PAGE: u64 = 4096;
const BASE: u64 = 0x2000_0000_0000;
const PAGES: u64 = 4096;

/// A pager, and what is at its other ends.
struct Paging {
    dir: tempfile::TempDir,
    pager: woodfrog_sys::process::Child,
    init: OwnedFd,
    report: File,
    shared: Option<Shared>,
}

/// What there is besides where memory is shared.
struct Shared {
    /// The process's file in the page store.
    store: File,
    /// The agent's socket, which tells when the threads may run.
    agent: OwnedFd,
    standing: PathBuf,
}

fn sockets() -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

impl Paging {
    /// A pager for a process 300; `hurried` knows what will be wanted first, `record` asks what was.
    fn start(first: Vec<Span>, record: bool) -> Self {
        Self::new(first, record, false)
    }

    /// With shared memory.
    fn share(first: Vec<Span>, record: bool) -> Self {
        Self::new(first, record, true)
    }

    fn new(first: Vec<Span>, record: bool, shared: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_pages(&dir.path().join("pages-1.img"));
        // Two runs that meet in memory, and lie apart in the file.
        let half = PAGES / 2 * PAGE;
        let runs = vec![
            Run { start: BASE, length: half, offset: half, shared },
            Run { start: BASE + half, length: half, offset: 0, shared },
        ];
        let process = Process {
            pid: 300,
            file: "pages-1.img".into(),
            length: 2 * half,
            runs,
            first,
            then: Vec::new(),
            shared: if shared { vec![Span { start: BASE, length: 2 * half }] } else { Vec::new() },
            anonymous: Vec::new(),
        };
        let plan = Plan { processes: vec![process], record };
        let mut file = File::from(rustix::fs::memfd_create("plan", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(&plan.encode_to_vec()).unwrap();
        file.rewind().unwrap();
        let listener = UnixListener::bind(dir.path().join("lazy-pages.socket")).unwrap();
        let pages = File::open(dir.path()).unwrap();
        let (init, theirs) = sockets();
        let (report, said) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let binary = File::open(env!("CARGO_BIN_EXE_woodfrog-pager")).unwrap();
        let stderr = std::io::stderr();
        let mut program = Program::new(binary.as_fd(), [null.as_fd(), said.as_fd(), stderr.as_fd()]);
        program.argument(c"woodfrog-pager".to_owned());
        let counters = dir.path().join("netstat");
        fs::write(&counters, netstat(1)).unwrap();
        let counters = File::open(counters).unwrap();
        for given in [file.as_fd(), listener.as_fd(), theirs.as_fd(), pages.as_fd(), counters.as_fd()] {
            program.descriptor(given);
        }
        let (agent, its) = sockets();
        let standing = dir.path().join("standing.socket");
        let asked = listen(&standing);
        if shared {
            program.descriptor(its.as_fd());
            program.descriptor(asked.as_fd());
        }
        let pager = program.start(&Place::default()).unwrap();
        let shared = shared.then(|| Shared { store: fill(dir.path()), agent, standing });
        Self { dir, pager, init, report: report.into(), shared }
    }

    fn torture(&self, seed: u64, rounds: u64, more: &[&str]) -> Child {
        let mut command = Command::new(program("torture"));
        command.arg(self.dir.path().join("lazy-pages.socket"));
        command.args([PAGES, seed, rounds].map(|number| number.to_string()));
        if let Some(shared) = &self.shared {
            let store = format!("/proc/{}/fd/{}", std::process::id(), shared.store.as_raw_fd());
            command.arg("shared").arg(store).stdin(Stdio::from(shared.agent.try_clone().unwrap()));
        }
        command.args(more).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn hazards(&self, when: &str) -> Child {
        let store = self.shared.as_ref().unwrap();
        let mut command = Command::new(program("hazards"));
        command.arg(self.dir.path().join("lazy-pages.socket")).arg(PAGES.to_string());
        command.arg(format!("/proc/{}/fd/{}", std::process::id(), store.store.as_raw_fd()));
        command.arg(self.dir.path().join("scratch")).arg(when);
        command.stdin(Stdio::from(store.agent.try_clone().unwrap())).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// What an agent is told that asks now.
    fn standing(&self) -> Standing {
        let path = &self.shared.as_ref().unwrap().standing;
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let mut message = [0];
        let file = scm::receive(socket.as_fd(), &mut message).unwrap().descriptors.pop().unwrap();
        let mut bytes = Vec::new();
        let mut file = File::from(file);
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        Standing::decode(&*bytes).unwrap()
    }

    /// What the init is told until the end: how many descriptors it was given to hold, and whether all memory came.
    fn told(&self) -> (Vec<OwnedFd>, bool) {
        let (mut held, mut complete) = (Vec::new(), false);
        loop {
            let mut message = [0; MAX_MESSAGE];
            let received = scm::receive(self.init.as_fd(), &mut message).unwrap();
            match &message[..received.bytes] {
                [] => return (held, complete),
                said if said == HOLD => held.extend(received.descriptors),
                said if released(said).is_some() => {}
                said if said == MAPPED => return (held, false),
                said if said == COMPLETE => return (held, true),
                _ => complete = false,
            }
        }
    }

    fn report(&mut self) -> Report {
        let mut bytes = Vec::new();
        self.report.read_to_end(&mut bytes).unwrap();
        assert_eq!(self.pager.wait().unwrap().exit_status(), Some(0));
        Report::decode(&*bytes).unwrap()
    }
}

/// Counters of a network in which so many segments with data were sent.
fn netstat(sent: u64) -> String {
    format!("TcpExt: SyncookiesSent TCPOrigDataSent\nTcpExt: 0 {sent}\n")
}

fn listen(path: &Path) -> OwnedFd {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 8).unwrap();
    socket
}

/// The process's file in the page store, as the pager's program makes it from the page file in `dir`.
fn fill(dir: &Path) -> File {
    let store = tempfile::tempdir_in("/dev/shm").unwrap();
    let half = PAGES / 2 * PAGE;
    let runs = vec![
        Run { start: BASE, length: half, offset: half, shared: true },
        Run { start: BASE + half, length: half, offset: 0, shared: true },
    ];
    let process =
        Process { pid: 300, file: "pages-1.img".into(), length: 2 * half, runs, ..Process::default() };
    let mut plan = File::from(rustix::fs::memfd_create("fill", MemfdFlags::CLOEXEC).unwrap());
    plan.write_all(&Fill { processes: vec![process] }.encode_to_vec()).unwrap();
    plan.rewind().unwrap();
    let binary = File::open(env!("CARGO_BIN_EXE_woodfrog-pager")).unwrap();
    let (pages, to) = (File::open(dir).unwrap(), File::open(store.path()).unwrap());
    let (null, stderr) = (File::open("/dev/null").unwrap(), std::io::stderr());
    let mut program = Program::new(binary.as_fd(), [null.as_fd(), null.as_fd(), stderr.as_fd()]);
    program.argument(c"woodfrog-pager".to_owned());
    program.argument(c"fill".to_owned());
    for given in [pages.as_fd(), to.as_fd(), plan.as_fd()] {
        program.descriptor(given);
    }
    let filled = program.start(&Place::default()).unwrap().wait().unwrap();
    assert_eq!(filled.exit_status(), Some(0));
    File::open(store.path().join(store_file(300))).unwrap()
}

/// The memory as it was "dumped": the second half of the region first.
fn write_pages(path: &Path) {
    let pages = (PAGES / 2..PAGES).chain(0..PAGES / 2);
    let words = pages.flat_map(|page| (0..PAGE / 8).map(move |index| word(page, index)));
    let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    fs::write(path, bytes).unwrap();
}

/// As in `torture.c`.
fn word(page: u64, index: u64) -> u64 {
    let mut x = (page << 20).wrapping_add(index).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn program(name: &str) -> PathBuf {
    static COMPILING: Mutex<()> = Mutex::new(());
    let _one = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let age = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let newest =
        [sources.join(format!("{name}.c")), sources.join("process.h")].iter().map(|path| age(path)).max();
    if age(&program) <= newest.flatten() {
        let new = program.with_extension(std::process::id().to_string());
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]).arg(&new);
        cc.arg(sources.join(format!("{name}.c")));
        assert!(cc.status().unwrap().success());
        fs::rename(new, &program).unwrap();
    }
    program
}

fn finish(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{:?}: {said}", output.status);
    said
}

/// More of them, from another seed on, are a matter of patience: WOODFROG_TORTURE=FIRST..BEHIND.
fn seeds() -> std::ops::Range<u64> {
    let seeds = std::env::var("WOODFROG_TORTURE").unwrap_or_else(|_| "1..13".into());
    let (first, behind) = seeds.split_once("..").unwrap();
    first.parse().unwrap()..behind.parse().unwrap()
}

/// Serving another process takes root, and a kernel with userfaultfd.
fn is_possible() -> bool {
    match userfault::probe() {
        Ok(()) => true,
        Err(errno) => {
            assert!(std::env::var_os("WOODFROG_REQUIRE").is_none(), "no userfaultfd: {errno}");
            eprintln!("skipped: no userfaultfd: {errno}");
            false
        }
    }
}

#[test]
fn not_one_byte_is_wrong_whatever_a_process_does_with_its_memory() {
    if !is_possible() {
        return;
    }
    for seed in seeds() {
        let hot = vec![
            Span { start: BASE + 100 * PAGE, length: 50 * PAGE },
            Span { start: BASE + (PAGES - 8) * PAGE, length: 64 * PAGE },
        ];
        let mut paging = Paging::start(if seed % 2 == 0 { hot } else { Vec::new() }, seed % 3 == 0);
        let process = paging.torture(seed, 2000, &[]);
        let (held, complete) = paging.told();
        assert!(complete && !held.is_empty(), "seed {seed}");
        // As the init does. While anybody holds one, the process waits for its events to be read.
        drop(held);
        assert_eq!(finish(process), "ok", "seed {seed}");
        let report = paging.report();
        assert!(report.copied <= PAGES * PAGE * 40, "seed {seed}: {report:?}");
    }
}

#[test]
fn not_one_byte_of_shared_memory_is_wrong_whatever_a_process_does_with_it() {
    if !is_possible() {
        return;
    }
    for seed in seeds() {
        let hot = vec![Span { start: BASE + 100 * PAGE, length: 50 * PAGE }];
        let mut paging = Paging::share(if seed % 2 == 0 { hot } else { Vec::new() }, seed % 3 == 0);
        let mut process = paging.torture(seed, 2000, &[]);
        let (held, _) = paging.told();
        assert!(!held.is_empty(), "seed {seed}");
        let mut bytes = Vec::new();
        paging.report.read_to_end(&mut bytes).unwrap();
        let report = Report::decode(&*bytes).unwrap();
        assert!(report.mapped > 0 && report.complete_us > 0, "seed {seed}: {report:?}");
        let mut said = String::new();
        process.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "ok\n", "seed {seed}");
        assert!(process.wait().unwrap().success());
        drop(held);
        // The pager stays until the process has ended.
        assert!(paging.told().1);
        assert_eq!(paging.pager.wait().unwrap().exit_status(), Some(0));
    }
}

#[test]
fn shared_memory_does_what_anonymous_memory_does() {
    if !is_possible() {
        return;
    }
    for when in ["early", "late"] {
        // Recording: nothing comes unasked for a while.
        let paging = Paging::share(Vec::new(), when == "early");
        assert_eq!(finish(paging.hazards(when)), "ok", "{when}");
        // Whoever has ended is forgotten, and the init lets go of what it held for that.
        let (mut released, mut held) = (0, 0);
        loop {
            let mut message = [0; MAX_MESSAGE];
            let received = scm::receive(paging.init.as_fd(), &mut message).unwrap();
            match &message[..received.bytes] {
                said if said == COMPLETE => break,
                said if said == HOLD => held += 1,
                said => released += u32::from(woodfrog_protocol::pager::released(said).is_some()),
            }
        }
        assert!(held > 24 && released == held, "{when}: {released} of {held}");
        // Nothing that it did has reached the store.
        let store = &paging.shared.as_ref().unwrap().store;
        let mut bytes = vec![0; PAGE as usize];
        for page in 0..PAGES {
            store.read_exact_at(&mut bytes, BASE + page * PAGE).unwrap();
            let words = bytes.chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap()));
            assert!(words.eq((0..PAGE / 8).map(|index| word(page, index))), "page {page} of the store");
        }
    }
}

#[test]
fn a_core_dump_has_what_is_shared_as_well_as_what_is_not() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if !is_possible() || pattern.contains(['|', '/', '@']) {
        eprintln!("skipped: the machine's cores go elsewhere: {pattern}");
        return;
    }
    let paging = Paging::share(Vec::new(), false);
    let process = paging.hazards("core").wait_with_output().unwrap();
    assert!(process.status.core_dumped(), "{process:?}");
    let path = fs::read_dir(paging.dir.path().join("scratch")).unwrap().next().unwrap().unwrap().path();
    let core = fs::read(path).unwrap();
    for page in 0..PAGES {
        let bytes = memory_in(&core, BASE + page * PAGE);
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().unwrap())).collect();
        match page {
            1 => assert!(bytes.iter().all(|byte| *byte == 7), "the page that was written to"),
            2 => assert!(bytes.iter().all(|byte| *byte == 0), "the page that was given up"),
            _ => assert!(words.into_iter().eq((0..PAGE / 8).map(|index| word(page, index))), "page {page}"),
        }
    }
}

/// A page in a core file (`elf(5)`, 64 bits).
fn memory_in(core: &[u8], address: u64) -> &[u8] {
    let number = |at: usize| u64::from_ne_bytes(core[at..at + 8].try_into().unwrap());
    let half = |at: usize| usize::from(u16::from_ne_bytes(core[at..at + 2].try_into().unwrap()));
    let (headers, size, count) = (number(32) as usize, half(54), half(56));
    let loads = (0..count).map(|index| headers + index * size).filter(|at| core[*at..at + 4] == [1, 0, 0, 0]);
    let mut found = loads.filter_map(|at| {
        let (offset, start, length) = (number(at + 8), number(at + 16), number(at + 32));
        (start..start + length).contains(&address).then(|| (offset + (address - start)) as usize)
    });
    let at = found.next().unwrap_or_else(|| panic!("{address:#x} is not in the core"));
    &core[at..at + PAGE as usize]
}

#[test]
fn an_agent_is_told_where_memory_is_still_the_image_s() {
    if !is_possible() {
        return;
    }
    let mut paging = Paging::share(Vec::new(), false);
    // It is not told that it may run before that was asked.
    let (hears, ready) = std::io::pipe().unwrap();
    let shared = paging.shared.as_mut().unwrap();
    let said = std::mem::replace(&mut shared.agent, hears.into());
    let mut process = paging.torture(1, 0, &["hold"]);
    let mut byte = [0];
    File::from(said).read_exact(&mut byte).unwrap();
    let standing = paging.standing();
    assert_eq!(standing.forked, 0);
    assert_eq!(standing.processes.len(), 1);
    let spans = &standing.processes[0].spans;
    assert_eq!((spans[0].start, spans.iter().map(|span| span.length).sum()), (BASE, PAGES * PAGE));
    File::from(OwnedFd::from(ready)).write_all(&byte).unwrap();
    process.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
    assert!(process.wait().unwrap().success());
}

#[test]
fn what_is_wanted_first_is_told_in_that_order() {
    if !is_possible() {
        return;
    }
    let mut paging = Paging::start(Vec::new(), true);
    let mut process = paging.torture(1, 0, &["hold"]);
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(lines.by_ref().last().unwrap().unwrap(), "all");
    drop(paging.told());
    let report = paging.report();
    assert_eq!(report.wanted.len(), 1);
    let starts: Vec<_> = report.wanted[0].first.iter().map(|span| span.start).collect();
    assert!(starts.is_sorted() && starts.first() == Some(&BASE), "{starts:x?}");
    assert!(process.wait().unwrap().success());
}

#[test]
fn what_is_wanted_after_an_answer_is_told_apart() {
    if !is_possible() {
        return;
    }
    let mut paging = Paging::start(Vec::new(), true);
    let mut process = paging.torture(1, 0, &["hold"]);
    let mut said = process.stdout.take().unwrap();
    // It stops in the middle, until what it says is read.
    rustix::pipe::fcntl_setpipe_size(&said, PAGE as usize).unwrap();
    let mut line = [0; 2];
    said.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"0\n");
    fs::write(paging.dir.path().join("netstat"), netstat(2)).unwrap();
    assert_eq!(BufReader::new(said).lines().last().unwrap().unwrap(), "all");
    drop(paging.told());
    let wanted = paging.report().wanted.remove(0);
    let starts = |spans: &[Span]| spans.iter().map(|span| span.start).collect::<Vec<_>>();
    let (first, then) = (starts(&wanted.first), starts(&wanted.then));
    assert!(first.first() == Some(&BASE) && first.last() < then.first(), "{first:x?} {then:x?}");
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_process_whose_pager_dies_waits_and_never_reads_zeros() {
    if !is_possible() {
        return;
    }
    // Recording: nothing is filled in unasked, so that there is something left to ask for.
    for paging in [Paging::start(Vec::new(), true), Paging::share(Vec::new(), true)] {
        dies(&paging);
    }
}

fn dies(paging: &Paging) {
    let mut process = paging.torture(1, 0, &["hold"]);
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "0");
    rustix::process::kill_process(Pid::from_raw(paging.pager.pid()).unwrap(), Signal::KILL).unwrap();
    paging.pager.wait().unwrap();
    let (held, complete) = paging.told();
    assert!(!complete && held.len() == 1);
    // It reads on as far as its memory has come, and stops there.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(process.try_wait().unwrap().is_none(), "it has ended");
    process.kill().unwrap();
    process.wait().unwrap();
    drop(held);
    let last = lines.last().map(Result::unwrap);
    assert!(last.as_deref() != Some("all") && last.is_none_or(|line| line.parse::<u64>().is_ok()));
}
