"""Tasks of reasoning-gym whose scorers neither run the answer nor pay for junk.

The list is of version 0.1.25. Left out are the nine tasks that evaluate the model's answer as code, those that pay for any text, a
constant, padding or the answer of another instance, and those whose score depends on the hash seed; `rlvr environment certify TASK` says
so. Scores are binarised: only 1 is right.

Level n of a task is level n of the library's curriculum, each attribute at its last value once it has no n-th; the job's `config` is laid
over it, at every level. A curriculum is used as far as the library accepts its own values: that of `caesar_cipher` ends after level 1.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, Place, SampledTask, Score, failed, invalid, passed

SAFE_TASKS = frozenset({
    "basic_arithmetic", "chain_sum", "decimal_chain_sum", "base_conversion", "caesar_cipher", "calendar_arithmetic", "count_bits",
    "count_primes", "gcd", "lcm", "leg_counting", "letter_counting", "needle_haystack", "number_filtering",
    "number_sorting", "products", "simple_equations", "spell_backward", "word_sorting", "family_relationships",
    "bitwise_arithmetic", "complex_arithmetic", "dice", "sentence_reordering", "word_sequence_reversal", "largest_island", "shortest_path",
})  # fmt: skip
REVIEWED_CALLS = frozenset({"reasoning_gym.arithmetic.bitwise_arithmetic eval", "reasoning_gym.algorithmic.number_sorting eval"})
"""Calls in scorers that a scan finds and that never see an answer: they evaluate the library's own problem, and its own gold answer."""
HELD_OUT_SHARE = 0.25
MAX_HELD_OUT = 200
ANSWER_CHARACTERS = 16_384
"""The longest right answers, of `number_sorting`, have 14,000."""


class ReasoningGymEnvironment:
    """One task of the library."""

    kind = "reasoning_gym"
    version = scorer_version = "2+reasoning-gym-0.1.25"
    data_sha256 = None
    deterministic = True
    place = Place.FORK
    reviewed_calls = REVIEWED_CALLS

    def __init__(self, spec: EnvironmentSpec) -> None:
        assert spec.reasoning_gym is not None
        self.name = spec.name
        self._task = spec.reasoning_gym.task
        if self._task not in SAFE_TASKS:
            near = difflib.get_close_matches(self._task, SAFE_TASKS, 3) or sorted(SAFE_TASKS)[:5]
            raise EnvironmentSetupError(
                f"environment {spec.name}: reasoning-gym task {self._task!r} is unknown or its scorer is not safe; try {', '.join(near)}"
            )
        self._curriculum = _accepted_levels(self._task)
        self.levels = (0, len(self._curriculum) - 1)
        if spec.levels.maximum > self.levels[1]:
            raise EnvironmentSetupError(
                f"environment {spec.name}: levels.maximum {spec.levels.maximum} is above {self.levels[1]}, the last of {self._task}"
            )
        self._config = dict(spec.reasoning_gym.config)
        self._held_out: dict[int, list[int]] = {}
        for level in range(spec.levels.start, spec.levels.maximum + 1):
            self._make(0, level)

    def held_out_tasks(self, level: int) -> int:
        """Held-out instances, at most `MAX_HELD_OUT`."""
        return len(self._held_out_seeds(level))

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """An instance of the task.

        Raises:
            NoSuchTaskError: there is no held-out instance of that number.
        """
        if split == "heldOut":
            seeds = self._held_out_seeds(level)
            if seed >= len(seeds):
                raise NoSuchTaskError(f"environment {self.name} has {len(seeds)} held-out tasks at level {level}, so none with seed {seed}")
            entry = self._make(seeds[seed], level)
        else:
            entry = self._draw(seed, level)
        question = str(entry["question"])
        payload: dict[str, JsonValue] = {"seed": entry["seed"], "level": level}
        return SampledTask(_problem_id(self._task, question), (Message(role="user", content=question),), payload)

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
        seed, level = payload["seed"], payload["level"]
        assert isinstance(seed, int)
        assert isinstance(level, int)
        dataset = self._dataset(seed, level)
        score = float(dataset.score_answer(answer, entry=dataset[0]))
        return passed("the answer is right") if score >= 1.0 - 1e-9 else failed("the answer is wrong")

    def reference(self, payload: Mapping[str, JsonValue]) -> str:
        """The library's own answer to a task."""
        seed, level = payload["seed"], payload["level"]
        assert isinstance(seed, int)
        assert isinstance(level, int)
        return str(self._dataset(seed, level)[0]["answer"])

    @property
    def scorers(self) -> tuple[Callable[..., Any], ...]:
        """The library's scorer of the task, for a scan of its source."""
        return (type(self._dataset(0, 0)).score_answer,)

    def _dataset(self, seed: int, level: int) -> Any:
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(self._task, size=1, seed=seed, **{**self._curriculum[level], **self._config})
        except (TypeError, AssertionError, ValueError) as error:
            raise EnvironmentSetupError(
                f"environment {self.name}: reasoning-gym refuses config {self._config} at level {level}: {error}"
            ) from None

    def _make(self, seed: int, level: int) -> dict[str, Any]:
        return {**self._dataset(seed, level)[0], "seed": seed}

    def _draw(self, seed: int, level: int) -> dict[str, Any]:
        for try_number in range(1_000):
            entry = self._make((seed + 7_919 * try_number) % 2**31, level)
            if not self._is_held_out(entry):
                return entry
        raise EnvironmentSetupError(f"environment {self.name} makes no training instance; its config leaves too few problems")

    def _held_out_seeds(self, level: int) -> list[int]:
        if level not in self._held_out:
            found: dict[str, int] = {}
            for seed in range(2**31 - 1, 2**31 - 1 - 4 * MAX_HELD_OUT, -1):
                entry = self._make(seed, level)
                if self._is_held_out(entry):
                    found.setdefault(_problem_id(self._task, str(entry["question"])), seed)
            self._held_out[level] = list(found.values())[:MAX_HELD_OUT]
        return self._held_out[level]

    def _is_held_out(self, entry: Mapping[str, Any]) -> bool:
        return int(_problem_id(self._task, str(entry["question"]))[:8], 16) / 2**32 < HELD_OUT_SHARE


def _accepted_levels(task: str) -> list[dict[str, Any]]:
    """The curriculum's part of the config at each level, up to the first that the library refuses."""
    from reasoning_gym.coaching.attributes import RangeAttributeDefinition
    from reasoning_gym.factory import create_curriculum

    curriculum = create_curriculum(task)
    attributes = curriculum.attributes.values()
    levels: list[dict[str, Any]] = []
    for level in range(max(len(attribute.levels) for attribute in attributes)):
        fields: list[str] = []
        for attribute in attributes:
            curriculum.set_attr_level(attribute.name, min(level, len(attribute.levels) - 1))
            ranged = isinstance(attribute, RangeAttributeDefinition)
            fields += (attribute.lower_field_name, attribute.upper_field_name) if ranged else (attribute.field_name,)
        config = curriculum.generate_configuration()
        try:
            config.validate()
        except AssertionError:
            break
        levels.append({field: getattr(config, field) for field in fields})
    return levels


def _problem_id(task: str, question: str) -> str:
    return hashlib.sha256(f"{task}/{' '.join(question.split())}".encode()).hexdigest()[:16]
