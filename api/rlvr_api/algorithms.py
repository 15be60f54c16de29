"""Algorithms and off-policy corrections that a stage may ask for; the trainer has one file for each algorithm."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlvr_api.model import ApiModel, Fraction, one_member

ClipLow = Annotated[float, Field(gt=0.0, lt=1.0)]
ClipHigh = Annotated[float, Field(gt=0.0, lt=10.0)]
SequenceClip = Annotated[float, Field(gt=0.0, le=0.05)]
Temperature = Annotated[float, Field(gt=0.0, le=100.0)]


class GroupRelative(ApiModel):
    """What algorithms have in common whose advantages are a group's rewards less their mean."""

    normalize_by_std: bool = False
    """Divide advantages by the group's standard deviation, as the papers do. Off: it cancels every noise correction and favours nearly
    solved groups."""


class Grpo(GroupRelative):
    """Group-relative policy optimisation with PPO's clipped surrogate (arXiv 2402.03300; clip-higher arXiv 2503.14476).

    The ratio is taken to the policy at the start of the update; the distance to the sampler is `offPolicy.correction`'s.
    """

    clip_low: ClipLow = 0.2
    """ε_low: ratios below 1 − ε_low get no further push down."""
    clip_high: ClipHigh = 0.28
    """ε_high: ratios above 1 + ε_high get no further push up; DAPO's value."""
    dual_clip: Annotated[float, Field(gt=1.0, le=100.0)] = 3.0
    """Bound on the loss of negative advantages, as a multiple of |A| (arXiv 1912.09729)."""


class DrGrpo(ApiModel):
    """GRPO without its biases (arXiv 2503.20783): no standard deviation, and a constant instead of lengths below the sum."""

    normalizer_tokens: Annotated[int, Field(ge=1, le=10_000_000)]
    """The constant C: the loss is Σ over tokens / (completions · C). It has no default, since a length that varies from batch to batch
    brings back the bias that Dr. GRPO removes; `sampling.maxTokens` is usual."""
    clip_low: ClipLow = 0.2
    """ε_low."""
    clip_high: ClipHigh = 0.2
    """ε_high."""


class Rloo(ApiModel):
    """REINFORCE on whole completions with the mean of the others as baseline (arXiv 2402.14740). It has no ratio, so `minibatches` is 1."""


class ReinforcePlusPlus(ApiModel):
    """REINFORCE++ (arXiv 2501.03262): advantages normalised over the whole batch, and PPO's clipped surrogate."""

    group_baseline: bool = True
    """Subtract the group's mean first, the paper's variant for groups (REINFORCE++-baseline). Off: the batch's mean alone."""
    clip_low: ClipLow = 0.2
    """ε_low."""
    clip_high: ClipHigh = 0.2
    """ε_high."""


class Overlong(ApiModel):
    """DAPO's soft punishment of completions that come near `sampling.maxTokens` (arXiv 2503.14476, eq. 13)."""

    buffer_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    """The last tokens below `sampling.maxTokens`, over which the penalty rises from 0 to `factor`; a fifth of it is usual."""
    factor: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    """Penalty of a completion that has `sampling.maxTokens` tokens."""


class Dapo(GroupRelative):
    """DAPO (arXiv 2503.14476): clip-higher, token mean and soft punishment of length. Its dynamic sampling is `zeroVariance: resample`."""

    clip_low: ClipLow = 0.2
    """ε_low."""
    clip_high: ClipHigh = 0.28
    """ε_high."""
    overlong: Overlong | None = None
    """Unset: length is not punished."""


class Gspo(GroupRelative):
    """Group sequence policy optimisation (arXiv 2507.18071): the ratio is the geometric mean over a completion's tokens."""

    clip_low: SequenceClip = 3e-4
    """ε_low. A mean over tokens moves far less than a token does: with GRPO's 0.2 it would never clip, so at most 0.05 is taken."""
    clip_high: SequenceClip = 4e-4
    """ε_high, as `clipLow`."""


class Cispo(GroupRelative):
    """CISPO (arXiv 2506.13585): the policy gradient of every token, weighted by its detached ratio up to a cap."""

    max_ratio: Annotated[float, Field(gt=1.0, le=100.0)] = 5.0
    """Cap of the ratio itself, not of its distance from 1: what the paper writes 1 + ε_high."""


