"""The charts of the page, each with the sentence that says how to read it.

RunData -> learning_figures, diagnostic_figures, time_figures -> Figure
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import get_args

from rlvr_api.status import Part
from rlvr_trainer.intervals import t_quantile
from rlvr_trainer.metrics import EvaluationCell, StepMetrics, seconds_by_part
from rlvr_trainer.report.axes import chunks, number, percent
from rlvr_trainer.report.charts import MAX_POINTS, NARROW, SMALL, STEPS, WIDE, Line, Mark, Size, line_chart, stacked_bars
from rlvr_trainer.report.run_data import RunData

FLAT = (Size(760, 130), Size(400, 130))
LOW = (Size(760, 180), Size(400, 180))
MAX_BARS = 40
MAX_LINES = 6
PARTS: tuple[Part, ...] = get_args(Part)
PART_WORDS: dict[Part, str] = {
    "generate": "waiting for generation",
    "verify": "waiting for verdicts",
    "train": "training",
    "sync": "publishing weights",
    "idle": "everything else (checkpoints, evaluation, records)",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart, in a wide and a narrow drawing for screens of either kind."""

    title: str
    text: str
    """How to read it."""
    wide: str
    narrow: str
    """Empty for a chart that is small anyway."""
    legend: Sequence[tuple[int, str]] = ()
    """Colour and name of each series, when there are several."""


def learning_figures(data: RunData) -> list[Figure]:
    """Reward and pass rate with the held-out points; held-out rates by level; levels."""
    found = [_learning(data), *_held_out_by_cell(data), *_levels(data), *_shares(data)]
    return [figure for figure in found if figure.wide]


def diagnostic_figures(data: RunData) -> list[Figure]:
    """Small charts of how far the batches were from the policy, and of the health of training."""
    found = []
    for title, text, fields, y_format in DIAGNOSTICS:
        lines = [_series(data, name, field, colour) for colour, (field, name) in enumerate(fields, 1)]
        lines = [line for line in lines if line.points]
        if lines:
            y_range = (0.0, 1.0) if y_format is percent else None
            found.append(chart_figure(title, text, lines, y_format, y_range=y_range, sizes=(SMALL, None)))
    return found


def time_figures(data: RunData) -> list[Figure]:
    """The learner's time at each step by the part that it went to, and the tokens that came of it."""
    steps = [step for step in data.steps if step.phase_seconds]
    bars: list[tuple[float, Mapping[str, float]]] = [
        (fmean(data.position(step) for step in part), {name: fmean(seconds_by_part(step)[name] for step in part) for name in PARTS})
        for part in chunks(steps, MAX_BARS)
    ]
    if not bars:
        return []
    text = (
        "Height is the wall time from one optimizer step to the next. The parts do not overlap: generation that goes on while the learner "
    )
    text += "trains is not in them, only the waiting for it."
    if len(steps) > MAX_BARS:
        text += f" Each bar is the mean of about {round(len(steps) / MAX_BARS)} steps."
    label = "The learner's seconds a step, by part"
    wide, narrow = (stacked_bars(bars, PARTS, label=label, size=size) for size in (WIDE, NARROW))
    found = [Figure("Time by step", text, wide, narrow)]
    rate = _series(data, "tokens/s", "tokens_per_second", 1)
    if rate.points:
        found.append(chart_figure("Tokens per second", "Completion tokens consumed over the step's wall time.", [rate], number, sizes=LOW))
    return found


def cell_name(environment: str, level: int, levels: int) -> str:
    """How the page calls an environment at a level; the level is left out where there is but one."""
    return f"{environment}, level {level}" if levels > 1 else environment


