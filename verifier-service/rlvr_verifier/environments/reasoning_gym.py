"""Tasks of reasoning-gym whose scorers neither run the answer nor pay for junk.

The list is of version 0.1.25. Left out are the nine tasks that evaluate the model's answer as code, those that pay for any text, a
constant, padding or the answer of another instance, and those whose score depends on the hash seed. Scores are binarised: only 1 is right.
"""

import difflib
import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.base import EnvironmentSetupError, SampledTask, Score, failed, invalid, passed

SAFE_TASKS = frozenset({
    "basic_arithmetic", "chain_sum", "decimal_chain_sum", "base_conversion", "caesar_cipher", "calendar_arithmetic", "count_bits",
    "count_primes", "fraction_simplification", "gcd", "lcm", "leg_counting", "letter_counting", "needle_haystack", "number_filtering",
    "number_sorting", "products", "simple_equations", "spell_backward", "time_intervals", "word_sorting", "family_relationships",
    "bitwise_arithmetic", "complex_arithmetic", "dice", "sentence_reordering", "word_sequence_reversal", "largest_island", "shortest_path",
})  # fmt: skip
HELD_OUT_SHARE = 0.25
MAX_HELD_OUT = 200
ANSWER_CHARACTERS = 2_048


class ReasoningGymEnvironment:
    """One task of the library."""

    kind = "reasoning_gym"
    version = "1+reasoning-gym-0.1.25"
    deterministic = True
    slow = True
    levels = (0, 0)

    def __init__(self, spec: EnvironmentSpec) -> None:
        assert spec.reasoning_gym is not None
        self.name = spec.name
        self._task = spec.reasoning_gym.task
        if self._task not in SAFE_TASKS:
            near = difflib.get_close_matches(self._task, SAFE_TASKS, 3) or sorted(SAFE_TASKS)[:5]
            raise EnvironmentSetupError(
                f"environment {spec.name}: reasoning-gym task {self._task!r} is unknown or its scorer is not safe; try {', '.join(near)}"
            )
        if spec.levels.maximum:
            raise EnvironmentSetupError(f"environment {spec.name}: reasoning-gym tasks have one level; use config for their difficulty")
        self._config = dict(spec.reasoning_gym.config)
        self._held_out: list[int] | None = None
        self._make(0)

    def held_out_tasks(self, level: int) -> int:
        """Held-out instances, at most `MAX_HELD_OUT`."""
        return len(self._held_out_seeds())

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """An instance of the task.

        Raises:
            ValueError: there is no held-out instance of that number.
        """
        if split == "heldOut":
            seeds = self._held_out_seeds()
            if seed >= len(seeds):
                raise ValueError(f"environment {self.name} has {len(seeds)} held-out tasks, so none with seed {seed}")
            entry = self._make(seeds[seed])
        else:
            entry = self._draw(seed)
        question = str(entry["question"])
        return SampledTask(_problem_id(self._task, question), (Message(role="user", content=question),), {"seed": entry["seed"]})

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Ask the library about the text after the last `</think>` or in the last `<answer>`."""
        answer = completion.rpartition("</think>")[2]
        if "<answer>" in answer:
            answer = answer.rpartition("<answer>")[2].partition("</answer>")[0]
        answer = answer.strip()
        if not answer:
            return invalid("there is no answer")
        if len(answer) > ANSWER_CHARACTERS:
            return invalid(f"the answer has more than {ANSWER_CHARACTERS} characters")
        seed = payload["seed"]
        assert isinstance(seed, int)
        dataset = self._dataset(seed)
        score = float(dataset.score_answer(answer, entry=dataset[0]))
        return passed("the answer is right") if score >= 1.0 - 1e-9 else failed("the answer is wrong")

    def _dataset(self, seed: int) -> Any:
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(self._task, size=1, seed=seed, **self._config)
        except (TypeError, AssertionError, ValueError) as error:
            raise EnvironmentSetupError(f"environment {self.name}: reasoning-gym refuses config {self._config}: {error}") from None

    def _make(self, seed: int) -> dict[str, Any]:
        return {**self._dataset(seed)[0], "seed": seed}

    def _draw(self, seed: int) -> dict[str, Any]:
        for try_number in range(1_000):
            entry = self._make((seed + 7_919 * try_number) % 2**31)
            if not self._is_held_out(entry):
                return entry
        raise EnvironmentSetupError(f"environment {self.name} makes no training instance; its config leaves too few problems")

    def _held_out_seeds(self) -> list[int]:
        if self._held_out is None:
            found: dict[str, int] = {}
            for seed in range(2**31 - 1, 2**31 - 1 - 4 * MAX_HELD_OUT, -1):
                entry = self._make(seed)
                if self._is_held_out(entry):
                    found.setdefault(_problem_id(self._task, str(entry["question"])), seed)
            self._held_out = list(found.values())[:MAX_HELD_OUT]
        return self._held_out

    def _is_held_out(self, entry: Mapping[str, Any]) -> bool:
        return int(_problem_id(self._task, str(entry["question"]))[:8], 16) / 2**32 < HELD_OUT_SHARE


def _problem_id(task: str, question: str) -> str:
    return hashlib.sha256(f"{task}/{' '.join(question.split())}".encode()).hexdigest()[:16]