class Sapo(GroupRelative):
    """Soft adaptive policy optimisation (arXiv 2511.20347): a smooth gate in place of clipping."""

    temperature_positive: Temperature = 1.0
    """τ of tokens with positive advantage."""
    temperature_negative: Temperature = 1.05
    """τ of the others; larger, so that they fade sooner."""


class DppoTv(ApiModel):
    """Policy gradient on the ratio to the sampler, masked where the total-variation step leaves the trust region (arXiv 2602.04879).

    It corrects for the sampler by itself, so `offPolicy.correction` must be `none`: the weight would be applied twice.
    """

    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Largest change of a token's probability that is still pushed further."""
    kl_coefficient: Annotated[float, Field(ge=0.0, le=10.0)] = 1e-3
    """Weight of the squared log-ratio to the sampler."""


class Ppo(ApiModel):
    """PPO with a critic (arXiv 1707.06347): a value head on the policy's trunk, GAE's advantages token by token, clipped surrogate."""

    clip_low: ClipLow = 0.2
    """ε_low."""
    clip_high: ClipHigh = 0.2
    """ε_high."""
    gae_lambda: Fraction = 1.0
    """λ of the policy's advantages (arXiv 1506.02438): 1 compares the reward with V, less leans on V to say which token it was."""
    discount: Annotated[Fraction, Field(gt=0.0)] = 1.0
    """γ for each token; below 1, long right answers are worth less."""
    value_coefficient: Annotated[float, Field(gt=0.0, le=10.0)] = 0.1
    """Weight of the value loss beside the policy's in what the trunk learns."""
    value_clip: Annotated[float, Field(gt=0.0, le=100.0)] = 0.2
    """Most that a step moves V away from where it was, in rewards."""
    critic_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.02
    """Peak learning rate of the head, on the optimizer's schedule; V moves by about as much in a step."""


ALGORITHM_KINDS = ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "dapo", "gspo", "cispo", "sapo", "dppo_tv", "ppo")


class Algorithm(ApiModel):
    """Exactly one algorithm."""

    grpo: Grpo | None = None
    """GRPO."""
    dr_grpo: DrGrpo | None = None
    """Dr. GRPO."""
    rloo: Rloo | None = None
    """RLOO."""
    reinforce_plus_plus: ReinforcePlusPlus | None = None
    """REINFORCE++."""
    dapo: Dapo | None = None
    """DAPO."""
    gspo: Gspo | None = None
    """GSPO."""
    cispo: Cispo | None = None
    """CISPO."""
    sapo: Sapo | None = None
    """SAPO."""
    dppo_tv: DppoTv | None = None
    """DPPO with the binary total-variation mask."""
    ppo: Ppo | None = None
    """PPO with a critic."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_member(self, ALGORITHM_KINDS)
        return self

    @property
    def kind(self) -> str:
        """Which of `ALGORITHM_KINDS` is set."""
        return one_member(self, ALGORITHM_KINDS)


class ReferenceKl(ApiModel):
    """A penalty on KL(π_θ ‖ π_ref), which holds the policy to a frozen one (arXiv 2009.01325; estimators: joschu.net/blog/kl-approx.html).

    Costs another copy of the weights in float32, and one forward pass more; two with `placement: reward`.
    """

    coefficient: Annotated[float, Field(gt=0.0, le=1.0)]
    """Weight of a nat: of the mean over tokens in the loss, of a completion's sum in its reward. RLVR often does best without any; 1e-3 is
    usual where one is wanted."""
    placement: Literal["loss", "reward"] = "loss"
    """`loss`: a term beside the policy's, of all completions that were judged, those of solved and hopeless groups too. `reward`: taken off
    each completion's reward, before advantages."""
    estimator: Literal["k1", "k2", "k3"] = "k2"
    """What a token counts, with d = log π_θ − log π_ref: k1 = d, k2 = d²/2, k3 = exp(−d) − 1 + d. Only k1 has the right gradient in the
    reward, and none of its own in the loss. There k2 and k3 have the same one, d·∇log π_θ, whose mean is that of the KL; k3 differs in the
    value that is shown, which estimates the KL without bias."""
    reference: Literal["base", "stageStart"] = "base"
    """`base`: the model of `model.uri`. `stageStart`: the weights that the stage began with."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.placement == "loss" and self.estimator == "k1":
            raise ValueError(
                "estimator k1 in the loss has a gradient of mean 0, so nothing would hold the policy: set it to k2 or k3, or placement to "
                "reward"
            )
        if self.placement == "reward" and self.estimator != "k1":
            raise ValueError(
                f"estimator {self.estimator} in the reward pushes towards another optimum than the KL's: set it to k1, or placement to loss"
            )
        return self


class TokenTruncated(ApiModel):
    """Truncated importance sampling: each token's loss times min(π_old / π_sampler, cap), detached (arXiv 2505.24298)."""

    cap: Annotated[float, Field(ge=1.0, le=100.0)] = 2.0
    """Largest weight."""


