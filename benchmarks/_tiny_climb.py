"""A climb of the tiny model in one process: sums up to 4 + 4, rollouts sampled by transformers, and the learner of a job.

    write_start: random weights -> a short cold start -> a model that is right now and then      Climb: sample -> judge -> Learner.step

What a job does over HTTP and with vLLM is done by function calls, so that a hundred steps take seconds; learner, losses and corrections are
those of a job. `delay` keeps batches waiting for as many steps, as a queue between engines and learner does; where the job has a governor,
that may shorten the queue, and empties it in a pause.
"""

import multiprocessing
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlvr_api.spec import RLVRJobSpec
from rlvr_api.stages import Optimizer
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.governor import GovernorState, Numbers, govern, in_force
from rlvr_trainer.learner import Learner, StepReport
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.supervised_learner import SupervisedLearner
from rlvr_trainer.traces import Example

MAX_TOKENS = 3
PROBLEMS = tuple((one, other) for one in range(5) for other in range(5))
COLD_START_STEPS = 50
Argument = TypeVar("Argument")
Result = TypeVar("Result")


def run_all(function: Callable[[Argument], Result], arguments: Sequence[Argument]) -> list[Result]:
    """The calls' results in order; one call a core at a time, each in a process with one thread."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_process) as pool:
        return list(pool.map(function, arguments))


def _prepare_process() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()


def make_spec(folder: Path, rlvr: Mapping[str, Any], off_policy: Mapping[str, Any] | None = None) -> RLVRJobSpec:
    """A job of one stage."""
    return RLVRJobSpec.model_validate({
        "model": {"uri": f"file://{folder.resolve()}", "maxModelLen": 32},
        "environments": [{"name": "sums", "arithmetic": {}}],
        "sampling": {"maxTokens": MAX_TOKENS},
        "stages": [{"name": "climb", "rlvr": {"steps": 1000, **rlvr}}],
        "offPolicy": dict(off_policy or {}),
    })  # fmt: skip


class Sampler:
    """An engine of one's own: the weights that it was given last, temperature 1."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        self._generator = torch.Generator().manual_seed(seed)
        self.end: int = self.tokenizer.eos_token_id

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take new weights."""
        own = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def save(self, folder: Path) -> None:
        """As a Hugging Face folder."""
        self._model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def render(self, problem: tuple[int, int]) -> tuple[int, ...]:
        """The prompt's tokens; all problems have as many."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{problem[0]}+{problem[1]}="}], tokenize=False, add_generation_prompt=True
        )
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    @torch.no_grad()
    def sample(self, problems: Sequence[tuple[int, int]], samples: int) -> list[list[tuple[list[int], list[float]]]]:
        """For each problem, tokens and log-probs of `samples` completions."""
        prompts = torch.tensor([self.render(problem) for problem in problems]).repeat_interleave(samples, 0)
        ids, chosen = prompts, []
        for _ in range(MAX_TOKENS):
            logs = log_softmax(self._model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1], -1)
            tokens = torch.multinomial(logs.exp(), 1, generator=self._generator)
            chosen.append(logs.gather(1, tokens))
            ids = torch.cat([ids, tokens], 1)
        rows = zip(ids[:, prompts.shape[1] :].tolist(), torch.cat(chosen, 1).tolist(), strict=True)
        cut = [(tokens[: self._length(tokens)], logprobs[: self._length(tokens)]) for tokens, logprobs in rows]
        return [cut[start : start + samples] for start in range(0, len(cut), samples)]

    def _length(self, tokens: Sequence[int]) -> int:
        return tokens.index(self.end) + 1 if self.end in tokens else len(tokens)

    def is_right(self, problem: tuple[int, int], tokens: Sequence[int]) -> bool:
        """The sum, and the end."""
        return list(tokens) == [*self.tokenizer.encode(str(sum(problem)), add_special_tokens=False), self.end]


