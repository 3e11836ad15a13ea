//! A volume is carried whole, or refused with a reason; an archive that comes with an image can write nowhere else.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat};
use woodfrog_image::*;

const CAP: u64 = 8 << 20;

/// The volume's archive, by way of an image as on a node.
fn try_carry(volume: &Path, cap: u64) -> Result<(Vec<u8>, VolumeReport), BuildError> {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path()).unwrap();
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record());
    let opened = File::open(volume).unwrap();
    let source = VolumeSource {
        mount_path: "/var/cache/app",
        kind: VolumeKind::EmptyDir,
        directory: opened.as_fd(),
        cap,
    };
    let report = builder.volume(&source)?;
    let image = builder.finish().unwrap();
    let state = &image.new_layers[0];
    let unpacked = directory.path().join("unpacked");
    let blob = store.get(&state.digest, state.size).unwrap().unwrap();
    tar::Archive::new(zstd::Decoder::new(blob).unwrap()).unpack(&unpacked).unwrap();
    let archive = unpacked.join(labels::CHECKPOINT_DIR).join(&image.record.volumes[0].archive.name);
    Ok((fs::read(archive).unwrap(), report))
}

fn carry(volume: &Path) -> Vec<u8> {
    try_carry(volume, CAP).unwrap().0
}

fn lay(archive: &[u8], target: &Path) -> Result<LayOutReport, LayOutError> {
    lay_out(archive, File::open(target).unwrap(), CAP)
}

