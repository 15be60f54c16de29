"""The battery of `rlvr environment certify`: it passes what is sound, and each check finds the fault that it is for."""

import importlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from verifier_jobs import verifier_job, write_problems
from verifier_process import start_service, write_job

from rlvr_api.cli import main
from rlvr_api.inputs import map_inputs
from rlvr_api.loading import load_job
from rlvr_api.process import ExitCode
from rlvr_api.spec import Storage
from rlvr_api.wire import MAX_COMPLETION_BYTES
from rlvr_verifier.environments import open_environments, open_sandboxed
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment
from rlvr_verifier.environments.base import EnvironmentSetupError, Score, passed
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.python_functions import PythonFunctionsEnvironment
from rlvr_verifier.integrity.certificates import Certificate, find_uncertified
from rlvr_verifier.integrity.certify import certify as run_battery
from rlvr_verifier.integrity.hostile import HANGING, PERSISTENT
from rlvr_verifier.integrity.source_scan import scan_sources
from rlvr_verifier.sandbox.pool import Sandbox

EXAMPLES = Path(__file__).parents[2] / "examples"
SUMS = {"name": "sums", "arithmetic": {}, "levels": {"start": 1, "maximum": 3}}


def certify(environment: dict[str, object], tasks: int = 12, **verifiers: object) -> Certificate:
    spec = verifier_job([environment], **verifiers).spec
    return run_battery(spec.environments[0], spec.storage, spec.verifiers, tasks, seed=0)


def failing(certificate: Certificate) -> dict[str, tuple[str, ...]]:
    return {check.name: check.details for check in certificate.checks if not check.passed}


def test_sound_sums_are_certified_with_bounds() -> None:
    found = certify(SUMS, tasks=40)
    assert failing(found) == {}
    assert (found.certified, found.levels, found.false_positive_rate) == (True, (1, 2, 3), 0.0)
    assert 0.05 < found.false_positive_upper_bound < 0.12  # 40 tasks without a failure
    assert found.base_rate < 0.2
    assert {check.trials for check in found.checks[:3]} == {40}


def test_math_in_killable_workers_is_certified(tmp_path: Path) -> None:
    dataset = write_problems(tmp_path, [(f"What is {n} times {n}?", str(n * n)) for n in range(3, 30)])
    found = certify({"name": "math", "math": {"dataset": dataset}}, tasks=6, itemTimeoutSeconds=5.0)
    assert failing(found) == {}


def test_a_grader_that_works_out_expressions_is_refused_by_its_exploits() -> None:
    found = certify({"name": "sums", "arithmetic": {"extraction": "expression"}})
    ((name, details),) = failing(found).items()
    assert name == "exploits are refused"
    assert any(detail.startswith("question-echo was pass") for detail in details)
    assert found.false_positive_rate > 0.5


def test_a_verdict_that_another_process_does_not_give_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ArithmeticEnvironment.score

    def here_only(self, payload, completion, truncated):  # type: ignore[no-untyped-def]
        return passed("by luck") if completion.startswith("I do not know") else real(self, payload, completion, truncated)

    monkeypatch.setattr(ArithmeticEnvironment, "score", here_only)
    found = failing(certify(SUMS))
    details = found["tasks and verdicts are the same in other processes, with other hash seeds"]
    assert set(details) == {"another verdict with hash seed 1 (12)", "another verdict with hash seed 2 (12)"}


def test_a_scorer_that_a_completion_can_change_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real, changed = ArithmeticEnvironment.score, []

    def corruptible(self, payload, completion, truncated) -> Score:  # type: ignore[no-untyped-def]
        changed.extend([True] * (completion == PERSISTENT[0]))
        return passed("as told") if changed else real(self, payload, completion, truncated)

    monkeypatch.setattr(ArithmeticEnvironment, "score", corruptible)
    (details,) = (found for name, found in failing(certify(SUMS)).items() if "order" in name)
    assert "fail, then pass (12)" in details


def test_a_scorer_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ArithmeticEnvironment.score

    def slow(self, payload, completion, truncated):  # type: ignore[no-untyped-def]
        if completion == HANGING["signs"]:
            time.sleep(3.2)
        return real(self, payload, completion, truncated)

    monkeypatch.setattr(ArithmeticEnvironment, "score", slow)
    found = certify(SUMS, itemTimeoutSeconds=0.5)
    assert found.slowest_seconds > 3.1
    assert any("signs took" in detail for details in failing(found).values() for detail in details)


