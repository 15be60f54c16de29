"""A real slot: what it keeps out, what it contains, and whose doing an end is."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from commands import run

from rlvr_verifier.sandbox.canonical import encode
from rlvr_verifier.sandbox.pool import ItemLostError, Sandbox, SandboxError
from rlvr_verifier.sandbox.probe import ATTACKS, Level, probe
from rlvr_verifier.sandbox.protocol import SolutionError, read_transcript
from rlvr_verifier.sandbox.slot import Ending, Item, Run, Slot

DEADLINE_SECONDS = 20.0


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(1)
    yield made
    made.close()


def call(sandbox: Sandbox, source: str, *arguments: object, seconds: float = 5.0) -> Run:
    return sandbox.run(Item(source, "f", [encode((argument,)) for argument in arguments], seconds=seconds))


def values(run: Run, inputs: int = 1) -> list[str]:
    assert run.ending is Ending.EXITED
    return read_transcript(run.output, inputs)


def test_this_machine_offers_level_1(sandbox: Sandbox) -> None:
    assert sandbox.report.open == {"look", "share_user"}
    assert sandbox.level is Level.L1


def test_the_attacks_succeed_where_nothing_keeps_them_out() -> None:
    slot = Slot.start(protected=False)
    try:
        report = probe(slot)
    finally:
        slot.close()
    assert report.level is Level.L0
    # `inherit` is what a slot never gives, protected or not; raising limits and another's attributes need root.
    assert report.open >= set(ATTACKS) - {"inherit", "raise_limits"}


def test_a_function_is_called_once_for_each_input_in_order(sandbox: Sandbox) -> None:
    run = call(sandbox, "def f(x):\n    print('noise')\n    return (x, [x])", 1, "a", (2, {3}))
    assert values(run, 3) == ["(i1,[i1])", '(s"a",[s"a"])', "((i2,{i3}),[(i2,{i3})])"]


def test_a_program_reads_its_input_and_its_output_is_taken_as_it_is(sandbox: Sandbox) -> None:
    run = sandbox.run(Item("import sys\nfor line in sys.stdin: print(int(line) * 2)", stdin="1\n2\n"))
    assert (run.code, run.output) == (0, b"2\n4\n")
    assert sandbox.run(Item("raise ValueError", stdin="")).code == 1
    assert sandbox.run(Item("import os\nos.write(1, b'\\xff')\nos._exit(3)", stdin="")).output == b"\xff"


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("def f(x):\n    while True: pass", Ending.TIMEOUT),
        ("import time\ndef f(x): time.sleep(1000)", Ending.TIMEOUT),
        ("import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
         "def f(x):\n    while True: pass", Ending.TIMEOUT),
        ("import os\nfor n in range(64):\n    try: os.close(n)\n    except OSError: pass\nwhile True: pass", Ending.TIMEOUT),
        ("import os\ndef f(x):\n    while True: os.write(3, b'x' * 65536)", Ending.OVERFLOW),
        ("def f(x): return 'x' * 3_000_000", Ending.OVERFLOW),
        ("import ctypes\ndef f(x): ctypes.string_at(0)", Ending.SIGNALLED),
        ("import ctypes\ndef f(x): ctypes.CDLL(None).abort()", Ending.SIGNALLED),
        ("import ctypes\ndef f(x): ctypes.CDLL(None).syscall(0x40000000 + 39)", Ending.SIGNALLED),
        ("import os\ndef f(x): os._exit(0)", Ending.EXITED),
    ],
)  # fmt: skip
def test_an_end_is_the_items_own_doing(sandbox: Sandbox, source: str, ending: Ending) -> None:
    started = time.monotonic()
    source = source.replace("3, b", "[n for n in range(3, 64) if _is_open(n)][0], b")
    helper = "import os\ndef _is_open(n):\n    try: return bool(os.fstat(n))\n    except OSError: return False\n"
    assert call(sandbox, helper + source, 1, seconds=0.7).ending is ending
    assert time.monotonic() - started < DEADLINE_SECONDS
    assert values(call(sandbox, "def f(x): return x", 7)) == ["i7"], "the next item finds the slot as it was"


@pytest.mark.parametrize("allocation", ["bytes(10**10)", "[0] * 10**10", "b'x' * (1 << 40)", "list(range(10**9))"])
def test_memory_is_bounded_and_running_out_of_it_is_an_error_of_the_solution(sandbox: Sandbox, allocation: str) -> None:
    with pytest.raises(SolutionError, match="MemoryError"):
        values(call(sandbox, f"def f(x): return len({allocation})", 1))


def test_processor_time_is_bounded_for_an_item_that_ignores_it(sandbox: Sandbox) -> None:
    source = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef f(x):\n    while True: pass"
    assert call(sandbox, source, 1, seconds=1.0).ending is Ending.TIMEOUT


def test_an_item_that_the_machine_lets_wait_is_not_late(sandbox: Sandbox) -> None:
    (zygote,) = [child for child in psutil.Process().children() if "zygote.py" in " ".join(child.cmdline())]

    def hold_up() -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (items := zygote.children()) and time.monotonic() < deadline:
            time.sleep(0.002)
        items[0].suspend()
        time.sleep(2.1)
        items[0].resume()

    thread = threading.Thread(target=hold_up)
    thread.start()
    started = time.monotonic()
    run = call(sandbox, "import time\ndef f(x):\n    while time.process_time() < 0.3: pass\n    return x", 1, seconds=2.0)
    thread.join()
    assert values(run) == ["i1"]
    assert time.monotonic() - started > 2.1


def test_items_share_nothing(sandbox: Sandbox) -> None:
    spoil = """
