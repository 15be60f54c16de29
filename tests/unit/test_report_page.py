"""The page: it says what the numbers say, hides nothing, obeys no completion, and opens offline."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from rlvr_api.cli import UserError
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.status import Condition, RLVRJobStatus
from rlvr_trainer.metrics import StepMetrics, summarize_evaluation
from rlvr_trainer.metrics_log import read_evaluations
from rlvr_trainer.report.figures import bottleneck
from rlvr_trainer.report.page import changes, failure, headline, render, run_state, settings, verdict_rows
from rlvr_trainer.report.records import StepRollouts, read_step
from rlvr_trainer.report.run_data import RunData, Sample, choose_samples, load_run_data
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.report.write import write_report

NOW = datetime(2026, 6, 1, tzinfo=UTC)
MAX_BYTES = 2_000_000


class Page(HTMLParser):
    """Elements and text of a page; complains of tags that do not match."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "circle", "line", "path", "rect"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def made(memory_store, synthetic_run, **options):
    job = synthetic_run(memory_store, **options)
    data = load_run_data(RunSource(job, memory_store))
    return data, render(data, NOW)


def test_the_page_is_whole_self_contained_and_says_what_happened(memory_store, synthetic_run):
    data, html = made(memory_store, synthetic_run, steps=12, resumed_at=7)
    page = Page(html)
    assert len(html.encode()) < MAX_BYTES
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [name for name, value in page.attributes if name.startswith("on") or name in ("href", "src", "action", "srcset")]
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html
    assert "arithmetic" in page.text
    assert "complete" in page.text
    assert "resumed" in page.text
    assert page.tags.count("svg") > 12
    found = headline(data.evaluations)
    assert {found.before, found.after, found.change}.issubset(page.words)
    assert f"95 % interval {found.interval}" in page.text
    assert "The bottleneck was training" in page.text
    for name in ("Staleness", "Mismatch KL", "Effective sample size", "Clip fraction", "Sample rollouts", "masked (infra_error)"):
        assert name in page.text