def _learning(data: RunData) -> Figure:
    reward, passed = _series(data, "mean reward", "reward_mean", 2), _series(data, "pass rate", "pass_rate", 1)
    lines = [Line("training pass rate", passed.points, 1)]
    text = "Training prompts change from step to step, and get harder as levels rise; held-out tasks stay the same."
    if any(abs(a[1] - b[1]) > 1e-9 for a, b in zip(reward.points, passed.points, strict=False)):
        lines.append(Line("training mean reward", reward.points, 2))
    else:
        text += " Here every pass has reward 1, so the mean reward is the pass rate."
    if len(data.steps) > MAX_POINTS:
        text += f" Each point of a line, here and below, is the mean of about {round(len(data.steps) / MAX_POINTS)} steps."
    points = [(data.position(result), rate) for result in data.evaluations if (rate := result.pass_rate()) is not None]
    if points:
        errors = [half_interval(result.standard_error(), _tasks(result.cells)) for result in data.evaluations if result.cells]
        lines.append(Line("held-out pass rate (95 % interval)", points, 3, "points", errors))
    return chart_figure("Reward and pass rate", text, lines, percent, y_range=(0.0, 1.0), marks=run_marks(data))


def _held_out_by_cell(data: RunData) -> Iterator[Figure]:
    cells: dict[tuple[str, int], list[tuple[float, EvaluationCell]]] = {}
    for result in data.evaluations:
        for cell in result.cells:
            cells.setdefault((cell.environment, cell.level), []).append((data.position(result), cell))
    if len(cells) < 2:
        return
    lines = [
        Line(
            cell_name(environment, level, 2),
            [(x, cell.pass_rate) for x, cell in found],
            colour,
            "points",
            [half_interval(cell.standard_error, cell.tasks) for _, cell in found],
        )
        for colour, ((environment, level), found) in enumerate(sorted(cells.items())[:MAX_LINES], 1)
    ]
    text = "The same held-out tasks at every evaluation, by environment and level, with 95 % intervals over tasks."
    if len(cells) > MAX_LINES:
        text += f" The first {MAX_LINES} of {len(cells)}; the table above has all."
    yield chart_figure("Held-out pass rate by level", text, lines, percent, y_range=(0.0, 1.0))


def _levels(data: RunData) -> Iterator[Figure]:
    names = sorted({name for step in data.steps for name in step.levels})
    if len({level for step in data.steps for level in step.levels.values()}) < 2:
        return
    lines = [
        Line(name, [(data.position(step), step.levels[name]) for step in data.steps if name in step.levels], colour, "step")
        for colour, name in enumerate(names[:MAX_LINES], 1)
    ]
    text = "The level that training prompts are drawn from; it rises when the last groups' pass rate reaches the environment's threshold."
    highest = max(level for step in data.steps for level in step.levels.values())
    yield chart_figure("Level", text, lines, number, y_range=(0.0, highest + 0.3), whole_y=True, sizes=FLAT)


def _shares(data: RunData) -> Iterator[Figure]:
    names = sorted({name for step in data.steps for name in step.shares})
    if len(names) < 2:
        return
    steps = [step for step in data.steps if step.shares]
    lines = [
        Line(name, [(data.position(step), step.shares.get(name, 0.0)) for step in steps], colour)
        for colour, name in enumerate(names[:MAX_LINES], 1)
    ]
    effective = [step.effective_environments for step in steps if step.effective_environments is not None]
    text = "Share of each environment in a step's groups."
    if effective:
        text += f" Effective number of environments (Vendi score), last step: {number(effective[-1])} of {len(names)}."
    if len(names) > MAX_LINES:
        text += f" The first {MAX_LINES} are drawn."
    yield chart_figure("Prompts by environment", text, lines, percent, y_range=(0.0, 1.0), sizes=LOW)


def chart_figure(
    title: str, text: str, lines: Sequence[Line], y_format: Callable[[float], str], *, sizes: tuple[Size, Size | None] = (WIDE, NARROW),
    y_range: tuple[float, float] | None = None, whole_y: bool = False, marks: Sequence[Mark] = (), x_label: str = STEPS,
) -> Figure:  # fmt: skip
    """A line chart in both sizes; arguments as those of `charts.line_chart`."""
    wide, narrow = (
        line_chart(lines, label=title, y_format=y_format, y_range=y_range, whole_y=whole_y, marks=marks, size=size, x_label=x_label)
        if size
        else ""
        for size in sizes
    )
    legend = [(line.colour, line.name) for line in lines] if len(lines) > 1 else []
    return Figure(title, text, wide, narrow, legend)


