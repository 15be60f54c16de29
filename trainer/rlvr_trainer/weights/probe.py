"""The probe: an update counts only when the engine computes what the trainer computes.

After each update the engine gets a fresh request with a fixed prompt, and the trainer computes the log-probs of the sampled tokens with the
weights that it sent. vLLM has answered 200 to every route and gone on sampling from old weights; this comparison found it. Fresh means a
cache salt of its own: a request that was frozen over the update keeps old keys and values and may differ.
Not covered: layers that the prompt does not reach (rarely chosen experts).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvr_api.spec import Precision
from rlvr_trainer.weights.engine_client import EngineClient, ProbeReply

TOLERANCE_FLOAT32 = 1e-3
TOLERANCE_OTHERWISE = 1.0


class ProbeError(RuntimeError):
    """The engine's answer is not that of the published weights."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What is asked, and how it is judged."""

    prompt_ids: tuple[int, ...]
    """Fixed prompt."""
    logprobs: Callable[[Sequence[int], Sequence[int]], Sequence[float]]
    """Trainer: `(prompt_ids, completion_ids)` to the log-prob of each completion token at `temperature`, under the weights cast to the
    engine's dtype. Called on the thread that publishes."""
    tolerance: float
    """Largest |difference| of a log-prob, in nats."""
    max_tokens: int = 8
    temperature: float = 1.0
    seed: int = 0

    def ask(self, client: EngineClient, cache_salt: str) -> ProbeReply:
        """The engine's completion. Raises EngineError."""
        return client.sample(self.prompt_ids, self.max_tokens, self.temperature, self.seed, cache_salt)

    def judge(self, reply: ProbeReply, version: int) -> float:
        """Largest |log-prob difference| over the completion's tokens, in nats.

        Raises:
            ProbeError: it is above the tolerance or not a number, the completion is empty, or another version sampled it.
        """
        if reply.versions != {str(version)}:
            raise ProbeError(f"the engine sampled with version {', '.join(sorted(reply.versions)) or 'none'}, not {version}")
        if not reply.token_ids or len(reply.token_ids) != len(reply.logprobs):
            raise ProbeError(f"the engine answered {len(reply.token_ids)} tokens and {len(reply.logprobs)} log-probs")
        trainer = self.logprobs(self.prompt_ids, reply.token_ids)
        gap = largest_gap(trainer, reply.logprobs)
        if not gap <= self.tolerance:
            raise ProbeError(
                f"log-probs of engine and trainer differ by {gap:.3g} nats, more than {self.tolerance:g}: the engine does not compute with "
                f"the weights of version {version}"
            )
        return gap


def largest_gap(first: Sequence[float], second: Sequence[float]) -> float:
    """Largest |difference| of two equally long lists; infinite when any of them is not finite.

    Raises:
        ValueError: the lengths differ.
    """
    gaps = [abs(one - other) for one, other in zip(first, second, strict=True)]
    return max((gap if math.isfinite(gap) else math.inf for gap in gaps), default=math.inf)


def default_tolerance(precision: Precision) -> float:
    """Tolerance where the job sets none: rounding between two float32 programs, and a guard against gross errors otherwise."""
    same = precision.learner_compute == precision.engine == "float32"
    return TOLERANCE_FLOAT32 if same else TOLERANCE_OTHERWISE