def test_a_hostile_completion_is_text_and_nothing_else(memory_store, synthetic_run):
    data, _ = made(memory_store, synthetic_run, steps=2)
    views = [view for step in (1, 2) for view in read_step(RunSource(data.job, memory_store), step).views]
    hostile = next(view for view in views if "<script>" in view.rollout.text)
    html = render(RunData(data.job, data.steps, data.evaluations, [Sample("early", "worst", hostile)]), NOW)
    page = Page(html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "<script>alert('x')</script>⟨U+001B⟩[2J⟨U+202E⟩ 7</pre><img src=x onerror=alert(1)>{{ 7 * 7 }}" in page.text
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_headline_is_the_paired_difference_of_the_first_and_last_evaluation(memory_store, synthetic_run):
    synthetic_run(memory_store, steps=12)
    evaluations = read_evaluations(memory_store)
    first, last = evaluations[0], evaluations[-1]
    found = headline(evaluations)
    assert found.tasks == 60
    assert found.before == f"{first.pass_rate() * 100:.1f}\u00a0%"
    assert found.change == f"{(last.pass_rate() - first.pass_rate()) * 100:+.1f}"
    assert found.verdict == "up"
    assert [change.name for change in changes(evaluations)] == ["sums, level 0", "sums, level 1"]
    assert headline(evaluations[:1]) is None
    assert headline([last, first]).verdict == "down"
    same = headline([first, first])
    assert (same.change, same.verdict) == ("+0.0", "unclear")


def test_evaluations_without_tasks_in_common_are_not_compared(memory_store, synthetic_run):
    synthetic_run(memory_store, steps=4)
    first, *_ = read_evaluations(memory_store)
    nothing = summarize_evaluation([], stage="climb", step=9, weight_version=9, time=NOW)
    assert headline([first, nothing]) is None
    foreign = first.model_copy(update={"cells": tuple(cell.model_copy(update={"environment": "words"}) for cell in first.cells)})
    assert headline([first, foreign]) is None


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_run_that_has_hardly_begun_has_a_page(memory_store, synthetic_run, steps):
    job = synthetic_run.make_job(steps=12)
    synthetic_run(memory_store, job=job, steps=steps)
    data = load_run_data(RunSource(job, memory_store))
    text = Page(render(data, NOW)).text
    assert f"{steps} of 12 steps" in text
    assert ("No optimizer step has been recorded yet." in text) is (steps == 0)


def test_a_run_without_anything_has_a_page(memory_store, synthetic_run):
    data = load_run_data(RunSource(synthetic_run.make_job(), memory_store))
    assert "No held-out evaluation has been recorded yet." in Page(render(data, NOW)).text


def test_a_long_run_stays_small(memory_store, synthetic_run):
    data, html = made(memory_store, synthetic_run, steps=400, seed=3)
    assert len(html.encode()) < MAX_BYTES / 2
    assert "is the mean of about 10 steps" in Page(html).text
    assert len(data.steps) == 400


def test_a_failed_run_says_why(memory_store, synthetic_run):
    job = synthetic_run.make_job(steps=12)
    synthetic_run(memory_store, job=job, steps=3)
    condition = Condition(
        type=ConditionType.FAILED, status="True", reason=Reason.RUNTIME_FAILED, message="disk full: <free> space", last_transition_time=NOW
    )
    data = load_run_data(RunSource(job, memory_store, RLVRJobStatus(phase=Phase.FAILED, conditions=(condition,))))
    assert run_state(data) == ("failed at 3 of 12 steps", "down")
    assert failure(data) == "disk full: <free> space"
    assert "disk full: <free> space" in Page(render(data, NOW)).text


def test_samples_are_best_worst_and_random_from_different_groups_and_the_same_each_time(memory_store, synthetic_run):
    data, _ = made(memory_store, synthetic_run, steps=6)
    assert [(sample.when, sample.why, sample.view.step) for sample in data.samples] == [
        (when, why, step) for when, step in (("early", 1), ("late", 6)) for why in ("best", "worst", "random")
    ]
    early = [sample.view for sample in data.samples[:3]]
    assert early[0].rollout.reward == 1.0
    assert early[1].rollout.reward == 0.0
    assert len({view.group.admission.index for view in early}) == 3
    assert load_run_data(RunSource(data.job, memory_store)).samples == data.samples


def test_a_step_that_nobody_judged_has_no_samples(memory_store, synthetic_run):
    step = read_step(RunSource(synthetic_run(memory_store, steps=1), memory_store), 1)
    masked = tuple(view for view in step.views if view.rollout.reward is None)
    assert choose_samples("early", StepRollouts(step.record, step.groups, masked), "seed") == []


def test_verdict_counts_add_up():
    step = StepMetrics(
        stage="climb", step=1, attempt=1, time=NOW, weight_version=1, pass_rate=0.25, groups=2, live_groups=1, rollouts=14, masked=2,
        invalid=3, timeouts=1, tokens_trained=9,
    )  # fmt: skip
    rows = dict(verdict_rows([step, step]))
    assert [cells[0].replace("\u00a0", " ") for cells in rows.values()] == [
        "14",
        "3 (21.4 %)",
        "5 (35.7 %)",
        "3 (21.4 %)",
        "1 (7.1 %)",
        "2 (14.3 %)",
    ]
    assert rows["rollouts"] == ["14", "14", "28"]
    assert verdict_rows([]) == []


def test_the_bottleneck_is_the_largest_share(memory_store, synthetic_run):
    data, _ = made(memory_store, synthetic_run, steps=4)
    part, shares = bottleneck(data.steps)
    assert part == max(shares, key=shares.get)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert bottleneck([]) is None


def test_settings_are_flat_and_complete():
    value = {"a": {"b": 1, "c": []}, "d": [{"name": "x", "e": True}, {"f": None}], "g": ["p", "q"], "h": {}}
    assert list(settings(value)) == [("a.b", "1"), ("a.c", ""), ("d[x].name", "x"), ("d[x].e", "True"), ("d[1].f", "None"), ("g", "p, q"),
                                     ("h", "{}")]  # fmt: skip


def test_the_file_is_written_whole_or_not_at_all(memory_store, synthetic_run, tmp_path):
    source = RunSource(synthetic_run(memory_store, steps=2), memory_store)
    written = write_report(source, tmp_path / "new" / "report.html")
    assert written.read_text().startswith("<!DOCTYPE html>")
    assert written.read_text().rstrip().endswith("</html>")
    assert [path.name for path in written.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output"):
        write_report(source, tmp_path / "file" / "report.html")
