// An application that does with its memory whatever it likes, in several threads, and checks all the time that each page holds what it should.
//
//   torture PAGES
//
// Every page holds words made from a value that is kept in a table; the tables are checked against a sum over themselves, for they are memory that
// is frozen, too. It answers every request on port 8080 with how many rounds it has done, or with what was wrong and status 500.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORKERS 4
#define BLOCK 16
#define BURST 64

// `value` 0: the page is all zeros. `alone`: it may be a mapping of its own, and is not moved with its block.
struct page { char *at; uint64_t value; int alone; };
struct worker { unsigned number; unsigned long pages; struct page *table; uint64_t random; char *spare; };

static char wrong[256];
static atomic_int failed;
static atomic_ulong rounds;
static char *base;

static void fail(const char *what, uint64_t is, uint64_t should) {
    if (!atomic_exchange(&failed, 1))
        snprintf(wrong, sizeof wrong, "%s: %016lx where %016lx should be (%s)", what, is, should, strerror(errno));
}

static void must(int well, const char *what) {
    if (!well) fail(what, 0, 1);
}

static uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t word(uint64_t value, unsigned i) { return value ? (value + i) * 0x9e3779b97f4a7c15ul | 1 : 0; }

static void check(const struct page *p, const char *what) {
    if (!p->at) return;
    const uint64_t *words = (const uint64_t *)p->at;
    for (unsigned i = 0; i < PAGE / 8; i += 7)
        if (words[i] != word(p->value, i)) return fail(what, words[i], word(p->value, i));
}

static void fill(struct page *p, uint64_t value) {
    p->value = value | 1;
    for (unsigned i = 0; i < PAGE / 8; i++) ((uint64_t *)p->at)[i] = word(p->value, i);
}

// Each frame holds what it should after the stack has grown and shrunk below it.
static void grow(unsigned depth, uint64_t value) {
    volatile uint64_t frame[128];
    for (unsigned i = 0; i < 128; i++) frame[i] = value + i;
    if (depth) grow(depth - 1, value * 31 + 7);
    for (unsigned i = 0; i < 128; i++)
        if (frame[i] != value + i) return fail("stack", frame[i], value + i);
}

