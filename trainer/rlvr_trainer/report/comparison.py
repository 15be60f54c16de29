"""Runs side by side: the page of `rlvr compare`, where the first run named is what the others are compared with.

    RunData of each -> held-out curves over steps and over samples, a row a run, paired differences of the last evaluations -> HTML

Runs are compared on the held-out tasks that both have measured, task by task. Not covered: several seeds of one job as one curve.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, groupby

from rlvr_api.cli import UserError
from rlvr_trainer.metrics import EvaluationResult
from rlvr_trainer.report.axes import duration, percent
from rlvr_trainer.report.charts import Line
from rlvr_trainer.report.figures import MAX_LINES, Figure, chart_figure, half_interval
from rlvr_trainer.report.page import Change, describe_change, headline, make_environment, run_state
from rlvr_trainer.report.run_data import RunData
from rlvr_trainer.report.text import counted


@dataclass(frozen=True, slots=True)
class Row:
    """One run, in words."""

    name: str
    colour: int
    state: tuple[str, str]
    """How far it is, and the colour class of that."""
    path: str
    """Its stages, with the steps that each has taken."""
    samples: str
    time: str
    """Of the learner."""
    traces: str
    """Stages that learned from words that were not the model's own."""
    learned: Change | None
    """Its first evaluation and its last one; None while there are not two."""


def render_comparison(runs: Sequence[RunData], generated: datetime) -> str:
    """The HTML that compares runs.

    Raises:
        UserError: see `check_names`.
    """
    names = [data.job.metadata.name for data in runs]
    check_names(names)
    differences = {data.job.metadata.name: _difference(runs[0], data) for data in runs[1:]}
    environment = make_environment()
    page: str = environment.get_template("comparison.html.j2").render(
        names=names,
        rows=[_row(data, colour) for colour, data in enumerate(runs, 1)],
        figures=[figure for figure in _figures(runs) if figure.wide],
        differences=[found for found in differences.values() if found is not None],
        unpaired=[name for name, found in differences.items() if found is None],
        generated=generated.strftime("%Y-%m-%d %H:%M UTC"),
    )
    return page.lstrip()


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for fewer than two runs, more than there are colours, or one twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice; name different runs")
    if not 2 <= len(names) <= MAX_LINES:
        raise UserError(f"{counted(len(names), 'run')} cannot be compared: name 2 to {MAX_LINES}")


def samples_before(data: RunData, result: EvaluationResult) -> int:
    """Completions that the run had drawn for training when it was evaluated."""
    position = data.position(result)
    return sum(step.rollouts for step in data.steps if data.position(step) <= position)


def _row(data: RunData, colour: int) -> Row:
    taken = [(name, sum(1 for _ in steps)) for name, steps in groupby(step.stage for step in data.steps)]
    external = data.lineage.external_stages if data.lineage is not None else ()
    seconds = sum(sum(step.phase_seconds.values()) for step in data.steps)
    return Row(
        name=data.job.metadata.name, colour=colour, state=run_state(data),
        path=" → ".join(f"{name} ({counted(count, 'step')})" for name, count in taken) or "no step yet",
        samples=f"{sum(step.rollouts for step in data.steps):,}", time=duration(seconds) if seconds else "",
        traces=", ".join(external) if external else "none" if data.lineage is not None else "not known yet",
        learned=headline(data.evaluations),
    )  # fmt: skip


def _difference(first: RunData, other: RunData) -> Change | None:
    """The last evaluations of two runs, paired by task; None where they share no task."""
    before, after = (next((result for result in reversed(data.evaluations) if result.cells), None) for data in (first, other))
    return describe_change(other.job.metadata.name, before, after) if before is not None and after is not None else None


def _figures(runs: Sequence[RunData]) -> Iterator[Figure]:
    over_steps, over_samples, training = [], [], []
    for colour, data in enumerate(runs, 1):
        name = data.job.metadata.name
        judged = [(result, rate) for result in data.evaluations if (rate := result.pass_rate()) is not None]
        errors = [half_interval(result.standard_error(), sum(cell.tasks for cell in result.cells)) for result, _ in judged]
        over_steps.append(Line(name, [(data.position(result), rate) for result, rate in judged], colour, "points", errors))
        over_samples.append(Line(name, [(samples_before(data, result), rate) for result, rate in judged], colour, "points", errors))
        drawn = accumulate(step.rollouts for step in data.steps)
        points = [(total, step.pass_rate) for total, step in zip(drawn, data.steps, strict=True) if step.pass_rate is not None]
        training.append(Line(name, points, colour))
    for title, text, lines, x_label in (
        ("Held-out pass rate by optimizer steps", "Steps of all stages; bars are 95 % intervals over tasks.", over_steps, "optimizer step"),
        (
            "Held-out pass rate by samples",
            "Completions that the model has drawn for training; learning from traces draws none, and moves straight up.",
            over_samples,
            "samples drawn",
        ),
        ("Pass rate in training by samples", "Of the prompts of the moment, which need not be equally hard.", training, "samples drawn"),
    ):
        yield chart_figure(title, text, lines, percent, y_range=(0.0, 1.0), x_label=x_label)
