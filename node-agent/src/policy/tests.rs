//! Hostile images, made from real dumps one field at a time; and what must pass.
//!
//! The fixtures are those of `woodfrog-criu` (see its `testdata/README.md`). The tests take on other credentials and make
//! device files, so they need root; elsewhere they say so and pass, unless `WOODFROG_REQUIRE` is set.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{CWD, FileType as Kind, Mode, makedev, mknodat};
use woodfrog_criu::images::messages::file::{
    Eventfd, FileHandle, Fown, GhostFile, Inotify, InotifyWatch, Pidfd, Timerfd,
};
use woodfrog_criu::images::messages::memory::status;
use woodfrog_criu::images::messages::misc::{LsmType, Plugins, SeccompFilter};
use woodfrog_criu::images::messages::socket::{NetlinkSk, SkOpts};
use woodfrog_criu::images::messages::task::{Creds, PosixTimer, TaskCore, ThreadCore};
use woodfrog_criu::images::messages::{file, misc};
use woodfrog_criu::images::{Checkpoint, FileType, ImageDir, Rewrite};
use woodfrog_sys::seccomp::Filter;

use super::*;

/// The default bounding set of container runtimes.
const DEFAULT: CapSet = CapSet(0xa804_25fb);

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("WOODFROG_REQUIRE").is_none(), "this test needs root");
        eprintln!("skipped: needs root");
    }
    root
}

fn open(name: &str) -> Checkpoint {
    let path = format!("{}/../crates/criu/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
    let dir = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    Checkpoint::open(&ImageDir::new(dir.into()), &[]).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A container's root directory with the files that the images hold open.
struct Container {
    dir: tempfile::TempDir,
}

impl Container {
    fn new(images: &Checkpoint) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let container = Self { dir };
        for file in images.files.values().filter_map(|file| file.reg.as_ref()) {
            if images.remaps.iter().all(|remap| remap.orig_id != file.id) {
                container.make(&file.name, file.mode.unwrap_or(0o100_644));
            }
        }
        fs::set_permissions(container.path("/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        container
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name.trim_start_matches('/'))
    }

    fn make(&self, name: &str, mode: u32) {
        let path = self.path(name);
        if path.exists() {
            return;
        }
        let parent = path.parent().unwrap();
        fs::create_dir_all(parent).unwrap();
        let device = match name {
            "/dev/null" => makedev(1, 3),
            "/dev/urandom" => makedev(1, 9),
            "/dev/ptmx" => makedev(5, 2),
            "/dev/sda" => makedev(8, 0),
            "/dev/kvm" => makedev(10, 232),
            _ => makedev(136, 0),
        };
        let kind = Kind::from_raw_mode(mode);
        match kind {
            Kind::Directory => fs::create_dir(&path).unwrap(),
            Kind::RegularFile => drop(File::create(&path).unwrap()),
            kind => mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), device).unwrap(),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o7777)).unwrap();
    }

    fn own(&self, name: &str, id: u32) {
        chown(self.path(name), Some(id), Some(id)).unwrap();
    }

    /// Root with the runtime's default capabilities, no seccomp.
    fn root(&self) -> Target {
        Target {
            uids: [0; 4],
            gids: [0; 4],
            groups: Vec::new(),
            inheritable: CapSet::default(),
            permitted: DEFAULT,
            bounding: DEFAULT,
            no_new_privs: false,
            seccomp_mode: 0,
            seccomp: Vec::new(),
            limits: [Limit { cur: 4096, max: 8192 }; LIMITS],
            oom_score_adj: 977,
            nice: 0,
            label: None,
            devices: Vec::new(),
            connections: false,
            root: File::open(self.dir.path()).unwrap().into(),
            net: None,
        }
    }

    /// What the `restricted` fixture runs under: user 1000, nothing else.
    fn restricted(&self, images: &Checkpoint) -> Target {
        let filter = Filter { program: images.seccomp[0].filter.clone(), log: false };
        Target {
            uids: [1000; 4],
            gids: [1000; 4],
            groups: vec![2000, 1000],
            permitted: CapSet::default(),
            bounding: CapSet::default(),
            no_new_privs: true,
            seccomp_mode: 2,
            seccomp: vec![filter],
            ..self.root()
        }
    }
}

/// A target whose directory lives as long as the test's thread.
fn under_root(images: &Checkpoint) -> Target {
    thread_local!(static KEPT: RefCell<Vec<Container>> = const { RefCell::new(Vec::new()) });
    let container = Container::new(images);
    let target = container.root();
    KEPT.with_borrow_mut(|kept| kept.push(container));
    target
}