def write_start(folder: Path) -> None:
    """The tiny model after a cold start that leaves it right now and then; does nothing when it is there."""
    if (folder / "start" / "config.json").exists():
        return
    random_folder = folder / "random"
    write_tiny_model(random_folder)
    spec = make_spec(random_folder, {})
    policy, sampler = Policy.load(random_folder, spec), Sampler(random_folder, 0)
    learner = SupervisedLearner(policy, Optimizer(learning_rate=3e-3), COLD_START_STEPS, 4096)
    order = random.Random(0)
    for step in range(COLD_START_STEPS):
        examples = []
        for problem in order.choices(PROBLEMS, k=32):
            answer = tuple(sampler.tokenizer.encode(str(sum(problem)), add_special_tokens=False))
            examples.append(Example(str(problem), sampler.render(problem), (*answer, sampler.end)))
        learner.step(examples, f"step {step}")
    sampler.load(policy.engine_named_tensors())
    sampler.save(folder / "start")


@dataclass
class Climb:
    """One run.

    Args:
        delay: steps that a batch waits between being sampled and being trained; with a governor the most.
    """

    folder: Path
    spec: RLVRJobSpec
    seed: int
    delay: int = 0

    def __post_init__(self) -> None:
        stage = self.spec.stages[0].rlvr
        assert stage is not None
        self.policy = Policy.load(self.folder, self.spec)
        self.learner = Learner(self.policy, stage, self.spec)
        self.sampler = Sampler(self.folder, self.seed)
        self._stage, self._order, self._waiting = stage, random.Random(self.seed), deque[list[RolloutGroup]]()
        self._indices = iter(range(10**9))
        self._done = 0
        self._governor = GovernorState()

    def steps(self, count: int) -> Iterator[StepReport]:
        """Take `count` steps."""
        for _ in range(count):
            while len(self._waiting) <= min(self.delay, self.allowed):  # at first all by the first policy
                self._waiting.append(self._collect())
            report = self.learner.step(self._waiting.popleft(), self._done, lambda version: version)
            self._done += 1
            self._govern(report)
            yield report

    @property
    def allowed(self) -> int:
        """Steps that a batch may wait now."""
        return self.learner.off_policy.max_staleness if self.spec.off_policy.governor is not None else self.delay

    def _govern(self, report: StepReport) -> None:
        tokens = report.tokens
        numbers = None
        if tokens is not None:
            numbers = Numbers(tokens.mismatch_k3, tokens.ess, tokens.clip_fraction, report.batch.staleness_max or 0)
        self._governor, _ = govern(self.spec.off_policy, self._governor, numbers)
        self.learner.off_policy = in_force(self.spec.off_policy, self._governor)
        if self._governor.paused:
            self._waiting.clear()

    def pass_rate(self, samples: int = 8) -> float:
        """Over all problems, at temperature 1."""
        self.sampler.load(self.policy.engine_named_tensors())
        found = self.sampler.sample(PROBLEMS, samples)
        right = [self.sampler.is_right(problem, tokens) for problem, group in zip(PROBLEMS, found, strict=True) for tokens, _ in group]
        return sum(right) / len(right)

    def _collect(self) -> list[RolloutGroup]:
        self.sampler.load(self.policy.engine_named_tensors())
        problems = self._order.choices(PROBLEMS, k=self._stage.prompts_per_step)
        found = self.sampler.sample(problems, self._stage.group_size)
        return [self._group(next(self._indices), problem, group) for problem, group in zip(problems, found, strict=True)]

    def _group(self, index: int, problem: tuple[int, int], found: Sequence[tuple[list[int], list[float]]]) -> RolloutGroup:
        rollouts = []
        for tokens, logprobs in found:
            right = self.sampler.is_right(problem, tokens)
            verdict = Verdict(
                id=str(index),
                status=VerdictStatus.PASS if right else VerdictStatus.FAIL,
                score=float(right),
                verifier="sum",
                verifier_version="1",
            )
            reason: Literal["stop", "length"] = "stop" if tokens[-1] == self.sampler.end else "length"
            span = VersionSpan(self._done, 0, len(tokens))
            rollouts.append(Rollout(tuple(tokens), tuple(logprobs), (span,), reason, "", verdict))
        admission = Admission(index, "sums", 0, index)
        return RolloutGroup(admission, f"{index:016x}", self.sampler.render(problem), "", tuple(rollouts), "sampler", "", 0.0, 0.0)
