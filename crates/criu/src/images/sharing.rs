//! Anonymous memory as private mappings of a file, so that many restores of one checkpoint share it.
//!
//! ```text
//!   before   VMA anonymous, private            pages in pages-N.img, marked lazy
//!   after    VMA private of file mem-PID       the pages stay marked: CRIU skips them, whatever they lie in
//! ```
//!
//! In that file a page's offset is its address, so that neighbours are one mapping, as anonymous ones are. On its own such a mapping is not
//! like anonymous memory: who gives pages up gets the file's instead of zeros. Whoever restores has to see to that (userfaultfd).

use super::messages::file::{File, FileType, Fown, RegFile};
use super::messages::memory::{Mm, Vma, map, prot, status};
use super::task::Body;

/// Advice that a mapping of a file follows as anonymous memory does: not to fork, huge pages or none, to be in core dumps or not.
/// Bits are numbers of `MADV_…`. Not to be wiped on fork, which the kernel refuses for files, nor to be merged.
const ADVICE: u64 = (1 << 10) | (1 << 14) | (1 << 15) | (1 << 16) | (1 << 17);

impl Body {
    /// The mappings that may become mappings of a file: anonymous, private, with pages that may come later, and nothing about them that
    /// would be different in a file.
    ///
    /// What is executable is left out, for security modules treat mappings of files otherwise; what has guard regions
    /// (`MADV_GUARD_INSTALL`), because the kernel does not tell when they are removed.
    pub fn sharable(&self) -> impl Iterator<Item = &Vma> {
        let guards: Vec<&Vma> = self.mm.vmas.iter().filter(|vma| vma.status & status::GUARD != 0).collect();
        let mut runs = self.pages.runs.iter().peekable();
        self.mm.vmas.iter().filter(move |vma| {
            if !is_sharable(vma) || guards.iter().any(|guard| guard.start < vma.end && vma.start < guard.end)
            {
                return false;
            }
            while runs.next_if(|run| run.end() <= vma.start || !run.is_lazy()).is_some() {}
            runs.peek().is_some_and(|run| run.vaddr < vma.end)
        })
    }
}

fn is_sharable(vma: &Vma) -> bool {
    let kind = status::REGULAR | status::ANON_PRIVATE;
    vma.status & !status::HEAP == kind
        && vma.flags & map::TYPE == map::PRIVATE
        && vma.flags & map::ANONYMOUS != 0
        && vma.flags & (map::GROWSDOWN | map::LOCKED | map::HUGETLB) == 0
        && vma.prot & prot::EXEC == 0
        && vma.madv.unwrap_or(0) & !ADVICE == 0
}

/// Makes the mappings that begin at `starts`, ascending, mappings of the file with this id.
pub(super) fn share(mm: &mut Mm, starts: &[u64], file: u32) {
    for vma in mm.vmas.iter_mut().filter(|vma| is_sharable(vma) && starts.binary_search(&vma.start).is_ok()) {
        vma.pgoff = vma.start;
        vma.shmid = file.into();
        vma.flags &= !map::ANONYMOUS;
        vma.status = vma.status & !status::ANON_PRIVATE | status::FILE_PRIVATE;
        // Read-only.
        vma.fdflags = Some(0);
    }
}

/// An entry of `files.img` for a file that CRIU is handed, under the key [`key`].
pub(super) fn file(id: u32, pid: u32) -> File {
    let reg = RegFile {
        id,
        fown: Fown { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 },
        name: format!("/{}", key(pid)),
        mnt_id: Some(-1),
        ..RegFile::default()
    };
    File { r#type: FileType::Reg.into(), id, reg: Some(Box::new(reg)), ..File::default() }
}

/// CRIU's key for a file that is handed to it: its path without the leading slash.
pub(super) fn key(pid: u32) -> String {
    format!(".woodfrog/memory-{pid}")
}