/// The real dump was made with all capabilities; a runtime's default set is what containers have.
fn server() -> Checkpoint {
    let mut images = open("server");
    let root = images.tasks[0].creds().unwrap().cap_prm.clone();
    assert!(CapSet::from_words(&root).unwrap().has(DEFAULT));
    for task in &mut images.tasks {
        let cores =
            std::iter::once(&mut task.core).chain(task.threads.iter_mut().map(|thread| &mut thread.core));
        for creds in cores.filter_map(|core| core.thread_core.as_mut()?.creds.as_mut()) {
            for set in [&mut creds.cap_prm, &mut creds.cap_eff, &mut creds.cap_bnd] {
                set[0] &= DEFAULT.0 as u32;
                set[1] = 0;
            }
        }
    }
    images
}

fn restricted() -> (Checkpoint, Container, Target) {
    let images = open("restricted");
    let container = Container::new(&images);
    container.own("/tmp/app-restricted.log", 1000);
    container.own("/out/app.err", 1000);
    let target = container.restricted(&images);
    (images, container, target)
}

fn thread(images: &mut Checkpoint) -> &mut ThreadCore {
    images.tasks[0].core.thread_core.as_mut().unwrap()
}

fn creds(images: &mut Checkpoint) -> &mut Creds {
    thread(images).creds.as_mut().unwrap()
}

fn tc(images: &mut Checkpoint) -> &mut TaskCore {
    images.tasks[0].core.tc.as_mut().unwrap()
}

fn first(images: &mut Checkpoint, kind: FileType) -> &mut file::File {
    images.files.values_mut().find(|file| file.kind() == kind).expect("the fixture holds one")
}

fn named<'a>(images: &'a mut Checkpoint, name: &str) -> &'a mut file::RegFile {
    let mut files = images.files.values_mut().filter_map(|file| file.reg.as_deref_mut());
    files.find(|reg| reg.name == name).unwrap_or_else(|| panic!("the fixture holds {name}"))
}

/// Puts a file of another kind in place of the eventfd-like timer that descriptor tables hold.
fn replace(images: &mut Checkpoint, kind: FileType, set: impl Fn(&mut file::File)) {
    let id = first(images, FileType::Timerfd).id;
    let mut other = file::File { r#type: kind as i32, id, ..file::File::default() };
    set(&mut other);
    images.files.insert(id, other);
    for entry in images.tables.values_mut().flatten().filter(|entry| entry.id == id) {
        entry.r#type = kind as i32;
    }
}

fn fields(violations: &[Violation]) -> BTreeSet<&'static str> {
    violations.iter().map(|violation| violation.field).collect()
}

