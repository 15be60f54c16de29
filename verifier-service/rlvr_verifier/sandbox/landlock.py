"""Landlock, by system calls: a zygote has no site-packages to import bindings from.

A domain can only be narrowed, and holds for all children. Not covered by Landlock: `chmod`, `utime`, extended attributes and locks, which
the allow-list of `seccomp` refuses, and `stat` of any path.
"""

import ctypes
import os
from collections.abc import Sequence

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION = 1
RULE_PATH_BENEATH = 1
FS_EXECUTE = 1 << 0
FS_READ = 1 << 0 | 1 << 2 | 1 << 3
"""To execute and read files, and to list folders."""
FS_ALL = (1 << 16) - 1
"""Every right over files that ABI 5 knows, the control of devices included."""
FS_OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""Those that a path may have which is no folder."""
NET_ALL = 0b11
"""Binding and connecting TCP sockets."""
SCOPE_ALL = 0b11
"""Abstract Unix sockets, and signals."""
SCOPES_SINCE_ABI = 6
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom")
"""What Python reads beside its own files and packages: what extension modules link to, and time zones."""

_syscall = ctypes.CDLL(None, use_errno=True).syscall


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Version of Landlock that the kernel offers; 0 for none."""
    return max(0, int(_syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION)))


def restrict(readable: Sequence[str], writable: Sequence[str] = ()) -> None:
    """Enter a domain in which nothing is allowed but reading below `readable`, and anything below `writable`; paths that do not exist are
    left out.

    Raises:
        OSError: the kernel refuses.
    """
    ruleset = _create(_RulesetAttributes(FS_ALL, NET_ALL, SCOPE_ALL))
    try:
        for path in (*readable, *writable):
            _allow(ruleset, path, FS_ALL if path in writable else FS_READ)
        _call(RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        allowed = access & (FS_ALL if os.path.isdir(path) else FS_OF_FILES)
        _call(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(_PathBeneath(allowed, parent)), 0)
    finally:
        os.close(parent)


def prepare_scope() -> int:
    """A ruleset of scopes alone, made once and entered by each item."""
    return _create(_RulesetAttributes(0, 0, SCOPE_ALL))


def prepare(readable: Sequence[str], executable: Sequence[str]) -> int:
    """A ruleset for one command, made once and entered by each item that is one: what it may read, what it may execute, and a scope."""
    ruleset = _create(_RulesetAttributes(FS_ALL, NET_ALL, SCOPE_ALL))
    for path, access in (*((path, FS_READ & ~FS_EXECUTE) for path in readable), *((path, FS_READ) for path in executable)):
        _allow(ruleset, path, access)
    return ruleset


def enter(ruleset: int) -> None:
    """Enter a domain of its own: signals no longer reach the parent or a sibling."""
    _call(RESTRICT_SELF, ruleset, 0)


def _create(attributes: _RulesetAttributes) -> int:
    return _call(CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)), 0)


def _call(number: int, *arguments: object) -> int:
    result: int = _syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock system call {number}: {os.strerror(code)}")
    return result
