"""The filter, run instruction by instruction as the kernel would: it says of every system call what its tables say."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_verifier.sandbox import seccomp

ALLOW, EPERM, ENOSYS, NOTIFY, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x7FC00000, 0x80000000
KINDS = {"item": (False, False), "command": (True, False), "threads": (True, True)}
LAST_NUMBER = 700


def verdict(kind: str, number: int, *arguments: int, architecture: int = seccomp.ARCHITECTURE) -> int:
    """What the filter returns; `struct seccomp_data` holds the call."""
    data = struct.pack("iIQ6Q", number, architecture, 0, *(arguments + (0,) * 6)[:6])
    filter_ = seccomp.Filter(command=KINDS[kind][0], threads=KINDS[kind][1])
    code = list(struct.iter_unpack("HBBI", filter_._buffer.raw))
    at, loaded = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        match operation:
            case 0x20:
                (loaded,) = struct.unpack_from("I", data, value)
            case 0x06:
                return value
            case 0x15:
                at += if_true if loaded == value else if_false
            case 0x35:
                at += if_true if loaded >= value else if_false
            case 0x45:
                at += if_true if loaded & value else if_false
            case _:
                raise AssertionError(f"another instruction: {operation:#x}")


def allowed(kind: str) -> set[int]:
    tables = {"item": [], "command": [seccomp.COMMAND_ALLOWED], "threads": [seccomp.COMMAND_ALLOWED, seccomp.THREADS_ALLOWED]}[kind]
    return {number for table in [seccomp.ALLOWED, *tables] for number in table.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_the_verdict_of_the_tables(kind: str) -> None:
    special = {seccomp.FCNTL, seccomp.IOCTL, seccomp.PRLIMIT64, *([157, 435, 56] if kind == "threads" else [])}
    assert not special & allowed(kind)
    for number in set(range(LAST_NUMBER)) - special:
        assert verdict(kind, number) == (ALLOW if number in allowed(kind) else EPERM), number


@given(number=st.integers(0, 2**31 - 1))
def test_no_other_number_is_allowed(number: int) -> None:
    wanted = KILL if number >= seccomp.X32_BIT else EPERM
    assert number < LAST_NUMBER or verdict("threads", number) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_some_calls_depend_on_their_arguments(kind: str) -> None:
    assert {command for command in range(2048) if verdict(kind, seccomp.FCNTL, 0, command) == ALLOW} == set(seccomp.FCNTL_COMMANDS)
    assert all(verdict(kind, seccomp.IOCTL, 0, request) == ALLOW for request in seccomp.IOCTL_REQUESTS)
    assert verdict(kind, seccomp.IOCTL, 0, 0x5412) == EPERM, "typing into a terminal"
    assert verdict(kind, seccomp.PRLIMIT64, 0, 7, 0) == ALLOW
    assert {verdict(kind, seccomp.PRLIMIT64, 1, 7, 0), verdict(kind, seccomp.PRLIMIT64, 0, 7, 1 << 32)} == {EPERM}


def test_threads_are_asked_for_and_processes_are_not_to_be_had() -> None:
    assert verdict("threads", seccomp.CLONE, 0x3D0F00) == NOTIFY
    assert verdict("threads", seccomp.CLONE, 17) == EPERM
    assert verdict("threads", seccomp.CLONE3) == ENOSYS
    assert {verdict(kind, number) for kind in ("item", "command") for number in (seccomp.CLONE, seccomp.CLONE3)} == {EPERM}


@pytest.mark.parametrize("kind", KINDS)
def test_another_architecture_is_ended(kind: str) -> None:
    assert verdict(kind, 1, architecture=0x40000003) == KILL
    assert verdict(kind, seccomp.X32_BIT + 39) == KILL
