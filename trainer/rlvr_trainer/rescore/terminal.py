"""A comparison in the terminal. What a model wrote is made visible and printed as plain text."""

from collections.abc import Iterator

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlvr_trainer.report.text import counted, shortened, visible
from rlvr_trainer.rescore.comparison import Comparison, EnvironmentComparison, Example, changed

SHOWN_CHARACTERS = 600


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Table by environment, then what needs words, then examples."""
    console.print(_table(comparison))
    for line in _remarks(comparison):
        console.print(Text(line))
    for example in comparison.examples:
        console.print(_panel(example))


def _table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.run}: {counted(comparison.steps, 'step')} judged again", title_justify="left")
    for column in ("environment", "verdict then", "now", "completions", "tasks with a flip", "95 % interval"):
        table.add_column(column, justify="left" if column in ("environment", "verdict then", "now") else "right")
    for one in comparison.environments:
        table.add_row(
            one.environment, f"paid {one.paid_before}", f"paid {one.paid_now}", str(one.completions),
            f"{one.tasks_with_flips} of {one.tasks}", f"{one.task_flip_lower:.1%} to {one.task_flip_upper:.1%}",
        )  # fmt: skip
        for transition in changed(one):
            share = f" ({transition.completions / one.completions:.1%})" if one.completions else ""
            table.add_row("", str(transition.before), str(transition.now), f"{transition.completions}{share}", "", "")
    return table


def _remarks(comparison: Comparison) -> Iterator[str]:
    for one in comparison.environments:
        yield _summary(one)
    for reason, completions in comparison.skipped.items():
        yield f"left out: {counted(completions, 'completion')}, for {reason}"


def _summary(one: EnvironmentComparison) -> str:
    then, now = " and ".join(one.verifiers_before) or "nobody", " and ".join(one.verifiers_now) or "nobody"
    by = f"{one.environment}: judged by {then}" + (", then as now" if then == now else f" then, by {now} now")
    flips = f"{counted(one.newly_paid, 'completion')} newly paid, {one.no_longer_paid} no longer"
    rate = "" if one.flip_rate is None else f" ({one.flip_rate:.2%} flipped, mean score {one.mean_score_change or 0.0:+.4f})"
    words = f"{by}; {flips}{rate}"
    if one.unjudged:
        words += f"; {counted(one.unjudged, 'completion')} without a verdict then or now"
    if one.is_flaky:
        words += "; the verifier is the same, so its verdicts are not repeatable: look at time limits, and at the load of the machine"
    return words


def _panel(example: Example) -> Panel:
    body = Text(visible(shortened(example.prompt, SHOWN_CHARACTERS)), style="bold")
    body.append(f"\n{visible(shortened(example.completion, SHOWN_CHARACTERS)) or '(empty)'}", style="default")
    body.append(f"\nthen: {visible(example.reason_before) or 'no reason given'}", style="bright_black")
    body.append(f"\nnow: {visible(example.reason_now) or 'no reason given'}", style="bright_black")
    place = f"{example.environment} · {example.stage} step {example.step} · group {example.group} sample {example.sample}"
    return Panel(body, title=Text(f"{example.before} → {example.now}  {place}"), title_align="left")
