"""A seccomp allow-list as a BPF program made here: a zygote has no site-packages to import bindings from, and nodes no libseccomp.

What is not listed fails with EPERM, so that a program goes on and is judged by what it returns; system calls of another architecture
(int 0x80, x32) kill it. Without processes, threads, sockets, signals, locks, and files or attributes to write, an item has nothing to leave
behind, and nobody to talk to.
"""

import ctypes
import errno
import fcntl
import struct
from collections.abc import Iterable

ARCHITECTURE = 0xC000003E
"""AUDIT_ARCH_X86_64."""
X32_BIT = 0x40000000
_ERRNO_EPERM, _ALLOW, _KILL_PROCESS = 0x00050000 | 1, 0x7FFF0000, 0x80000000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

ALLOWED = {
    # read and write what is open; open what Landlock lets be read
    "read": 0, "write": 1, "open": 2, "close": 3, "lseek": 8, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21,
    "pipe": 22, "dup": 32, "dup2": 33, "getcwd": 79, "readlink": 89, "getdents64": 217, "openat": 257, "readlinkat": 267, "faccessat": 269,
    "dup3": 292, "pipe2": 293, "preadv": 295, "pwritev": 296, "faccessat2": 439, "close_range": 436,
    "stat": 4, "fstat": 5, "lstat": 6, "statfs": 137, "fstatfs": 138, "newfstatat": 262, "statx": 332, "fadvise64": 221,
    # memory
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "madvise": 28,
    # its own signals
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "rt_sigpending": 127, "rt_sigtimedwait": 128, "rt_sigsuspend": 130,
    "sigaltstack": 131, "pause": 34, "alarm": 37, "getitimer": 36, "setitimer": 38, "restart_syscall": 219,
    # time, and who it is
    "nanosleep": 35, "gettimeofday": 96, "times": 100, "time": 201, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
    "getpid": 39, "getppid": 110, "gettid": 186, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getpgrp": 111,
    "getgroups": 115, "getresuid": 118, "getresgid": 120, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "uname": 63,
    "sched_yield": 24, "sched_getaffinity": 204, "getcpu": 309, "getrandom": 318,
    # waiting for what is open
    "poll": 7, "select": 23, "pselect6": 270, "ppoll": 271, "epoll_create1": 291, "epoll_ctl": 233, "epoll_wait": 232, "epoll_pwait": 281,
    "eventfd2": 290,
    "futex": 202, "set_robust_list": 273, "rseq": 334,
    "exit": 60, "exit_group": 231,
}  # fmt: skip
"""Of any arguments."""
FCNTL, FCNTL_COMMANDS = 72, (0, 1, 2, 3, 4, 1030)
"""Duplicate, and get or set flags; no locks, leases, owners or signals."""
IOCTL, IOCTL_REQUESTS = 16, (0x5401, 0x5413, 0x5421, 0x541B, 0x5450, 0x5451)
"""Is it a terminal, its size, (non-)blocking, bytes to read, close on exec."""
PRLIMIT64 = 302
"""To read its own limits: process 0, no new limit."""

COMMAND_ALLOWED = {
    "execve": 59, "execveat": 322, "arch_prctl": 158, "set_tid_address": 218, "ftruncate": 77, "umask": 95, "getpgid": 121,
}  # fmt: skip
"""Besides, for a command that is executed in the item's place: Landlock says which files that may be."""
THREADS_ALLOWED = {
    "sendmsg": 46, "tgkill": 234, "membarrier": 324, "sched_setaffinity": 203, "sched_getparam": 143, "sched_getscheduler": 145,
    "getpriority": 140, "mincore": 27, "get_robust_list": 274,
}  # fmt: skip
"""Besides, for runtimes with threads. There is no socket to send on, once the listener was handed over; signals reach the item alone."""
CLONE, CLONE3, PRCTL = 56, 435, 157
CLONE_THREAD = 0x10000
_PRCTL_NAMES = (15, 16, 0x53564D41)
"""A thread's or mapping's name."""
_ERRNO_ENOSYS, _NOTIFY, _JUMP_SET = 0x00050000 | 38, 0x7FC00000, 0x45
_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
NOTIFICATION, RESPONSE = struct.Struct("QII64x"), struct.Struct("QqiI")
RECEIVE_NOTIFICATION, SEND_RESPONSE = 0xC0502100, 0xC0182101
CONTINUE = 1

