"""The page: one HTML file that opens offline, without script, font or request, in light and dark.

    RunData -> view values -> jinja2 template (everything is escaped) -> HTML

Completions are hostile input: they are escaped, shown with their control characters made visible, and the page's own policy forbids
scripts and requests altogether.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from rlvr_api.cli import DISTRIBUTION
from rlvr_api.conditions import ConditionType, Phase
from rlvr_trainer.lineage_view import lineage_lines
from rlvr_trainer.metrics import EvaluationResult, StepMetrics, paired_difference
from rlvr_trainer.report.axes import duration, number, percent
from rlvr_trainer.report.figures import PART_WORDS, PARTS, bottleneck, cell_name, diagnostic_figures, learning_figures, time_figures
from rlvr_trainer.report.pass_at_rows import pass_at_table
from rlvr_trainer.report.run_data import RunData
from rlvr_trainer.report.text import counted, shortened, visible
from rlvr_trainer.report.trust import trust_section

SAMPLE_CHARACTERS = 6000
"""Of a prompt or completion; a page of six stays far below 2 MB."""
EDGE_SHARE = 0.2
"""Share of the steps that `first` and `last` columns cover."""


@dataclass(frozen=True, slots=True)
class Change:
    """A pass rate before and after."""

    name: str
    tasks: int
    samples: str
    """Of each task: a number, or two where the evaluations differ."""
    before: str
    after: str
    change: str
    interval: str
    """Empty when there are too few tasks for one."""
    verdict: str
    """`up`, `down` or `unclear`: whether the interval leaves zero out."""


def make_environment() -> Environment:
    """Templates of pages, with everything escaped but charts."""
    environment = Environment(
        loader=PackageLoader("rlvr_trainer.report", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(visible=visible, shown=lambda text: visible(shortened(text, SAMPLE_CHARACTERS)), svg=Markup)
    environment.filters.update(number=number, percent=percent, duration=duration)
    environment.globals["version"] = version(DISTRIBUTION)
    return environment


def render(data: RunData, generated: datetime) -> str:
    """The HTML of a run's report."""
    environment = make_environment()
    timing = bottleneck(data.steps)
    page: str = environment.get_template("report.html.j2").render(
        data=data,
        job=data.job,
        state=run_state(data),
        failure=failure(data),
        facts=list(key_facts(data)),
        changes=changes(data.evaluations),
        contaminated=contaminated(data),
        lineage=list(lineage_lines(data.lineage)) if data.lineage is not None else [],
        headline=headline(data.evaluations),
        pass_at=pass_at_table(data.evaluations),
        learning=learning_figures(data),
        trust=trust_section(data),
        rollbacks=list(rollback_lines(data)),
        diagnostics=diagnostic_figures(data),
        timing=time_figures(data),
        bottleneck=timing and (PART_WORDS[timing[0]], timing[1][timing[0]]),
        shares=[(index, PART_WORDS[part], timing[1][part]) for index, part in enumerate(PARTS, 1)] if timing else [],
        verdicts=verdict_rows(data.steps),
        discarded=discarded(data.steps),
        truncation=truncation_note(data),
        settings=list(settings(data.job.spec.model_dump(mode="json", by_alias=True, exclude_none=True))),
        generated=generated.strftime("%Y-%m-%d %H:%M UTC"),
    )
    return page.lstrip()


def run_state(data: RunData) -> tuple[str, str]:
    """How far the run is, in words, and the colour class of that."""
    progress = f"{len(data.steps)} of {data.planned_steps} steps"
    phase = data.status.phase if data.status is not None else None
    if len(data.steps) >= data.planned_steps or phase is Phase.SUCCEEDED:
        return "complete", "up"
    if phase is Phase.FAILED:
        return f"failed at {progress}", "down"
    if phase in (Phase.SUSPENDED, Phase.SUSPENDING):
        return f"stopped at {progress}", "unclear"
    return progress, "unclear"


