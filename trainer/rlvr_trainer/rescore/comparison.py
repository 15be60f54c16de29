"""Verdicts of then beside verdicts of today: what changed, and how sure that is. Pure.

    Rescored (a stored rollout, its new verdict) -> compare -> one EnvironmentComparison each -> Comparison, as JSON or in a terminal

A flip is a completion that is paid by one verdict and not by the other. Its rate over completions is counted; the interval is over tasks,
of which a share had a flip, since completions of one task are judged alike (exact, Clopper-Pearson). An `infra_error` is no verdict: a
completion that has one then or now is counted apart. Not covered: what other verdicts would have made of the training.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from rlvr_api.binomial import clopper_pearson
from rlvr_api.wire import Verdict, VerdictStatus


@dataclass(frozen=True, slots=True)
class Rescored:
    """A stored rollout, and what the verifier of today says of it."""

    stage: str
    step: int
    group: int
    """Index of its group."""
    sample: int
    """Its place in the group."""
    environment: str
    problem_id: str
    prompt: str
    completion: str
    before: Verdict
    now: Verdict

    @property
    def is_judged(self) -> bool:
        """Whether there are two verdicts to compare."""
        return VerdictStatus.INFRA_ERROR not in (self.before.status, self.now.status)

    @property
    def is_changed(self) -> bool:
        """Whether status or score is another one."""
        return (self.before.status, self.before.score) != (self.now.status, self.now.score)

    @property
    def is_flipped(self) -> bool:
        """Whether it is paid by one verdict alone."""
        return self.is_judged and (self.before.status is VerdictStatus.PASS) is not (self.now.status is VerdictStatus.PASS)


class Document(BaseModel):
    """A part of the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Transition(Document):
    """Completions whose verdict went from one status to another, or stayed."""

    before: VerdictStatus
    now: VerdictStatus
    completions: int


class EnvironmentComparison(Document):
    """What changed in one environment."""

    environment: str
    verifiers_before: tuple[str, ...]
    """Kind and version, of all stored verdicts."""
    verifiers_now: tuple[str, ...]
    tasks: int
    completions: int
    """Judged then and now."""
    unjudged: int
    """With an `infra_error` then or now; in none of the rates."""
    paid_before: int
    paid_now: int
    newly_paid: int
    no_longer_paid: int
    flip_rate: float | None
    """Share of the completions that flipped; None without any."""
    tasks_with_flips: int
    task_flip_rate: float | None
    """Share of the tasks with a flip."""
    task_flip_lower: float
    task_flip_upper: float
    """95 % interval of that share."""
    mean_score_change: float | None
    """Of the scores, now − then."""
    transitions: tuple[Transition, ...]

    @property
    def is_flaky(self) -> bool:
        """Whether verdicts flipped though the verifier is the very same: it is not deterministic."""
        return self.newly_paid + self.no_longer_paid > 0 and self.verifiers_before == self.verifiers_now


class Example(Document):
    """One completion whose verdict changed."""

    environment: str
    stage: str
    step: int
    group: int
    sample: int
    before: VerdictStatus
    now: VerdictStatus
    score_before: float | None
    score_now: float | None
    reason_before: str
    reason_now: str
    prompt: str
    completion: str


class Comparison(Document):
    """All that changed in a run."""

    run: str
    steps: int
    """Steps whose rollouts were judged again."""
    skipped: dict[str, int]
    """Completions that could not be, by reason."""
    environments: tuple[EnvironmentComparison, ...]
    examples: tuple[Example, ...]


