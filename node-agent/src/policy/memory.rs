//! Address spaces: mappings of known kinds, in order, within the user's half; locked memory; page maps inside them.

use std::fmt;

use woodfrog_criu::images::messages::memory::{Vma, status};
use woodfrog_criu::images::{Body, PAGE_SIZE};

use super::Rules;
use super::files::OPEN_FLAGS;
use super::paths::{Access, Opening};
use super::requirement::{Need, Requirement};
use super::tasks::MAX_AIO;
use super::violation::{TAMPERED, process};

/// Lowest address of a mapping (the kernel's `vm.mmap_min_addr` everywhere); below it takes CAP_SYS_RAWIO.
const LOWEST: u64 = 65_536;
/// Past the last address of a process, with five-level page tables.
const HIGHEST: u64 = 1 << 56;
/// Where x86-64 has its vsyscall page, outside every process's own half.
const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;

/// Kinds that a dump of a container's processes holds. Not System V segments (they belong to an IPC namespace),
/// mapped sockets, uprobes or what plugins bring.
const KINDS: u32 = status::REGULAR
    | status::STACK
    | status::VSYSCALL
    | status::VDSO
    | status::HEAP
    | status::FILE_PRIVATE
    | status::FILE_SHARED
    | status::ANON_SHARED
    | status::ANON_PRIVATE
    | status::VVAR
    | status::AIORING
    | status::MEMFD
    | status::SHSTK
    | status::GUARD;

/// `mmap` flags: shared, private, droppable, fixed, anonymous, 32-bit, grows down, deny-write, executable, locked,
/// no-reserve, stack, huge pages and their size.
const MAP_FLAGS: u32 = 0xfc06_797b;
const MAP_LOCKED: u32 = 0x2000;
const MAP_TYPE: u32 = 0x0f;
const MAP_SHARED: u32 = 0x01;
/// Read, write, execute, and grows-down.
const PROTECTIONS: u32 = 0x0100_0007;
const PROT_WRITE: u32 = 2;

const SUPPORTED: &str = "freeze the pod without this mapping; it is not supported";

/// Addresses, for messages.
#[derive(Clone, Copy)]
struct Range(u64, u64);

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.0, self.1)
    }
}

pub(super) fn judge(rules: &mut Rules<'_>) {
    for task in &rules.images.tasks {
        let Some(body) = &task.body else { continue };
        let who = process(task);
        let mut end = 0;
        let mut locked = 0u64;
        for vma in &body.mm.vmas {
            mapping(rules, vma, end, &who);
            file(rules, vma, &who);
            if vma.status & (status::VSYSCALL | status::GUARD) == 0 {
                end = vma.end;
            }
            if vma.flags & MAP_LOCKED != 0 {
                locked = locked.saturating_add(vma.end.saturating_sub(vma.start));
            }
        }
        if locked > 0 {
            let value = format!("{locked} bytes of locked memory");
            let need = Need::Locked(locked);
            rules.requirements.push(Requirement { who: who.clone(), field: "vmas", value, need });
        }
        let aio = body.mm.aios.iter().fold(0u32, |sum, ring| sum.saturating_add(ring.nr_req));
        rules.report.require(
            aio <= MAX_AIO,
            &who,
            "aios",
            aio,
            format!("at most {MAX_AIO} requests"),
            SUPPORTED,
        );
        let dumpable = body.mm.dumpable.unwrap_or(1);
        rules.report.require((0..=2).contains(&dumpable), &who, "dumpable", dumpable, "0 to 2", TAMPERED);
        pages(rules, body, &who);
    }
}

fn mapping(rules: &mut Rules<'_>, vma: &Vma, previous_end: u64, who: &str) {
    let report = &mut rules.report;
    let at = Range(vma.start, vma.end);
    let own_half = vma.start >= LOWEST && vma.end <= HIGHEST;
    let vsyscall =
        vma.status & status::VSYSCALL != 0 && vma.start == VSYSCALL && vma.end == VSYSCALL + PAGE_SIZE;
    report.require(own_half || vsyscall, who, "vmas", at, Range(LOWEST, HIGHEST), TAMPERED);
    let shaped =
        vma.start < vma.end && vma.start.is_multiple_of(PAGE_SIZE) && vma.end.is_multiple_of(PAGE_SIZE);
    // Guards lie inside the mappings that they guard and come after all others.
    let ordered = vma.start >= previous_end || vma.status & status::GUARD != 0;
    report.require(shaped && ordered, who, "vmas", at, "pages in ascending order without overlap", TAMPERED);
    for (field, bits, known) in [
        ("vma status", vma.status, KINDS),
        ("vma flags", vma.flags, MAP_FLAGS),
        ("vma prot", vma.prot, PROTECTIONS),
    ] {
        let unknown = bits & !known;
        if unknown != 0 {
            report.refuse(
                who,
                field,
                format!("{unknown:#x} at {at}"),
                format!("bits of {known:#x}"),
                SUPPORTED,
            );
        }
    }
}

/// A mapping of a file needs that file opened in the mode that CRIU will open it in.
fn file(rules: &mut Rules<'_>, vma: &Vma, who: &str) {
    const RDWR: u32 = 2;
    if vma.status & (status::FILE_PRIVATE | status::FILE_SHARED) == 0 && vma.status & status::MEMFD == 0 {
        return;
    }
    let at = || format!("{:#x} of {}", vma.shmid, Range(vma.start, vma.end));
    let Some(file) = u32::try_from(vma.shmid).ok().and_then(|id| rules.images.files.get(&id)) else {
        return rules.report.refuse(who, "vma file", at(), "an entry of files.img", TAMPERED);
    };
    let shared_write = vma.flags & MAP_TYPE == MAP_SHARED && vma.prot & PROT_WRITE != 0;
    // CRIU's own default, for images that do not say.
    let flags = vma.fdflags.unwrap_or(if shared_write { RDWR } else { 0 });
    let known = flags & !OPEN_FLAGS == 0 && flags & 3 != 3 && (!shared_write || flags & 3 == RDWR);
    rules.report.require(known, who, "vma fdflags", format!("{flags:#x}"), "flags of an open file", TAMPERED);
    let is_memfd = vma.status & status::MEMFD != 0;
    match (&file.reg, &file.memfd) {
        (Some(reg), None) if !is_memfd => {
            let opening = Opening::file(file.id, reg, Access::from_flags(flags), format!("{who} maps it"));
            rules.openings.push(opening);
        }
        (None, Some(_)) if is_memfd => {}
        _ => rules.report.refuse(
            who,
            "vma file",
            at(),
            "a regular file or memfd, as its status says",
            TAMPERED,
        ),
    }
}

/// Stored pages belong to private mappings; CRIU would stop at others, half-way through a restore.
fn pages(rules: &mut Rules<'_>, body: &Body, who: &str) {
    let mut vmas = body.mm.vmas.iter().filter(|vma| vma.status & status::GUARD == 0).peekable();
    for run in &body.pages.runs {
        let (start, end) = (run.vaddr, run.vaddr + run.pages() * PAGE_SIZE);
        let mut at = start;
        while at < end {
            while vmas.next_if(|vma| vma.end <= at).is_some() {}
            match vmas.peek() {
                Some(vma) if vma.start <= at => at = vma.end,
                _ => break,
            }
        }
        rules.report.require(at >= end, who, "pagemap", Range(start, end), "pages of its mappings", TAMPERED);
    }
}