def failure(data: RunData) -> str:
    """Why the run failed, in the runtime's words; empty when it did not."""
    conditions = data.status.conditions if data.status is not None else ()
    return next((item.message for item in conditions if item.type is ConditionType.FAILED and item.status == "True"), "")


def rollback_lines(data: RunData) -> Iterator[str]:
    """What was taken back, and why; steps are those of the stage."""
    for record in data.rollbacks:
        yield (
            f"Stage {record.stage} was rolled back from step {record.from_step} to step {record.to_step} on "
            f"{record.time:%Y-%m-%d %H:%M} UTC: {record.message}"
        )


def key_facts(data: RunData) -> Iterator[tuple[str, str]]:
    """What the reader must know before the curves."""
    spec, steps = data.job.spec, data.steps
    yield "model", spec.model.uri.rstrip("/").rpartition("/")[2] or spec.model.uri
    yield "progress", f"{len(steps)} of {data.planned_steps} optimizer steps"
    for stage in spec.stages:
        if stage.rlvr is not None:
            yield (
                f"stage {stage.name}",
                (
                    f"{stage.rlvr.algorithm.kind}, {stage.rlvr.prompts_per_step} prompts × {stage.rlvr.group_size} samples, "
                    f"learning rate {number(stage.rlvr.optimizer.learning_rate)}"
                ),
            )
    correction = spec.off_policy.correction.kind.replace("_", "-")
    yield "staleness allowed", f"{counted(spec.off_policy.max_staleness, 'step')}, correction {correction}"
    if steps:
        yield "rollouts", f"{sum(step.rollouts for step in steps):,}"
        yield "tokens trained", f"{sum(step.tokens_trained for step in steps):,}"
        spent = sum(sum(step.phase_seconds.values()) for step in steps)
        if spent > 0:
            yield "learner time", duration(spent)
        yield "attempts", str(max(step.attempt for step in steps))


def headline(evaluations: Sequence[EvaluationResult]) -> Change | None:
    """The first and last evaluation compared over all their tasks; None while there are not two."""
    pair = _first_and_last(evaluations)
    return None if pair is None else describe_change("all held-out tasks", *pair)


def changes(evaluations: Sequence[EvaluationResult]) -> list[Change]:
    """The same by environment and level; empty when there is but one such cell."""
    pair = _first_and_last(evaluations)
    if pair is None:
        return []
    cells = sorted({(cell.environment, cell.level) for cell in pair[1].cells} & {(cell.environment, cell.level) for cell in pair[0].cells})
    if len(cells) < 2:
        return []
    found = (describe_change(cell_name(environment, level, 2), *pair, environment, level) for environment, level in cells)
    return [change for change in found if change is not None]


def describe_change(
    name: str, before: EvaluationResult, after: EvaluationResult, environment: str | None = None, level: int | None = None
) -> Change | None:
    """Two evaluations compared over the tasks that both have; None where they share none.

    Args:
        environment, level: look at these tasks alone; None is all.
    """
    first, second = (_rates(result, environment, level) for result in (before, after))
    shared = first.keys() & second.keys()
    if not shared:
        return None
    old, new = (sum(rates[task] for task in shared) / len(shared) for rates in (first, second))
    interval, verdict = "", "unclear"
    if len(shared) > 1:
        _, lower, upper = paired_difference(before, after, environment, level)
        interval = f"{_points(lower)} to {_points(upper)}"
        verdict = "up" if lower > 0 else "down" if upper < 0 else "unclear"
    return Change(
        name, len(shared), _samples_per_task(before, after), percent(old, 1), percent(new, 1), _points(new - old), interval, verdict
    )


def verdict_rows(steps: Sequence[StepMetrics]) -> list[tuple[str, list[str]]]:
    """Counts and shares of verdicts, for the first steps, the last steps and all."""
    edge = max(1, round(len(steps) * EDGE_SHARE))
    columns = [steps[:edge], steps[-edge:], steps]
    rows = ("rollouts", "pass", "fail", "invalid", "timeout", "masked (infra_error)")
    counted = [_count_verdicts(column) for column in columns]
    return [(row, [_share(counts[row], counts["rollouts"], row == "rollouts") for counts in counted]) for row in rows] if steps else []