#[test]
fn a_volume_comes_back_as_it_was() {
    let volume = tempfile::tempdir().unwrap();
    let at = |name: &str| volume.path().join(name);
    fs::create_dir_all(at("deep/er")).unwrap();
    fs::write(at("deep/er/file"), b"warm").unwrap();
    fs::set_permissions(at("deep/er/file"), fs::Permissions::from_mode(0o4640)).unwrap();
    fs::hard_link(at("deep/er/file"), at("same")).unwrap();
    symlink("/etc/passwd", at("link")).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    rustix::fs::setxattr(at("deep"), "user.note", b"k\n\0pt", XattrFlags::empty()).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(at("deep"), Some(1234), Some(5678)).unwrap();
    }
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 7);
    File::open(at("deep/er")).unwrap().set_modified(time).unwrap();

    let (archive, report) = try_carry(volume.path(), CAP).unwrap();
    assert_eq!(report.skipped, [Skipped { path: "socket".into(), reason: SkipReason::Socket }]);
    let target = tempfile::tempdir().unwrap();
    // Twice, as after a thaw that was interrupted.
    for _ in 0..2 {
        lay(&archive, target.path()).unwrap();
        let to = |name: &str| target.path().join(name);
        assert_eq!(fs::read(to("deep/er/file")).unwrap(), b"warm");
        let file = fs::metadata(to("deep/er/file")).unwrap();
        assert_eq!((file.mode() & 0o7777, file.nlink()), (0o4640, 2));
        assert_eq!(file.ino(), fs::metadata(to("same")).unwrap().ino());
        assert_eq!(fs::read_link(to("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(fs::metadata(to("fifo")).unwrap().file_type().is_fifo());
        let mut value = [0; 8];
        let length = rustix::fs::getxattr(to("deep"), "user.note", &mut value).unwrap();
        assert_eq!(&value[..length], b"k\n\0pt");
        let directory = fs::metadata(to("deep/er")).unwrap();
        assert_eq!((directory.mtime(), directory.mtime_nsec()), (1_600_000_000, 7));
        if root {
            let owner = fs::metadata(to("deep")).unwrap();
            assert_eq!((owner.uid(), owner.gid()), (1234, 5678));
        }
    }
}

#[test]
fn holes_stay_holes() {
    let volume = tempfile::tempdir().unwrap();
    let file = File::create(volume.path().join("database")).unwrap();
    file.write_all_at(b"first", 0).unwrap();
    file.write_all_at(b"second", 1 << 30).unwrap();
    file.set_len(2 << 30).unwrap();
    File::create(volume.path().join("all-hole")).unwrap().set_len(1 << 40).unwrap();
    let archive = carry(volume.path());
    assert!(archive.len() < 1 << 20, "{}", archive.len());
    let target = tempfile::tempdir().unwrap();
    let report = lay(&archive, target.path()).unwrap();
    assert!(report.bytes < 1 << 20);
    let laid = File::open(target.path().join("database")).unwrap();
    let metadata = laid.metadata().unwrap();
    assert_eq!(metadata.len(), 2 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20);
    let mut found = [0; 6];
    laid.read_exact_at(&mut found, 1 << 30).unwrap();
    assert_eq!(&found, b"second");
    assert_eq!(fs::metadata(target.path().join("all-hole")).unwrap().len(), 1 << 40);
}

#[test]
fn gnu_tar_reads_the_archive_too() {
    let volume = tempfile::tempdir().unwrap();
    let file = File::create(volume.path().join("sparse")).unwrap();
    file.write_all_at(b"data", 5 << 20).unwrap();
    file.set_len(9 << 20).unwrap();
    let archive = carry(volume.path());
    let target = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new("tar")
        .args(["-x", "-C"])
        .arg(target.path())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(child.wait().unwrap().success());
    let read = fs::read(target.path().join("sparse")).unwrap();
    assert_eq!((read.len(), &read[5 << 20..][..4]), (9 << 20, &b"data"[..]));
}

#[test]
fn a_volume_beyond_the_cap_is_refused_with_its_name_its_size_and_the_cap() {
    let volume = tempfile::tempdir().unwrap();
    for name in ["one", "two", "three"] {
        fs::write(volume.path().join(name), vec![1; 1 << 20]).unwrap();
    }
    let error = try_carry(volume.path(), 2 << 20).unwrap_err();
    let BuildError::Volume(VolumeError::TooLarge { mount_path, bytes, cap }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!((mount_path.as_str(), *cap), ("/var/cache/app", 2 << 20));
    assert!((3 << 20..4 << 20).contains(bytes), "{bytes}");
    assert!(error.to_string().contains("/var/cache/app") && error.to_string().contains("2097152"), "{error}");
}

#[test]
fn many_empty_files_count_too() {
    let volume = tempfile::tempdir().unwrap();
    for name in 0..200 {
        fs::write(volume.path().join(name.to_string()), b"").unwrap();
    }
    assert!(matches!(
        try_carry(volume.path(), 64 << 10),
        Err(BuildError::Volume(VolumeError::TooLarge { .. }))
    ));
}

/// An archive of one entry that no builder of ours would write.
fn hostile(kind: tar::EntryType, path: &[u8], link: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.as_mut_bytes()[..path.len()].copy_from_slice(path);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, content).unwrap();
    tar.into_inner().unwrap()
}

fn joined(archives: &[Vec<u8>]) -> Vec<u8> {
    // Without the zero blocks at the ends.
    archives.iter().flat_map(|archive| archive[..archive.len() - 1024].to_vec()).chain([0; 1024]).collect()
}

#[test]
fn an_archive_cannot_write_outside_of_the_volume() {
    use tar::EntryType as T;
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("victim");
    fs::write(&secret, b"untouched").unwrap();
    let out: PathBuf = outside.path().into();
    let out = out.to_str().unwrap().as_bytes();
    let absolute = [out, b"/victim"].concat();
    let link = hostile(T::Symlink, b"link", out, b"");
    let archives = [
        hostile(T::Regular, b"../victim", b"", b"evil"),
        hostile(T::Regular, &absolute, b"", b"evil"),
        hostile(T::Regular, b"a/../../victim", b"", b"evil"),
        joined(&[link.clone(), hostile(T::Regular, b"link/victim", b"", b"evil")]),
        joined(&[link.clone(), hostile(T::Directory, b"link/made", b"", b"")]),
        joined(&[link, hostile(T::Link, b"hard", b"link/victim", b"")]),
        hostile(T::Link, b"hard", &absolute, b""),
        hostile(T::Link, b"hard", b"../victim", b""),
        hostile(T::Char, b"null", b"", b""),
        hostile(T::Block, b"disk", b"", b""),
        hostile(T::GNUSparse, b"sparse", b"", b""),
        hostile(T::Regular, b"", b"", b"evil"),
    ];
    for (number, archive) in archives.iter().enumerate() {
        let target = tempfile::tempdir_in(outside.path()).unwrap();
        let error = lay(archive, target.path()).expect_err(&format!("archive {number}"));
        assert!(!matches!(error, LayOutError::Archive(_)), "archive {number} is well-formed: {error:?}");
        assert_eq!(fs::read(&secret).unwrap(), b"untouched", "archive {number}");
        assert!(!outside.path().join("made").exists());
    }
}

#[test]
fn a_link_in_the_way_is_replaced_and_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("victim");
    fs::write(&secret, b"untouched").unwrap();
    let target = tempfile::tempdir().unwrap();
    symlink(&secret, target.path().join("file")).unwrap();
    symlink(outside.path(), target.path().join("directory")).unwrap();
    let archive = joined(&[
        hostile(tar::EntryType::Regular, b"file", b"", b"new"),
        hostile(tar::EntryType::Directory, b"directory/", b"", b""),
    ]);
    lay(&archive, target.path()).unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"untouched");
    assert_eq!(fs::read(target.path().join("file")).unwrap(), b"new");
    assert!(fs::symlink_metadata(target.path().join("directory")).unwrap().is_dir());
}

