"""The learner of one stage: a batch of groups becomes one optimizer step.

    groups -> advantages -> live groups as trees -> micro-batches -> loss, backward -> norm finite? -> clip, AdamW -> StepReport

The loss is Σ over tokens / N, with N all completion tokens of the live groups, known before the first micro-batch: how the batch is cut
does not change the gradient. Completions that were not judged and groups without signal are not computed at all, and a batch without live
tokens changes nothing. A step whose loss or gradient is not finite is refused before the optimizer sees it.

With one thread on a CPU, equal inputs give equal bits. Not covered: more than one process, more than one optimizer step a batch.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import torch
from pydantic import JsonValue
from torch import Tensor

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.stages import Rlvr
from rlvr_trainer.advantages import is_live
from rlvr_trainer.algorithms import AlgorithmBase, LossInputs, make_algorithm
from rlvr_trainer.correction import correction_weights
from rlvr_trainer.diagnostics import BatchStatistics, TokenStatistics, TokenSums, describe_batch
from rlvr_trainer.optimizer import AdamWOptimizer
from rlvr_trainer.packing import Branch, Tree, pack, plan_micro_batches
from rlvr_trainer.policy import Policy
from rlvr_trainer.rollout import RolloutGroup

STEP_KEY = "learner_step"
"""Of the stage's step among a checkpoint's scalars."""
GENERATOR_KEYS = {"cpu": "generator/cpu", "cuda": "generator/cuda"}
"""Of torch's random generators among a checkpoint's tensors."""


class NonFiniteStepError(RuntimeError):
    """A loss or gradient is not finite; the weights are those before the step."""


class StepNumbers(TypedDict):
    """The fields of `metrics.StepMetrics` that the learner knows."""

    reward_mean: float | None
    pass_rate: float | None
    live_groups: int
    truncated_share: float | None
    completion_tokens_mean: float | None
    tokens_trained: int
    loss: float | None
    gradient_norm: float | None
    learning_rate: float | None
    staleness_mean: float | None
    staleness_max: float | None
    mismatch_kl: float | None
    mismatch_max: float | None
    ess: float | None
    clip_fraction: float | None
    entropy: float | None


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did."""

    batch: BatchStatistics
    groups: int
    live_groups: int
    tokens: TokenStatistics | None = None
    """Of the trained tokens; None, like the next three, when no token was live and nothing was updated."""
    loss: float | None = None
    """Σ / N."""
    gradient_norm: float | None = None
    """Before clipping."""
    learning_rate: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by phase: pack, forward, backward, optimizer. On a GPU, forward and backward count until the work is queued, and the wait
    for it is the optimizer's."""

    @property
    def updated(self) -> bool:
        """The weights changed."""
        return self.tokens is not None

    @property
    def tokens_trained(self) -> int:
        """Completion tokens of the loss."""
        return self.tokens.tokens if self.tokens is not None else 0

    def metrics(self) -> StepNumbers:
        """For `StepMetrics`."""
        tokens = self.tokens
        return StepNumbers(
            reward_mean=self.batch.reward_mean,
            pass_rate=self.batch.pass_rate,
            live_groups=self.live_groups,
            truncated_share=self.batch.truncated_share,
            completion_tokens_mean=self.batch.completion_tokens_mean,
            tokens_trained=self.tokens_trained,
            loss=self.loss,
            gradient_norm=self.gradient_norm,
            learning_rate=self.learning_rate,
            staleness_mean=self.batch.staleness_mean,
            staleness_max=self.batch.staleness_max,
            mismatch_kl=tokens.mismatch_k3 if tokens is not None else None,
            mismatch_max=tokens.mismatch_max if tokens is not None else None,
            ess=tokens.ess if tokens is not None else None,
            clip_fraction=tokens.clip_fraction if tokens is not None else None,
            entropy=tokens.entropy if tokens is not None else None,
        )


