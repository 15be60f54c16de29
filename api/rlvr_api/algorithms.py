"""Algorithms and off-policy corrections that a stage may ask for; the trainer has one file for each algorithm."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from rlvr_api.model import ApiModel, one_member


class Grpo(ApiModel):
    """Group-relative policy optimisation with PPO's clipped surrogate (arXiv 2402.03300; clip-higher arXiv 2503.14476).

    The ratio is taken to the policy at the start of the update; the distance to the sampler is `offPolicy.correction`'s.
    """

    clip_low: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """ε_low: ratios below 1 − ε_low get no further push down."""
    clip_high: Annotated[float, Field(gt=0.0, lt=10.0)] = 0.28
    """ε_high: ratios above 1 + ε_high get no further push up; DAPO's value."""
    dual_clip: Annotated[float, Field(gt=1.0, le=100.0)] = 3.0
    """Bound on the loss of negative advantages, as a multiple of |A| (arXiv 1912.09729)."""
    normalize_by_std: bool = False
    """Divide advantages by the group's standard deviation. Off: it cancels every noise correction and favours nearly solved groups."""


class DppoTv(ApiModel):
    """Policy gradient on the ratio to the sampler, masked where the total-variation step leaves the trust region (arXiv 2602.04879).

    It corrects for the sampler by itself, so `offPolicy.correction` must be `none`: the weight would be applied twice.
    """

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Largest change of a token's probability that is still pushed further."""
    kl_coefficient: Annotated[float, Field(ge=0.0, le=10.0)] = 1e-3
    """Weight of the squared log-ratio to the sampler."""


ALGORITHM_KINDS = ("grpo", "dppo_tv")


class Algorithm(ApiModel):
    """Exactly one algorithm."""

    grpo: Grpo | None = None
    """GRPO."""
    dppo_tv: DppoTv | None = None
    """DPPO with the binary total-variation mask."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_member(self, ALGORITHM_KINDS)
        return self

    @property
    def kind(self) -> str:
        """Which of `ALGORITHM_KINDS` is set."""
        return one_member(self, ALGORITHM_KINDS)


class TokenTruncated(ApiModel):
    """Truncated importance sampling: each token's loss times min(π_old / π_sampler, cap), detached (arXiv 2505.24298)."""

    cap: Annotated[float, Field(ge=1.0, le=100.0)] = 2.0
    """Largest weight."""


class NoCorrection(ApiModel):
    """No weight against the sampler."""


CORRECTION_KINDS = ("token_truncated", "none")


class Correction(ApiModel):
    """Exactly one correction of the difference between the sampler and the policy at the start of the update."""

    token_truncated: TokenTruncated | None = None
    """Token-level truncated importance sampling."""
    none: NoCorrection | None = None
    """For algorithms whose ratio is already taken to the sampler."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_member(self, CORRECTION_KINDS)
        return self

    @property
    def kind(self) -> str:
        """Which of `CORRECTION_KINDS` is set."""
        return one_member(self, CORRECTION_KINDS)
