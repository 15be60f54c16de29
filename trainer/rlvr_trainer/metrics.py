"""The numbers of a run: one record an optimizer step, one an evaluation, and what can be claimed from them.

    a trained batch -> StepMetrics            held-out groups -> summarize_evaluation -> EvaluationResult
    two evaluations -> paired_difference -> mean and 95 % interval, clustered by task

Pure values and functions; `metrics_log` keeps them in the object store. Samples of one task are not independent, so every error here
counts tasks, not samples.

Not covered: tests of more than two evaluations at once; whoever looks at many points will find one that stands out by luck.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, NamedTuple

from pydantic import AwareDatetime, BeforeValidator, Field

from rlvr_api.model import Fraction, Name
from rlvr_api.status import Part
from rlvr_api.wire import VerdictStatus
from rlvr_trainer.integrity.evidence import StepEvidence
from rlvr_trainer.intervals import t_quantile
from rlvr_trainer.pass_at import PassAt, estimate_pass_at
from rlvr_trainer.rollout import RolloutGroup
from rlvr_trainer.storage.documents import Count, StoredDocument

CONFIDENCE = 0.95
"""Of every interval: two-sided, so its lower bound alone holds with 97.5 %."""


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A number, or None when it was not measured or is not finite: a record of a step must never fail the step."""
Seconds = Annotated[float, Field(ge=0.0)]


class Phase(StrEnum):
    """Keys of `StepMetrics.phase_seconds`: what the learner's thread did, without overlap."""

    WAIT = "wait"
    """Waited for groups; use GENERATE and VERIFY instead where it is known what they lacked."""
    GENERATE = "generate"
    """Waited for groups while engines generated."""
    VERIFY = "verify"
    """Waited for groups of which only the verdicts were missing."""
    COMMIT = "commit"
    """Wrote the rollouts and the record of the step."""
    TRAIN = "train"
    """Forward, backward and optimizer step."""
    PUBLISH = "publish"
    """Brought the weights to the engines."""
    CHECKPOINT = "checkpoint"
    """Copied the state, or waited for an earlier upload."""
    EVALUATE = "evaluate"
    """Held-out evaluation."""


class AgeMetrics(StoredDocument):
    """The trained tokens of one age; fields as those of `StepMetrics`."""

    tokens: Count
    mismatch_kl: Measured = None
    chi2: Measured = None
    ess: Measured = None
    clip_fraction: Measured = None
    rejected_share: Measured = None


class GovernorMetrics(StoredDocument):
    """What the governor has in force after a step, and what it did."""

    max_staleness: Count
    """Optimizer steps that admission allows."""
    cap: Measured = None
    """Bound of the correction's weight."""
    paused: bool
    """Synchronous, and what older weights sampled is thrown away."""
    actions: tuple[str, ...] = ()
    """What it did after this step, and why."""