class Learner:
    """Trains `policy` for one stage; optimizer and schedule are new.

    Args:
        policy: trained in place.
        stage: algorithm, optimizer, number of steps.
        spec: temperature, correction and token budget.
    """

    def __init__(self, policy: Policy, stage: Rlvr, spec: RLVRJobSpec) -> None:
        self._policy = policy
        self._spec = spec
        self._algorithm: AlgorithmBase[Any] = make_algorithm(stage.algorithm)
        self._optimizer = AdamWOptimizer(policy.parameters(), stage.optimizer, stage.steps)
        self._step = 0

    def step(self, groups: Sequence[RolloutGroup], current_step: int, step_of: Callable[[int], int]) -> StepReport:
        """Learn from a batch.

        Args:
            groups: the batch; the order does not change the loss, only rounding.
            current_step: optimizer step after which the policy's weights are, counted as `step_of` counts.
            step_of: optimizer step after which a weight version was published; raises for one that never was.

        Raises:
            NonFiniteStepError: the loss, the gradient or a log-prob of the sampler is not finite; the weights are unchanged.
            ValueError: spans do not fit the tokens, or a version is newer than the policy.
        """
        seconds: dict[str, float] = {}
        batch = describe_batch(groups, current_step, step_of)
        with _timed(seconds, "pack"):
            trees = self._live_trees(groups)
            tokens = sum(tree.trained_tokens for tree in trees)
        report = StepReport(batch, len(groups), len(trees), seconds=seconds)
        if tokens:
            report = self._update(report, groups, trees, tokens, current_step + 1)
        self._step += 1
        return report

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimizer state and generator states for a checkpoint, by name; no copies of weights and optimizer state."""
        generators = {GENERATOR_KEYS["cpu"]: torch.get_rng_state()}
        if self._policy.device.type == "cuda":
            generators[GENERATOR_KEYS["cuda"]] = torch.cuda.get_rng_state(self._policy.device)
        return {**self._policy.tensors(), **self._optimizer.tensors(), **generators}

    def scalars(self) -> dict[str, JsonValue]:
        """The rest of the state, as JSON."""
        return {STEP_KEY: self._step}

    def load(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, JsonValue]) -> None:
        """Go on from what `tensors` and `scalars` gave; other keys are ignored.

        Raises:
            ValueError: the state of another model or program version.
        """
        step, generator = scalars.get(STEP_KEY), tensors.get(GENERATOR_KEYS["cpu"])
        if not isinstance(step, int) or generator is None:
            raise ValueError(f"the checkpoint lacks '{STEP_KEY}' or '{GENERATOR_KEYS['cpu']}': it is of another program version")
        self._policy.load_tensors(tensors)
        self._optimizer.load_tensors(tensors)
        torch.set_rng_state(generator)
        on_gpu = tensors.get(GENERATOR_KEYS["cuda"])
        if on_gpu is not None and self._policy.device.type == "cuda":
            torch.cuda.set_rng_state(on_gpu, self._policy.device)
        self._step = step

    def _live_trees(self, groups: Sequence[RolloutGroup]) -> list[Tree]:
        trees = []
        for index, group in enumerate(groups):
            advantages = self._algorithm.advantages(group.rewards)
            if not is_live(advantages):
                continue
            trained = [(rollout, advantage) for rollout, advantage in zip(group.rollouts, advantages, strict=True) if advantage is not None]
            for rollout, _ in trained:
                if not all(map(math.isfinite, rollout.logprobs)):
                    raise NonFiniteStepError(
                        f"group {group.admission.index} has a log-prob of the sampler that is not finite; look at engine {group.engine}"
                    )
            branches = tuple(Branch(rollout.token_ids, rollout.logprobs, advantage) for rollout, advantage in trained)
            trees.append(Tree(index, group.prompt_ids, branches))
        return trees

    def _update(self, report: StepReport, groups: Sequence[RolloutGroup], trees: Sequence[Tree], tokens: int, number: int) -> StepReport:
        sums = TokenSums(self._policy.device)
        budget = self._spec.learner.tokens_per_micro_batch
        micro_batches = plan_micro_batches([tree for tree in trees if tree.trained_tokens], budget)
        try:
            losses = [self._accumulate(members, tokens, sums, report.seconds) for members in micro_batches]
            with _timed(report.seconds, "optimizer"):
                norm = self._optimizer.gradient_norm()
                values: list[float] = torch.stack(losses).tolist()
                suspects = _suspects(micro_batches, values, norm)
                if suspects:
                    raise NonFiniteStepError(
                        f"step {number} is refused: its loss is {sum(values)} and its gradient norm {norm}, and the fault is in groups "
                        f"{[groups[index].admission.index for index in suspects]}; the weights are those before the step. "
                        "Lower the learning rate, or look at these groups' rollouts"
                    )
                rate = self._optimizer.apply(norm, self._step)
        finally:
            self._optimizer.drop_gradients()
        return replace(report, tokens=sums.read(), loss=math.fsum(values), gradient_norm=norm, learning_rate=rate)

    def _accumulate(self, members: Sequence[Tree], tokens: int, sums: TokenSums, seconds: dict[str, float]) -> Tensor:
        """Add a micro-batch's gradient; returns its part of the loss, detached."""
        with _timed(seconds, "pack"):
            packed = pack(members, self._policy.block_tokens).to(self._policy.device)
        with _timed(seconds, "forward"):
            scores = self._policy.completion_logprobs(packed, self._spec.sampling.temperature)
            old = scores.logprobs.detach()
            weights = correction_weights(self._spec.off_policy.correction, old, packed.sampler_logprobs)
            inputs = LossInputs(scores.logprobs, old, packed.sampler_logprobs, packed.advantages, weights)
            output = self._algorithm.loss(inputs)
            loss = output.total / tokens
        with _timed(seconds, "backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        sums.add(inputs, output, scores.entropies)
        return loss.detach()


def _suspects(micro_batches: Sequence[Sequence[Tree]], losses: Sequence[float], norm: float) -> list[int]:
    """Groups that may have made loss or gradient not finite: those whose loss is not, else all; none when all is well."""
    found = [members for members, loss in zip(micro_batches, losses, strict=True) if not math.isfinite(loss)]
    if not found and not math.isfinite(norm):
        found = list(micro_batches)
    return sorted(tree.index for members in found for tree in members)


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.monotonic() - started
