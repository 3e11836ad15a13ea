//! Reads, edits and breaks the image files of real dumps (`testdata/README.md`).

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::Path;

use prost::Message as _;

use super::messages::file::{Fdinfo, File as FileEntry, GhostFile, Remap};
use super::messages::memory::{Mm, Pagemap, PagemapHead};
use super::messages::misc::{Inventory, MemfdInode, Seccomp, Timens, TtyInfo};
use super::messages::task::{Core, Fs, KobjIds, Pstree};
use super::*;

const FIXTURES: [&str; 2] = ["server", "restricted"];

fn fixture(name: &str) -> String {
    format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn dir(path: impl AsRef<Path>) -> ImageDir {
    ImageDir::new(File::open(path).expect("the directory is there").into())
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&dir(fixture(name)), &[]).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a temporary directory");
    for entry in fs::read_dir(fixture(name)).expect("the fixture is there") {
        let entry = entry.expect("its entries can be read");
        fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("they can be copied");
    }
    copy
}

/// Decodes all entries of one file, as far as they are framed, and throws them away.
fn understand(file: &str, bytes: &[u8]) -> Result<(), ImageError> {
    let name = ImageName::parse(file);
    if name.format().is_none() {
        return Ok(());
    }
    let mut frames = Frames::new(file, &name, bytes)?;
    while let Some((n, entry)) = frames.next_entry()? {
        match name {
            ImageName::Inventory => drop(decode::<Inventory>(file, n, "e", entry)?),
            ImageName::Pstree => drop(decode::<Pstree>(file, n, "e", entry)?),
            ImageName::Core(_) => drop(decode::<Core>(file, n, "e", entry)?),
            ImageName::Ids(_) => {
                decode::<KobjIds>(file, n, "e", entry)?;
            }
            ImageName::Mm(_) => drop(decode::<Mm>(file, n, "e", entry)?),
            ImageName::Fs(_) => {
                decode::<Fs>(file, n, "e", entry)?;
            }
            ImageName::Pagemap(_) | ImageName::PagemapShmem(_) if n == 0 => {
                decode::<PagemapHead>(file, n, "e", entry)?;
            }
            ImageName::Pagemap(_) | ImageName::PagemapShmem(_) => {
                decode::<Pagemap>(file, n, "e", entry)?;
            }
            ImageName::Files => drop(decode::<FileEntry>(file, n, "e", entry)?),
            ImageName::Fdinfo(_) => drop(decode::<Fdinfo>(file, n, "e", entry)?),
            ImageName::Seccomp => drop(decode::<Seccomp>(file, n, "e", entry)?),
            ImageName::Timens(_) => {
                decode::<Timens>(file, n, "e", entry)?;
            }
            ImageName::RemapFpath => {
                decode::<Remap>(file, n, "e", entry)?;
            }
            ImageName::Memfd => drop(decode::<MemfdInode>(file, n, "e", entry)?),
            ImageName::TtyInfo => drop(decode::<TtyInfo>(file, n, "e", entry)?),
            ImageName::GhostFile(_) => {
                drop(decode::<GhostFile>(file, n, "e", entry)?);
                return Ok(());
            }
            other => panic!("no fixture holds {other:?}"),
        }
    }
    Ok(())
}

fn files() -> impl Iterator<Item = (String, Vec<u8>)> {
    FIXTURES.iter().flat_map(|name| {
        fs::read_dir(fixture(name)).expect("the fixture is there").map(|entry| {
            let entry = entry.expect("its entries can be read");
            (
                entry.file_name().into_string().expect("an ASCII name"),
                fs::read(entry.path()).expect("it can be read"),
            )
        })
    })
}

/// A small generator (xorshift), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

