"""The page's section on trust: it says what audits and canaries found, and is not there where there were none."""

from dataclasses import replace
from datetime import UTC, datetime

from rlvr_api.spec import RLVRJob
from rlvr_api.wire import CanaryTag, CanaryVerdict
from rlvr_trainer.integrity.estimators import AuditTally
from rlvr_trainer.integrity.evidence import CanaryTally, StepEvidence
from rlvr_trainer.report.page import render
from rlvr_trainer.report.run_data import load_run_data
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.report.trust import trust_section

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def audited(job, rewards="paid"):
    spec = job.spec.model_dump(by_alias=True, exclude_none=True)
    spec["environments"][0]["audit"] = {"finalAnswer": {}}
    spec["stages"][0]["rlvr"]["optimizer"]["maxGradientNorm"] = 10.0
    spec["integrity"] = {"audit": {"rewards": rewards}}
    return RLVRJob.model_validate({**job.model_dump(by_alias=True), "spec": spec})


def hacked(step):
    """Ever more is paid, and ever less of it is right."""
    paid = min(128, 30 + 9 * step)
    tally = AuditTally(paid=paid, refused=128 - paid, audited_paid=paid // 4, wrong_paid=min(paid // 4, 2 * step), audited_refused=3)
    canary = CanaryVerdict(environment="sums", tag=CanaryTag.EXPLOIT, probe="question-echo", kept=step < 6)
    right = CanaryVerdict(environment="sums", tag=CanaryTag.RIGHT, probe="plain", kept=True)
    return StepEvidence(audits={"sums": tally}, canaries={"sums": CanaryTally.of([canary, right])})


def run_of(memory_store, synthetic_run, **options):
    job = audited(synthetic_run(memory_store, steps=12), **options)
    data = load_run_data(RunSource(job, memory_store))
    steps = [step.model_copy(update={"evidence": hacked(step.step)}) for step in data.steps]
    evaluations = [
        result.model_copy(update={"cells": tuple(cell.model_copy(update={"audited_pass_rate": 0.25}) for cell in result.cells)})
        for result in data.evaluations
    ]
    return replace(data, steps=steps, evaluations=evaluations)


def test_a_hacked_run_says_so_with_rates_intervals_and_canaries(memory_store, synthetic_run):
    data = run_of(memory_store, synthetic_run)
    section = trust_section(data)
    assert (section.colour, section.verdict) == ("down", "The reward cannot be believed.")
    assert "environment sums pays for exploits: question-echo (7), 7 of 12 canaries" in section.words
    (table,) = section.tables
    rows = {row.name: row.cells for row in table.rows}
    assert rows["rollouts"] == ["768", "768", "1,536"]
    assert all("[" in cell for name in ("right answers", "paid for wrong answers", "Youden index") for cell in rows[name])
    assert [(row.tag, row.judged, row.broken) for row in section.canaries] == [("right", 12, ""), ("exploit", 12, "question-echo (7)")]
    assert [(paid, right) for _, paid, right in section.held_out][-1][1].startswith("25.0")
    html = render(data, NOW)
    for words in ("Can the reward be believed?", "Paid and right", "Audits only measured", "question-echo (7)"):
        assert words in html


def test_corrected_rewards_are_named(memory_store, synthetic_run):
    assert "Rewards were corrected by the audits (AIPW)" in render(run_of(memory_store, synthetic_run, rewards="corrected"), NOW)


def test_a_run_without_audits_and_canaries_has_no_such_section(memory_store, synthetic_run):
    data = load_run_data(RunSource(synthetic_run(memory_store, steps=3), memory_store))
    assert trust_section(data) is None
    assert "Can the reward be believed?" not in render(data, NOW)
