// What memory that is shared may be asked for, one thing after the other.
//
//   hazards SOCKET PAGES FILE SCRATCH early|late|core
//
// "late" reads all of the region first, so that each page is in the page table; "core" too, and then dumps core in the directory SCRATCH. Every check has 16 pages of its own.
#include "process.h"

#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static int late;
static unsigned long used;
static const char *scratch;

// The number of the first of 16 pages that nobody has touched yet.
static unsigned long block(void) {
    unsigned long first = used;
    used += 16;
    must(used <= pages, "find untouched pages");
    return first;
}

static char *at(unsigned long page) { return BASE + page * PAGE; }

static void expect(int ok, const char *what) {
    if (ok) return;
    printf("%s\n", what);
    fflush(stdout);
    _exit(1);
}

static int is_image(const char *memory, unsigned long page) {
    for (unsigned i = 0; i < PAGE / 8; i++)
        if (((const uint64_t *)memory)[i] != word(page, i)) return 0;
    return 1;
}

static int is_zero(const char *memory) {
    for (unsigned i = 0; i < PAGE / 8; i++)
        if (((const uint64_t *)memory)[i]) return 0;
    return 1;
}

// A child must end well.
static void child_ends(pid_t child, const char *what) {
    int status = -1;
    must(waitpid(child, &status, 0) == child, "waitpid");
    expect(status == 0, what);
}

static void give_up(void) {
    unsigned long page = block();
    must(!madvise(at(page), 4 * PAGE, MADV_DONTNEED), "MADV_DONTNEED");
    for (int i = 0; i < 4; i++) expect(is_zero(at(page + i)), "given up, not zero");
    expect(is_image(at(page + 4), page + 4), "the page behind what was given up");
    memset(at(page + 5), 1, PAGE);
    must(!madvise(at(page + 5), PAGE, MADV_DONTNEED), "MADV_DONTNEED");
    expect(is_zero(at(page + 5)), "written and given up, not zero");
    // Twice, and written between: anonymous pages then.
    memset(at(page), 7, PAGE);
    must(!madvise(at(page), PAGE, MADV_DONTNEED), "MADV_DONTNEED");
    expect(is_zero(at(page)), "given up twice, not zero");
}

static void free_lazily(void) {
    unsigned long page = block();
    int result = madvise(at(page), PAGE, MADV_FREE);
    expect(result == -1 && errno == EINVAL, "MADV_FREE is refused for mappings of files: allocators use MADV_DONTNEED then");
    expect(is_image(at(page), page) || is_zero(at(page)), "MADV_FREE, neither kept nor zero");
    expect(madvise(at(page + 1), PAGE, MADV_REMOVE) == -1, "MADV_REMOVE must not reach the file");
    expect(is_image(at(page + 1), page + 1), "MADV_REMOVE");
}