#[test]
fn a_real_dump_is_read() {
    let server = open("server");
    assert_eq!(server.tasks.iter().map(Task::pid).collect::<Vec<_>>(), [300, 303, 304]);
    assert_eq!(server.tasks[0].entry.threads, [300, 301, 302]);
    assert_eq!(server.tasks[1].creds().unwrap().uid, 33);
    assert_eq!(server.tasks[2].tc().comm, "python3");
    assert!(server.unknown.is_empty(), "{:?}", server.unknown);
    assert_eq!(server.seccomp.len(), 1);
    let restricted = open("restricted");
    assert_eq!(restricted.seccomp.len(), 2);
    assert_eq!(restricted.tasks[0].creds().unwrap().groups, [1000, 2000]);
}

/// As CRIU writes those that have ended and whom their parent has not waited for.
#[test]
fn a_zombie_has_no_threads_whatever_is_written_in_their_place() {
    let (copy, server) = (copy_of("server"), open("server"));
    let framed = |entry: Vec<u8>| [(entry.len() as u32).to_le_bytes().to_vec(), entry].concat();
    let read = |file: &str| fs::read(copy.path().join(file)).expect("the file is there");
    let write =
        |file: &str, bytes: Vec<u8>| fs::write(copy.path().join(file), bytes).expect("it can be written");
    let root = &server.tasks[0];
    let head = read("core-300.img")[..8].to_vec();
    let mut tree = read("pstree.img");
    for pid in [350, 351] {
        let mut core = Core { thread_core: None, ids: None, ..root.core.clone() };
        core.tc.as_mut().expect("a task's core").task_state = 6;
        write(&format!("core-{pid}.img"), [head.clone(), framed(core.encode_to_vec())].concat());
        let entry = Pstree { pid, ppid: root.pid(), threads: vec![0], ..root.entry.clone() };
        tree.extend(framed(entry.encode_to_vec()));
    }
    write("pstree.img", tree);
    let checkpoint = Checkpoint::open(&dir(copy.path()), &[]).expect("zombies are no reason against it");
    let zombies = checkpoint.tasks.iter().filter(|task| task.state == TaskState::Dead);
    let threads: Vec<_> = zombies.map(|task| (task.pid(), task.entry.threads.clone())).collect();
    assert_eq!(threads, [(350, vec![350]), (351, vec![351])]);
}

#[test]
fn sockets_files_and_memory_are_told() {
    let server = open("server");
    let listeners: Vec<String> = server
        .sockets()
        .filter(|socket| socket.state == SocketState::Listening)
        .map(|socket| socket.local.to_string())
        .collect();
    assert_eq!(listeners, ["10.1.2.3:8080", "[::]:8081"]);
    let files = server.open_files(&server.tasks[0]);
    let target = |fd: u32| files.iter().find(|file| file.fd == fd).map(|file| file.target.as_str());
    assert_eq!(target(1), Some("/dev/null"));
    assert_eq!(target(7), Some("/tmp/app-server.sock"));
    assert_eq!(target(10), Some("/tmp/app-server.log"));
    assert!(target(13).unwrap().ends_with("(deleted)"));
    assert_eq!(target(14), Some("memfd:wf"));
    let memory = server.memory(&server.tasks[0]);
    assert_eq!(memory.stored, server.tasks[0].body.as_ref().unwrap().pages.bytes());
    assert!(
        memory.anonymous > memory.heap && memory.heap > 0 && memory.file_private > 0 && memory.shared == 8192
    );
}

#[test]
fn every_entry_is_written_back_byte_for_byte() {
    for name in FIXTURES {
        let checkpoint = open(name);
        let mut rewrite = Rewrite::new(&checkpoint);
        rewrite.inventory();
        for task in &checkpoint.tasks {
            for tid in &task.entry.threads {
                rewrite.core(*tid).expect("the thread is there");
            }
            rewrite.table(task.body.as_ref().unwrap().ids.files_id).expect("the table is there");
        }
        rewrite.file(checkpoint.file_order[0]).expect("the file is there");
        let changed = rewrite.changed();
        assert!(changed.len() >= 4);
        for (file, bytes) in changed {
            assert_eq!(bytes, fs::read(format!("{}/{file}", fixture(name))).unwrap(), "{name}/{file}");
        }
    }
}

