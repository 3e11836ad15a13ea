//! CRIU's image files out of a state layer, in a directory of their own.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use woodfrog_criu::images::{Checkpoint, ImageDir};
use woodfrog_image::labels;

/// Most bytes that are unpacked: the files without memory are far smaller.
const MAX_BYTES: u64 = 1 << 30;

/// Unpacks CRIU's files of `blob` into `dir` and reads them.
///
/// # Errors
/// In words: the archive is damaged, or CRIU's files are not understood.
pub(super) fn open(blob: File, dir: &Path) -> Result<Checkpoint, String> {
    unpack(blob, dir).map_err(|e| format!("the state layer cannot be read: {e}"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| e.to_string())?;
    Checkpoint::open(&ImageDir::new(dir), &[]).map_err(|e| super::chain(&e))
}

/// Writes the files `NAME.img` that lie directly in the checkpoint's directory; nothing else of the archive, which is
/// not to be trusted, becomes a path.
fn unpack(mut blob: File, dir: &Path) -> io::Result<()> {
    io::Seek::rewind(&mut blob)?;
    std::fs::create_dir(dir)?;
    let mut archive = tar::Archive::new(zstd::Decoder::new(blob)?.take(MAX_BYTES));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.strip_prefix(labels::CHECKPOINT_DIR).ok().and_then(Path::to_str);
        let Some(name) = name.filter(|name| name.ends_with(".img") && !name.contains('/')) else { continue };
        if entry.header().entry_type().is_file() {
            io::copy(&mut entry, &mut File::create_new(dir.join(name))?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(files: &[(&str, &[u8])]) -> File {
        let mut encoder = zstd::Encoder::new(tempfile::tempfile().unwrap(), 1).unwrap();
        let mut tar = tar::Builder::new(&mut encoder);
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.finish().unwrap();
        drop(tar);
        encoder.finish().unwrap()
    }

    #[test]
    fn only_image_files_of_the_checkpoint_are_unpacked() {
        let blob = layer(&[
            (".woodfrog/checkpoint/pstree.img", b"tree"),
            (".woodfrog/checkpoint/woodfrog.json", b"{}"),
            (".woodfrog/checkpoint/volumes/0.img", b"volume"),
            (".woodfrog/checkpoint/../evil.img", b"evil"),
            ("etc/passwd.img", b"evil"),
        ]);
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("state");
        unpack(blob, &dir).unwrap();
        let names: Vec<_> =
            std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["pstree.img"]);
        assert_eq!(std::fs::read(dir.join("pstree.img")).unwrap(), b"tree");
    }

    #[test]
    fn a_damaged_layer_says_so() {
        let scratch = tempfile::tempdir().unwrap();
        let mut blob = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut blob, b"no zstd at all").unwrap();
        assert!(open(blob, &scratch.path().join("a")).unwrap_err().contains("state layer"));
        let no_files = layer(&[(".woodfrog/checkpoint/woodfrog.json", b"{}")]);
        assert!(open(no_files, &scratch.path().join("b")).unwrap_err().contains("inventory.img"));
    }
}