static void reclaim(void) {
    unsigned long page = block();
    memset(at(page + 1), 5, PAGE);
    madvise(at(page), 4 * PAGE, MADV_COLD);
    madvise(at(page), 4 * PAGE, MADV_PAGEOUT);
    expect(is_image(at(page), page) && is_image(at(page + 2), page + 2), "paged out");
    expect(at(page + 1)[17] == 5, "written and paged out");
    must(!madvise(at(page + 4), 4 * PAGE, MADV_POPULATE_READ), "MADV_POPULATE_READ");
    must(!madvise(at(page + 8), 4 * PAGE, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE");
    for (int i = 4; i < 12; i++) expect(is_image(at(page + i), page + i), "populated");
}

static void huge(void) {
    unsigned long page = block();
    madvise(BASE, pages * PAGE, MADV_HUGEPAGE);
    madvise(at(page & ~511ul), 512 * PAGE, MADV_COLLAPSE);
    for (int i = 0; i < 16; i++) expect(is_image(at(page + i), page + i), "huge pages");
    madvise(BASE, pages * PAGE, MADV_NOHUGEPAGE);
}

static void move(void) {
    unsigned long page = block();
    char *to = BASE + (1ul << 40);
    // Moved and larger: what it has grown by is zero.
    must(mremap(at(page), 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
    for (int i = 0; i < 4; i++) expect(is_image(to + i * PAGE, page + i), "moved");
    for (int i = 4; i < 8; i++) expect(is_zero(to + i * PAGE), "grown, not zero");
    // Smaller and larger again.
    must(mremap(to, 8 * PAGE, 2 * PAGE, 0) == to, "mremap");
    must(mremap(to, 2 * PAGE, 4 * PAGE, 0) == to, "mremap");
    expect(is_image(to, page) && is_zero(to + 2 * PAGE) && is_zero(to + 3 * PAGE), "shrunk and grown");
    // Moved, and the old place stays mapped.
    char *far = to + (1ul << 30);
    void *left = mremap(at(page + 8), 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, far);
    if (left == far) {
        for (int i = 0; i < 4; i++) expect(is_image(far + i * PAGE, page + 8 + i), "moved without unmapping");
        for (int i = 0; i < 4; i++) expect(is_zero(at(page + 8 + i)), "left behind, not zero");
    }
    // Something new in its place.
    must(mmap(at(page + 12), PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at(page + 12), "mmap");
    expect(is_zero(at(page + 12)) && is_image(at(page + 13), page + 13), "mapped anew");
}

static void lock(void) {
    unsigned long page = block();
    if (mlock(at(page), 4 * PAGE)) return;
    for (int i = 0; i < 4; i++) expect(is_image(at(page + i), page + i), "locked");
    must(!munlock(at(page), 4 * PAGE), "munlock");
    must(!madvise(at(page), PAGE, MADV_DONTNEED), "MADV_DONTNEED");
    expect(is_zero(at(page)), "locked, unlocked and given up");
    must(!mprotect(at(page + 4), PAGE, PROT_NONE), "mprotect");
    must(!mprotect(at(page + 4), PAGE, PROT_READ | PROT_WRITE | PROT_EXEC), "mprotect");
    expect(is_image(at(page + 4), page + 4), "protected and not");
}

static sigjmp_buf jump;
static void jumps(int number) { siglongjmp(jump, number); }

static void guard(void) {
    unsigned long page = block();
    if (madvise(at(page), PAGE, MADV_GUARD_INSTALL)) return;
    signal(SIGSEGV, jumps);
    if (!sigsetjmp(jump, 1)) {
        *(volatile char *)at(page);
        expect(0, "a guard page can be read");
    }
    signal(SIGSEGV, SIG_DFL);
    must(!madvise(at(page), PAGE, MADV_GUARD_REMOVE), "MADV_GUARD_REMOVE");
    // The kernel tells of neither: anonymous memory would be zero, a limit that the documentation names.
    expect(is_zero(at(page)) || is_image(at(page), page), "a guard page that is none any more");
    expect(is_image(at(page + 1), page + 1), "behind a guard page");
    expect(madvise(at(page + 2), PAGE, MADV_WIPEONFORK) == -1 && errno == EINVAL, "MADV_WIPEONFORK is refused");
}

static void forks(void) {
    unsigned long page = block();
    memset(at(page + 3), 9, PAGE);
    must(!madvise(at(page + 4), PAGE, MADV_DONTNEED), "MADV_DONTNEED");
    must(!madvise(at(page + 8), PAGE, MADV_DONTFORK), "MADV_DONTFORK");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) {
        expect(is_image(at(page), page), "a child's page");
        expect(at(page + 3)[5] == 9 && is_zero(at(page + 4)), "a child's page of its parent's");
        must(!madvise(at(page + 1), PAGE, MADV_DONTNEED), "MADV_DONTNEED");
        expect(is_zero(at(page + 1)), "a child's, given up");
        memset(at(page + 2), 3, PAGE);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            expect(is_zero(at(page + 1)) && at(page + 2)[9] == 3 && is_image(at(page + 5), page + 5), "a grandchild's page");
            _exit(0);
        }
        child_ends(grandchild, "a grandchild");
        _exit(0);
    }
    child_ends(child, "a child");
    for (int i = 0; i < 3; i++) expect(is_image(at(page + i), page + i), "a parent's page after its child");
    expect(is_image(at(page + 8), page + 8), "not forked");
    // A child that lives longer than who forked it.
    int pipes[2];
    must(!pipe(pipes), "pipe");
    child = fork();
    if (child == 0) {
        if (fork() == 0) {
            usleep(20000);
            char says = is_image(at(page + 6), page + 6) ? 'y' : 'n';
            _exit(write(pipes[1], &says, 1) != 1);
        }
        _exit(0);
    }
    child_ends(child, "a child");
    char says = 0;
    must(read(pipes[0], &says, 1) == 1, "read");
    expect(says == 'y', "an orphan's page");
    for (int i = 0; i < 20; i++) {
        child = fork();
        if (child == 0) {
            execl("/bin/true", "true", (char *)0);
            _exit(1);
        }
        child_ends(child, "another program");
    }
}

static void from_outside(void) {
    unsigned long page = block();
    char bytes[PAGE];
    int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    must(memory >= 0, "/proc/self/mem");
    if (pread(memory, bytes, PAGE, (off_t)at(page)) == (ssize_t)PAGE) {
        expect(is_image(bytes, page), "/proc/self/mem");
    } else {
        // Whoever looks in from outside does not wait for a page that is not there yet.
        expect(!late && errno == EIO, "/proc/self/mem cannot be read");
    }
    expect(is_image(at(page), page), "after /proc/self/mem");
    must(pread(memory, bytes, PAGE, (off_t)at(page)) == (ssize_t)PAGE, "/proc/self/mem of a page that is there");
    expect(is_image(bytes, page), "/proc/self/mem of a page that is there");
    // Written from outside, also where it may not be written to, it is this process's alone.
    must(!mprotect(at(page), PAGE, PROT_READ), "mprotect");
    must(pwrite(memory, "own", 3, (off_t)at(page)) == 3, "write to /proc/self/mem");
    expect(!memcmp(at(page), "own", 3), "written through /proc/self/mem");
    struct iovec here = { bytes, PAGE }, there = { at(page + 1), PAGE };
    if (late) {
        must(process_vm_readv(getpid(), &here, 1, &there, 1, 0) == (ssize_t)PAGE, "process_vm_readv");
        expect(is_image(bytes, page + 1), "process_vm_readv");
    }
    close(memory);
}

static void *wakes(void *word) {
    for (int i = 0; i < 1000; i++) {
        if (syscall(SYS_futex, word, FUTEX_WAKE, 1, 0, 0, 0) == 1) return word;
        usleep(1000);
    }
    return 0;
}

static void futexes(void) {
    unsigned long page = block();
    // One that processes could share, in a page that is still the file's: it must be this process's.
    uint32_t *value = (uint32_t *)at(page), was = (uint32_t)word(page, 0);
    expect(syscall(SYS_futex, value, FUTEX_WAIT, was + 1, 0, 0, 0) == -1 && errno == EAGAIN, "a futex's value");
    pthread_t waker;
    must(!pthread_create(&waker, 0, wakes, value), "pthread_create");
    must(!syscall(SYS_futex, value, FUTEX_WAIT, was, 0, 0, 0), "FUTEX_WAIT");
    void *woken;
    must(!pthread_join(waker, &woken), "pthread_join");
    expect(woken != 0, "nobody was woken");
    pthread_mutex_t *mutex = (pthread_mutex_t *)at(page + 1);
    must(!pthread_mutex_init(mutex, 0) && !pthread_mutex_lock(mutex) && !pthread_mutex_unlock(mutex), "a mutex");
}

static void io(void) {
    unsigned long page = block();
    int file = open(scratch, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(file >= 0, "open");
    int direct = open(scratch, O_RDWR | O_DIRECT | O_CLOEXEC);
    int to = direct >= 0 ? direct : file;
    must(pwrite(to, at(page), 2 * PAGE, 0) == (ssize_t)(2 * PAGE), "write from shared pages");
    char *copy = aligned_alloc(PAGE, PAGE);
    must(pread(file, copy, PAGE, PAGE) == (ssize_t)PAGE, "read");
    expect(is_image(copy, page + 1), "written from shared pages");
    // Into a shared page: it is this process's then.
    must(pread(to, at(page + 2), PAGE, 0) == (ssize_t)PAGE, "read into a shared page");
    expect(is_image(at(page + 2), page), "read into a shared page");
    must(!madvise(at(page + 2), PAGE, MADV_DONTNEED), "MADV_DONTNEED");
    expect(is_zero(at(page + 2)), "read into, and given up");
    free(copy);
}

// Page 1 is written to, page 2 given up, and what is behind page 15 a mapping of its own to which nobody has ever written.
static void dump_core(void) {
    must(!mkdir(scratch, 0700) && !chdir(scratch), "a directory for the core");
    must(!mprotect(at(16), (pages - 16) * PAGE, PROT_READ), "mprotect");
    memset(at(1), 7, PAGE);
    must(!madvise(at(2), PAGE, MADV_DONTNEED), "MADV_DONTNEED");
    // Mappings of files are not in a core. The kernel takes one for memory of its own once a page was given to it by UFFDIO_CONTINUE.
    struct rlimit limit;
    must(!getrlimit(RLIMIT_CORE, &limit), "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    must(!setrlimit(RLIMIT_CORE, &limit), "setrlimit");
    abort();
}

static void runs(void (*hazard)(void), const char *name) {
    // So that a failure that does not say so itself is found.
    alarm(20);
    if (getenv("HAZARDS")) fprintf(stderr, "%s\n", name);
    hazard();
}

int main(int count, char **arguments) {
    if (count != 6) return 2;
    pages = strtoul(arguments[2], 0, 0);
    shared = arguments[3];
    scratch = arguments[4];
    late = strcmp(arguments[5], "early") != 0;
    served(arguments[1]);
    for (unsigned long i = 0; late && i < pages; i++) expect(is_image(at(i), i), "read");
    if (!strcmp(arguments[5], "core")) dump_core();
    runs(give_up, "give_up");
    runs(free_lazily, "free_lazily");
    runs(reclaim, "reclaim");
    runs(move, "move");
    runs(lock, "lock");
    runs(guard, "guard");
    runs(forks, "forks");
    runs(from_outside, "from_outside");
    runs(futexes, "futexes");
    runs(io, "io");
    runs(huge, "huge");
    for (unsigned long i = used; i < pages; i++) expect(is_image(at(i), i), "a page that nothing was done with");
    printf("ok\n");
    return 0;
}