import builtins, json, math, os, sys
from rlvr_verifier.sandbox import canonical
def f(x):
    math.pi = 3; builtins.len = lambda _: 0; json.dumps = str; canonical.encode = lambda *_: "i1"; os.environ["LEFT"] = "x"
    sys.setrecursionlimit(50)
    return 1
"""
    call(sandbox, spoil, 1)
    check = "import math, os, sys\ndef f(x): return [math.pi, len([1, 2]), 'LEFT' in os.environ, sys.getrecursionlimit()]"
    assert values(call(sandbox, check, 1)) == [encode([3.141592653589793, 2, False, 1000])]


SCAN = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
def f(marker):
    # A pipe reads memory without crashing where there is none: its write fails. The marker is put together anew each time: it is not in
    # the source, and what holds it is not counted.
    found, (reading, writing) = 0, os.pipe()
    os.set_blocking(writing, False)
    for middle, pages in ((libc.sbrk(0), 8_000), (id([]), 40_000)):
        for page in range(middle // 4096 - pages, middle // 4096 + pages):
            if libc.write(writing, page * 4096, 4096) > 0:
                found += os.read(reading, 4096).count(bytes(x ^ 1 for x in marker))
    return found
"""


def test_an_item_finds_nothing_of_the_last_one_in_its_memory(sandbox: Sandbox) -> None:
    marker = b"quite-a-secret-" * 3
    hidden = bytes(x ^ 1 for x in marker)
    source = f"# {marker.decode() * 100}\ndef f(x): return x"
    assert values(call(sandbox, source, 1)) == ["i1"]
    assert values(call(sandbox, SCAN + f"\nkeep = {marker!r}", hidden, seconds=30.0)) != ["i0"], "the scan finds what is there"
    assert values(call(sandbox, SCAN, hidden, seconds=30.0)) == ["i0"]


def test_a_domain_reads_what_it_may_and_writes_where_it_may(tmp_path: Path) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
    code = """
import sys
from rlvr_verifier.sandbox import landlock
landlock.restrict([sys.argv[1]], [sys.argv[1] + "/open", "/dev/null"])
for path in ("/open/new", "/shut/new"):
    try: open(sys.argv[1] + path, "w").write("x")
    except PermissionError: print("refused", end=" ")
    else: print(open(sys.argv[1] + path).read(), end=" ")
open("/dev/null", "w").write("x")
try: open("/etc/passwd")
except PermissionError: print("unread")
"""
    assert run(sys.executable, "-c", code, tmp_path).stdout == "x refused unread\n"


def test_the_standard_library_works_under_the_allow_list(sandbox: Sandbox) -> None:
    source = """
import importlib, random, decimal, datetime, zoneinfo, tempfile
def f(names):
    failed = []
    for name in names:
        try: importlib.import_module(name)
        except Exception as error: failed.append(f"{name}: {error!r}")
    return failed
"""
    names = [
        "asyncio",
        "base64",
        "bz2",
        "calendar",
        "collections",
        "concurrent.futures",
        "contextlib",
        "csv",
        "ctypes",
        "decimal",
        "difflib",
        "email",
        "fractions",
        "graphlib",
        "gzip",
        "hashlib",
        "hmac",
        "html",
        "http",
        "ipaddress",
        "itertools",
        "logging",
        "lzma",
        "numbers",
        "pathlib",
        "pickle",
        "pprint",
        "secrets",
        "shutil",
        "sqlite3",
        "statistics",
        "string",
        "subprocess",
        "tempfile",
        "threading",
        "timeit",
        "tokenize",
        "unittest",
        "uuid",
        "xml.etree.ElementTree",
        "zipfile",
        "zlib",
        "zoneinfo",
    ]
    assert values(call(sandbox, source, names)) == ["[]"]


def test_a_kill_that_nobody_here_sent_is_not_the_items_doing(sandbox: Sandbox) -> None:
    """As the kernel does when memory is short: the item is tried once more, and then it is its own doing."""
    kills = []

    def kill_items(times: int) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while len(kills) < times and time.monotonic() < deadline:
            for slot in list(sandbox._live):
                # A slot that is replaced meanwhile is gone, and a zygote without an item has no child.
                with suppress(psutil.Error):
                    for child in psutil.Process(slot.pid).children():
                        child.kill()
                        kills.append(child.pid)
                        child.wait(5)

    for times in (1, 2):
        kills.clear()
        killer = threading.Thread(target=kill_items, args=(times,))
        killer.start()
        source = "import time\ndef f(x):\n    time.sleep(0.5)\n    return x"
        try:
            if times == 1:
                assert values(call(sandbox, source, 4)) == ["i4"]
            else:
                with pytest.raises(ItemLostError):
                    call(sandbox, source, 4)
        finally:
            killer.join()
        assert len(kills) == times


def test_a_zygote_that_is_killed_is_replaced(sandbox: Sandbox) -> None:
    call(sandbox, "def f(x): return x", 1)
    (slot,) = sandbox._live
    os.kill(slot.pid, signal.SIGKILL)
    assert values(call(sandbox, "def f(x): return x", 5)) == ["i5"]


def test_closing_ends_what_runs_and_leaves_nothing_behind() -> None:
    made = Sandbox(1)
    (slot,) = made._live
    zygote = psutil.Process(slot.pid)

    def spin() -> None:
        with pytest.raises((SandboxError, ItemLostError)):
            call(made, "def f(x):\n    while True: pass", 1, seconds=60)

    runner = threading.Thread(target=spin)
    runner.start()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (items := zygote.children()):
        assert time.monotonic() < deadline
    made.close()
    runner.join(DEADLINE_SECONDS)
    assert not runner.is_alive()
    with pytest.raises(SandboxError, match="closed"):
        call(made, "def f(x): return x", 1)
    assert psutil.wait_procs([zygote, *items], DEADLINE_SECONDS)[1] == []
