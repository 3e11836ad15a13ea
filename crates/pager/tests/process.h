// A process whose memory a pager brings: it hands itself over as CRIU would.
//
// Page I of the region holds the words of word(I, …) as it was "dumped". Where memory is shared, the region is a private mapping of a file, where
// a page's offset is its address, and the threads run when a byte comes on standard input.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE 4096ul
#define BASE ((char *)0x200000000000ul)
#define FINISHED 0x52535446u

static unsigned long pages;
static const char *shared;

static uint64_t word(uint64_t page, uint64_t index) {
    uint64_t x = (page << 20) + index + 0x9e3779b97f4a7c15ul;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ul;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebul;
    return x ^ (x >> 31);
}

static void must(int ok, const char *what) {
    if (!ok) {
        printf("%s: %s\n", what, strerror(errno));
        fflush(stdout);
        _exit(1);
    }
}

static void hand_over(const char *path, int userfault) {
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    must(!connect(sock, (void *)&address, sizeof address), "connect");
    int32_t zombie = -7, pid = 300;
    must(send(sock, &zombie, 4, 0) == 4 && send(sock, &pid, 4, 0) == 4, "send");
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec vector = { &byte, 1 };
    struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &userfault, sizeof(int));
    must(sendmsg(sock, &message, 0) == 1, "send the descriptor");
    // The first ranges are asked for before they are registered; a pager has to try again.
    usleep(2000);
    if (shared) {
        // As the agent does. Where standard input is no socket, it has died before it could.
        send(0, "M", 1, MSG_NOSIGNAL);
        uint32_t finished = FINISHED;
        must(send(sock, &finished, 4, 0) == 4, "send");
        char ready;
        must(read(0, &ready, 1) == 1, "wait for the pager");
        close(sock);
        close(userfault);
        return;
    }
    struct uffdio_register range = { .range = { (unsigned long)BASE, pages * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
    must(!ioctl(userfault, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
    uint32_t finished = FINISHED;
    must(send(sock, &finished, 4, 0) == 4, "send");
    close(sock);
    close(userfault);
}

// Maps the region, and has it served by the pager that listens at `path`. The process must not touch it before.
static void served(const char *path) {
    int file = shared ? open(shared, O_RDONLY | O_CLOEXEC) : -1;
    must(!shared || file >= 0, "open the file");
    int flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | MAP_NORESERVE | (shared ? 0 : MAP_ANONYMOUS);
    void *at = mmap(BASE, pages * PAGE, PROT_READ | PROT_WRITE, flags, file, shared ? (off_t)BASE : 0);
    must(at == BASE, "mmap");
    if (file >= 0) close(file);
    int userfault = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    must(userfault >= 0, "userfaultfd");
    struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP };
    must(!ioctl(userfault, UFFDIO_API, &api), "UFFDIO_API");
    hand_over(path, userfault);
}
