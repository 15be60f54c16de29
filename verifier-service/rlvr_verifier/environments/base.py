"""What an environment is: it makes tasks from seeds, and judges completions against a payload that never leaves the service."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pydantic import JsonValue

from rlvr_api.wire import Message, Split, VerdictStatus


class Place(StrEnum):
    """Where completions are scored."""

    SERVICE = "service"
    """In the service's event loop: in microseconds, and nothing of the completion is run."""
    WORKER = "worker"
    """In killable worker processes, since a library may take any time."""
    FORK = "fork"
    """In a fork of such a process, which ends with the item, since a library's scorer may keep what an answer made it do."""
    SANDBOX = "sandbox"
    """In threads that wait for the sandbox, which bounds what it runs."""
    REMOTE = "remote"
    """In threads that wait for another service, `requests_in_flight` of them."""


class EnvironmentSetupError(ValueError):
    """The environment cannot be used as the job describes it; the message is for a person."""


class UnjudgedError(RuntimeError):
    """What an environment asks gave no verdict: an `infra_error`. The message says why, and nothing of the task."""


class NoSuchTaskError(ValueError):
    """The environment has no task of that level or number."""


@dataclass(frozen=True, slots=True)
class SampledTask:
    """A task as its environment made it."""

    problem_id: str
    """Hash of the canonical problem, 16 hexadecimal digits."""
    messages: tuple[Message, ...]
    payload: Mapping[str, JsonValue]
    """What scoring needs, the gold answer included. It is sealed before it leaves the service."""


@dataclass(frozen=True, slots=True)
class Score:
    """What scoring found; never an `infra_error`, which is what exceptions become."""

    status: VerdictStatus
    score: float
    reason: str
    """Without the gold answer."""


class Environment(Protocol):
    """One source of tasks."""

    name: str
    kind: str
    version: str
    deterministic: bool
    place: Place
    """Where `score` is called."""
    levels: tuple[int, int]

    @property
    def scorer_version(self) -> str:
        """Version of what judges, its library included, without the data."""
        ...

    @property
    def data_sha256(self) -> str | None:
        """Of the dataset; None for tasks that are made on the spot."""
        ...

    def held_out_tasks(self, level: int) -> int:
        """Held-out problems at a level; their seeds are 0, 1, ... below it."""
        ...

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """The task of a seed; the same arguments always give the same task."""
        ...

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Judge one completion."""
        ...


def passed(reason: str, score: float = 1.0) -> Score:
    """A right answer."""
    return Score(VerdictStatus.PASS, score, reason)


def failed(reason: str) -> Score:
    """A wrong answer."""
    return Score(VerdictStatus.FAIL, 0.0, reason)


def score_between(value: float, low: float, high: float, reason: str) -> Score:
    """A value that is worth nothing at `low` and below, everything at `high` and above, and in between in proportion."""
    score = min(max((value - low) / (high - low), 0.0), 1.0)
    return passed(reason, score) if score > 0 else failed(reason)


def invalid(reason: str) -> Score:
    """No single answer in the expected form."""
    return Score(VerdictStatus.INVALID, 0.0, reason)
