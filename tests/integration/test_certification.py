"""The battery of `rlvr environment certify`: it passes what is sound, and each check finds the fault that it is for."""

import asyncio
import importlib
import json
import os
import time
from pathlib import Path

import pytest
from verifier_jobs import verifier_job, write_problems

from rlvr_api.cli import main
from rlvr_api.wire import MAX_COMPLETION_BYTES
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment
from rlvr_verifier.environments.base import Score, passed
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.integrity.certification import Certificate, Certification
from rlvr_verifier.integrity.hostile import HANGING, PERSISTENT
from rlvr_verifier.integrity.source_scan import scan_sources
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService

SUMS = {"name": "sums", "arithmetic": {}, "levels": {"start": 1, "maximum": 3}}


def certify(environment: dict[str, object], tasks: int = 12, **verifiers: object) -> Certificate:
    async def run() -> Certificate:
        job = verifier_job([environment], {"canaryRate": 0.0}, **verifiers)
        environments = open_environments(job, {})
        pool = WorkerPool(job.model_dump_json(by_alias=True), job.spec)
        try:
            service = VerifierService(job.spec, environments, Seal(os.urandom(32)), pool, Instruments())
            return await Certification(job, environments[str(environment["name"])], service, tasks, 0).run()
        finally:
            pool.close()

    return asyncio.run(run())


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
            time.sleep(2.6)
        return real(self, payload, completion, truncated)

    monkeypatch.setattr(ArithmeticEnvironment, "score", slow)
    found = certify(SUMS, itemTimeoutSeconds=0.5)
    assert found.slowest_seconds > 2.5
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
    code = {"name": "code", "pythonFunctions": {"dataset": "file:///none.jsonl"}}
    job = verifier_job([SUMS, {"name": "weak", "arithmetic": {"extraction": "expression"}}])
    coding = tmp_path / "code.json"
    coding.write_text(verifier_job([code]).model_dump_json(by_alias=True, exclude_none=True))
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
        ([str(coding)], "environment code runs code"),
        (["chain_sums"], "neither a file nor an environment"),
        (["arithmetic", "--tasks", "1"], "write 2 or more"),
    ):
        assert main(["environment", "certify", *arguments]) == 2
        assert part in capsys.readouterr().err