#[test]
fn an_archive_beyond_the_cap_is_not_laid_out() {
    let big = hostile(tar::EntryType::Regular, b"big", b"", &vec![1; CAP as usize + 1]);
    let target = tempfile::tempdir().unwrap();
    assert!(matches!(lay(&big, target.path()), Err(LayOutError::TooLarge { cap: CAP })));
}

#[test]
fn a_truncated_archive_is_an_error() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), vec![7; 100_000]).unwrap();
    let archive = carry(volume.path());
    let target = tempfile::tempdir().unwrap();
    assert!(matches!(lay(&archive[..50_000], target.path()), Err(LayOutError::Archive(_))));
}

/// A tmpfs that ends with this value.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        match rustix::mount::mount("tmpfs", directory.path(), "tmpfs", flags, options.as_c_str()) {
            Ok(()) => Some(Self(directory)),
            Err(e) => {
                let required = std::env::var("WOODFROG_REQUIRE").unwrap_or_default();
                assert!(!required.contains("node"), "a tmpfs is required: {e}");
                eprintln!("skipped: a tmpfs cannot be mounted ({e})");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn node_a_full_disk_is_said_to_be_full() {
    let Some(disk) = Tmpfs::new("2m") else { return };
    let store = BlobStore::open(disk.0.path().join("store")).unwrap();
    let pages = tempfile::tempdir().unwrap();
    let mut random = File::open("/dev/urandom").unwrap();
    let mut file = File::create(pages.path().join("pages-1.img")).unwrap();
    std::io::copy(&mut std::io::Read::take(&mut random, 16 << 20), &mut file).unwrap();
    let mut builder = ImageBuilder::new(&store, support::Base::new(&store).image(), support::record());
    let error = builder.memory(&[pages.path().join("pages-1.img")]).unwrap_err();
    assert!(matches!(error, BuildError::Store(StoreError::Full { .. })), "{error:?}");
    assert!(error.to_string().contains(disk.0.path().to_str().unwrap()), "{error}");
    // Nothing of it stays, so there is room again.
    store.put(&vec![1; 1 << 20]).unwrap();

    let archive = hostile(tar::EntryType::Regular, b"big", b"", &vec![1; 4 << 20]);
    let error = lay(&archive, disk.0.path()).unwrap_err();
    assert!(matches!(&error, LayOutError::Full { path } if path == Path::new("big")), "{error:?}");
}
