//! CRIU as it lies on the node: the binary, its loader and its libraries, opened once.
//!
//! They are used by descriptor from then on, so that CRIU runs in a container whose image has none of them:
//! `ld.so --library-path /proc/self/fd/L /proc/self/fd/B swrk N`. What the image does have must not be run or read either,
//! for CRIU has more rights than the container: so it gets its own loader (see `loader.rs`), and an empty directory
//! in place of plugins and `PATH`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use elf::ElfBytes;
use elf::abi::PT_INTERP;
use elf::endian::NativeEndian;
use rustix::io::Errno;

use crate::{light, loader};

/// A CRIU that can be started. Cheap to share (behind an `Arc`), never written to.
#[derive(Debug)]
pub struct Toolchain {
    path: PathBuf,
    binary: File,
    linked: Option<Linked>,
    nothing: OwnedFd,
    breakpoint: Option<OwnedFd>,
}

/// What a dynamic binary needs besides itself.
#[derive(Debug)]
struct Linked {
    loader: File,
    libraries: Vec<File>,
    /// The binary without [`UNUSED`], if it starts like that.
    light: Option<File>,
}

/// Libraries of which a restore calls nothing that keeps no connections: Debian's CRIU loads 14 more for them, which takes 2 of 4 ms.
const UNUSED: [&str; 2] = ["libgnutls.so.30", "libnftables.so.1"];

/// Why there is no usable CRIU at a path.
#[derive(Debug, thiserror::Error)]
pub enum ToolchainError {
    /// A file or directory that cannot be opened.
    #[error("cannot open {path} for CRIU: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no empty directory to be had.
    #[error("cannot make an empty tmpfs for CRIU: {0}; is this root?")]
    Empty(Errno),
    /// The binary is not one.
    #[error("{path} is not an ELF program for this machine: {reason}")]
    NotElf {
        /// The file.
        path: PathBuf,
        /// What the ELF parser said.
        reason: String,
    },
    /// It does not work on this kernel.
    #[error("`{command}` failed: {said}")]
    Unusable {
        /// What was run.
        command: String,
        /// What it printed.
        said: String,
    },
    /// The loader does not find all libraries.
    #[error("{loader} cannot load {path}: {reason}; are CRIU's libraries installed?")]
    Libraries {
        /// The dynamic loader.
        loader: PathBuf,
        /// The CRIU binary.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
}

impl Toolchain {
    /// Opens the binary at `path` and asks its loader for the libraries. Blocks for a few milliseconds.
    pub fn open(path: &Path) -> Result<Self, ToolchainError> {
        let bytes = std::fs::read(path).map_err(|source| open_error(path, source))?;
        let linked =
            interpreter(path, &bytes)?.map(|loader| Linked::open(path, &loader, bytes)).transpose()?;
        let nothing = woodfrog_sys::mount::empty_directory().map_err(ToolchainError::Empty)?;
        // On machines without, and where the first one would take its time at every restore, CRIU does without.
        let breakpoint = woodfrog_sys::breakpoint::hold().ok();
        Ok(Self { path: path.to_owned(), binary: open(path)?, linked, nothing, breakpoint })
    }

    /// Whether CRIU may set hardware breakpoints, which is faster the more threads there are.
    pub(crate) fn uses_breakpoints(&self) -> bool {
        self.breakpoint.is_some()
    }

    /// Where the binary lies on the node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An empty directory.
    pub(crate) fn nothing(&self) -> BorrowedFd<'_> {
        self.nothing.as_fd()
    }

    /// What is executed: the loader, or the binary itself if it is static.
    pub(crate) fn program(&self) -> BorrowedFd<'_> {
        self.linked.as_ref().map_or(self.binary.as_fd(), |linked| linked.loader.as_fd())
    }

    /// The binary and its library directories, if it needs a loader. If `light`, it is one that can do nothing but restore what has no connections.
    pub(crate) fn loaded(&self, light: bool) -> Option<(BorrowedFd<'_>, &[File])> {
        let linked = self.linked.as_ref()?;
        let binary = linked.light.as_ref().filter(|_| light).unwrap_or(&self.binary);
        Some((binary.as_fd(), &linked.libraries))
    }
}