#[test]
fn only_sockets_bound_to_the_old_address_move() {
    let server = open("server");
    let mut rewrite = Rewrite::new(&server);
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    assert!(Rebind::new(address("10.1.2.3"), address("::1")).is_none());
    let moved = rewrite.rebind(Rebind::new(address("10.1.2.3"), address("10.9.8.7")).unwrap());
    assert_eq!(moved, 2, "the TCP listener and the bound UDP socket");
    let scratch = copy_of("server");
    fs::remove_file(scratch.path().join("files.img")).unwrap();
    rewrite.write_into(File::open(scratch.path()).unwrap()).unwrap();
    let again = Checkpoint::open(&dir(scratch.path()), &[]).unwrap();
    let local: Vec<String> = again.sockets().map(|socket| socket.local.to_string()).collect();
    assert_eq!(local, ["10.9.8.7:8080", "[::]:8081", "10.9.8.7:5353"]);
    let again = rewrite.write_into(File::open(scratch.path()).unwrap());
    assert!(matches!(again, Err(ImageError::Io { .. })), "nothing is overwritten");
}

#[test]
fn an_ipv6_listener_moves_too() {
    let server = open("server");
    let mut rewrite = Rewrite::new(&server);
    let id = server.sockets().find(|socket| socket.local.is_ipv6()).expect("there is one").file_id;
    rewrite.file(id).unwrap().isk.as_mut().unwrap().src_addr = vec![0x0000_00fd, 0, 0, 0x0500_0000];
    let from = "fd00::5".parse().unwrap();
    assert_eq!(rewrite.rebind(Rebind::new(from, "fd00::7".parse().unwrap()).unwrap()), 1);
    assert_eq!(rewrite.file(id).unwrap().isk.as_ref().unwrap().src_addr, [0x0000_00fd, 0, 0, 0x0700_0000]);
    rewrite.file(id).unwrap().isk.as_mut().unwrap().src_addr = vec![0, 0, 0xffff_0000, 0x0302_010a];
    let mapped = Rebind::new("10.1.2.3".parse().unwrap(), "10.9.8.7".parse().unwrap()).unwrap();
    assert_eq!(rewrite.rebind(mapped), 3, "a dual-stack listener bound to the mapped old address as well");
    assert_eq!(rewrite.file(id).unwrap().isk.as_ref().unwrap().src_addr, [0, 0, 0xffff_0000, 0x0708_090a]);
}

#[test]
fn page_files_must_have_the_length_that_their_page_map_says() {
    let server = open("server");
    let pages = tempfile::tempdir().unwrap();
    let (state, memory) = (dir(fixture("server")), dir(pages.path()));
    assert!(matches!(server.check_pages(&[&state, &memory]), Err(ImageError::Missing { .. })));
    for file in server.pages() {
        let made = File::create(pages.path().join(format!("pages-{}.img", file.pages_id))).unwrap();
        made.set_len(file.bytes()).unwrap();
    }
    server.check_pages(&[&state, &memory]).unwrap();
    let short = server.tasks[0].body.as_ref().unwrap().pages.pages_id;
    let file =
        fs::OpenOptions::new().write(true).open(pages.path().join(format!("pages-{short}.img"))).unwrap();
    file.set_len(4096).unwrap();
    let error = server.check_pages(&[&state, &memory]).unwrap_err().to_string();
    assert!(error.contains(&format!("pages-{short}.img: has 4096 bytes")), "{error}");
}

