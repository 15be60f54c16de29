"""What a job does to know whether its reward can be believed: audits by a second verifier, canaries, bounds, and what follows."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic.alias_generators import to_camel

from rlvr_api.algorithms import Algorithm
from rlvr_api.environments import EnvironmentSpec
from rlvr_api.model import ApiModel, Fraction
from rlvr_api.stages import Stage

AuditRate = Annotated[float, Field(gt=0.0, le=1.0)]


CLIPPED_SHARE = 0.3
"""Of the largest weight of an audit: gradients clipped below it let a hack survive in `make bench NAME=hacking`."""


class Audit(ApiModel):
    """Random audits: environments with a second verifier (`environments[].audit`) have a share of their verdicts checked by it.

    Which ones is drawn from a secret of the verifier service after the completion was sampled, so that no policy can tell. Held-out
    evaluations are audited wholly.
    """

    positive_rate: AuditRate = 0.03
    """Share of the passed completions that is audited: what bounds reward hacking."""
    negative_rate: AuditRate = 0.005
    """Share of the others that is audited: what finds right answers that the verifier refuses."""
    rewards: Literal["corrected", "paid"] = "corrected"
    """What is learned from. `corrected`: score + (audit − score)/rate where audited, which is right on average whatever the policy does to
    earn the score (AIPW, arXiv 2403.03208); `optimizer.maxGradientNorm` must then be 0.3 times the largest 1/rate, or more. `paid`: the
    score alone; audits then only measure."""
    max_weight: Annotated[float, Field(ge=1.0, le=1000.0)] = 50.0
    """Largest 1/rate that a corrected reward uses. It bounds the variance; below 1/rate it leaves a part of the bias."""


class Integrity(ApiModel):
    """Audits, canaries, and what is done when the reward cannot be believed any more; the condition `RewardTrustworthy` says why."""

    audit: Audit | None = None
    """Unset: no audits, and nothing is known of wrong answers that are paid."""
    allow_uncertified: bool = False
    """Let environments judge that have no valid certificate of `rlvr environment certify`; `status.progress.uncertified` names them. False:
    the verifier service refuses them."""
    canary_rate: Fraction = 0.01
    """Canaries for each completion: answers that are known to be right, wrong, or exploits of graders, judged among the others."""
    max_hack_rate: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    """Share of rollouts paid for wrong answers that is put up with; the published onset of reward hacking (arXiv 2511.18397)."""
    min_youden: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.6
    """Least 1 − false positive rate − false negative rate: at 0 a verdict says nothing (arXiv 2601.04411)."""
    window_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    """Optimizer steps that rates are taken over: error rates follow the policy's behaviour, so old ones do not count."""
    on_violation: Literal["Warn", "Pause", "Rollback"] = "Warn"
    """What happens when a bound is broken for certain: the condition and a warning (`Warn`); also a checkpoint, after which the job is
    suspended until this setting or a bound is changed (`Pause`); or the same, after going back to the newest checkpoint before the first
    step of the window (`Rollback`): what came after it stays in the store, and does not count."""


def check_integrity(integrity: Integrity, environments: Sequence[EnvironmentSpec], stages: Sequence[Stage]) -> None:
    """What an audit needs, and what undoes it.

    Raises:
        ValueError: the setting would be ignored, or would not do what it promises.
    """
    audited = [environment.name for environment in environments if environment.audit is not None]
    if integrity.audit is None and audited:
        raise ValueError(
            f"environment {audited[0]} has an audit verifier, and integrity.audit is unset, so it would never be asked: set "
            "integrity.audit to {}"
        )
    if integrity.audit is not None and not audited:
        raise ValueError(
            "integrity.audit is set, and no environment has an audit verifier: set environments[].audit, for example {finalAnswer: {}}"
        )
    _check_noise(environments, stages)
    if integrity.audit is None or integrity.audit.rewards == "paid":
        return
    least = least_gradient_norm(integrity.audit)
    for index, stage in enumerate(stages):
        if stage.rlvr is not None and stage.rlvr.optimizer.max_gradient_norm < least:
            raise ValueError(
                f"stages[{index}].rlvr.optimizer.maxGradientNorm {stage.rlvr.optimizer.max_gradient_norm:g} cuts off the steps in which an "
                f"audit weighs {least / CLIPPED_SHARE:.3g}, and a hack survives: write {least:.3g} or more, or raise "
                "integrity.audit.positiveRate"
            )
        if stage.rlvr is not None and divides_by_std(stage.rlvr.algorithm):
            raise ValueError(
                f"stages[{index}].rlvr.algorithm.{to_camel(stage.rlvr.algorithm.kind)} divides by a standard deviation, which undoes "
                "integrity.audit (a hack survives it): take normalizeByStd: false or another algorithm, or set "
                "integrity.audit.rewards to paid"
            )


def least_gradient_norm(audit: Audit) -> float:
    """What gradients may be clipped to, at least: clipping is not linear, so steps with audits would count less than those without."""
    return CLIPPED_SHARE * min(1.0 / audit.positive_rate, audit.max_weight)


def _check_noise(environments: Sequence[EnvironmentSpec], stages: Sequence[Stage]) -> None:
    known = [environment.name for environment in environments if environment.noise is not None]
    if not known:
        return
    algorithms = [stage.rlvr.algorithm for stage in stages if stage.rlvr is not None]
    if not any(divides_by_std(algorithm) and algorithm.kind != "reinforce_plus_plus" for algorithm in algorithms):
        raise ValueError(f"environment {known[0]} has noise, which only normalizeByStd: true reads: set that, or remove noise")
    if any(algorithm.dapo is not None and algorithm.dapo.overlong is not None for algorithm in algorithms):
        raise ValueError(f"environment {known[0]} has noise, which is of verdicts, and dapo.overlong mixes lengths into them: remove one")
    if any(kl is not None and kl.placement == "reward" for kl in (stage.rlvr.reference_kl for stage in stages if stage.rlvr is not None)):
        raise ValueError(f"environment {known[0]} has noise, which is of verdicts: set referenceKl.placement to loss, or remove noise")


def divides_by_std(algorithm: Algorithm) -> bool:
    """Whether advantages are divided by a standard deviation of rewards."""
    if algorithm.kind == "reinforce_plus_plus":
        return True
    return bool(getattr(getattr(algorithm, algorithm.kind), "normalize_by_std", False))