def discarded(steps: Sequence[StepMetrics]) -> list[tuple[str, int]]:
    """Groups given up, by reason, most first."""
    totals: dict[str, int] = {}
    for step in steps:
        for reason, count in step.discarded.items():
            totals[reason] = totals.get(reason, 0) + count
    return sorted(totals.items(), key=lambda item: -item[1])


def truncation_note(data: RunData) -> str:
    """A warning when a run is paid for answers that never end; empty when it is not."""
    last = data.steps[-1].truncated_share if data.steps else None
    if last is None or last < 0.2:
        return ""
    rules = sorted({env.name for env in data.job.spec.environments if env.arithmetic and env.arithmetic.extraction == "lastInteger"})
    why = f" The rule lastInteger of {', '.join(rules)} pays for them all the same." if rules else ""
    limit = data.job.spec.sampling.max_tokens
    return f"{percent(last)} of the last step's completions ended at the limit of {limit} tokens, not at a stop token.{why}"


def contaminated(data: RunData) -> str:
    """A warning when examples that were learned hold held-out prompts; empty when none is known to."""
    stages = data.lineage.stages if data.lineage is not None else ()
    found = [(dataset.contamination.examples, dataset.uri) for stage in stages for dataset in stage.datasets if dataset.contamination]
    told = [f"{counted(examples, 'example')} of {uri}" for examples, uri in found if examples]
    return f"{' and '.join(told)} hold held-out tasks or known traces: what is measured here is in part what was learned." if told else ""


def settings(value: JsonValue, path: str = "") -> Iterator[tuple[str, str]]:
    """The spec as lines of path and value."""
    if isinstance(value, Mapping) and value:
        for name, member in value.items():
            yield from settings(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(member, (dict, list)) for member in value):
        for index, member in enumerate(value):
            name = str(member.get("name", index) if isinstance(member, dict) else index)
            yield from settings(member, f"{path}[{name}]")
    else:
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else "{}" if value == {} else str(value)


def _first_and_last(evaluations: Sequence[EvaluationResult]) -> tuple[EvaluationResult, EvaluationResult] | None:
    judged = [result for result in evaluations if result.cells]
    return (judged[0], judged[-1]) if len(judged) > 1 else None


def _rates(result: EvaluationResult, environment: str | None, level: int | None) -> Mapping[tuple[str, int, str], float]:
    return {
        (cell.environment, cell.level, task): rate
        for cell in result.cells
        if environment in (None, cell.environment) and level in (None, cell.level)
        for task, rate in cell.task_pass_rates.items()
    }


def _samples_per_task(before: EvaluationResult, after: EvaluationResult) -> str:
    drawn, tasks = ([sum(getattr(cell, name) for cell in result.cells) for result in (before, after)] for name in ("samples", "tasks"))
    masked = [sum(cell.masked for cell in result.cells) for result in (before, after)]
    return " and ".join(dict.fromkeys(str(round((drawn[n] + masked[n]) / tasks[n])) for n in (0, 1)))


def _points(value: float) -> str:
    return f"{value * 100:+.1f}".replace("-", "−")


def _count_verdicts(steps: Sequence[StepMetrics]) -> dict[str, int]:
    total, masked = sum(step.rollouts for step in steps), sum(step.masked for step in steps)
    invalid, timeouts = sum(step.invalid for step in steps), sum(step.timeouts for step in steps)
    passed = sum(round((step.pass_rate or 0.0) * (step.rollouts - step.masked)) for step in steps)
    return {
        "rollouts": total, "pass": passed, "fail": max(0, total - masked - invalid - timeouts - passed), "invalid": invalid,
        "timeout": timeouts, "masked (infra_error)": masked,
    }  # fmt: skip


def _share(count: int, total: int, plain: bool) -> str:
    return f"{count:,}" if plain or not total else f"{count:,} ({percent(count / total, 1)})"