class StepMetrics(StoredDocument):
    """One optimizer step."""

    stage: Name
    """Name of the stage."""
    stage_index: Count = 0
    """Its index in the spec."""
    branch: Count = 0
    """Rollbacks of the stage before it."""
    step: Count
    """Optimizer step: of the stage or of the whole job, as long as the run keeps to one of them."""
    attempt: Count
    """Attempt of the learner that took it; the last one to take a step is the one that counts."""
    time: AwareDatetime
    """When it ended."""
    weight_version: Count
    """Version of the weights that it made."""
    reward_mean: Measured = None
    """Mean score of the judged rollouts, in [0, 1]."""
    pass_rate: Measured = None
    """Share of the judged rollouts with verdict `pass`."""
    groups: Count
    """Groups consumed; examples where a stage learns from those."""
    live_groups: Count
    """Those with variance in their rewards: the ones that carry a gradient."""
    rollouts: Count
    """Rollouts consumed."""
    evidence: StepEvidence = StepEvidence()
    """What audits and canaries say of the verifiers, as the step's record has it."""
    masked: Count = 0
    """Those that could not be judged (`infra_error`) and are left out of everything."""
    invalid: Count = 0
    """Those with verdict `invalid`."""
    timeouts: Count = 0
    """Those with verdict `timeout`."""
    discarded: Annotated[dict[str, Count], Field(default_factory=dict)]
    """Groups given up since the last step, by reason."""
    truncated_share: Measured = None
    """Share of the rollouts that ended at the length limit."""
    completion_tokens_mean: Measured = None
    """Mean length of a completion, in tokens."""
    tokens_trained: Count
    """Completion tokens of the loss."""
    loss: Measured = None
    """Loss, normalised by `tokens_trained`."""
    gradient_norm: Measured = None
    """Global L2 norm before clipping."""
    learning_rate: Measured = None
    """Learning rate of the step."""
    staleness_mean: Measured = None
    """Mean over tokens of the optimizer steps between their weights and the trained ones."""
    staleness_max: Measured = None
    """Largest such age."""
    mismatch_kl: Measured = None
    """Estimated KL(sampler ‖ trainer) at the sampled tokens, in nats (k3 of joschu.net/blog/kl-approx.html)."""
    mismatch_max: Measured = None
    """Largest |log-prob of the trainer − log-prob of the sampler|, in nats."""
    ess: Measured = None
    """Effective sample size (Σw)²/Σw² of the importance weights over the number of tokens, in (0, 1]."""
    chi2: Measured = None
    """χ² divergence of the trainer from the sampler at the sampled tokens: mean(w²) − 1."""
    clip_fraction: Measured = None
    """Share of the tokens that the trust region bounded."""
    rejected_share: Measured = None
    """Share of the tokens that correction or rejection dropped."""
    by_age: Annotated[dict[Count, AgeMetrics], Field(default_factory=dict)]
    """The same by the tokens' age in optimizer steps."""
    governor: GovernorMetrics | None = None
    """None without `offPolicy.governor`."""
    entropy: Measured = None
    """Mean entropy of the policy at the completion positions, in nats."""
    reference_kl: Measured = None
    """Estimated KL(policy ‖ reference) at the sampled tokens, in nats, where the stage has one."""
    explained_variance: Measured = None
    """1 − mean((R − V)²) / var(R) over the trained tokens, at most 1, where there is a critic: 0 is as good as a constant."""
    tokens_per_second: Measured = None
    """Completion tokens consumed over the step's wall time."""
    levels: Annotated[dict[Name, Count], Field(default_factory=dict)]
    """Level of each environment after the step."""
    shares: Annotated[dict[Name, Fraction], Field(default_factory=dict)]
    """Share of the groups by environment."""
    effective_environments: Measured = None
    """Vendi score of the environments: their number, less what they share of words and what is drawn unevenly."""
    phase_seconds: Annotated[dict[str, Seconds], Field(default_factory=dict)]
    """The learner's wall time since the last step, by `Phase`."""
    generate_seconds: Measured = None
    """Mean time that an engine took for a group of the batch."""
    score_seconds: Measured = None
    """Mean time that the verifier service took for a group of the batch."""
    paused_seconds: Measured = None
    """Longest pause of an engine for the step's weight update."""
    engines: Count | None = None
    """Engines that sample from the new version."""

    @property
    def staleness_allowed(self) -> int | None:
        """Optimizer steps that admission allows after this step; None where nothing governs it."""
        return self.governor.max_staleness if self.governor is not None else None

    @property
    def live_share(self) -> float | None:
        """Share of the groups that carry a gradient."""
        return self.live_groups / self.groups if self.groups else None


def seconds_by_part(step: StepMetrics) -> dict[Part, float]:
    """The step's wall time by the part that it went to.

    Waiting that is not told apart is split as the groups' own generation and scoring times: groups overlap, so this is an estimate.
    """
    phases = step.phase_seconds
    wait = phases.get(Phase.WAIT, 0.0)
    generate, score = step.generate_seconds or 0.0, step.score_seconds or 0.0
    verify = wait * score / (generate + score) if generate + score > 0 else 0.0
    named = {Phase.WAIT, Phase.GENERATE, Phase.VERIFY, Phase.TRAIN, Phase.PUBLISH}
    return {
        "generate": phases.get(Phase.GENERATE, 0.0) + wait - verify,
        "verify": phases.get(Phase.VERIFY, 0.0) + verify,
        "train": phases.get(Phase.TRAIN, 0.0),
        "sync": phases.get(Phase.PUBLISH, 0.0),
        "idle": sum(seconds for phase, seconds in phases.items() if phase not in named),
    }


class EvaluationCell(StoredDocument):
    """The held-out tasks of one environment at one level."""

    environment: Name
    """Name of the environment."""
    level: Count
    """Difficulty."""
    tasks: Count
    """Tasks that were judged."""
    samples: Count
    """Completions that were judged."""
    masked: Count = 0
    """Completions that were not."""
    truncated: Count = 0
    """Completions that ended at the length limit."""
    pass_rate: Fraction
    """Mean of the tasks' pass rates: every task weighs the same."""
    standard_error: Measured = None
    """Of `pass_rate`, clustered by task; None for a single task."""
    task_pass_rates: dict[str, Fraction]
    """Pass rate of each task, by problem id."""
    audited_pass_rate: Measured = None
    """The same by the second verifier, where the environment has one."""
    pass_at: Annotated[dict[Count, PassAt], Field(default_factory=dict)]
    """pass@k by k, where it was asked for."""


