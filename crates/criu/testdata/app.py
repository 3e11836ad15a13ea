"""The processes whose dumps are the fixtures beside this file. Run by hand as root in a container of its own.

app.py server ADDRESS       root with three threads; a child that dropped to www-data (33) and its group;
                            a child in a session of its own with a pseudo terminal, no-new-privileges and a filter.
app.py restricted ADDRESS   user 1000, groups 1000 and 2000, no capability in any set, no-new-privileges, two filters.
Each holds listeners, files, a deleted file, memfds, a pipe, an eventfd, an epoll, a timerfd and unix sockets.
"""
import ctypes
import mmap
import os
import pty
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
kind, address = sys.argv[1:]
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38


def prctl(*args):
    assert libc.prctl(*args, *[0] * (5 - len(args))) == 0


def refuse(number):
    """A filter that answers EPERM to one system call."""
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *op) for op in code))
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program)))
    prctl(PR_SET_SECCOMP, 2, ctypes.byref(fprog))


def worker():
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    event = os.eventfd(0)
    signal.pause()


def listen(family, where):
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(where)
    sock.listen(16)
    return sock


if kind == "restricted":  # as a container runtime would start it
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    refuse(425)
    os.setgroups([1000, 2000])
    os.setresgid(1000, 1000, 1000)
    for capability in range(41):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setresuid(1000, 1000, 1000)
    prctl(PR_SET_DUMPABLE, 1)

listener, listener6 = listen(socket.AF_INET, (address, 8080)), listen(socket.AF_INET6, ("::", 8081))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind((address, 5353))
local = socket.socket(socket.AF_UNIX)
local.bind(f"/tmp/app-{kind}.sock")
local.listen(4)
pair = socket.socketpair()
log = open(f"/tmp/app-{kind}.log", "a")
log.write("hello\n")
log.flush()
null, random = open("/dev/null", "w"), open("/dev/urandom", "rb")
gone = tempfile.TemporaryFile(dir="/tmp")
gone.write(b"ghost")
gone.flush()
memory = os.memfd_create("wf")
os.ftruncate(memory, 8192)
os.write(memory, b"mem")
shared = mmap.mmap(-1, 8192)
shared[0:2] = b"sh"
read_end, write_end = os.pipe()
os.write(write_end, b"piped")
timer = os.timerfd_create(time.CLOCK_MONOTONIC)
signal.signal(signal.SIGUSR1, lambda *_: None)

if kind == "restricted":
    refuse(426)
    signal.pause()

for _ in range(2):
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
if os.fork() == 0:
    os.setgroups([33])
    os.setresgid(33, 33, 33)
    os.setresuid(33, 33, 33)
    prctl(PR_SET_DUMPABLE, 1)
    worker()
if os.fork() == 0:
    os.setsid()
    master, slave = pty.openpty()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    refuse(425)
    worker()
signal.pause()
