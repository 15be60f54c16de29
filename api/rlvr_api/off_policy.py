"""How far from the current policy a rollout may be, what is done about it, and who changes that while a run goes on."""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from rlvr_api.algorithms import Correction, Rejection, TokenTruncated
from rlvr_api.model import ApiModel, Fraction
from rlvr_api.stages import Rlvr, Stage


class Governor(ApiModel):
    """Closes the loop: what each step shows of its tokens decides how stale the next ones may be, within the bounds of the spec.

    A step beyond a bound tightens by one notch, which halves the staleness that admission allows and the distance of the correction's cap
    from 1. Beyond `pauseKl`, or at the last notch, it pauses: what older weights sampled is thrown away, engines begin anew, and the run is
    synchronous until a step is within its bounds. `healthySteps` steps in a row at less than half of every bound loosen by one notch.
    """

    max_kl: Annotated[float, Field(gt=0.0, le=10.0)] = 0.05
    """Bound on KL(sampler ‖ policy) at a step's tokens (k3), nats a token."""
    min_ess: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Bound on the effective sample size of the importance weights, as a share of the tokens."""
    max_clip_fraction: Annotated[Fraction, Field(gt=0.0)] = 0.5
    """Bound on the share of tokens that the trust region acts on."""
    pause_kl: Annotated[float, Field(gt=0.0, le=100.0)] = 0.5
    """KL beyond which a single step pauses at once, nats a token."""
    min_staleness: Annotated[int, Field(ge=0, le=64)] = 0
    """Least that tightening leaves of `maxStaleness`; a pause goes to 0."""
    min_cap: Annotated[float, Field(ge=1.0, le=100.0)] = 1.0
    """Least that tightening leaves of the correction's `cap` or `high`."""
    healthy_steps: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Steps in a row at less than half of every bound before it loosens."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pause_kl <= self.max_kl:
            raise ValueError(f"pauseKl {self.pause_kl} is not above maxKl {self.max_kl}: it would pause where it should tighten")
        return self


class OffPolicy(ApiModel):
    """How far from the current policy a rollout may be, and what is done about it."""

    max_staleness: Annotated[int, Field(ge=0, le=64)] = 2
    """η: groups are admitted only while they cannot be consumed more than η optimizer steps late (arXiv 2505.24298). 0 is synchronous."""
    drop_beyond: Annotated[int, Field(ge=0, le=1024)] = 8
    """Groups with a token older than this many optimizer steps are discarded, whatever admission allowed."""
    correction: Correction = Correction(token_truncated=TokenTruncated())
    """Weight against the sampler's log-probs."""
    rejection: Rejection = Rejection()
    """Completions that are left out; unset: none."""
    governor: Governor | None = None
    """Unset: staleness and correction stay as they are written here."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.drop_beyond < self.max_staleness:
            raise ValueError(
                f"dropBeyond {self.drop_beyond} is below maxStaleness {self.max_staleness}: admitted groups would be thrown away"
            )
        if self.governor is None:
            return self
        cap, kind = self.correction.cap, to_camel(self.correction.kind)
        if self.governor.min_staleness > self.max_staleness:
            raise ValueError(
                f"governor.minStaleness {self.governor.min_staleness} is above maxStaleness {self.max_staleness}: "
                "lower the one or raise the other"
            )
        if cap is not None and self.governor.min_cap > cap:
            raise ValueError(f"governor.minCap {self.governor.min_cap} is above the bound {cap} of correction.{kind}: lower minCap")
        if cap is None and self.max_staleness == 0:
            raise ValueError("a governor has nothing to tighten with maxStaleness 0 and correction none: remove it, or raise maxStaleness")
        return self


def check_off_policy(off_policy: OffPolicy, stages: Sequence[Stage], max_tokens: int) -> None:
    """What the stages' algorithms need of it.

    Args:
        max_tokens: of a completion.

    Raises:
        ValueError: samples would be taken for what they are not, or a setting would not do what it promises.
    """
    for index, stage in enumerate(stages):
        if stage.rlvr is not None:
            _check_algorithm(off_policy, stage.rlvr, f"stages[{index}].rlvr")
            _check_overlong(stage.rlvr, max_tokens, f"stages[{index}].rlvr")


def _check_algorithm(off_policy: OffPolicy, stage: Rlvr, place: str) -> None:
    algorithm, correction = stage.algorithm.kind, off_policy.correction.kind
    if algorithm == "dppo_tv" and correction != "none":
        raise ValueError(f"{place}.algorithm.dppoTv already weighs by the sampler: set offPolicy.correction to {{none: {{}}}}")
    if algorithm != "dppo_tv" and correction == "none" and off_policy.max_staleness > 0:
        raise ValueError(
            f"{place}.algorithm.{to_camel(algorithm)} with offPolicy.maxStaleness {off_policy.max_staleness} and no correction "
            "learns from stale samples as if they were fresh: set offPolicy.correction to {tokenTruncated: {}}, or maxStaleness to 0"
        )
    if stage.ordered and off_policy.max_staleness > 0:
        raise ValueError(f"{place}.ordered repeats a run only with offPolicy.maxStaleness 0, not {off_policy.max_staleness}")


def _check_overlong(stage: Rlvr, max_tokens: int, place: str) -> None:
    overlong = stage.algorithm.dapo.overlong if stage.algorithm.dapo is not None else None
    if overlong is not None and overlong.buffer_tokens > max_tokens:
        raise ValueError(
            f"{place}.algorithm.dapo.overlong.bufferTokens {overlong.buffer_tokens} is more than sampling.maxTokens "
            f"{max_tokens}: an empty completion would be punished; write a fifth of maxTokens"
        )
