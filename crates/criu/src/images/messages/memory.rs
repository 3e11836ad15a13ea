//! Address spaces and page maps: `mm-PID.img`, `pagemap-*.img`.

use super::super::PAGE_SIZE;

/// `mm-PID.img`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mm {
    #[prost(uint64, required, tag = "1")]
    pub mm_start_code: u64,
    #[prost(uint64, required, tag = "2")]
    pub mm_end_code: u64,
    #[prost(uint64, required, tag = "3")]
    pub mm_start_data: u64,
    #[prost(uint64, required, tag = "4")]
    pub mm_end_data: u64,
    #[prost(uint64, required, tag = "5")]
    pub mm_start_stack: u64,
    #[prost(uint64, required, tag = "6")]
    pub mm_start_brk: u64,
    #[prost(uint64, required, tag = "7")]
    pub mm_brk: u64,
    #[prost(uint64, required, tag = "8")]
    pub mm_arg_start: u64,
    #[prost(uint64, required, tag = "9")]
    pub mm_arg_end: u64,
    #[prost(uint64, required, tag = "10")]
    pub mm_env_start: u64,
    #[prost(uint64, required, tag = "11")]
    pub mm_env_end: u64,
    #[prost(uint32, required, tag = "12")]
    pub exe_file_id: u32,
    #[prost(uint64, repeated, packed = "false", tag = "13")]
    pub mm_saved_auxv: Vec<u64>,
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<Vma>,
    #[prost(int32, optional, tag = "15")]
    pub dumpable: Option<i32>,
    #[prost(message, repeated, tag = "16")]
    pub aios: Vec<AioRing>,
    #[prost(bool, optional, tag = "17")]
    pub thp_disabled: Option<bool>,
}

/// A mapping. For mapped files `shmid` is the id of the file, despite its name.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Vma {
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    #[prost(uint64, required, tag = "3")]
    pub pgoff: u64,
    #[prost(uint64, required, tag = "4")]
    pub shmid: u64,
    #[prost(uint32, required, tag = "5")]
    pub prot: u32,
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    #[prost(uint32, required, tag = "7")]
    pub status: u32,
    #[prost(sint64, required, tag = "8")]
    pub fd: i64,
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    pub fdflags: Option<u32>,
}

/// What a mapping is: the `VMA_AREA_*`, `VMA_FILE_*`, `VMA_ANON_*` bits of `criu/include/image.h`.
pub mod status {
    pub const REGULAR: u32 = 1 << 0;
    pub const STACK: u32 = 1 << 1;
    pub const VSYSCALL: u32 = 1 << 2;
    pub const VDSO: u32 = 1 << 3;
    pub const HEAP: u32 = 1 << 5;
    pub const FILE_PRIVATE: u32 = 1 << 6;
    pub const FILE_SHARED: u32 = 1 << 7;
    pub const ANON_SHARED: u32 = 1 << 8;
    pub const ANON_PRIVATE: u32 = 1 << 9;
    pub const SYSVIPC: u32 = 1 << 10;
    pub const SOCKET: u32 = 1 << 11;
    pub const VVAR: u32 = 1 << 12;
    pub const AIORING: u32 = 1 << 13;
    pub const MEMFD: u32 = 1 << 14;
    pub const SHSTK: u32 = 1 << 15;
    pub const GUARD: u32 = 1 << 16;
    /// Never in an image: CRIU's own mark, while it restores, of what it need not write to.
    pub const NO_PROT_WRITE: u32 = 1 << 29;
}

/// How a mapping was made: flags of mmap(2).
pub mod map {
    pub const TYPE: u32 = 0x0f;
    pub const PRIVATE: u32 = 0x02;
    pub const ANONYMOUS: u32 = 0x20;
    pub const GROWSDOWN: u32 = 0x0100;
    pub const LOCKED: u32 = 0x2000;
    pub const NORESERVE: u32 = 0x4000;
    pub const HUGETLB: u32 = 0x0004_0000;
}

/// What may be done with a mapping: the bits of mprotect(2).
pub mod prot {
    pub const WRITE: u32 = 2;
    pub const EXEC: u32 = 4;
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct AioRing {
    #[prost(uint64, required, tag = "1")]
    pub id: u64,
    #[prost(uint32, required, tag = "2")]
    pub nr_req: u32,
    #[prost(uint32, required, tag = "3")]
    pub ring_len: u32,
}

/// First entry of every `pagemap-*.img`: which `pages-N.img` it describes.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// A run of pages.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Pagemap {
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}

impl Pagemap {
    /// The pages are in a parent checkpoint (`PE_PARENT`).
    pub const PARENT: u32 = 1 << 0;
    /// The pages may be restored lazily (`PE_LAZY`).
    pub const LAZY: u32 = 1 << 1;
    /// The pages are in the pages file (`PE_PRESENT`).
    pub const PRESENT: u32 = 1 << 2;

    /// As CRIU 4.2 writes it.
    pub fn new(vaddr: u64, pages: u64, flags: u32) -> Self {
        Self { vaddr, compat_nr_pages: 0, in_parent: None, flags: Some(flags), nr_pages: Some(pages) }
    }

    /// The pages from one address to another, if there are any.
    pub(in crate::images) fn between(start: u64, end: u64, flags: u32) -> Option<Self> {
        (start < end).then(|| Self::new(start, (end - start) / PAGE_SIZE, flags))
    }

    /// The address after its last page.
    pub fn end(&self) -> u64 {
        self.vaddr + self.pages() * PAGE_SIZE
    }

    /// Whether the pages may come late.
    pub fn is_lazy(&self) -> bool {
        self.flags.unwrap_or(Self::PRESENT) & Self::LAZY != 0
    }

    /// Pages of this run; `compat_nr_pages` is what CRIU before 4.0 wrote.
    pub fn pages(&self) -> u64 {
        self.nr_pages.unwrap_or(u64::from(self.compat_nr_pages))
    }
}
