// A process whose memory a pager brings, as CRIU would hand it over, and that does with its memory whatever it likes.
//
//   torture SOCKET PAGES SEED ROUNDS [shared FILE] [hold]
//
// Page I of the region holds the words of word(I, …) as it was "dumped": the test has written the same into the page file. Every
// operation is checked at once against a table of what each page should hold. "ok" and exit 0, or a line that says what was wrong.
// With "shared" the region is a private mapping of FILE, where a page's offset is its address; the threads run when a byte comes on standard input.
// With "hold" it reads one page after the other, tells each on standard output, and says "all" at the end.
#include "process.h"

#include <pthread.h>
#include <sys/wait.h>

#define WORKERS 4

enum kind { IMAGE, ZERO, OWN };
// `split`: it may be a mapping of its own. Only what is one mapping is moved: several may be moved in part.
struct page { char *at; enum kind kind; uint64_t value; int split; };

static uint64_t seed;

static void fail(const char *what, unsigned long page, uint64_t is, uint64_t should) {
    printf("%s of page %lu: %016lx where %016lx should be (%s)\n", what, page, is, should, strerror(errno));
    fflush(stdout);
    _exit(1);
}

static void check(const struct page *table, unsigned long page, const char *what) {
    const struct page *p = &table[page];
    if (!p->at) return;
    const uint64_t *words = (const uint64_t *)p->at;
    for (unsigned i = 0; i < PAGE / 8; i += 37) {
        uint64_t should = p->kind == IMAGE ? word(page, i) : p->kind == ZERO ? 0 : p->value;
        if (words[i] != should) fail(what, page, words[i], should);
    }
}

static void write_page(struct page *p, uint64_t value) {
    for (unsigned i = 0; i < PAGE / 8; i++) ((uint64_t *)p->at)[i] = value;
    p->kind = OWN;
    p->value = value;
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

// Each worker owns every WORKERS-th block of 16 pages, so that its table needs no lock; the kernel's locks are shared by all.
struct worker { int number; long rounds; struct page *table; };
static _Atomic unsigned long elsewhere = 0;

static void *work(void *argument) {
    struct worker *w = argument;
    uint64_t random = seed * 1000003 + w->number * 7919 + 1;
    unsigned long blocks = pages / 16 / WORKERS;
    for (long round = 0; round < w->rounds; round++) {
        unsigned long first = ((next(&random) % blocks) * WORKERS + w->number) * 16;
        unsigned long offset = next(&random) % 16, count = 1 + next(&random) % (16 - offset);
        struct page *p = &w->table[first + offset];
        switch (next(&random) % 9) {
        case 0: // read
            for (unsigned long i = 0; i < count; i++) check(w->table, first + offset + i, "read");
            break;
        case 1: // write
            for (unsigned long i = 0; i < count; i++)
                if (p[i].at) write_page(&p[i], next(&random));
            break;
        case 2: // give up: zeros from then on
            for (unsigned long i = 0; i < count; i++)
                if (p[i].at) {
                    must(!madvise(p[i].at, PAGE, MADV_DONTNEED), "madvise");
                    p[i].kind = ZERO;
                    check(w->table, first + offset + i, "page given up");
                }
            break;
        case 3: // move the whole block elsewhere
            if (w->table[first].at == BASE + first * PAGE) {
                int whole = 1;
                for (int i = 0; i < 16; i++)
                    whole &= w->table[first + i].at == BASE + (first + i) * PAGE && !w->table[first + i].split;
                if (!whole) break;
                char *to = BASE + (1ul << 40) + PAGE * 32 * elsewhere++;
                void *at = mremap(w->table[first].at, 16 * PAGE, 16 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
                must(at == to, "mremap");
                for (int i = 0; i < 16; i++) w->table[first + i].at = to + i * PAGE;
                check(w->table, first + next(&random) % 16, "page moved");
            }
            break;
        case 4: // unmap, and map something new in its place
            if (p->at) {
                p->split = 1;
                must(!munmap(p->at, PAGE), "munmap");
                if (next(&random) % 2) {
                    void *at = mmap(p->at, PAGE, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
                    must(at == p->at, "mmap");
                    p->kind = ZERO;
                    check(w->table, first + offset, "new page");
                } else {
                    p->at = 0;
                }
            }
            break;
        case 5: // protect and unprotect: mappings split
            if (p->at) {
                p->split = 1;
                must(!mprotect(p->at, PAGE, PROT_READ), "mprotect");
                check(w->table, first + offset, "protected page");
                must(!mprotect(p->at, PAGE, PROT_READ | PROT_WRITE), "mprotect");
            }
            break;
        case 6: // a system call reads it
            if (p->at && p->kind == IMAGE) {
                int pipes[2];
                uint64_t got[PAGE / 8];
                must(!pipe2(pipes, O_CLOEXEC), "pipe");
                must(write(pipes[1], p->at, PAGE) == (ssize_t)PAGE, "write of a page");
                must(read(pipes[0], got, PAGE) == (ssize_t)PAGE, "read of a page");
                if (got[5] != word(first + offset, 5)) fail("system call", first + offset, got[5], word(first + offset, 5));
                close(pipes[0]);
                close(pipes[1]);
            }
            break;
        case 8: // lock it in memory: all of it comes at once
            if (p->at) {
                p->split = 1;
                if (!mlock(p->at, PAGE)) {
                    check(w->table, first + offset, "locked page");
                    must(!munlock(p->at, PAGE), "munlock");
                }
            }
            break;
        case 7: // a child sees what its parent had, and what it writes is its own
            if (next(&random) % 16 == 0) {
                pid_t child = fork();
                must(child >= 0, "fork");
                if (child == 0) {
                    for (unsigned long b = 0; b < blocks; b += 1 + blocks / 32) {
                        unsigned long mine = (b * WORKERS + w->number) * 16;
                        for (int i = 0; i < 16; i++) check(w->table, mine + i, "child's read");
                        if (w->table[mine].at) write_page(&w->table[mine], 42);
                    }
                    _exit(0);
                }
                int status;
                must(waitpid(child, &status, 0) == child, "waitpid");
                if (status != 0) {
                    printf("child ended with %x\n", status);
                    fflush(stdout);
                    _exit(1);
                }
            }
            break;
        }
    }
    return 0;
}

int main(int count, char **arguments) {
    if (count < 5) return 2;
    pages = strtoul(arguments[2], 0, 0);
    seed = strtoul(arguments[3], 0, 0);
    long rounds = strtol(arguments[4], 0, 0);
    int hold = !strcmp(arguments[count - 1], "hold");
    if (count > 6 && !strcmp(arguments[5], "shared")) shared = arguments[6];
    served(arguments[1]);
    struct page *table = calloc(pages, sizeof *table);
    for (unsigned long i = 0; i < pages; i++) table[i] = (struct page){ BASE + i * PAGE, IMAGE, 0, 0 };
    if (hold) {
        for (unsigned long i = 0; i < pages; i++) {
            check(table, i, "read");
            printf("%lu\n", i);
            fflush(stdout);
        }
        printf("all\n");
        return 0;
    }
    pthread_t threads[WORKERS];
    struct worker workers[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        workers[i] = (struct worker){ i, rounds, table };
        must(!pthread_create(&threads[i], 0, work, &workers[i]), "pthread_create");
    }
    for (int i = 0; i < WORKERS; i++) pthread_join(threads[i], 0);
    for (unsigned long i = 0; i < pages; i++) check(table, i, "last read");
    printf("ok\n");
    return 0;
}
