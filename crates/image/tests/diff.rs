//! A root file system diff, unpacked upon the base again, is what the container saw.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use woodfrog_image::*;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    let required = std::env::var("WOODFROG_REQUIRE").unwrap_or_default();
    assert!(root || !required.contains("node"), "root is required");
    if !root {
        eprintln!("skipped: overlayfs's files need root");
    }
    root
}

struct Diff {
    report: DiffReport,
    tar: Vec<u8>,
}

fn try_diff(upper: &Path, options: &DiffOptions) -> Result<Diff, BuildError> {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record());
    let report = builder.rootfs_diff(File::open(upper).unwrap().as_fd(), options)?;
    let image = builder.finish().unwrap();
    let layer = image.new_layers.iter().find(|layer| layer.role == labels::ROLE_DIFF);
    let tar = layer.map_or(Vec::new(), |layer| {
        let blob = store.get(&layer.digest, layer.size).unwrap().unwrap();
        zstd::decode_all(blob).unwrap()
    });
    Ok(Diff { report, tar })
}

fn diff(upper: &Path) -> Diff {
    try_diff(upper, &DiffOptions::default()).unwrap()
}

impl Diff {
    fn names(&self) -> Vec<Vec<u8>> {
        let mut archive = tar::Archive::new(self.tar.as_slice());
        archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect()
    }

    /// The PAX records of one entry.
    fn records(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(self.tar.as_slice());
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let mut entry = entries.find(|entry| *entry.path_bytes() == *name.as_bytes()).unwrap();
        let records = entry.pax_extensions().unwrap().into_iter().flatten().map(Result::unwrap);
        records.map(|r| (r.key().unwrap().to_owned(), r.value_bytes().to_vec())).collect()
    }