def _series(data: RunData, name: str, field: str, colour: int) -> Line:
    return Line(name, [(data.position(step), value) for step in data.steps if (value := getattr(step, field)) is not None], colour)


def run_marks(data: RunData) -> list[Mark]:
    """Where a stage begins, and where another attempt took over."""
    marks = []
    for before, after in pairwise(data.steps):
        if after.stage_index != before.stage_index:
            marks.append(Mark(data.position(after) - 0.5, after.stage))
        elif after.attempt > before.attempt:
            marks.append(Mark(data.position(after) - 0.5, "resumed"))
    return marks


def half_interval(standard_error: float | None, tasks: int) -> float | None:
    """Half the 95 % interval of a mean over tasks; None for fewer than two."""
    return None if standard_error is None or tasks < 2 else standard_error * t_quantile(0.975, tasks - 1)


def _tasks(cells: Sequence[EvaluationCell]) -> int:
    return sum(cell.tasks for cell in cells)


def bottleneck(steps: Sequence[StepMetrics]) -> tuple[Part, dict[Part, float]] | None:
    """The part with the largest share of the learner's time, and all shares; None while nothing was timed."""
    totals = {part: sum(seconds_by_part(step)[part] for step in steps) for part in PARTS}
    whole = sum(totals.values())
    if whole <= 0:
        return None
    shares = {part: seconds / whole for part, seconds in totals.items()}
    return max(PARTS, key=lambda part: shares[part]), shares


DIAGNOSTICS: Sequence[tuple[str, str, Sequence[tuple[str, str]], Callable[[float], str]]] = (
    (
        "Staleness (optimizer steps)",
        "How many steps older than the trained weights the sampled tokens were: 0 is on-policy, and admission bounds it. "
        "Where a governor moves that bound, it is shown, too.",
        (("staleness_mean", "mean"), ("staleness_max", "largest"), ("staleness_allowed", "allowed")),
        number,
    ),
    (
        "Mismatch KL (nats)",
        "Distance of the sampler from the trainer at the sampled tokens: staleness plus differences of kernels and precision. "
        "A rise without staleness means that engine and trainer compute different things.",
        (("mismatch_kl", "KL"),),
        number,
    ),
    (
        "Largest log-prob gap (nats)",
        "The worst token between sampler and trainer: large values are single tokens whose importance weight is cut by the cap.",
        (("mismatch_max", "gap"),),
        number,
    ),
    (
        "Effective sample size",
        "Share of the batch's tokens that count after importance weighting: near 100 % the batch is as good as fresh.",
        (("ess", "ESS"),),
        percent,
    ),
    (
        "Clip fraction",
        "Share of tokens that the trust region cut off: they moved as far as one step may move them.",
        (("clip_fraction", "clipped"),),
        lambda value: percent(value, 1),
    ),
    (
        "Entropy (nats)",
        "How undecided the policy is at each token: a fall to zero ends exploration, and learning with it.",
        (("entropy", "entropy"),),
        number,
    ),
    (
        "KL to the reference (nats)",
        "How far each token's distribution has moved from the frozen policy that `referenceKl` names.",
        (("reference_kl", "KL"),),
        number,
    ),
    (
        "Explained variance of the critic",
        "Share of the returns' variance that the critic foresees: 0 is as good as a constant, below 0 is worse.",
        (("explained_variance", "explained"),),
        number,
    ),
    (
        "Groups with a gradient",
        "Share of the groups whose rewards differ: the others teach nothing. It falls when tasks become too easy or are too hard.",
        (("live_share", "live groups"),),
        percent,
    ),
    (
        "Gradient norm",
        "Length of the gradient before clipping: spikes are steps to look at.",
        (("gradient_norm", "norm"),),
        number,
    ),
    (
        "Completion length (tokens)",
        "Mean length: growth without a rise of the held-out rate is padding.",
        (("completion_tokens_mean", "mean"),),
        number,
    ),
    (
        "Truncated completions",
        "Share that ended at the length limit instead of at a stop token.",
        (("truncated_share", "truncated"),),
        percent,
    ),
)