_libc = ctypes.CDLL(None, use_errno=True)
_prctl, _syscall = _libc.prctl, _libc.syscall
_Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class Filter:
    """The allow-list, assembled once; `install` is one system call.

    Args:
        command: also what a command needs that is executed in the item's place.
        threads: also threads, each of which a supervisor must let pass.
    """

    def __init__(self, *, command: bool = False, threads: bool = False) -> None:
        code = b"".join(struct.pack("HBBI", *instruction) for instruction in _assemble(command, threads))
        self._buffer = ctypes.create_string_buffer(code, len(code))
        self._program = ctypes.byref(_Program(len(code) // 8, ctypes.addressof(self._buffer)))

    def install(self) -> None:
        """For this process and all its children, for good. `no_new_privs` must be set.

        Raises:
            OSError: the kernel refuses.
        """
        if _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._program) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refuses the seccomp filter")

    def install_supervised(self) -> int:
        """As `install`; returns the descriptor on which the supervisor is asked.

        Raises:
            OSError: the kernel refuses.
        """
        listener: int = _syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, self._program)
        if listener < 0:
            raise OSError(ctypes.get_errno(), "the kernel refuses a supervised seccomp filter")
        return listener


def answer(listener: int, allow: bool) -> None:
    """Let one thread that an item wants to start pass, or refuse it; the arguments were checked by the filter, which copies them."""
    buffer = bytearray(NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, RECEIVE_NOTIFICATION, buffer)
        number = NOTIFICATION.unpack(buffer)[0]
        fcntl.ioctl(listener, SEND_RESPONSE, RESPONSE.pack(number, 0, 0 if allow else -errno.EAGAIN, CONTINUE if allow else 0))
    except OSError as error:
        if error.errno != errno.ENOENT:  # it was killed meanwhile
            raise


def _assemble(command: bool, threads: bool) -> list[_Instruction]:
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 1, 0, ARCHITECTURE),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_GREATER_EQUAL, 0, 1, X32_BIT),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]
    program += _if_number(FCNTL, _argument_in(1, FCNTL_COMMANDS))
    program += _if_number(IOCTL, _argument_in(1, IOCTL_REQUESTS))
    program += _if_number(PRLIMIT64, _all_zero([(0, 0), (0, 4), (2, 0), (2, 4)]))
    if threads:
        program += _if_number(PRCTL, _argument_in(0, _PRCTL_NAMES))
        # Flags of clone3 are in memory, out of the filter's sight: the C library then takes clone, whose flags are not.
        program += _if_number(CLONE3, [(_RETURN, 0, 0, _ERRNO_ENOSYS)])
        flags = (_LOAD, 0, 0, _ARGUMENTS_AT)
        program += _if_number(CLONE, [flags, (_JUMP_SET, 0, 1, CLONE_THREAD), (_RETURN, 0, 0, _NOTIFY), (_RETURN, 0, 0, _ERRNO_EPERM)])
    allowed = {**ALLOWED, **(COMMAND_ALLOWED if command else {}), **(THREADS_ALLOWED if threads else {})}
    return [*program, *_search(_intervals(allowed.values()))]


def _intervals(numbers: Iterable[int]) -> list[tuple[int, bool]]:
    """First number of each interval of system calls that are all allowed, or all not; the first is 0."""
    allowed = set(numbers)
    changes = (number for number in range(1, max(allowed) + 2) if (number in allowed) is not (number - 1 in allowed))
    return [(number, number in allowed) for number in (0, *changes)]


def _search(intervals: list[tuple[int, bool]]) -> list[_Instruction]:
    """A binary search: the kernel runs a filter once for every number there is, each time one is installed, and that is once an item."""
    if len(intervals) == 1:
        return [(_RETURN, 0, 0, _ALLOW if intervals[0][1] else _ERRNO_EPERM)]
    middle = len(intervals) // 2
    below, above = _search(intervals[:middle]), _search(intervals[middle:])
    return [(_JUMP_GREATER_EQUAL, len(below), 0, intervals[middle][0]), *below, *above]


def _if_number(number: int, body: list[_Instruction]) -> list[_Instruction]:
    """The body, which returns on every way through it, for one system call."""
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _argument_in(index: int, values: Iterable[int]) -> list[_Instruction]:
    """Allow when the low half of an argument, all that the kernel reads of these, is one of `values`."""
    body: list[_Instruction] = [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)]
    for value in values:
        body += [(_JUMP_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*body, (_RETURN, 0, 0, _ERRNO_EPERM)]


def _all_zero(halves: list[tuple[int, int]]) -> list[_Instruction]:
    body: list[_Instruction] = []
    for index, offset in halves:
        body += [(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + offset), (_JUMP_EQUAL, 1, 0, 0), (_RETURN, 0, 0, _ERRNO_EPERM)]
    return [*body, (_RETURN, 0, 0, _ALLOW)]