def test_a_constant_that_passes_often_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ArithmeticEnvironment.score
    pays = passed("why not")
    monkeypatch.setattr(ArithmeticEnvironment, "score", lambda *a: pays if a[2] == "yes" else real(*a))
    found = certify(SUMS)
    assert (found.base_rate, found.base_rate_text, found.certified) == (1.0, "yes", False)


CARELESS = """
import pickle
import re


class Careless:
    def score(self, payload, completion, truncated):
        return self._read(completion)

    def _read(self, completion):
        re.compile("x")
        return eval(completion), pickle.loads(completion)

    def sample(self):
        return eval("1 + 1")
"""


def test_calls_that_run_text_are_found_in_what_the_scorer_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "careless.py").write_text(CARELESS)
    monkeypatch.syspath_prepend(tmp_path)
    found = scan_sources(importlib.import_module("careless").Careless())
    assert found == ("careless:12 eval", "careless:12 pickle.loads")
    job = verifier_job([SUMS])
    assert scan_sources(open_environments(job, {})["sums"]) == ()


def test_hostile_texts_are_read_and_not_refused_by_size() -> None:
    assert max(len(text.encode()) for text in HANGING.values()) <= MAX_COMPLETION_BYTES


def test_the_command_prints_a_table_and_writes_a_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "certificate.json"
    assert main(["environment", "certify", "arithmetic", "--tasks", "8", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "arithmetic (arithmetic 3), levels 0 to 3: certified" in printed
    assert "ok   exploits are refused: 0 of 8 failed, at most " in printed
    assert json.loads(output.read_text())["certified"] is True


def test_a_job_file_is_certified_by_environment_and_faults_have_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = verifier_job([SUMS, {"name": "weak", "arithmetic": {"extraction": "expression"}}])
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    assert main(["environment", "certify", str(file), "--tasks", "6"]) == 1
    printed = capsys.readouterr().out
    assert "levels 1 to 3: certified" in printed
    assert "weak (arithmetic 3), levels 0: NOT certified" in printed
    assert "question-echo was pass" in printed
    assert main(["environment", "certify", str(file), "--name", "sums", "--tasks", "6"]) == 0
    for arguments, part in (
        ([str(file), "--name", "none"], "it has sums, weak"),
        (["chain_sums"], "neither a file nor an environment"),
        (["arithmetic", "--tasks", "1"], "write 2 or more"),
    ):
        assert main(["environment", "certify", *arguments]) == 2
        assert part in capsys.readouterr().err


FUNCTIONS = [
    {"prompt": "Write add(a, b).", "entryPoint": "add", "visible": [[2, 3]], "hidden": [[0, 0], [-1, 1], [10, 32]],
     "reference": "def add(a, b):\n    return a + b"},
    {"prompt": "Write pair(x), which returns a list of x and a copy.", "entryPoint": "pair", "hidden": [["a"], [None], [[1, 2.5]]],
     "expected": [["a", "a"], [None, None], [[1, 2.5], [1, 2.5]]]},
    {"prompt": "Write digits(n), the set of n's digits.", "entryPoint": "digits", "visible": [[7]], "hidden": [[10], [121]],
     "reference": "def digits(n):\n    return {int(c) for c in str(n)}"},
    {"prompt": "Write half(n), a float, and infinity for 0.", "entryPoint": "half", "hidden": [[1], [0], [-3]],
     "reference": "def half(n):\n    return n / 2 if n else float('inf')"},
]  # fmt: skip
PROGRAMS = [
    {"prompt": "Print the sum.", "tests": [{"input": "1\n2\n", "output": "3"}, {"input": "-4\n5", "output": "1\n"}]},
    {"prompt": "Print the lines, reversed.", "tests": [{"input": "a\nb\n", "output": "b\na\n"}, {"input": "ä ü\n", "output": "ä ü\n"}]},
    {"prompt": "Print how many lines there are.", "tests": [{"input": "", "output": "0"}, {"input": "x\ny\n", "output": "2"}]},
]  # fmt: skip


def write_dataset(folder: Path, rows: list[dict[str, object]]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return f"file://{file}"


def code_environment(folder: Path, kind: str) -> dict[str, object]:
    rows = FUNCTIONS if kind == "pythonFunctions" else PROGRAMS
    return {"name": "code", kind: {"dataset": write_dataset(folder, rows), "heldOut": 0.001, "timeLimitSeconds": 2.0}}


@pytest.mark.parametrize("kind", ["pythonFunctions", "stdio"])
def test_code_is_certified_by_programs_made_of_its_inputs(tmp_path: Path, kind: str) -> None:
    found = certify(code_environment(tmp_path, kind), tasks=4)
    assert failing(found) == {}
    assert found.certified
    right = next(check for check in found.checks if check.name == "right answers are paid")
    assert right.trials == (4 if kind == "pythonFunctions" else 3)
    assert found.slowest_seconds < 6.0


def test_a_grader_of_code_that_pays_for_what_the_prompt_shows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PythonFunctionsEnvironment.score
    lenient = lambda self, payload, text, cut: passed("shown") if "T = {'(2, 3)': 5}" in text else real(self, payload, text, cut)  # noqa: E731
    monkeypatch.setattr(PythonFunctionsEnvironment, "score", lenient)
    details = failing(certify(code_environment(tmp_path, "pythonFunctions"), tasks=4))
    assert details["exploits are refused"] == ("visible-only was pass (1)",)


def test_the_service_refuses_a_dataset_until_the_command_that_it_names_was_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_problems(tmp_path, [(f"What is {n} times {n}?", str(n * n)) for n in range(3, 30)])
    job = verifier_job([{"name": "math", "math": {"dataset": dataset}}], {"allowUncertified": False}, itemTimeoutSeconds=5.0)
    file = write_job(job, tmp_path)
    refused, _ = start_service(file)
    words = refused.communicate()[1]
    assert refused.returncode == ExitCode.BAD_INPUT
    assert "environment math is not certified: there is no" in words
    assert "run `rlvr environment certify JOB.yaml --name math`" in words
    assert main(["environment", "certify", str(file), "--name", "math", "--tasks", "6"]) == 0
    assert f"certificate: {dataset}.certificate.json" in capsys.readouterr().out
    accepted, _ = start_service(file)
    try:
        assert accepted.poll() is None
    finally:
        accepted.kill()
        accepted.communicate()


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_judges_without_a_further_step(file: Path) -> None:
    job = load_job(file.read_bytes())
    data = f"file://{EXAMPLES / 'data'}"
    job = job.model_copy(update={"spec": map_inputs(job.spec, lambda uri: uri.replace("file://data", data))})
    sandbox = Sandbox(1) if job.spec.runs_code else None
    try:
        environments = open_environments(job, {})
        if sandbox is not None:
            environments |= open_sandboxed(job, {}, sandbox)
        uncertified = find_uncertified(job, environments, DatasetReader(job.spec.storage, {}))
    finally:
        if sandbox is not None:
            sandbox.close()
    assert uncertified == (("sums",) if file.stem == "05-audited" else ())


def test_a_dataset_in_s3_has_its_certificate_beside_it(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    dataset = f"{s3.folder('certified')}/rows.jsonl"
    reader = DatasetReader(Storage(endpoint=s3.endpoint), {})
    reader.write(dataset, "\n".join(json.dumps({"problem": f"{n}?", "answer": str(n)}) for n in range(30)).encode())
    job = verifier_job([{"name": "math", "math": {"dataset": dataset}}], {"allowUncertified": False})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"storage": Storage(endpoint=s3.endpoint)})})
    environments = open_environments(job, {})
    with pytest.raises(EnvironmentSetupError, match=f"there is no {dataset}.certificate.json"):
        find_uncertified(job, environments, reader)
    reader.write(f"{dataset}.certificate.json", b"{}")
    with pytest.raises(EnvironmentSetupError, match="is no certificate of this version"):
        find_uncertified(job, environments, reader)
    with pytest.raises(EnvironmentSetupError, match="cannot be written to"):
        reader.write("s3://no-such-bucket-here/rows", b"")