    /// Unpacks with GNU tar, as another reader of the format.
    fn unpack(&self, into: &Path) {
        let mut child = std::process::Command::new("tar")
            .args([
                "--extract",
                "--preserve-permissions",
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=*",
            ])
            .arg("--directory")
            .arg(into)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&self.tar).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn node_files_come_back_with_all_that_they_have() {
    if !is_root() {
        return;
    }
    let upper = tempfile::tempdir().unwrap();
    let at = |name: &str| upper.path().join(name);
    fs::create_dir(at("opt")).unwrap();
    fs::write(at("opt/program"), b"binary").unwrap();
    std::os::unix::fs::chown(at("opt/program"), Some(1234), Some(3_000_000_000)).unwrap();
    fs::set_permissions(at("opt/program"), fs::Permissions::from_mode(0o6755)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    File::options().append(true).open(at("opt/program")).unwrap().set_modified(time).unwrap();
    fs::hard_link(at("opt/program"), at("opt/same")).unwrap();
    symlink("../elsewhere", at("opt/link")).unwrap();
    let long = "l".repeat(250);
    fs::write(at(&long), b"long").unwrap();
    let odd = OsStr::from_bytes(b"odd\xff");
    fs::write(upper.path().join(odd), b"odd").unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    mknodat(CWD, at("null"), FileType::CharacterDevice, Mode::from(0o666), makedev(1, 3)).unwrap();

    let diff = diff(upper.path());
    assert_eq!(diff.report.skipped, []);
    let target = tempfile::tempdir().unwrap();
    diff.unpack(target.path());
    let to = |name: &str| target.path().join(name);
    let program = fs::metadata(to("opt/program")).unwrap();
    assert_eq!((program.uid(), program.gid(), program.mode() & 0o7777), (1234, 3_000_000_000, 0o6755));
    assert_eq!((program.mtime(), program.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!((program.nlink(), program.ino()), (2, fs::metadata(to("opt/same")).unwrap().ino()));
    assert_eq!(fs::read_link(to("opt/link")).unwrap(), Path::new("../elsewhere"));
    assert_eq!(fs::read(to(&long)).unwrap(), b"long");
    assert_eq!(fs::read(target.path().join(odd)).unwrap(), b"odd");
    assert!(fs::metadata(to("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::metadata(to("null")).unwrap().rdev(), makedev(1, 3));
}

#[test]
fn node_deletions_are_whiteouts() {
    if !is_root() {
        return;
    }
    let upper = tempfile::tempdir().unwrap();
    let at = |name: &str| upper.path().join(name);
    mknodat(CWD, at("gone"), FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
    fs::create_dir_all(at("replaced/new")).unwrap();
    setxattr(at("replaced"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    fs::create_dir(at("merged")).unwrap();
    setxattr(at("merged"), "trusted.overlay.opaque", b"x", XattrFlags::empty()).unwrap();
    setxattr(at("merged"), "trusted.overlay.impure", b"y", XattrFlags::empty()).unwrap();
    fs::write(at("merged/also-gone"), b"").unwrap();
    setxattr(at("merged/also-gone"), "trusted.overlay.whiteout", b"y", XattrFlags::empty()).unwrap();
    let diff = diff(upper.path());
    let names: Vec<_> = diff.names().iter().map(|n| String::from_utf8(n.clone()).unwrap()).collect();
    let expected = [
        ".wh.gone",
        "merged/",
        "merged/.wh.also-gone",
        "replaced/",
        "replaced/.wh..wh..opq",
        "replaced/new/",
    ];
    assert_eq!(names, expected);
    assert!(
        diff.records("merged/").keys().all(|key| !key.contains("overlay")),
        "{:?}",
        diff.records("merged/")
    );
}

#[test]
fn node_extended_attributes_are_kept_also_of_links() {
    if !is_root() {
        return;
    }
    let upper = tempfile::tempdir().unwrap();
    let at = |name: &str| upper.path().join(name);
    fs::write(at("file"), b"x").unwrap();
    setxattr(at("file"), "trusted.mine", b"\0binary\n=", XattrFlags::empty()).unwrap();
    symlink("nowhere", at("link")).unwrap();
    rustix::fs::lsetxattr(at("link"), "trusted.of-link", b"v", XattrFlags::empty()).unwrap();
    let diff = diff(upper.path());
    // The tar crate cannot read a record with a line break; Go and GNU tar can.
    let holds = |wanted: &[u8]| diff.tar.windows(wanted.len()).any(|bytes| bytes == wanted);
    assert!(holds(b"SCHILY.xattr.trusted.mine=\0binary\n=\n"));
    assert!(holds(b"SCHILY.xattr.trusted.of-link=v\n"));
    let target = tempfile::tempdir().unwrap();
    diff.unpack(target.path());
    let mut value = [0; 32];
    let length = rustix::fs::getxattr(target.path().join("file"), "trusted.mine", &mut value).unwrap();
    assert_eq!(&value[..length], b"\0binary\n=");
}

#[test]
fn node_what_a_lower_layer_holds_is_refused() {
    if !is_root() {
        return;
    }
    for attribute in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        let upper = tempfile::tempdir().unwrap();
        fs::create_dir(upper.path().join("moved")).unwrap();
        setxattr(upper.path().join("moved"), attribute, b"/old", XattrFlags::empty()).unwrap();
        let error = try_diff(upper.path(), &DiffOptions::default()).err().unwrap();
        let text = format!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains(attribute) && text.contains("moved"), "{text}");
    }
}

#[test]
fn what_the_runtime_made_to_mount_upon_is_left_out_and_what_the_application_wrote_is_not() {
    let upper = tempfile::tempdir().unwrap();
    let at = |name: &str| upper.path().join(name);
    for directory in ["etc", "run/woodfrog", "dev", "data", ".woodfrog/checkpoint"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    fs::write(at("etc/hosts"), b"").unwrap();
    fs::write(at("etc/hostname"), b"written before the mount").unwrap();
    fs::write(at("data/file"), b"").unwrap();
    fs::write(at(".woodfrog/checkpoint/core-1.img"), b"").unwrap();
    let mount_points =
        ["/etc/hosts", "/etc/hostname", "/run/woodfrog", "/dev/", "/data"].map(Into::into).into();
    let diff = try_diff(upper.path(), &DiffOptions { mount_points, ..DiffOptions::default() }).unwrap();
    let names: Vec<_> = diff.names().iter().map(|n| String::from_utf8(n.clone()).unwrap()).collect();
    assert_eq!(names, ["data/", "data/file", "etc/", "etc/hostname", "run/"]);
}

#[test]
fn sockets_and_reserved_names_are_skipped_and_named() {
    let upper = tempfile::tempdir().unwrap();
    let _socket = UnixListener::bind(upper.path().join("app.sock")).unwrap();
    fs::write(upper.path().join(".wh.file"), b"").unwrap();
    let diff = diff(upper.path());
    let skipped: Vec<_> = diff.report.skipped.iter().map(|s| (s.path.to_str().unwrap(), s.reason)).collect();
    assert_eq!(skipped, [(".wh.file", SkipReason::ReservedName), ("app.sock", SkipReason::Socket)]);
    assert_eq!(diff.report.entries, 0);
}

#[test]
fn holes_are_zeros_for_every_reader() {
    let upper = tempfile::tempdir().unwrap();
    let file = File::create(upper.path().join("sparse")).unwrap();
    file.write_all_at(b"end", (64 << 20) - 3).unwrap();
    let diff = diff(upper.path());
    let mut archive = tar::Archive::new(diff.tar.as_slice());
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    let mut content = Vec::new();
    entry.read_to_end(&mut content).unwrap();
    assert_eq!(content.len(), 64 << 20);
    assert!(content.ends_with(b"\0end"));
    assert!(diff.report.bytes < 1 << 20, "only data counts: {}", diff.report.bytes);
}

#[test]
fn a_diff_beyond_its_cap_is_refused_by_name() {
    let upper = tempfile::tempdir().unwrap();
    File::create(upper.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
    let error = try_diff(upper.path(), &DiffOptions::default()).err().unwrap();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("huge") && source.contains("68719476736"), "{source}");
}

#[test]
fn links_out_of_the_tree_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), b"secret").unwrap();
    let upper = tempfile::tempdir().unwrap();
    symlink(outside.path(), upper.path().join("directory")).unwrap();
    symlink(outside.path().join("secret"), upper.path().join("file")).unwrap();
    let diff = diff(upper.path());
    assert_eq!(diff.names(), [b"directory".to_vec(), b"file".to_vec()]);
    assert!(
        !diff.tar.windows(6).any(|bytes| bytes == b"secret" && !diff.tar.is_empty())
            || diff.report.bytes == 0
    );
}

#[test]
fn a_tree_that_changes_while_it_is_read_makes_a_whole_archive() {
    let upper = tempfile::tempdir().unwrap();
    let path = upper.path().to_owned();
    for name in 0..50 {
        fs::write(path.join(format!("{name:02}")), vec![b'x'; 100_000]).unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0usize;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                let file = path.join(format!("{:02}", turn * 7 % 50));
                match turn % 3 {
                    0 => drop(fs::remove_file(&file)),
                    1 => drop(fs::write(&file, vec![b'y'; turn * 997 % 300_000])),
                    _ => drop(
                        File::options()
                            .write(true)
                            .open(&file)
                            .map(|f| f.set_len((turn * 31 % 90_000) as u64)),
                    ),
                }
            }
        });
        for _ in 0..20 {
            let diff = diff(&path);
            let mut archive = tar::Archive::new(diff.tar.as_slice());
            let read = archive.entries().unwrap().map(|entry| {
                let mut entry = entry.unwrap();
                std::io::copy(&mut entry, &mut std::io::sink()).unwrap()
            });
            assert!(read.count() as u64 == diff.report.entries);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
