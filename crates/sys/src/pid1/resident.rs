//! Keeping little of the program in memory.

#![allow(unsafe_code)]

unsafe extern "C" {
    /// First byte of the program, by the linker.
    static __executable_start: u8;
    /// First byte after its code, by the linker.
    static etext: u8;
}

/// Unmaps the pages of the program's code and constants: those that start-up has touched and nobody will again
/// (libc's, mostly) would count as resident for good. What is needed comes back from the page cache by itself.
pub fn forget_code() {
    let (start, end) = (&raw const __executable_start as usize, &raw const etext as usize);
    // SAFETY: sysconf has no memory operands.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let start = start.next_multiple_of(page);
    let len = end.saturating_sub(start) / page * page;
    // SAFETY: between the two symbols lie only read-only private mappings of the program's file, never written to (its
    // relocations are in segments behind), so that dropping a page and reading it again gives the same bytes.
    unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
}