static void child(struct worker *w) {
    pid_t pid = fork();
    if (pid == 0) {
        for (unsigned long i = 0; i < w->pages; i += 1 + i % 5) check(&w->table[i], "child's read");
        // Its own copy: its parent's is as it was.
        for (unsigned long i = 0; i < w->pages; i += 11)
            if (w->table[i].at) fill(&w->table[i], 42);
        _exit(atomic_load(&failed));
    }
    int status = 0;
    must(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
    if (status) fail("a child has seen something wrong", status, 0);
}

static void one(struct worker *w) {
    unsigned long first = next(&w->random) % (w->pages / BLOCK) * BLOCK, at = first + next(&w->random) % BLOCK;
    struct page *p = &w->table[at];
    switch (next(&w->random) % 10) {
    case 0:
        for (unsigned i = 0; i < BLOCK; i++) check(&w->table[first + i], "read");
        break;
    case 1:
        if (p->at) fill(p, next(&w->random));
        break;
    case 2:
        if (p->at) {
            must(!madvise(p->at, PAGE, MADV_DONTNEED), "madvise");
            p->value = 0;
            check(p, "page given up");
        }
        break;
    case 3: { // The whole block moves, there or back.
        struct page *block = &w->table[first];
        for (unsigned i = 0; i < BLOCK; i++)
            if (block[i].alone || !block[i].at || block[i].at != block[0].at + i * PAGE) return;
        char *home = base + (w->number * w->pages + first) * PAGE, *away = w->spare + first * PAGE;
        char *to = block[0].at == home ? away : home;
        void *moved = mremap(block[0].at, BLOCK * PAGE, BLOCK * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        must(moved == to, "mremap");
        for (unsigned i = 0; i < BLOCK; i++) block[i].at = to + i * PAGE;
        check(&block[at - first], "page moved");
        break;
    }
    case 4: // Unmapped, and something new in its place.
        if (p->at) {
            p->alone = 1;
            must(!munmap(p->at, PAGE), "munmap");
            void *anew = mmap(p->at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            must(anew == p->at, "mmap");
            p->value = 0;
            check(p, "new page");
        }
        break;
    case 5: // Mappings are parted.
        if (p->at && next(&w->random) % 16 == 0) {
            p->alone = 1;
            must(!mprotect(p->at, PAGE, PROT_READ), "mprotect");
            check(p, "protected page");
            must(!mprotect(p->at, PAGE, PROT_READ | PROT_WRITE), "mprotect");
        }
        break;
    case 6: { // A system call reads it.
        int pipes[2];
        uint64_t got[PAGE / 8];
        if (!p->at) break;
        must(!pipe2(pipes, O_CLOEXEC), "pipe");
        must(write(pipes[1], p->at, PAGE) == (ssize_t)PAGE && read(pipes[0], got, PAGE) == (ssize_t)PAGE, "a page through a pipe");
        if (got[9] != word(p->value, 9)) fail("system call", got[9], word(p->value, 9));
        close(pipes[0]);
        close(pipes[1]);
        break;
    }
    case 7:
        if (next(&w->random) % 512 == 0) child(w);
        break;
    case 8:
        grow(next(&w->random) % 64, next(&w->random));
        break;
    case 9: // A page of the heap: what malloc gives is written, and read before it is given back.
        for (unsigned i = 0; i < 4; i++) {
            struct page heap = { malloc(PAGE * (1 + next(&w->random) % 64)), 0, 0 };
            must(heap.at != 0, "malloc");
            fill(&heap, next(&w->random));
            check(&heap, "heap");
            free(heap.at);
        }
        break;
    }
}

static void *work(void *argument) {
    struct worker *w = argument;
    while (!atomic_load(&failed)) {
        for (int i = 0; i < BURST; i++) one(w);
        atomic_fetch_add(&rounds, BURST);
        // It is to be frozen anywhere, and to be taken for one that has nothing to do.
        nanosleep(&(struct timespec){ 0, 20000000 }, 0);
    }
    return 0;
}

static char *map(unsigned long pages, int flags, int fd) {
    char *at = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) abort();
    return at;
}

int main(int count, char **arguments) {
    unsigned long pages = count > 1 ? strtoul(arguments[1], 0, 0) : 4096, each = pages / WORKERS / BLOCK * BLOCK;
    int memfd = memfd_create("torture", MFD_CLOEXEC);
    if (ftruncate(memfd, (off_t)(BLOCK * PAGE * WORKERS))) abort();
    char *file = map(BLOCK * WORKERS, MAP_SHARED, memfd), *common = map(BLOCK * WORKERS, MAP_SHARED | MAP_ANONYMOUS, -1);
    base = map(each * WORKERS, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    pthread_t threads[WORKERS];
    struct worker workers[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        // Room to move to, where nothing else comes.
        char *spare = mmap(0, each * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        workers[i] = (struct worker){ i, each, calloc(each, sizeof(struct page)), i * 7919 + 12345, spare };
        for (unsigned long p = 0; p < each; p++) {
            workers[i].table[p] = (struct page){ base + (i * each + p) * PAGE, 0, 0 };
            if (p % 8) fill(&workers[i].table[p], p * 65537 + i);
        }
    }
    struct page shared[2 * BLOCK * WORKERS];
    for (unsigned i = 0; i < BLOCK * WORKERS; i++) {
        shared[2 * i] = (struct page){ file + i * PAGE, 0, 0 };
        shared[2 * i + 1] = (struct page){ common + i * PAGE, 0, 0 };
        fill(&shared[2 * i], i + 1000);
        fill(&shared[2 * i + 1], i + 2000);
    }
    for (unsigned i = 0; i < WORKERS; i++) must(!pthread_create(&threads[i], 0, work, &workers[i]), "pthread_create");

    // One that nobody waits for, in every image.
    if (fork() == 0) _exit(0);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(8080) };
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) abort();
    for (unsigned long asked = 0;; asked++) {
        int client = accept4(listener, 0, 0, SOCK_CLOEXEC);
        if (client < 0) continue;
        char request[2048], answer[512], body[300];
        // All of it: what is closed unread is reset.
        for (size_t got = 0; got < sizeof request - 1;) {
            ssize_t more = read(client, request + got, sizeof request - 1 - got);
            if (more <= 0) break;
            request[got += (size_t)more] = 0;
            if (strstr(request, "\r\n\r\n")) break;
        }
        for (unsigned i = 0; i < 2 * BLOCK * WORKERS; i++) check(&shared[i], i % 2 ? "shared memory" : "memfd");
        for (unsigned i = 0; i < 4; i++) fill(&shared[(asked * 4 + i) % (2 * BLOCK * WORKERS)], asked * 77 + i);
        int bad = atomic_load(&failed);
        if (bad) snprintf(body, sizeof body, "%s", wrong);
        else snprintf(body, sizeof body, "%lu", atomic_load(&rounds));
        int length = snprintf(answer, sizeof answer, "HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                              bad ? "500 Wrong" : "200 OK", strlen(body), body);
        (void)!write(client, answer, (size_t)length);
        close(client);
    }
}