class Comparer:
    """Takes in rescored rollouts as they come, and keeps counts and a few examples.

    Args:
        examples: kept of each kind of change in each environment.
    """

    def __init__(self, run: str, examples: int) -> None:
        self._run, self._limit = run, examples
        self._counts: dict[str, _Counts] = defaultdict(_Counts)
        self._skipped: Counter[str] = Counter()
        self._steps: set[tuple[str, int]] = set()
        self._examples: dict[tuple[str, VerdictStatus, VerdictStatus], list[Example]] = defaultdict(list)

    def add(self, rescored: Iterable[Rescored]) -> None:
        """Count rollouts, and keep some whose verdict changed."""
        for one in rescored:
            self._steps.add((one.stage, one.step))
            self._counts[one.environment].add(one)
            kept = self._examples[one.environment, one.before.status, one.now.status]
            if one.is_changed and len(kept) < self._limit:
                kept.append(_example(one))

    def skip(self, reason: str, completions: int) -> None:
        """Count rollouts that nobody can judge any more."""
        self._skipped[reason] += completions

    def result(self) -> Comparison:
        """What was found so far."""
        return Comparison(
            run=self._run,
            steps=len(self._steps),
            skipped=dict(sorted(self._skipped.items())),
            environments=tuple(counts.result(name) for name, counts in sorted(self._counts.items())),
            examples=tuple(example for _, kept in sorted(self._examples.items()) for example in kept),
        )


class _Counts:
    def __init__(self) -> None:
        self.transitions: Counter[tuple[VerdictStatus, VerdictStatus]] = Counter()
        self.before: set[str] = set()
        self.now: set[str] = set()
        self.problems: set[str] = set()
        self.flipped: set[str] = set()
        self.score_change = 0.0

    def add(self, one: Rescored) -> None:
        self.transitions[one.before.status, one.now.status] += 1
        for verdict, names in ((one.before, self.before), (one.now, self.now)):
            if verdict.status is not VerdictStatus.INFRA_ERROR:
                names.add(f"{verdict.verifier} {verdict.verifier_version}")
        if one.is_judged:
            self.problems.add(one.problem_id)
            self.score_change += (one.now.score or 0.0) - (one.before.score or 0.0)
        if one.is_flipped:
            self.flipped.add(one.problem_id)

    def result(self, name: str) -> EnvironmentComparison:
        judged = {key: count for key, count in self.transitions.items() if VerdictStatus.INFRA_ERROR not in key}
        completions = sum(judged.values())
        newly = sum(count for (old, new), count in judged.items() if new is VerdictStatus.PASS is not old)
        gone = sum(count for (old, new), count in judged.items() if old is VerdictStatus.PASS is not new)
        interval = clopper_pearson(len(self.flipped), len(self.problems))
        return EnvironmentComparison(
            environment=name,
            verifiers_before=tuple(sorted(self.before)),
            verifiers_now=tuple(sorted(self.now)),
            tasks=len(self.problems),
            completions=completions,
            unjudged=sum(self.transitions.values()) - completions,
            paid_before=sum(count for (old, _), count in judged.items() if old is VerdictStatus.PASS),
            paid_now=sum(count for (_, new), count in judged.items() if new is VerdictStatus.PASS),
            newly_paid=newly,
            no_longer_paid=gone,
            flip_rate=(newly + gone) / completions if completions else None,
            tasks_with_flips=len(self.flipped),
            task_flip_rate=interval.estimate,
            task_flip_lower=interval.lower,
            task_flip_upper=interval.upper,
            mean_score_change=self.score_change / completions if completions else None,
            transitions=tuple(Transition(before=old, now=new, completions=count) for (old, new), count in sorted(self.transitions.items())),
        )


def _example(one: Rescored) -> Example:
    return Example(
        environment=one.environment, stage=one.stage, step=one.step, group=one.group, sample=one.sample, before=one.before.status,
        now=one.now.status, score_before=one.before.score, score_now=one.now.score, reason_before=one.before.reason,
        reason_now=one.now.reason, prompt=one.prompt, completion=one.completion,
    )  # fmt: skip


def changed(comparison: EnvironmentComparison) -> Sequence[Transition]:
    """Transitions to another status, the most frequent first."""
    return sorted((one for one in comparison.transitions if one.before is not one.now), key=lambda one: -one.completions)
