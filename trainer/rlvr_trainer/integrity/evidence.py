"""What each optimizer step says about the reward, kept in its record: audits, canaries, and how the rollouts look.

    groups of a step, canaries since the last one -> StepEvidence -> StepRecord -> (resume) -> `monitor.assess`

A record is written once, before the step is trained, so that a run that resumes judges its reward by the very same numbers.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from pydantic import Field

from rlvr_api.model import Name
from rlvr_api.wire import CanaryTag, CanaryVerdict, VerdictStatus
from rlvr_trainer.integrity.estimators import AuditTally
from rlvr_trainer.rollout import RolloutGroup
from rlvr_trainer.storage.documents import Count, StoredDocument

SHORTEST_TEMPLATE = 24
"""Characters of a completion below which two of them are alike by chance: `The answer is 7.` is no template."""
_DIGITS = re.compile(r"\d+")
_SPACE = re.compile(r"\s+")


class CanaryTally(StoredDocument):
    """How canaries were judged; tallies add up."""

    judged: dict[CanaryTag, Count] = Field(default_factory=dict)
    """Canaries by what they are known to be."""
    broken: dict[str, Count] = Field(default_factory=dict)
    """Canaries with another verdict than the known one, as `exploit/question-echo`."""

    @classmethod
    def of(cls, verdicts: Iterable[CanaryVerdict]) -> Self:
        """Of verdicts of one environment."""
        seen = list(verdicts)
        broken = Counter(f"{verdict.tag}/{verdict.probe}" for verdict in seen if not verdict.kept)
        return cls(judged=dict(Counter(verdict.tag for verdict in seen)), broken=dict(broken))

    @classmethod
    def total(cls, tallies: Iterable["CanaryTally"]) -> Self:
        """The sum of tallies."""
        judged: Counter[CanaryTag] = Counter()
        broken: Counter[str] = Counter()
        for tally in tallies:
            judged.update(tally.judged)
            broken.update(tally.broken)
        return cls(judged=dict(judged), broken=dict(broken))

    def broken_of(self, tag: CanaryTag) -> dict[str, int]:
        """Broken canaries of one kind, by name."""
        return {name.partition("/")[2]: count for name, count in self.broken.items() if name.startswith(f"{tag}/")}


class Behaviour(StoredDocument):
    """How the rollouts of a step look, for detectors of drift."""

    completion_tokens: float
    """Mean length, in tokens."""
    invalid_share: float
    """Share without an answer in the expected form, among the judged."""
    repeated_share: float
    """Share of paid rollouts of which another problem's rollout is a copy but for its numbers."""


class StepEvidence(StoredDocument):
    """Of one step."""

    audits: dict[Name, AuditTally] = Field(default_factory=dict)
    """By environment."""
    canaries: dict[Name, CanaryTally] = Field(default_factory=dict)
    """By environment; of all traffic since the record before, evaluations included."""
    behaviour: Behaviour | None = None
    """None where no rollout was judged."""


def gather_evidence(groups: Sequence[RolloutGroup], canaries: Iterable[CanaryVerdict]) -> StepEvidence:
    """The evidence of a step's batch."""
    by_environment: dict[str, list[RolloutGroup]] = defaultdict(list)
    for group in groups:
        by_environment[group.admission.environment].append(group)
    sent: dict[str, list[CanaryVerdict]] = defaultdict(list)
    for verdict in canaries:
        sent[verdict.environment].append(verdict)
    return StepEvidence(
        audits={
            name: AuditTally.of(rollout.verdict for group in found for rollout in group.rollouts) for name, found in by_environment.items()
        },
        canaries={name: CanaryTally.of(found) for name, found in sent.items()},
        behaviour=_behaviour(groups),
    )


def _behaviour(groups: Sequence[RolloutGroup]) -> Behaviour | None:
    judged = [rollout for group in groups for rollout in group.rollouts if rollout.verdict.status is not VerdictStatus.INFRA_ERROR]
    if not judged:
        return None
    paid = {
        group.problem_id + str(group.admission.index): [
            rollout.text for rollout in group.rollouts if rollout.verdict.status is VerdictStatus.PASS
        ]
        for group in groups
    }
    return Behaviour(
        completion_tokens=sum(rollout.sampled_tokens for rollout in judged) / len(judged),
        invalid_share=sum(rollout.verdict.status is VerdictStatus.INVALID for rollout in judged) / len(judged),
        repeated_share=repeated_share(paid),
    )


def repeated_share(texts: Mapping[str, Sequence[str]]) -> float:
    """Share of texts that occur, but for numbers and space, under another key too; texts under `SHORTEST_TEMPLATE` characters never do.

    Args:
        texts: texts by problem.
    """
    problems: dict[str, set[str]] = defaultdict(set)
    masked = [(problem, _SPACE.sub(" ", _DIGITS.sub("0", text)).strip()) for problem, found in texts.items() for text in found]
    for problem, text in masked:
        if len(text) >= SHORTEST_TEMPLATE:
            problems[text].add(problem)
    return sum(len(problems[text]) > 1 for _, text in masked if text in problems) / len(masked) if masked else 0.0