#[test]
fn a_file_cut_off_at_any_byte_is_refused() {
    for (name, bytes) in files() {
        let whole = understand(&name, &bytes);
        assert!(whole.is_ok(), "{name}: {}", whole.unwrap_err());
        if ImageName::parse(&name).format().is_none() || name.starts_with("ghost-file") {
            continue;
        }
        let mut good = 0;
        for length in 0..bytes.len() {
            good += usize::from(understand(&name, &bytes[..length]).is_ok());
        }
        let mut frames = Frames::new(&name, &ImageName::parse(&name), &bytes).unwrap();
        let mut entries = 0;
        while frames.next_entry().unwrap().is_some() {
            entries += 1;
        }
        assert_eq!(good, entries, "{name} may only be cut between its entries");
    }
}

#[test]
fn changed_bits_never_panic_and_what_is_accepted_is_written_back_the_same() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (name, bytes) in files() {
        for _ in 0..400 {
            let mut broken = bytes.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(broken.len());
                broken[at] ^= 1 << random.below(8);
            }
            let _ = understand(&name, &broken);
        }
    }
    // Whole directories: the cross-checks must not panic either.
    for fixture in FIXTURES {
        let copy = copy_of(fixture);
        let names: Vec<_> = fs::read_dir(copy.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        for _ in 0..300 {
            let path = &names[random.below(names.len())];
            let good = fs::read(path).unwrap();
            let mut broken = good.clone();
            let at = random.below(broken.len());
            broken[at] = broken[at].wrapping_add(1 + random.below(255) as u8);
            fs::write(path, &broken).unwrap();
            if let Ok(checkpoint) = Checkpoint::open(&dir(copy.path()), &[]) {
                for task in &checkpoint.tasks {
                    checkpoint.open_files(task);
                    checkpoint.memory(task);
                }
                assert!(checkpoint.sockets().count() <= checkpoint.files.len());
            }
            fs::write(path, good).unwrap();
        }
    }
}

#[test]
fn lengths_of_an_attacker_allocate_nothing() {
    let mut bytes = frame::begin(&ImageName::Files);
    bytes.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(understand("files.img", &bytes), Err(ImageError::Truncated { .. })));
    let copy = copy_of("restricted");
    let file = fs::OpenOptions::new().write(true).open(copy.path().join("core-300.img")).unwrap();
    file.set_len(1 << 40).unwrap();
    let error = Checkpoint::open(&dir(copy.path()), &[]).unwrap_err();
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

#[test]
fn links_directories_and_fifos_are_not_followed_nor_waited_for() {
    for make in [link as fn(&Path), fs_dir, fifo] {
        let copy = copy_of("restricted");
        let path = copy.path().join("mm-300.img");
        fs::remove_file(&path).unwrap();
        make(&path);
        let error = Checkpoint::open(&dir(copy.path()), &[]).unwrap_err();
        assert!(matches!(error, ImageError::NotRegular { .. }), "{error}");
    }
    fn link(path: &Path) {
        std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
    }
    fn fs_dir(path: &Path) {
        fs::create_dir(path).unwrap();
    }
    fn fifo(path: &Path) {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }
}

#[test]
fn missing_stray_and_unknown_files_are_named() {
    let copy = copy_of("restricted");
    fs::write(copy.path().join("userns-10.img"), "x").unwrap();
    fs::write(copy.path().join("woodfrog.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(&dir(copy.path()), &["woodfrog.json"]).unwrap();
    assert_eq!(checkpoint.unknown, ["userns-10.img"]);
    fs::copy(copy.path().join("core-300.img"), copy.path().join("core-301.img")).unwrap();
    let error = Checkpoint::open(&dir(copy.path()), &[]).unwrap_err().to_string();
    assert!(error.starts_with("core-301.img: belongs to no process"), "{error}");
    fs::remove_file(copy.path().join("core-301.img")).unwrap();
    fs::remove_file(copy.path().join("fs-300.img")).unwrap();
    let error = Checkpoint::open(&dir(copy.path()), &[]).unwrap_err();
    assert!(matches!(&error, ImageError::Missing { file } if file == "fs-300.img"), "{error}");
}
