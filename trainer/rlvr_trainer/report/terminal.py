"""Rollouts of a step in the terminal, or as JSON lines for programs.

Text of the model is never markup and never an escape sequence: it is made visible and printed as plain text.
"""

import json
import sys
from collections.abc import Iterator, Sequence

from pydantic import JsonValue
from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from rlvr_api.cli import UserError
from rlvr_api.wire import VerdictStatus
from rlvr_trainer.report.axes import number
from rlvr_trainer.report.records import RolloutView, StepRollouts
from rlvr_trainer.report.text import counted, shortened, visible
from rlvr_trainer.rollout import Rollout

COLOURS = {
    VerdictStatus.PASS: "green",
    VerdictStatus.FAIL: "red",
    VerdictStatus.INVALID: "magenta",
    VerdictStatus.TIMEOUT: "yellow",
    VerdictStatus.INFRA_ERROR: "bright_black",
}
SHOWN_CHARACTERS = 4000


def select(step: StepRollouts, group: int | None, status: str | None, limit: int | None) -> Sequence[RolloutView]:
    """The rollouts that were asked for, in the order in which the step consumed them.

    Args:
        group: index of one group.
        status: verdict status.
        limit: at most so many.

    Raises:
        UserError: the step has no such group, or nothing is left; the message says what there is.
    """
    where = f"step {step.record.step} of stage {step.record.stage}"
    if group is not None and group not in step.record.groups:
        raise UserError(f"{where} consumed no group {group}; its groups are {_some(step.record.groups)}")
    found = [view for view in step.views if group in (None, view.group.admission.index) and status in (None, view.rollout.verdict.status)]
    if not found:
        counts = {status: sum(view.rollout.verdict.status is status for view in step.views) for status in VerdictStatus}
        there = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        raise UserError(f"{where} has no rollout with status {status}{'' if group is None else f' in group {group}'}; it has {there}")
    return found[:limit]


def print_rollouts(views: Sequence[RolloutView], total: int, console: Console) -> None:
    """Show rollouts under the prompt of their group; `total` is how many there are, shown ones included."""
    shown_group: int | None = None
    for view in views:
        index = view.group.admission.index
        if index != shown_group:
            shown_group = index
            admission = view.group.admission
            console.print(Rule(Text(f"step {view.step} · group {index} · {admission.environment}, level {admission.level}"), style="cyan"))
            console.print(Text(visible(shortened(view.group.prompt, SHOWN_CHARACTERS)), style="bold"))
        console.print(_panel(view))
    if len(views) < total:
        console.print(Text(f"{len(views)} of {total} rollouts; --limit {total} shows all", style="bright_black"))


def json_lines(views: Sequence[RolloutView]) -> Iterator[str]:
    """One JSON object a rollout; ASCII, so that no terminal obeys what a model wrote."""
    return (json.dumps(_record(view)) for view in views)


def write_json_lines(views: Sequence[RolloutView]) -> None:
    """Print JSON lines to stdout."""
    for line in json_lines(views):
        sys.stdout.write(f"{line}\n")


def _panel(view: RolloutView) -> Panel:
    verdict, rollout = view.rollout.verdict, view.rollout
    colour = COLOURS[verdict.status]
    score = "" if verdict.score is None else f"  score {number(verdict.score)}"
    facts = f"{counted(len(rollout.token_ids), 'token')}, mean log-prob {number(view.logprob_mean)}, weights {view.versions}"
    facts = f"{facts}, {counted(view.staleness, 'step')} old"
    if rollout.finish_reason == "length":
        facts = f"{facts}, truncated"
    body = _words(rollout)
    body.append(f"\n{visible(verdict.reason) or 'no reason given'}", style=colour)
    if verdict.audit is not None:
        agrees = (verdict.audit.score > 0) is (verdict.status is VerdictStatus.PASS)
        words = f"audit by {verdict.audit.verifier}: {verdict.audit.reason}"
        body.append(f"\n{visible(words)}", style="green" if agrees else "bold red")
    body.append(f"\n{facts}, {visible(verdict.verifier)} {visible(verdict.verifier_version)}", style="bright_black")
    return Panel(body, title=Text(f"{verdict.status}{score}  sample {view.sample}", style=colour), title_align="left", border_style=colour)


def _words(rollout: Rollout) -> Text:
    """What the model said; of several turns, with what it was told between them."""
    body = Text()
    for said, told in rollout.turns:
        if body:
            body.append("\n")
        body.append(visible(shortened(said, SHOWN_CHARACTERS)) or "(empty)", style="" if said else "italic")
        if told is not None:
            body.append(f"\n> {visible(shortened(told, SHOWN_CHARACTERS))}", style="cyan")
    return body


def _record(view: RolloutView) -> dict[str, JsonValue]:
    admission, rollout, verdict = view.group.admission, view.rollout, view.rollout.verdict
    return {
        "stage": view.stage,
        "step": view.step,
        "group": admission.index,
        "sample": view.sample,
        "environment": admission.environment,
        "level": admission.level,
        "problem_id": view.group.problem_id,
        "prompt": view.group.prompt,
        "completion": rollout.text,
        "turns": [{"said": said, "told": told} for said, told in rollout.turns],
        "status": verdict.status.value,
        "score": verdict.score,
        "reason": verdict.reason,
        "audit": None if verdict.audit is None else verdict.audit.model_dump(mode="json", by_alias=False),
        "verifier": verdict.verifier,
        "verifier_version": verdict.verifier_version,
        "tokens": len(rollout.token_ids),
        "finish_reason": rollout.finish_reason,
        "logprob_mean": view.logprob_mean,
        "versions": [{"version": span.version, "start": span.start, "end": span.end} for span in rollout.spans],
        "staleness": view.staleness,
        "engine": view.group.engine,
        "traceparent": view.group.traceparent,
    }


def _some(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:12]))
    return shown if len(indices) <= 12 else f"{shown} and {len(indices) - 12} more"