class TokenMasked(ApiModel):
    """IcePop (ring-1t report, arXiv 2510.18855): each token's loss times π_old / π_sampler where that is within bounds, else 0."""

    low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Smallest ratio that counts."""
    high: Annotated[float, Field(gt=1.0, le=100.0)] = 5.0
    """Largest ratio that counts."""


class SequenceTruncated(ApiModel):
    """Each completion's loss times min(Π_t π_old / π_sampler, cap), detached: unbiased up to the cap, but it varies with the length."""

    cap: Annotated[float, Field(ge=1.0, le=100.0)] = 5.0
    """Largest weight."""


class SequenceMasked(ApiModel):
    """Each completion's loss times Π_t π_old / π_sampler where that is within bounds, else 0; long completions are often dropped."""

    low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Smallest ratio that counts."""
    high: Annotated[float, Field(gt=1.0, le=100.0)] = 2.0
    """Largest ratio that counts."""


class NoCorrection(ApiModel):
    """No weight against the sampler."""


CORRECTION_KINDS = ("token_truncated", "token_masked", "sequence_truncated", "sequence_masked", "none")


class Correction(ApiModel):
    """Exactly one correction of the difference between the sampler and the policy at the start of the update."""

    token_truncated: TokenTruncated | None = None
    """Token-level truncated importance sampling."""
    token_masked: TokenMasked | None = None
    """Token-level masked importance sampling."""
    sequence_truncated: SequenceTruncated | None = None
    """Completion-level truncated importance sampling."""
    sequence_masked: SequenceMasked | None = None
    """Completion-level masked importance sampling."""
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

    @property
    def cap(self) -> float | None:
        """Largest weight that it lets through; None where there is no weight."""
        truncated, masked = self.token_truncated or self.sequence_truncated, self.token_masked or self.sequence_masked
        return truncated.cap if truncated is not None else masked.high if masked is not None else None

    def with_cap(self, cap: float) -> "Correction":
        """The same correction with another `cap`."""
        field = "high" if self.kind.endswith("masked") else "cap"
        return Correction(**{self.kind: getattr(self, self.kind).model_copy(update={field: cap})})


class GeometricBounds(ApiModel):
    """Bounds on the geometric mean over a completion's tokens of π_old / π_sampler, whatever its length."""

    low: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Smallest mean that counts; 0.99 suits dense models, a mixture of experts needs more room."""
    high: Annotated[float, Field(gt=1.0, le=100.0)] = 1.01
    """Largest mean that counts."""


class Opsm(ApiModel):
    """Off-policy sequence masking (DeepSeek-V3.2, arXiv 2512.02556, eq. 9): drops completions with A < 0 that the policy has left."""

    threshold: Annotated[float, Field(gt=0.0, le=10.0)] = 1e-4
    """Largest mean over tokens of log π_sampler − log π_θ, in nats."""


class Rejection(ApiModel):
    """Completions that are left out because the policy no longer is what sampled them. They stay in baselines and in the loss's divisor,
    so that what is left weighs no more. All that are set apply, beside any correction and with any algorithm."""

    geometric: GeometricBounds | None = None
    """By the geometric mean of the ratios."""
    veto_below: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Drop a completion with a token whose π_old / π_sampler is below this; 1e-4 finds tokens that only a defect of the engine explains."""
    opsm: Opsm | None = None
    """By its distance from the policy, where it did worse than the others."""
