"""Every target holds for its seeds and for thousands of inputs that coverage leads to; it does lead, and a broken target fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

REPOSITORY = Path(__file__).parents[2]
RUNS = 20_000
"""Of each target; hands that have time give it more (`make fuzz`)."""
PLANTED_RUNS = 200_000
"""Blind, one input in 2^32 finds it."""
FAULT = b"\x4a\xe1\x07\x9c"
PLANTED = f"""
def check(data):
    if data[:1] == {FAULT[:1]!r}:
        if data[1:2] == {FAULT[1:2]!r}:
            if data[2:3] == {FAULT[2:3]!r}:
                if data[3:4] == {FAULT[3:]!r}:
                    raise RuntimeError("found")
"""
SCRIPT = """
import sys
from pathlib import Path

import atheris

sys.path.insert(0, sys.argv.pop(1))
with atheris.instrument_imports(include=sys.argv.pop(1).split(",")):
    import planted

from tests.fuzz.__main__ import fuzz
from tests.fuzz.target import Target

fuzz("planted", Target(planted.check, ("seed",), max_bytes=8), Path(sys.argv.pop(1)), sys.argv[1:])
"""


def run(runs: int, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """A fuzzer in a process of its own; the same command does the same."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]), "PYTHONHASHSEED": "0"}
    words = [sys.executable, *map(str, command), "-seed=1", f"-runs={runs}"]
    return subprocess.run(
        words, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What libFuzzer wrote of each target."""
    written = run(RUNS, "-m", "tests.fuzz", "--folder", tmp_path_factory.mktemp("fuzz")).stdout
    parts = re.split(r"^== ([a-z-]+) ==$", written, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", TARGETS)
def test_invariants_hold_for_the_seeds(name: str) -> None:
    for data in TARGETS[name].first_inputs:
        TARGETS[name].check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_invariants_hold_for_what_coverage_leads_to(name: str, logs: dict[str, str]) -> None:
    log = logs[name]
    assert f"Done {RUNS} runs" in log, log[-3_000:]
    assert "fails for" not in log
    first, last = (re.search(rf"{word} +cov: (\d+) ft: (\d+)", log) for word in ("INITED", "DONE"))
    assert first is not None
    assert last is not None
    assert int(last[2]) >= int(first[2]) > 1, "the modules are instrumented"


def run_planted(tmp_path: Path, instrumented: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "script.py").write_text(SCRIPT)
    return run(PLANTED_RUNS, tmp_path / "script.py", tmp_path, instrumented, tmp_path / "out")


def test_a_fault_behind_four_bytes_is_found_and_its_input_printed_and_kept(tmp_path: Path) -> None:
    done = run_planted(tmp_path, "planted")
    assert done.returncode != 0
    (crash,) = (tmp_path / "out/planted").glob("crash-*")
    assert crash.read_bytes().startswith(FAULT)
    assert f"planted fails for {crash.read_bytes()!r}" in done.stdout
    assert str(crash) in done.stdout


def test_it_is_coverage_that_leads_there(tmp_path: Path) -> None:
    done = run_planted(tmp_path, "another")
    assert done.returncode == 0, done.stdout[-3_000:]
    assert f"Done {PLANTED_RUNS} runs" in done.stdout
