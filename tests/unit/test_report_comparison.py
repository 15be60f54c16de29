"""The page of `rlvr compare`: it pairs what both have measured, says what each cost and learned from, and refuses what it cannot."""

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from rlvr_api.cli import UserError
from rlvr_trainer.report.comparison import render_comparison, samples_before
from rlvr_trainer.report.run_data import load_run_data
from rlvr_trainer.report.source import RunSource

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def make_data(synthetic_run, make_store):
    """A run of this name, with as many steps; fewer learn less."""

    def make(name, steps=12):
        store = make_store()
        job = synthetic_run.make_job(name, steps=steps)
        synthetic_run(store, job=job, steps=steps)
        return load_run_data(RunSource(job, store))

    return make


def words(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_runs_are_compared_with_the_first_on_the_tasks_that_both_measured(make_data):
    long, short = make_data("long"), make_data("short", 4)
    html = render_comparison([long, short], NOW)
    text = words(html)
    rates = [data.evaluations[-1].pass_rate() for data in (long, short)]
    assert rates[1] < rates[0] - 0.1
    found = re.search(
        r"last evaluation beside that of long .*? short (\d+) ([\d.]+) % ([\d.]+) % −([\d.]+) −([\d.]+) to −([\d.]+)",
        text.replace("\u00a0", " "),
    )
    assert found, text
    tasks, before, after, difference, most, least = map(float, found.groups())
    assert tasks == len([task for cell in long.evaluations[-1].cells for task in cell.task_pass_rates])
    assert (before / 100, after / 100) == pytest.approx(rates, abs=1e-3)
    assert difference == pytest.approx(before - after, abs=0.11)
    assert least < difference < most
    assert html.count("<svg") == 6
    assert not re.search(r"<script|url\(|@import|https?://", html)


def test_samples_are_counted_up_to_an_evaluation(make_data):
    data = make_data("long")
    first, last = data.evaluations[0], data.evaluations[-1]
    assert samples_before(data, first) == sum(step.rollouts for step in data.steps[: first.step])
    assert samples_before(data, last) == sum(step.rollouts for step in data.steps)


def test_runs_without_a_task_in_common_say_so(make_data):
    one, other = make_data("one"), make_data("other")
    moved = [
        result.model_copy(update={"cells": tuple(cell.model_copy(update={"environment": "products"}) for cell in result.cells)})
        for result in other.evaluations
    ]
    text = words(render_comparison([one, replace(other, evaluations=moved)], NOW))
    assert "other: no held-out task in common with one, so there is no difference to show." in text
    assert "last evaluation beside that" not in text


def test_a_run_that_has_not_begun_is_shown_as_that(make_data):
    one = make_data("one")
    text = words(render_comparison([one, replace(make_data("idle"), steps=(), evaluations=())], NOW))
    assert "fewer than two evaluations" in text
    assert "no step yet" in text


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["one"], "1 run cannot be compared: name 2 to 6"),
        (["one", "two", "one"], "one is named twice; name different runs"),
        ([f"run-{number}" for number in range(7)], "7 runs cannot be compared: name 2 to 6"),
    ],
)
def test_what_cannot_be_compared_is_refused(make_data, names, said):
    data = make_data("one")
    runs = [
        replace(data, job=data.job.model_copy(update={"metadata": data.job.metadata.model_copy(update={"name": name})})) for name in names
    ]
    with pytest.raises(UserError, match=re.escape(said)):
        render_comparison(runs, NOW)
