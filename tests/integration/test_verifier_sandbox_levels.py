"""Slots behind more than they lock themselves into: what was measured, that it holds nothing up, that nothing of it stays, and what is said
where it does not work."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from commands import wait_for
from sandbox_calls import call

from rlvr_verifier.sandbox.canonical import encode
from rlvr_verifier.sandbox.isolation import FIRST_USER, Isolation, find_isolation
from rlvr_verifier.sandbox.pool import ItemLostError, Sandbox
from rlvr_verifier.sandbox.probe import ATTACKS, NEEDED, Level
from rlvr_verifier.sandbox.programs import compiled
from rlvr_verifier.sandbox.slot import Ending, Item, Slot
from rlvr_verifier.sandbox.source import ChildSlots

DEADLINE_SECONDS = 20.0
MISSING = {
    "L1u": "" if os.geteuid() == 0 else "needs root: only it may make each slot a user of its own",
    "L2": "; ".join(find_isolation(["L2"])[1]),
}
C_DOUBLE = '#include <stdio.h>\nint main() { int n; while (scanf("%d", &n) == 1) printf("%d\\n", 2 * n); return 0; }\n'


@pytest.fixture(scope="module", params=["L1u", "L2"])
def level(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if MISSING[name]:
        pytest.skip(f"level {name} is not to be had here: {MISSING[name]}")
    return name


@pytest.fixture(scope="module")
def sandbox(level: str) -> Iterator[Sandbox]:
    made = Sandbox(1, ChildSlots(languages=("c", "javascript"), levels=[level]))
    yield made
    made.close()


def test_the_level_is_measured(sandbox: Sandbox, level: str) -> None:
    assert (sandbox.level, sandbox.report.faults) == (Level(level), ())
    assert sandbox.report.open == {"L1u": {"look"}, "L2": set()}[level]


def test_levels_are_subsets_of_one_another() -> None:
    assert NEEDED[Level.L0] < NEEDED[Level.L1] < NEEDED[Level.L1U] < NEEDED[Level.L2] == set(ATTACKS)
    assert sorted(Level, key=lambda level: level.rank) == list(Level)


def test_items_are_judged_as_ever(sandbox: Sandbox) -> None:
    code = "import os\ndef f(x): return [sorted(os.environ), x]"
    assert call(sandbox, code, 7) == [encode([["LC_ALL", "PYTHONHASHSEED", "TZ"], 7])]
    assert sandbox.run(Item("while True: pass", stdin="", seconds=0.5)).ending is Ending.TIMEOUT
    assert sandbox.run(Item("while True: print('x' * 1000)", stdin="")).ending is Ending.OVERFLOW
    assert sandbox.run(Item("import ctypes\nctypes.string_at(0)", stdin="")).ending is Ending.SIGNALLED


def test_other_languages_are_offered_and_work(sandbox: Sandbox) -> None:
    if "c" not in sandbox.languages:
        pytest.skip(f"C: {sandbox.missing['c']}")
    with compiled(sandbox, "c", C_DOUBLE) as program:
        done = program.run("1\n21\n", 2.0, 10.0, 256 << 20)
    assert (done.code, done.output) == (0, b"2\n42\n")


def test_each_slot_is_another_user() -> None:
    if MISSING["L1u"]:
        pytest.skip(MISSING["L1u"])
    source = ChildSlots(levels=["L1u"])
    slots = [source.start() for _ in range(2)]
    try:
        users = {psutil.Process(slot.pid).uids().real for slot in slots}
    finally:
        for slot in slots:
            slot.close()
    assert len(users) == 2
    assert min(users) >= FIRST_USER


def test_no_process_of_a_slot_outlives_it(level: str) -> None:
    before = set(psutil.Process().children(recursive=True))
    slot = ChildSlots(levels=[level]).start()
    slot.run(Item("def f(x): return x", "f", ["(i1)"]))
    begun = set(psutil.Process().children(recursive=True)) - before
    assert begun
    slot.close()
    wait_for(lambda: not any(process.is_running() for process in begun), DEADLINE_SECONDS, "all processes of the slot to end")


def test_a_slot_that_is_killed_is_lost_and_the_next_one_goes_on(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Slot.run

    def killed(slot: Slot, item: Item) -> object:
        for process in psutil.Process().children(recursive=True):
            if "zygote.py" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
        return real(slot, item)

    with monkeypatch.context() as patched:
        patched.setattr(Slot, "run", killed)
        with pytest.raises(ItemLostError):
            sandbox.run(Item("def f(x): return x", "f", ["(i1)"]))
    assert call(sandbox, "def f(x): return x + 1", 1) == ["i2"]


def no_bubblewrap(command: list[str]) -> list[str]:
    return ["no-such-program", *command[1:]]


def refused(command: list[str]) -> list[str]:
    return [sys.executable, "-c", "import sys; sys.exit('bwrap: No permissions to create new namespace')"]


@pytest.mark.parametrize(
    ("change", "words"),
    [(no_bubblewrap, "there is no no-such-program"), (refused, "bwrap: No permissions to create new namespace")],
)
def test_what_does_not_work_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[list[str]], list[str]], words: str
) -> None:
    wrap = Isolation.wrap
    monkeypatch.setattr(Isolation, "wrap", lambda self, command: change(wrap(self, command)) if self.namespaces else wrap(self, command))
    sandbox = Sandbox(1, ChildSlots(levels=["L2"]))
    try:
        assert sandbox.level is Level.L1
        assert sandbox.report.faults == (f"no slot can be in namespaces of its own: {words}",)
    finally:
        sandbox.close()


def test_compilers_that_need_proc_are_not_offered_without_it() -> None:
    if MISSING["L2"]:
        pytest.skip(MISSING["L2"])
    slot = Slot.start(languages=("c", "go"), isolation=Isolation(namespaces=True))
    try:
        assert not slot.languages
        assert "needs /proc" in slot.missing["c"]
        assert "needs /proc" in slot.missing["go"]
    finally:
        slot.close()


def test_a_folder_that_slots_do_not_read_is_not_there(sandbox: Sandbox, level: str, tmp_path: Path) -> None:
    code = "import os\ndef f(path):\n    try: return os.stat(path).st_uid\n    except OSError as error: return type(error).__name__"
    assert (call(sandbox, code, str(tmp_path)) == [encode("FileNotFoundError")]) is (level == "L2")