impl Linked {
    fn open(path: &Path, loader: &Path, program: Vec<u8>) -> Result<Self, ToolchainError> {
        let output = Command::new(loader).arg("--list").arg(path).output();
        let output = output.map_err(|source| open_error(loader, source))?;
        let listing = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || listing.contains("not found") {
            let reason = format!("{listing}{}", String::from_utf8_lossy(&output.stderr));
            let (loader, path) = (loader.to_owned(), path.to_owned());
            return Err(ToolchainError::Libraries {
                loader,
                path,
                reason: reason.trim().replace('\n', "; "),
            });
        }
        let directories = library_directories(&listing);
        let libraries = directories.iter().map(|directory| open(directory)).collect::<Result<_, _>>()?;
        let copy = std::fs::read(loader).and_then(loader::private_copy);
        let copy = copy.map_err(|source| open_error(loader, source))?;
        Ok(Self { loader: copy, libraries, light: light(loader, program) })
    }
}

/// A program without [`UNUSED`], if it starts.
fn light(loader: &Path, mut program: Vec<u8>) -> Option<File> {
    light::without(&mut program, &UNUSED)?;
    let light = loader::sealed(c"criu", &program).ok()?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), light.as_raw_fd());
    let output = Command::new(loader).args([&path, "--version"]).output();
    output.is_ok_and(|output| output.status.success()).then_some(light)
}

/// The directories in the output of `ld.so --list`, whose lines read `libc.so.6 => /lib/…/libc.so.6 (0x7f…)`.
fn library_directories(listing: &str) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for line in listing.lines() {
        let Some((_, found)) = line.split_once("=> ") else { continue };
        let file = found.rsplit_once(" (").map_or(found, |(file, _)| file);
        if let Some(directory) = Path::new(file.trim()).parent().filter(|directory| directory.is_absolute())
            && !directories.iter().any(|known| known == directory)
        {
            directories.push(directory.to_owned());
        }
    }
    directories
}

/// The path in `PT_INTERP`; none in a static binary.
fn interpreter(path: &Path, bytes: &[u8]) -> Result<Option<PathBuf>, ToolchainError> {
    let refuse = |reason: String| ToolchainError::NotElf { path: path.to_owned(), reason };
    let elf = ElfBytes::<NativeEndian>::minimal_parse(bytes).map_err(|error| refuse(error.to_string()))?;
    let Some(segments) = elf.segments() else { return Err(refuse("it has no program headers".to_owned())) };
    let Some(segment) = segments.iter().find(|segment| segment.p_type == PT_INTERP) else { return Ok(None) };
    let name = elf.segment_data(&segment).map_err(|error| refuse(error.to_string()))?;
    let name = name.strip_suffix(b"\0").unwrap_or(name);
    Ok(Some(PathBuf::from(OsStr::from_bytes(name))))
}

fn open(path: &Path) -> Result<File, ToolchainError> {
    File::open(path).map_err(|source| open_error(path, source))
}

fn open_error(path: &Path, source: io::Error) -> ToolchainError {
    ToolchainError::Open { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn library_directories_are_each_named_once() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibprotobuf-c.so.1 => /lib/x86_64-linux-gnu/libprotobuf-c.so.1 (0x00007f01)\n\
            \tlibnl-3.so.200 => /opt/criu (1)/lib/libnl-3.so.200 (0x00007f02)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f03)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f04)\n";
        let expected = [PathBuf::from("/lib/x86_64-linux-gnu"), PathBuf::from("/opt/criu (1)/lib")];
        assert_eq!(library_directories(listing), expected);
    }

    #[test]
    fn a_dynamic_binary_is_opened_with_its_loader_and_libraries() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // Any dynamic binary will do, and this test is one.
        let toolchain = Toolchain::open(&std::env::current_exe().unwrap()).unwrap();
        let (_, libraries) = toolchain.loaded(true).unwrap();
        assert!(!libraries.is_empty());
    }

    #[test]
    fn a_file_that_is_no_program_is_refused_by_name() {
        let error = Toolchain::open(Path::new("/etc/passwd")).unwrap_err();
        assert!(error.to_string().starts_with("/etc/passwd is not an ELF program"), "{error}");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Toolchain::open(Path::new("/nowhere/criu")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/criu"), "{error}");
    }
}