class EvaluationResult(StoredDocument):
    """One held-out evaluation: fixed tasks, one weight version."""

    stage: Name
    """Name of the stage."""
    stage_index: Count = 0
    """Its index in the spec."""
    branch: Count = 0
    """Rollbacks of the stage before it."""
    step: Count
    """Optimizer steps taken before it, counted as `StepMetrics.step`."""
    attempt: Count = 0
    """Attempt of the learner."""
    weight_version: Count
    """Version that was evaluated."""
    time: AwareDatetime
    """When it ended."""
    cells: tuple[EvaluationCell, ...]
    """Results by environment and level."""

    def pass_rate(self, environment: str | None = None) -> float | None:
        """Mean of the tasks' pass rates, over all levels; None without tasks."""
        rates = list(_task_rates(self, environment, None).values())
        return statistics.fmean(rates) if rates else None

    def audited_pass_rate(self) -> float | None:
        """Mean of the tasks' pass rates by the second verifier, over the environments that have one; None where none has."""
        cells = [cell for cell in self.cells if cell.audited_pass_rate is not None]
        tasks = sum(cell.tasks for cell in cells)
        return math.fsum((cell.audited_pass_rate or 0.0) * cell.tasks for cell in cells) / tasks if tasks else None

    def standard_error(self, environment: str | None = None) -> float | None:
        """Of `pass_rate`, clustered by task; None for fewer than two tasks."""
        return _clustered_error(list(_task_rates(self, environment, None).values()))

    def lower_bound(self, environment: str | None = None) -> float | None:
        """Of the two-sided 95 % interval of `pass_rate`; None for fewer than two tasks."""
        rates = list(_task_rates(self, environment, None).values())
        error = _clustered_error(rates)
        return None if error is None else statistics.fmean(rates) - t_quantile((1 + CONFIDENCE) / 2, len(rates) - 1) * error


class PairedDifference(NamedTuple):
    """A change of the pass rate with its two-sided 95 % interval."""

    mean: float
    lower: float
    upper: float


def summarize_evaluation(
    groups: Iterable[RolloutGroup], *, stage: str, step: int, weight_version: int, time: datetime, stage_index: int = 0, attempt: int = 0,
    ks: Sequence[int] = (),
) -> EvaluationResult:  # fmt: skip
    """The result of an evaluation from its groups, one for each held-out task. Completions that were not judged are left out.

    Args:
        ks: numbers of tries to estimate pass@k for.
    """
    found: dict[tuple[str, int], list[RolloutGroup]] = defaultdict(list)
    for group in groups:
        found[group.admission.environment, group.admission.level].append(group)
    cells = (_summarize_cell(environment, level, members, ks) for (environment, level), members in sorted(found.items()))
    return EvaluationResult(
        stage=stage, stage_index=stage_index, step=step, attempt=attempt, weight_version=weight_version, time=time,
        cells=tuple(cell for cell in cells if cell is not None),
    )  # fmt: skip


def paired_difference(
    before: EvaluationResult, after: EvaluationResult, environment: str | None = None, level: int | None = None
) -> PairedDifference:
    """Mean over tasks of the change of their pass rate, and its 95 % interval: d̄ ± t(0.975, n − 1) · s / √n for n tasks.

    Only tasks of both evaluations count. A task's samples are averaged first, so the error is that between tasks.

    Args:
        environment, level: look at these tasks alone; None is all.

    Raises:
        ValueError: fewer than two tasks are in both.
    """
    old, new = _task_rates(before, environment, level), _task_rates(after, environment, level)
    differences = [new[task] - old[task] for task in old.keys() & new.keys()]
    if len(differences) < 2:
        raise ValueError(
            f"the evaluations at steps {before.step} and {after.step} share {len(differences)} held-out tasks, and an interval needs two; "
            "raise evaluation.tasksPerEnvironment"
        )
    mean = math.fsum(differences) / len(differences)
    error = _clustered_error(differences) or 0.0
    margin = t_quantile((1 + CONFIDENCE) / 2, len(differences) - 1) * error
    return PairedDifference(mean, mean - margin, mean + margin)


def _summarize_cell(environment: str, level: int, groups: Sequence[RolloutGroup], ks: Sequence[int]) -> EvaluationCell | None:
    passes: dict[str, list[bool]] = defaultdict(list)
    audited: dict[str, list[bool]] = defaultdict(list)
    for group in groups:
        for rollout in group.rollouts:
            if rollout.reward is not None:
                passes[group.problem_id].append(rollout.verdict.status is VerdictStatus.PASS)
                if rollout.verdict.audit is not None:
                    audited[group.problem_id].append(rollout.verdict.audit.score > 0)
    if not passes:
        return None
    rates = {task: statistics.fmean(found) for task, found in sorted(passes.items())}
    total, judged = sum(len(group.rollouts) for group in groups), sum(map(len, passes.values()))
    return EvaluationCell(
        environment=environment, level=level, tasks=len(rates), samples=judged, masked=total - judged,
        truncated=sum(rollout.finish_reason == "length" for group in groups for rollout in group.rollouts),
        pass_rate=statistics.fmean(rates.values()), standard_error=_clustered_error(list(rates.values())), task_pass_rates=rates,
        audited_pass_rate=statistics.fmean(map(statistics.fmean, audited.values())) if audited else None,
        pass_at={k: found for k in ks if (found := estimate_pass_at(k, [(len(task), sum(task)) for task in passes.values()])) is not None},
    )  # fmt: skip


def _task_rates(result: EvaluationResult, environment: str | None, level: int | None) -> Mapping[tuple[str, int, str], float]:
    def entries() -> Iterator[tuple[tuple[str, int, str], float]]:
        for cell in result.cells:
            if environment in (None, cell.environment) and level in (None, cell.level):
                yield from (((cell.environment, cell.level, task), rate) for task, rate in cell.task_pass_rates.items())

    return dict(entries())


def _clustered_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values: s / √n."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
