"""What a person sees of a run: a live panel in a terminal, plain lines without one.

The runtime calls `event` with one line for everything that happens, and `update` with the status twice a second. Both views show the same
things; the plain one prints a line for each finished step.
"""

import sys
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlvr_api.conditions import Phase
from rlvr_api.process import Role
from rlvr_api.status import Progress, RLVRJobStatus

BAR_WIDTH = 36
SHARE_WIDTH = 24
SHARE_STYLES = {"generate": "cyan", "verify": "magenta", "train": "green", "sync": "yellow", "idle": "bright_black"}
PHASE_STYLES = {Phase.RUNNING: "bold green", Phase.SUCCEEDED: "bold green", Phase.FAILED: "bold red", Phase.RECOVERING: "bold yellow"}

OVER = (Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED)
"""Phases in which no process is expected."""


class View(Protocol):
    """Where a run is shown."""

    def event(self, text: str, /) -> None:
        """Shows one line."""

    def update(self, status: RLVRJobStatus, /) -> None:
        """Shows how the run is now."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_view(job_name: str, plain: bool, stream: TextIO = sys.stdout) -> View:
    """The live view on a terminal, else (or with `plain`) plain lines."""
    return PlainView(job_name, stream) if plain or not stream.isatty() else LiveView(job_name, stream)


class PlainView:
    """One line for each event, phase and finished step."""

    def __init__(self, job_name: str, stream: TextIO) -> None:
        self._job_name, self._stream, self._started = job_name, stream, time.monotonic()
        self._phase: Phase | None = None
        self._shown: tuple[int, float | None] | None = None

    def event(self, text: str, /) -> None:
        print(f"[{duration(time.monotonic() - self._started):>7}] {text}", file=self._stream, flush=True)

    def update(self, status: RLVRJobStatus, /) -> None:
        if status.phase is not self._phase:
            self._phase = status.phase
            self.event(f"{self._job_name} is {status.phase}")
        progress = status.progress
        if progress is not None and (shown := (progress.step, progress.held_out_pass_rate)) != self._shown:
            self._shown = shown
            self.event(step_line(progress))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return


class LiveView:
    """A panel that is redrawn in place; events scroll above it."""

    def __init__(self, job_name: str, stream: TextIO) -> None:
        self._job_name, self._started = job_name, time.monotonic()
        self._live = Live(console=Console(file=stream), auto_refresh=False, transient=False)

    def event(self, text: str, /) -> None:
        stamp = Text(f"{duration(time.monotonic() - self._started):>7}  ", style="bright_black")
        self._live.console.print(stamp.append(text, style="default"))  # Text, not markup: what processes say is shown as it is

    def update(self, status: RLVRJobStatus, /) -> None:
        self._live.update(panel(self._job_name, status, time.monotonic() - self._started), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()


def step_line(progress: Progress) -> str:
    """One line for a finished step."""
    parts = [f"{progress.stage} step {progress.step}/{progress.steps}", *(f"{name} {value}" for name, value in measures(progress))]
    if progress.bottleneck is not None:
        parts.append(f"bottleneck {progress.bottleneck}")
    if progress.eta_seconds is not None:
        parts.append(f"ETA {duration(progress.eta_seconds)}")
    return "  ".join(parts)


def measures(progress: Progress) -> list[tuple[str, str]]:
    """Names and values of what is known now, in the order in which they are shown."""
    return [*quality(progress), *pace(progress)]


def quality(progress: Progress) -> list[tuple[str, str]]:
    """How well the model does."""
    levels = ", ".join(f"{environment} {level}" for environment, level in sorted(progress.level.items()))
    shown = _known(
        ("reward", progress.reward, ".3f"), ("pass", progress.pass_rate, ".3f"), ("held-out", progress.held_out_pass_rate, ".3f")
    )
    trust = progress.reward_trust
    doubt = [("reward not to be believed", str(trust.reason))] if trust is not None and trust.status == "False" else []
    return [*shown, *([("level", levels)] if levels else []), *doubt]


def pace(progress: Progress) -> list[tuple[str, str]]:
    """How the run goes."""
    return _known(
        ("tokens/s", progress.tokens_per_second, ".0f"),
        ("staleness", progress.staleness, ".2f"),
        ("weights", progress.weight_version, "d"),
        ("checkpoint", progress.checkpoint_step, "d"),
    )


def _known(*values: tuple[str, float | None, str]) -> list[tuple[str, str]]:
    return [(name, format(value, form)) for name, value, form in values if value is not None]


def panel(job_name: str, status: RLVRJobStatus, elapsed_seconds: float) -> Panel:
    """The live panel."""
    title = Text.assemble((job_name, "bold"), "  ", (str(status.phase), PHASE_STYLES.get(status.phase, "bold")))
    if status.execution_attempt > 1:
        title.append(f"  attempt {status.execution_attempt}", style="yellow")
    body: list[RenderableType] = []
    if status.progress is not None:
        body += _progress_rows(status.progress)
    if status.phase not in OVER:
        body.append(_roles_row(status))
    return Panel(Group(*body), title=title, title_align="left", subtitle=duration(elapsed_seconds), subtitle_align="right")


def _progress_rows(progress: Progress) -> list[RenderableType]:
    bar = Table.grid(padding=(0, 2))
    stage = Text(f"{progress.stage} ({progress.stage_index + 1}/{progress.stages})")
    eta = Text("" if progress.eta_seconds is None else f"ETA {duration(progress.eta_seconds)}", style="bright_black")
    drawn = ProgressBar(total=max(1, progress.steps), completed=progress.step, width=BAR_WIDTH)
    bar.add_row(stage, drawn, Text(f"{progress.step}/{progress.steps}"), eta)
    rows: list[RenderableType] = [bar]
    for numbers in (quality(progress), pace(progress)):
        pairs = [Text.assemble((f"{name} ", "bright_black"), (value, "bold")) for name, value in numbers]
        rows += [Text("   ").join(pairs)] if pairs else []
    if progress.wait_shares is not None:
        rows.append(_shares_row(progress))
    if progress.message:
        rows.append(Text(progress.message, style="italic", no_wrap=True, overflow="ellipsis"))
    return rows


def _shares_row(progress: Progress) -> Text:
    row = Text("time ", style="bright_black")
    shares = {part: getattr(progress.wait_shares, part) for part in SHARE_STYLES}
    for part, share in shares.items():
        row.append("█" * round(SHARE_WIDTH * share), style=SHARE_STYLES[part])
    for part, share in shares.items():
        if share >= 0.005:
            row.append(f"  {part} {share:.0%}", style=SHARE_STYLES[part])
    if progress.bottleneck is not None:
        row.append("   bottleneck ", style="bright_black").append(progress.bottleneck, style="bold")
    return row


def _roles_row(status: RLVRJobStatus) -> Text:
    nouns = {Role.ROLLOUT: "engines", Role.VERIFIER: "verifier", Role.LEARNER: "learner"}
    row = Text()
    for role in status.roles:
        style = "green" if role.ready == role.desired else "yellow"
        row.append(f"{nouns[role.name]} ", style="bright_black").append(f"{role.ready}/{role.desired}", style=style)
        if role.restarts:
            row.append(f" ({role.restarts} restarts)", style="yellow")
        row.append("   ")
    return row


def duration(seconds: float) -> str:
    """A duration for people: `4.2 s` is not needed here, `0:04` and `1:02:03` are."""
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
