//! The dynamic loader as it runs in a container: a private copy that reads no file of the container's.
//!
//! CRIU runs as root, with all capabilities, and in the mount namespace of a container that may be hostile. glibc's
//! loader loads whatever library `/etc/ld.so.preload` names, and no option keeps it from that. So what is executed is a
//! sealed copy in memory, in which the two paths that it would open there name nothing.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// Paths in glibc's loader (`elf/rtld.c`, `sysdeps/generic/dl-cache.h`), and paths of the same length that cannot exist,
/// since no name in that directory is anything but a number.
const REPLACED: [(&[u8], &[u8]); 2] =
    [(b"/etc/ld.so.preload\0", b"/proc/self/fd/none\0"), (b"/etc/ld.so.cache\0", b"/proc/self/fd/no\0")];

/// A copy of the loader that opens no file of the container's.
pub(crate) fn private_copy(mut bytes: Vec<u8>) -> io::Result<File> {
    for (path, replacement) in REPLACED {
        replace(&mut bytes, path, replacement);
    }
    sealed(c"criu-loader", &bytes)
}

/// A program in memory that can be executed, and not be written to.
pub(crate) fn sealed(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memfd = match rustix::fs::memfd_create(name, flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 know no MFD_EXEC, and need none.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        result => result?,
    };
    let mut file = File::from(memfd);
    file.write_all(bytes)?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(file)
}

fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    let mut start = 0;
    while let Some(found) = bytes[start..].windows(old.len()).position(|window| window == old) {
        bytes[start + found..][..new.len()].copy_from_slice(new);
        start += found + new.len();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn every_occurrence_is_replaced_and_nothing_else() {
        let mut bytes = b"a/etc/ld.so.preload\0b/etc/ld.so.preload\0/etc/ld.so.preloads\0".to_vec();
        replace(&mut bytes, REPLACED[0].0, REPLACED[0].1);
        assert_eq!(bytes, b"a/proc/self/fd/none\0b/proc/self/fd/none\0/etc/ld.so.preloads\0");
    }

    #[test]
    fn replacements_are_as_long_as_what_they_replace() {
        assert!(REPLACED.iter().all(|(old, new)| old.len() == new.len()));
    }

    #[test]
    fn the_copy_cannot_be_written_to() {
        let mut copy = private_copy(b"loader".to_vec()).unwrap();
        assert!(copy.write_all(b"x").is_err());
        copy.rewind().unwrap();
        let mut bytes = Vec::new();
        copy.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"loader");
    }
}