#[track_caller]
fn refused(images: &Checkpoint, target: &Target, field: &str) -> String {
    let violations = check(images, target).err().unwrap_or_else(|| panic!("{field} must be refused"));
    assert!(violations.iter().any(|violation| violation.field == field), "{field} in {violations:#?}");
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_server_that_drops_to_another_user_passes_under_root() {
    if !root() {
        return;
    }
    let images = server();
    let target = under_root(&images);
    check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
}

#[test]
fn a_restricted_process_passes_under_a_pid_1_like_it() {
    if !root() {
        return;
    }
    let (images, _container, target) = restricted();
    check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
}

#[test]
fn everything_is_told_at_once() {
    if !root() {
        return;
    }
    let mut images = open("server");
    images.unknown.push("userns-10.img".into());
    let container = Container::new(&images);
    let target = Target { permitted: CapSet::default(), ..container.restricted(&open("restricted")) };
    let violations = check(&images, &target).unwrap_err();
    let fields = fields(&violations);
    for field in
        ["uid", "gid", "cap_prm", "cap_bnd", "no_new_privs", "seccomp_mode", "unknown image file", "name"]
    {
        assert!(fields.contains(field), "{field} in {fields:?}");
    }
}

#[test]
fn credentials_beyond_those_of_pid_1_are_refused_field_by_field() {
    if !root() {
        return;
    }
    type Edit = fn(&mut Creds);
    let edits: [(&str, Edit); 18] = [
        ("uid", |c| c.uid = 0),
        ("euid", |c| c.euid = 0),
        ("suid", |c| c.suid = 0),
        ("fsuid", |c| c.fsuid = 0),
        ("gid", |c| c.gid = 0),
        ("egid", |c| c.egid = 2000),
        ("sgid", |c| c.sgid = 0),
        ("fsgid", |c| c.fsgid = 0),
        ("groups", |c| c.groups.push(0)),
        ("groups", |c| c.groups.truncate(1)),
        ("cap_inh", |c| c.cap_inh[0] = 1 << 21),
        ("cap_prm", |c| c.cap_prm[0] = 1),
        ("cap_eff", |c| c.cap_eff[1] = 1 << 6),
        ("cap_bnd", |c| c.cap_bnd[0] = 1 << 7),
        ("cap_amb", |c| c.cap_amb[0] = 1 << 10),
        ("cap_prm", |c| c.cap_prm.push(1)),
        ("no_new_privs", |c| c.no_new_privs = None),
        ("secbits", |c| c.secbits = 1),
    ];
    for (field, edit) in edits {
        let (mut images, _container, target) = restricted();
        edit(creds(&mut images));
        let text = refused(&images, &target, field);
        assert!(text.contains("process 300 (python3)"), "{text}");
    }
    let (mut images, _container, target) = restricted();
    thread(&mut images).creds = None;
    refused(&images, &target, "creds");
}

#[test]
fn credentials_of_a_second_thread_are_judged_too() {
    if !root() {
        return;
    }
    let mut images = server();
    let core = images.tasks[0].threads[1].core.thread_core.as_mut().unwrap();
    core.creds.as_mut().unwrap().cap_eff[0] |= 1 << 21;
    let target = under_root(&images);
    let text = refused(&images, &target, "cap_eff");
    assert!(text.contains("cap_sys_admin"), "{text}");
}

#[test]
fn without_no_new_privs_the_bounding_set_is_the_measure() {
    if !root() {
        return;
    }
    let (mut images, _container, target) = restricted();
    creds(&mut images).cap_prm[0] = 1 << 10;
    refused(&images, &target, "cap_prm");
    let bounding = CapSet(1 << 10);
    let kept = Target { bounding, ..target };
    refused(&images, &kept, "cap_prm");
    let free = Target { no_new_privs: false, ..kept };
    check(&images, &free).unwrap_or_else(|violations| panic!("{violations:#?}"));
}

#[test]
fn seccomp_filters_that_are_gone_or_malformed_are_refused() {
    if !root() {
        return;
    }
    type Edit = fn(&mut Checkpoint);
    let edits: [(&str, Edit); 6] = [
        ("seccomp_mode", |i| {
            thread(i).seccomp_mode = Some(0);
            thread(i).seccomp_filter = None;
        }),
        ("seccomp_mode", |i| {
            thread(i).seccomp_mode = Some(1);
            thread(i).seccomp_filter = None;
        }),
        ("filter", |i| i.seccomp[0].filter.truncate(25)),
        ("seccomp_filter", |i| i.seccomp[1].prev = Some(1)),
        ("seccomp_filter", |i| thread(i).seccomp_filter = Some(9)),
        ("flags", |i| i.seccomp[1].flags = Some(1 << 3)),
    ];
    for (field, edit) in edits {
        let (mut images, _container, target) = restricted();
        edit(&mut images);
        refused(&images, &target, field);
    }
    let (images, _container, target) = restricted();
    let own = images.seccomp.iter().map(|f| Filter { program: f.filter.clone(), log: false });
    let both = Target { seccomp: own.clone().collect(), ..target };
    check(&images, &both).unwrap_or_else(|violations| panic!("{violations:#?}"));
    let three = Target { seccomp: own.clone().chain(own).take(3).collect(), ..both };
    refused(&images, &three, "seccomp_filter");
}

#[test]
fn the_runtimes_seccomp_filters_are_taken_from_pid_1_whatever_the_image_says() {
    if !root() {
        return;
    }
    type Edit = fn(&mut Checkpoint);
    let edits: [Edit; 4] = [
        |i| i.seccomp[0].filter[4] ^= 1,
        |i| i.seccomp[0].filter.truncate(24),
        |i| {
            let (first, second) = i.seccomp.split_at_mut(1);
            std::mem::swap(&mut first[0].filter, &mut second[0].filter);
        },
        |i| i.seccomp[0].filter = vec![6, 0, 0, 0, 0, 0, 255, 127],
    ];
    for edit in edits {
        let (mut images, _container, target) = restricted();
        edit(&mut images);
        let added = images.seccomp[1].clone();
        let plan = check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
        let mut rewrite = Rewrite::new(&images);
        plan.apply(&mut rewrite);
        assert_eq!(rewrite.seccomp()[0].filter, target.seccomp[0].program);
        assert_eq!(rewrite.seccomp()[1], added, "what the application added stays");
    }
}

#[test]
fn a_process_may_have_added_filters_where_pid_1_has_none() {
    if !root() {
        return;
    }
    let mut images = server();
    images.seccomp.push(SeccompFilter {
        filter: vec![6, 0, 0, 0, 0, 0, 0, 0],
        prev: Some(0),
        flags: Some(1),
    });
    images.tasks[2].core.thread_core.as_mut().unwrap().seccomp_filter = Some(1);
    let target = under_root(&images);
    check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
}

#[test]
fn namespaces_of_every_kind_are_refused_but_for_one_time_namespace() {
    if !root() {
        return;
    }
    type Of = fn(&mut woodfrog_criu::images::messages::task::KobjIds) -> &mut Option<u32>;
    let kinds: [(&str, Of); 7] = [
        ("pid_ns_id", |ids| &mut ids.pid_ns_id),
        ("net_ns_id", |ids| &mut ids.net_ns_id),
        ("ipc_ns_id", |ids| &mut ids.ipc_ns_id),
        ("uts_ns_id", |ids| &mut ids.uts_ns_id),
        ("mnt_ns_id", |ids| &mut ids.mnt_ns_id),
        ("user_ns_id", |ids| &mut ids.user_ns_id),
        ("cgroup_ns_id", |ids| &mut ids.cgroup_ns_id),
    ];
    for (field, of) in kinds {
        for id in [Some(77), None] {
            let mut images = server();
            *of(&mut images.tasks[1].body.as_mut().unwrap().ids) = id;
            refused(&images, &under_root(&images), field);
        }
    }
    let mut images = server();
    for task in &mut images.tasks {
        task.body.as_mut().unwrap().ids.time_ns_id = Some(99);
    }
    let target = under_root(&images);
    check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
    images.tasks[1].body.as_mut().unwrap().ids.time_ns_id = Some(98);
    refused(&images, &target, "time_ns_id");
}

#[test]
fn fields_of_the_whole_checkpoint_and_of_processes_are_judged() {
    if !root() {
        return;
    }
    type Edit = fn(&mut Checkpoint);
    let edits: [(&str, Edit); 24] = [
        ("unknown image file", |i| i.unknown.push("creds-300.img".into())),
        ("plugins", |i| i.inventory.plugins_entry = Some(Plugins { plugins: vec!["amdgpu_plugin".into()] })),
        ("img_version", |i| i.inventory.img_version = 3),
        ("root_ids", |i| i.inventory.root_ids = None),
        ("fdinfo_per_id or ns_per_id", |i| i.inventory.ns_per_id = None),
        ("allow_uprobes", |i| i.inventory.allow_uprobes = Some(true)),
        ("pid", |i| i.tasks[1].entry.pid = 299),
        ("threads", |i| i.tasks[0].entry.threads[1] = 17),
        ("sid", |i| i.tasks[0].entry.sid = 301),
        ("sid", |i| i.tasks[1].entry.sid = 0),
        ("pgid", |i| i.tasks[1].entry.pgid = 1),
        ("pgid or sid", |i| i.tasks[1].entry.pgid = 301),
        ("personality", |i| tc(i).personality = 0x0040_0000),
        ("stop_signo", |i| tc(i).stop_signo = Some(65)),
        ("rlimits", |i| tc(i).rlimits = None),
        ("timers", |i| tc(i).timers = None),
        ("old_seccomp_mode", |i| tc(i).old_seccomp_mode = Some(0)),
        ("sched_policy", |i| thread(i).sched_policy = Some(1)),
        ("sched_policy", |i| thread(i).sched_policy = Some(6)),
        ("sched_nice", |i| thread(i).sched_nice = Some(-1)),
        ("pdeath_sig", |i| thread(i).pdeath_sig = Some(100)),
        ("comm", |i| thread(i).comm = Some("a name of 16 byte".into())),
        ("posix timer clock_id", |i| {
            let timer = PosixTimer { clock_id: 8, ..PosixTimer::default() };
            tc(i).timers.as_mut().unwrap().posix.push(timer);
        }),
        ("notify_thread_id", |i| {
            let timer = PosixTimer { notify_thread_id: Some(1), ..PosixTimer::default() };
            tc(i).timers.as_mut().unwrap().posix.push(timer);
        }),
    ];
    for (field, edit) in edits {
        let mut images = server();
        edit(&mut images);
        refused(&images, &under_root(&images), field);
    }
}

#[test]
fn memory_must_be_of_known_kinds_and_in_its_place() {
    if !root() {
        return;
    }
    type Edit = fn(&mut woodfrog_criu::images::messages::memory::Mm);
    let edits: [(&str, Edit); 11] = [
        ("vmas", |mm| mm.vmas[0].start = 0),
        ("vmas", |mm| mm.vmas[0].end = mm.vmas[1].end),
        ("vmas", |mm| mm.vmas[0].start += 1),
        ("vmas", |mm| mm.vmas[3].end = 1 << 60),
        ("vma status", |mm| mm.vmas[0].status |= status::SYSVIPC),
        ("vma status", |mm| mm.vmas[0].status |= status::SOCKET),
        ("vma status", |mm| mm.vmas[0].status |= 1 << 27),
        ("vma prot", |mm| mm.vmas[0].prot = 0x20),
        ("vma fdflags", |mm| mm.vmas[0].fdflags = Some(0o100)),
        ("vma file", |mm| mm.vmas[0].shmid = 9999),
        ("pagemap", |mm| mm.vmas.truncate(3)),
    ];
    for (field, edit) in edits {
        let mut images = server();
        edit(&mut images.tasks[0].body.as_mut().unwrap().mm);
        refused(&images, &under_root(&images), field);
    }
    let mut images = server();
    images.tasks[0].body.as_mut().unwrap().mm.vmas[0].flags |= 0x2000;
    let target = under_root(&images);
    let locked = refused(&images, &target, "vmas");
    assert!(locked.contains("bytes of locked memory"), "{locked}");
    let permitted = target.permitted | CapSet::IPC_LOCK;
    let target = Target { permitted, bounding: permitted, ..target };
    check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
}

#[test]
fn descriptors_of_kinds_that_reach_outside_are_refused_by_name() {
    if !root() {
        return;
    }
    let opaque = || Some(Vec::new());
    type Set = Box<dyn Fn(&mut file::File)>;
    let kinds: [(FileType, Set); 6] = [
        (FileType::Ns, Box::new(move |f| f.nsf = opaque())),
        (FileType::PacketSk, Box::new(move |f| f.psk = opaque())),
        (FileType::Tun, Box::new(move |f| f.tunf = opaque())),
        (FileType::Fanotify, Box::new(move |f| f.ffy = opaque())),
        (FileType::Ext, Box::new(move |f| f.ext = opaque())),
        (FileType::BpfMap, Box::new(move |f| f.bpf = opaque())),
    ];
    for (kind, set) in kinds {
        let mut images = server();
        replace(&mut images, kind, set);
        let container = Container::new(&images);
        let bare = CapSet(DEFAULT.0 & !CapSet::NET_RAW.0);
        let target = Target { permitted: bare, ..container.root() };
        let text = refused(&images, &target, "type");
        assert!(text.contains(kind.name()), "{text}");
    }
    let mut images = server();
    replace(&mut images, FileType::PacketSk, |f| f.psk = Some(Vec::new()));
    let target = under_root(&images);
    check(&images, &target).unwrap_or_else(|violations| panic!("with cap_net_raw: {violations:#?}"));
}

#[test]
fn kernel_objects_are_judged_by_what_they_refer_to() {
    if !root() {
        return;
    }
    let judge = |field: &str, kind: FileType, set: &dyn Fn(&mut file::File)| {
        let mut images = server();
        replace(&mut images, kind, set);
        refused(&images, &under_root(&images), field);
    };
    let watch = |path: Option<&str>| {
        let f_handle = FileHandle { path: path.map(Into::into), ..FileHandle::default() };
        let wd = vec![InotifyWatch { f_handle, ..InotifyWatch::default() }];
        Inotify { wd, ..Inotify::default() }
    };
    judge("nspid", FileType::Pidfd, &|f| f.pidfd = Some(Box::new(Pidfd { nspid: 1, ..Pidfd::default() })));
    judge("timerfd clockid", FileType::Timerfd, &|f| {
        f.tfd = Some(Box::new(Timerfd { clockid: 9, ..Timerfd::default() }));
    });
    judge("f_handle", FileType::Inotify, &|f| f.ify = Some(Box::new(watch(None))));
    judge("f_handle path", FileType::Inotify, &|f| f.ify = Some(Box::new(watch(Some("/tmp/../etc")))));
    judge("name", FileType::Inotify, &|f| f.ify = Some(Box::new(watch(Some("/nowhere")))));
    let owned = |pid, uid| Fown { pid, uid, ..Fown::default() };
    judge("fown pid", FileType::Eventfd, &|f| {
        f.efd = Some(Box::new(Eventfd { fown: owned(1, 0), ..Eventfd::default() }));
    });
    let netlink = |protocol, groups| NetlinkSk { protocol, groups, ..NetlinkSk::default() };
    judge("protocol", FileType::NetlinkSk, &|f| f.nlsk = Some(Box::new(netlink(9, vec![]))));
    judge("groups", FileType::NetlinkSk, &|f| f.nlsk = Some(Box::new(netlink(16, vec![1]))));
    let (mut images, _container, target) = restricted();
    first(&mut images, FileType::Pipe).pipe.as_mut().unwrap().fown = owned(300, 0);
    refused(&images, &target, "fown uid");
}

#[test]
fn sockets_need_the_capabilities_that_opening_them_needs() {
    if !root() {
        return;
    }
    type Edit = fn(&mut woodfrog_criu::images::messages::socket::InetSk);
    let edits: [(&str, Edit); 8] = [
        ("type", |s| s.r#type = 3),
        ("type", |s| s.proto = 132),
        ("family", |s| s.family = 17),
        ("src_port", |s| s.src_port = 80),
        ("src_port", |s| s.src_port = 70_000),
        ("ns_id", |s| s.ns_id = Some(77)),
        ("so_mark", |s| s.opts.so_mark = Some(1)),
        ("so_rcvbuf", |s| s.opts = SkOpts { so_rcvbuf: 1 << 30, ..s.opts.clone() }),
    ];
    for (field, edit) in edits {
        let (mut images, _container, target) = restricted();
        edit(first(&mut images, FileType::InetSk).isk.as_mut().unwrap());
        refused(&images, &target, field);
    }
    let (mut images, _container, target) = restricted();
    let socket = first(&mut images, FileType::InetSk).isk.as_mut().unwrap();
    (socket.state, socket.dst_port, socket.dst_addr) = (1, 5432, vec![0x0100_000a]);
    let text = refused(&images, &target, "state");
    assert!(text.contains("connected to 10.0.0.1:5432"), "{text}");
    let kept = Target { connections: true, ..target };
    check(&images, &kept).unwrap_or_else(|violations| panic!("{violations:#?}"));
}

#[test]
fn unix_sockets_neither_come_from_outside_nor_replace_files() {
    if !root() {
        return;
    }
    type Edit = fn(&mut woodfrog_criu::images::messages::socket::UnixSk);
    let edits: [(&str, Edit); 9] = [
        ("uflags", |s| s.uflags = 1),
        ("uflags", |s| s.uflags = 2),
        ("peer", |s| s.peer = 424_242),
        ("name", |s| s.name = b"/etc/../run/x\0".to_vec()),
        ("name", |s| s.name = b"/usr/bin/python3.14\0".to_vec()),
        ("name", |s| s.name = b"/usr/socket\0".to_vec()),
        ("name", |s| s.name = b"relative\0".to_vec()),
        ("file_perms uid", |s| s.file_perms.as_mut().unwrap().uid = 0),
        ("file_perms", |s| s.file_perms.as_mut().unwrap().mode |= 0o4000),
    ];
    for (field, edit) in edits {
        let (mut images, _container, target) = restricted();
        let named = images.files.values_mut().filter_map(|file| file.usk.as_mut());
        edit(named.into_iter().find(|unix| !unix.name.is_empty()).unwrap());
        refused(&images, &target, field);
    }
}

#[test]
fn files_are_opened_only_where_pid_1_could_and_how_it_could() {
    if !root() {
        return;
    }
    let log = "/tmp/app-restricted.log";
    type Edit = fn(&mut Checkpoint, &Container);
    let edits: [(&str, Edit); 12] = [
        ("name", |i, _| named(i, "/tmp/app-restricted.log").name = "tmp/app-restricted.log".into()),
        ("name", |i, _| named(i, "/tmp/app-restricted.log").name = "/tmp/../tmp/app-restricted.log".into()),
        ("name", |i, _| named(i, "/tmp/app-restricted.log").name = "/tmp/elsewhere".into()),
        ("name", |i, _| named(i, "/tmp/app-restricted.log").name = "/proc/300/mem".into()),
        ("name", |i, _| named(i, "/tmp/app-restricted.log").name = "/proc/7/stat".into()),
        ("flags", |i, _| named(i, "/tmp/app-restricted.log").name = "/proc/300/stat".into()),
        ("flags", |i, _| named(i, "/tmp/app-restricted.log").flags |= 0o100),
        ("flags", |i, _| named(i, "/tmp/app-restricted.log").flags |= 0o1000),
        ("ext", |i, _| named(i, "/tmp/app-restricted.log").ext = Some(true)),
        ("name", |_, c| c.own("/tmp/app-restricted.log", 0)),
        ("name", |i, _| named(i, "/usr/bin/python3.14").flags = 2),
        ("name", |_, c| {
            let path = c.path("/tmp/app-restricted.log");
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/usr/bin/python3.14", path).unwrap();
        }),
    ];
    for (number, (field, edit)) in edits.into_iter().enumerate() {
        let (mut images, container, target) = restricted();
        // Executables are judged as such; with a descriptor besides, in its mode as well.
        if number == 10 {
            let id = named(&mut images, "/usr/bin/python3.14").id;
            let table = images.tables.values_mut().next().unwrap();
            table.push(file::Fdinfo { id, fd: 99, r#type: FileType::Reg as i32, ..file::Fdinfo::default() });
        }
        edit(&mut images, &container);
        refused(&images, &target, field);
    }
    let (images, container, target) = restricted();
    fs::set_permissions(container.path("/usr/bin"), fs::Permissions::from_mode(0o700)).unwrap();
    let text = refused(&images, &target, "name");
    assert!(text.contains("exe of process 300"), "{text}");
    let capable = Target { permitted: CapSet::DAC_READ_SEARCH, ..target };
    // It may enter now, but not execute a file without any execute bit for it.
    fs::set_permissions(container.path("/usr/bin/python3.14"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused(&images, &capable, "name").contains("cannot be executed"));
    assert!(Path::new(&container.path(log)).exists());
}

#[test]
fn a_file_that_may_be_under_way_in_a_socket_is_judged_in_its_own_mode() {
    if !root() {
        return;
    }
    let (mut images, _container, target) = restricted();
    named(&mut images, "/usr/bin/python3.14").flags = 2;
    check(&images, &target).unwrap_or_else(|violations| panic!("only executed: {violations:#?}"));
    images.socket_queues = true;
    refused(&images, &target, "name");
}

#[test]
fn devices_are_the_standard_ones_or_those_of_the_container() {
    if !root() {
        return;
    }
    for (name, mode, block, major, minor) in
        [("/dev/kvm", 0o020_666, false, 10, 232), ("/dev/sda", 0o060_666, true, 8, 0)]
    {
        let (mut images, container, target) = restricted();
        container.make(name, mode);
        let reg = named(&mut images, "/dev/urandom");
        (reg.name, reg.mode) = (name.into(), Some(mode));
        let text = refused(&images, &target, "name");
        assert!(text.contains(&format!("device {major}:{minor}")), "{text}");
        let listed = Target { devices: vec![Device { block, major, minor }], ..target };
        check(&images, &listed).unwrap_or_else(|violations| panic!("{violations:#?}"));
        let other = Target { devices: vec![Device { block: !block, major, minor }], ..listed };
        refused(&images, &other, "name");
    }
}

#[test]
fn files_made_anew_get_no_mode_or_owner_that_pid_1_could_not_give() {
    if !root() {
        return;
    }
    type Edit = fn(&mut GhostFile);
    let edits: [(&str, Edit); 5] = [
        ("mode", |g| g.mode = 0o020_666),
        ("mode", |g| g.mode = 0o060_666),
        ("mode", |g| g.mode |= 0o4000),
        ("uid", |g| g.uid = 0),
        ("gid", |g| g.gid = 0),
    ];
    for (field, edit) in edits {
        let (mut images, _container, target) = restricted();
        let ghost = images.ghosts.values_mut().next().unwrap();
        (ghost.uid, ghost.gid) = (1000, 1000);
        edit(ghost);
        refused(&images, &target, field);
    }
    for (field, mode) in [("mode", 0o104_755), ("mode", 0o020_666)] {
        let (mut images, _container, target) = restricted();
        images.memfds[0].mode = Some(mode);
        refused(&images, &target, field);
    }
    let (mut images, _container, target) = restricted();
    let deleted = images.remaps[0].orig_id;
    images.files.get_mut(&deleted).unwrap().reg.as_mut().unwrap().name = "/usr/bin/gone".into();
    let text = refused(&images, &target, "name");
    assert!(text.contains("/usr/bin/gone (cannot be made and removed"), "{text}");
    let (mut images, _container, target) = restricted();
    let log = named(&mut images, "/tmp/app-restricted.log").id;
    (images.remaps[0].remap_id, images.remaps[0].remap_type) = (log, Some(file::RemapType::Linked as i32));
    refused(&images, &target, "remap_id");
}

#[test]
fn a_root_directory_of_its_own_takes_the_right_to_change_it() {
    if !root() {
        return;
    }
    let mut images = server();
    let id = images.tasks[1].body.as_ref().unwrap().fs.root_id;
    images.files.get_mut(&id).unwrap().reg.as_mut().unwrap().name = "/tmp".into();
    let target = under_root(&images);
    check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
    let bare = Target { permitted: CapSet(DEFAULT.0 & !CapSet::SYS_CHROOT.0), ..target };
    refused(&images, &bare, "root");
}

#[test]
fn terminals_other_than_pseudo_terminals_are_refused() {
    if !root() {
        return;
    }
    for kind in [misc::TtyType::Console, misc::TtyType::Vt, misc::TtyType::Serial, misc::TtyType::External] {
        let mut images = server();
        images.ttys[0].r#type = kind as i32;
        refused(&images, &under_root(&images), "type");
    }
    let mut images = server();
    named(&mut images, "/dev/pts/0").name = "/dev/pts/7".into();
    refused(&images, &under_root(&images), "name");
}

#[test]
fn descriptors_past_the_limit_of_open_files_are_refused() {
    if !root() {
        return;
    }
    let mut images = server();
    images.tables.values_mut().next().unwrap()[0].fd = 8192;
    refused(&images, &under_root(&images), "fd");
}

#[test]
fn limits_oom_score_and_label_come_from_pid_1_and_not_from_the_image() {
    if !root() {
        return;
    }
    let mut images = server();
    tc(&mut images).rlimits.as_mut().unwrap().rlimits[7].cur = 100;
    tc(&mut images).oom_score_adj = Some(-1000);
    tc(&mut images).loginuid = Some(0);
    for creds in [0, 1].map(|n| images.tasks[n].core.thread_core.as_ref().unwrap().creds.clone().unwrap()) {
        assert_eq!(creds.lsm_profile, None);
    }
    creds(&mut images).lsm_profile = Some("unconfined_t".into());
    creds(&mut images).apparmor_data = Some(vec![1]);
    images.inventory.lsmtype = Some(LsmType::Selinux as i32);
    let container = Container::new(&images);
    let label = Label { module: LsmType::Apparmor, text: "cri-containerd.apparmor.d".into() };
    let target = Target { label: Some(label), ..container.root() };
    let plan = check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
    let mut rewrite = Rewrite::new(&images);
    plan.apply(&mut rewrite);
    for pid in [300, 303, 304] {
        let core = rewrite.core(pid).unwrap();
        let tc = core.tc.as_ref().unwrap();
        for (number, limit) in tc.rlimits.as_ref().unwrap().rlimits.iter().enumerate() {
            assert!(limit.max <= 8192 && limit.cur <= limit.max, "limit {number} of {pid}: {limit:?}");
        }
        assert_eq!(tc.oom_score_adj, Some(977));
        assert_eq!(tc.loginuid.unwrap_or(u32::MAX), u32::MAX);
        let creds = core.thread_core.as_ref().unwrap().creds.as_ref().unwrap();
        assert_eq!(creds.lsm_profile.as_deref(), Some("cri-containerd.apparmor.d"));
        assert_eq!((&creds.lsm_sockcreate, &creds.apparmor_data), (&None, &None));
    }
    let lowered = rewrite.core(300).unwrap().tc.as_ref().unwrap().rlimits.as_ref().unwrap().rlimits[7];
    assert_eq!((lowered.cur, lowered.max), (100, 8192), "a process keeps a limit that it lowered for itself");
    assert_eq!(rewrite.inventory().lsmtype, Some(LsmType::Apparmor as i32));
    let thread = rewrite.core(302).unwrap().thread_core.as_ref().unwrap();
    assert_eq!(thread.creds.as_ref().unwrap().lsm_profile.as_deref(), Some("cri-containerd.apparmor.d"));
}

#[test]
fn where_pid_1_has_no_label_the_image_loses_its_own() {
    if !root() {
        return;
    }
    let mut images = server();
    creds(&mut images).lsm_profile = Some("system_u:system_r:unconfined_t:s0".into());
    images.inventory.lsmtype = Some(LsmType::Selinux as i32);
    images.tables.values_mut().next().unwrap()[0].xattr_security_selinux = Some("x".into());
    let table = *images.tables.keys().next().unwrap();
    let target = under_root(&images);
    let plan = check(&images, &target).unwrap_or_else(|violations| panic!("{violations:#?}"));
    let mut rewrite = Rewrite::new(&images);
    plan.apply(&mut rewrite);
    assert_eq!(rewrite.inventory().lsmtype, Some(LsmType::None as i32));
    let core = rewrite.core(300).unwrap().thread_core.as_ref().unwrap();
    assert_eq!(core.creds.as_ref().unwrap().lsm_profile, None);
    assert!(rewrite.table(table).unwrap().iter().all(|entry| entry.xattr_security_selinux.is_none()));
}
