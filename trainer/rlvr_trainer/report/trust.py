"""The section of the page that says whether the reward can be believed: what was paid beside what audits find right.

StepMetrics.evidence, audited evaluations -> trust_section -> verdict in words, chart, tables of rates and canaries
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlvr_api.binomial import Interval
from rlvr_api.wire import CanaryTag
from rlvr_trainer.integrity.estimators import AuditTally, noise_rates
from rlvr_trainer.integrity.evidence import CanaryTally
from rlvr_trainer.integrity.monitor import assess
from rlvr_trainer.metrics import EvaluationResult, StepMetrics
from rlvr_trainer.report.axes import chunks, percent
from rlvr_trainer.report.charts import Line
from rlvr_trainer.report.figures import Figure, chart_figure, run_marks
from rlvr_trainer.report.run_data import RunData

MAX_INTERVALS = 8
"""Points of audited accuracy."""
AUDITS_PER_INTERVAL = 40
"""With fewer of them a point says nothing."""
VERDICTS = {"True": ("up", "The reward can be believed, as far as it was measured."), "False": ("down", "The reward cannot be believed."),
            "Unknown": ("unclear", "Whether the reward can be believed is not known.")}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RateRow:
    """One rate of an environment, early and late in the run and over all of it."""

    name: str
    cells: Sequence[str]


@dataclass(frozen=True, slots=True)
class RateTable:
    """The rates of one environment."""

    environment: str
    rows: Sequence[RateRow]


@dataclass(frozen=True, slots=True)
class CanaryRow:
    """Canaries of one environment and kind."""

    environment: str
    tag: str
    judged: int
    broken: str
    """Which had another verdict than the known one; empty when none had."""


@dataclass(frozen=True, slots=True)
class TrustSection:
    """The section's values."""

    colour: str
    verdict: str
    words: str
    figure: Figure | None
    tables: Sequence[RateTable]
    canaries: Sequence[CanaryRow]
    held_out: Sequence[tuple[str, str, str]]
    """When, pass rate by the paid verifier, and by the second one."""
    rewards: str
    """What was learned from."""


def trust_section(data: RunData) -> TrustSection | None:
    """The section; None for a run that has neither audits nor canaries."""
    steps = [step for step in data.steps if step.evidence.audits or step.evidence.canaries]
    canaries = list(_canaries(steps))
    audited = [environment.name for environment in data.job.spec.environments if environment.audit is not None]
    if not steps or not (audited or canaries):
        return None
    last = [step for step in steps if step.stage_index == steps[-1].stage_index]
    found = assess(data.job.spec.integrity, audited, [step.evidence for step in last])
    colour, verdict = VERDICTS[found.status]
    audit = data.job.spec.integrity.audit
    return TrustSection(
        colour=colour,
        verdict=verdict,
        words=found.message,
        figure=_figure(data, steps, audited) if audited else None,
        tables=[table for name in audited if (table := _table(name, steps)) is not None],
        canaries=canaries,
        held_out=list(_held_out(data.evaluations)),
        rewards=audit.rewards if audit is not None else "",
    )


def _figure(data: RunData, steps: Sequence[StepMetrics], audited: Sequence[str]) -> Figure:
    paid = Line("paid", [(data.position(step), _paid_share(_tally([step], audited))) for step in steps], 2)
    points, errors = [], []
    count = min(MAX_INTERVALS, max(2, _tally(steps, audited).audited // AUDITS_PER_INTERVAL))
    for part in chunks(steps, count):
        accuracy = noise_rates(_tally(part, audited)).accuracy
        if accuracy.estimate is not None:
            points.append((fmean(data.position(step) for step in part), accuracy.estimate))
            errors.append(max(accuracy.upper - accuracy.estimate, accuracy.estimate - accuracy.lower))
    right = Line("right, as audits estimate (95 % interval, the longer side)", points, 1, "points", errors)
    text = (
        "Training rollouts of audited environments: the share that was paid, and the share that is right by the second verifier. Where the "
        "first rises above the second, wrong answers are paid."
    )
    return chart_figure("Paid and right", text, [paid, right], percent, y_range=(0.0, 1.0), marks=run_marks(data))


def _table(name: str, steps: Sequence[StepMetrics]) -> RateTable | None:
    half = max(1, len(steps) // 2)
    columns = [_tally(part, [name]) for part in (steps[:half], steps[half:], steps)]
    if not columns[-1].audited:
        return None
    rates = [noise_rates(column) for column in columns]
    rows = [
        RateRow("rollouts", [f"{column.paid + column.refused:,}" for column in columns]),
        RateRow("paid", [percent(_paid_share(column), 1) for column in columns]),
        RateRow("audited", [f"{column.audited:,}" for column in columns]),
        *(RateRow(words, [_interval(getattr(found, field), field == "youden") for found in rates]) for field, words in RATES),
    ]
    return RateTable(name, rows)


RATES = (
    ("accuracy", "right answers"),
    ("hack", "paid for wrong answers"),
    ("false_positive", "false positive rate"),
    ("false_negative", "false negative rate"),
    ("youden", "Youden index"),
    ("disagreement", "the two verifiers differ, of the audited"),
    ("flake", "flaky verdicts, of the audited"),
)


def _canaries(steps: Sequence[StepMetrics]) -> Iterator[CanaryRow]:
    for name in sorted({name for step in steps for name in step.evidence.canaries}):
        total = CanaryTally.total(step.evidence.canaries[name] for step in steps if name in step.evidence.canaries)
        for tag in CanaryTag:
            if total.judged.get(tag):
                broken = ", ".join(f"{probe} ({count})" for probe, count in sorted(total.broken_of(tag).items()))
                yield CanaryRow(name, tag.value, total.judged[tag], broken)


def _held_out(evaluations: Sequence[EvaluationResult]) -> Iterator[tuple[str, str, str]]:
    judged = [result for result in evaluations if result.audited_pass_rate() is not None]
    for result in (*judged[:1], *judged[1:][-1:]):
        cells = [cell for cell in result.cells if cell.audited_pass_rate is not None]
        tasks = sum(cell.tasks for cell in cells)
        paid = sum(cell.pass_rate * cell.tasks for cell in cells) / tasks
        yield f"{result.stage}, after step {result.step}", percent(paid, 1), percent(result.audited_pass_rate() or 0.0, 1)


def _tally(steps: Sequence[StepMetrics], names: Sequence[str]) -> AuditTally:
    return AuditTally.total(step.evidence.audits[name] for step in steps for name in names if name in step.evidence.audits)


def _paid_share(tally: AuditTally) -> float:
    judged = tally.paid + tally.refused
    return tally.paid / judged if judged else 0.0


def _interval(found: Interval, plain: bool) -> str:
    def shown(value: float) -> str:
        return f"{value:.2f}".replace("-", "−") if plain else percent(value, 1)

    estimate = "?" if found.estimate is None else shown(found.estimate)
    return f"{estimate} [{shown(found.lower)}, {shown(found.upper)}]"
