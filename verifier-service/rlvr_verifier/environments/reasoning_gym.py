"""Tasks of reasoning-gym, each judged as `reasoning_gym_tasks` says: by the library, by a normal form, or by our own scorer.

The list is of version 0.1.25; `rlvr environment certify TASK` tries a task. Scores are binarised: only 1 is right.

Level n of a task is level n of the library's curriculum, each attribute at its last value once it has no n-th; the job's `config` is laid
over it, at every level. A curriculum is used as far as the library accepts its own values: that of `caesar_cipher` ends after level 1.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from decimal import localcontext
from typing import Any

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, Place, SampledTask, Score, failed, invalid, passed
from rlvr_verifier.environments.puzzle_forms import lines
from rlvr_verifier.environments.reasoning_gym_tasks import LEFT_OUT, RULES, SAFE_TASKS, WITHOUT_CURRICULUM

HELD_OUT_SHARE = 0.25
MAX_HELD_OUT = 200
MAX_HELD_OUT_SLOW = 30
"""Of tasks that take milliseconds to make."""
KEPT_TASKS = 2**31
"""Size of a set of tasks that is kept; none is made before it is asked for."""
ANSWER_CHARACTERS = 16_384
"""The longest right answers, of `number_sorting`, have 14,000."""


class ReasoningGymEnvironment:
    """One task of the library."""

    kind = "reasoning_gym"
    version = scorer_version = "3+reasoning-gym-0.1.25"
    data_sha256 = None
    deterministic = True
    place = Place.FORK

    def __init__(self, spec: EnvironmentSpec) -> None:
        assert spec.reasoning_gym is not None
        self.name = spec.name
        self._task = spec.reasoning_gym.task
        if self._task not in SAFE_TASKS:
            raise EnvironmentSetupError(f"environment {spec.name}: {_why_not(self._task)}")
        self._rule = RULES[self._task]
        self._max_held_out = MAX_HELD_OUT_SLOW if self._rule.slow else MAX_HELD_OUT
        self._kept: dict[int, Any] = {}
        self._curriculum = accepted_levels(self._task)
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
        """Held-out instances, at most 200, or 30 where making one takes milliseconds."""
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
            assert entry is not None
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
        entry, dataset = self._entry(payload)
        return passed("the answer is right") if self._is_right(answer, entry, dataset) else failed("the answer is wrong")

    def reference(self, payload: Mapping[str, JsonValue]) -> str:
        """The library's own answer to a task."""
        entry, _ = self._entry(payload)
        return self._rule.reference(entry)

    @property
    def scorers(self) -> tuple[Callable[..., Any], ...]:
        """What judges an answer, for a scan of its source."""
        return (self._rule.form or self._rule.own or type(self._dataset(0, 0)[0]).score_answer,)

    def _is_right(self, answer: str, entry: Mapping[str, Any], dataset: Any) -> bool:
        rule = self._rule
        if rule.own is not None:
            return rule.own(answer, entry)
        if rule.form is not None:
            found = rule.form(answer)
            return found is not None and found == rule.form(rule.reference(entry))
        if rule.gate is not None:
            answer = lines(answer)
            if not rule.gate.fullmatch(answer):
                return False
        with localcontext():
            return float(dataset.score_answer(answer, entry=entry)) >= 1.0 - 1e-9

    def _entry(self, payload: Mapping[str, JsonValue]) -> tuple[Mapping[str, Any], Any]:
        seed, level = payload["seed"], payload["level"]
        assert isinstance(seed, int)
        assert isinstance(level, int)
        dataset, place = self._dataset(seed, level)
        with localcontext():  # the library sets the precision of decimal numbers, of whoever makes a task
            return dataset[place], dataset

    def _dataset(self, seed: int, level: int) -> tuple[Any, int]:
        """A set of tasks, and the place of the seed's task in it."""
        if not self._rule.kept:
            return self._create(seed, level, size=1), 0
        if level not in self._kept:
            self._kept[level] = self._create(0, level, KEPT_TASKS)
        return self._kept[level], seed

    def _create(self, seed: int, level: int, size: int) -> Any:
        import reasoning_gym

        try:
            return reasoning_gym.create_dataset(self._task, size=size, seed=seed, **{**self._curriculum[level], **self._config})
        except (TypeError, AssertionError, ValueError) as error:
            raise EnvironmentSetupError(
                f"environment {self.name}: reasoning-gym refuses config {self._config} at level {level}: {error}"
            ) from None

    def _make(self, seed: int, level: int) -> dict[str, Any] | None:
        """The task of a seed; None where the library does not find one."""
        dataset, place = self._dataset(seed, level)
        try:
            with localcontext():
                return {**dataset[place], "seed": seed}
        except ValueError:
            return None

    def _draw(self, seed: int, level: int) -> dict[str, Any]:
        for try_number in range(1_000):
            entry = self._make((seed + 7_919 * try_number) % 2**31, level)
            if entry is not None and not self._is_held_out(entry):
                return entry
        raise EnvironmentSetupError(f"environment {self.name} makes no training instance; its config leaves too few problems")

    def _held_out_seeds(self, level: int) -> list[int]:
        if level not in self._held_out:
            found: dict[str, int] = {}
            for seed in range(2**31 - 1, 2**31 - 1 - 4 * self._max_held_out, -1):
                entry = self._make(seed, level)
                if entry is not None and self._is_held_out(entry):
                    found.setdefault(_problem_id(self._task, str(entry["question"])), seed)
            self._held_out[level] = list(found.values())[: self._max_held_out]
        return self._held_out[level]

    def _is_held_out(self, entry: Mapping[str, Any]) -> bool:
        return int(_problem_id(self._task, str(entry["question"]))[:8], 16) / 2**32 < HELD_OUT_SHARE


def accepted_levels(task: str) -> list[dict[str, Any]]:
    """The curriculum's part of the config at each level, up to the first that the library refuses, or the last that is offered."""
    if task in WITHOUT_CURRICULUM:
        return [{}]
    from reasoning_gym.factory import create_curriculum

    curriculum = create_curriculum(task)
    last = max(len(attribute.levels) for attribute in curriculum.attributes.values()) - 1
    offered = RULES[task].last_level
    levels: list[dict[str, Any]] = []
    for level in range((last if offered is None else min(last, offered)) + 1):
        fields = _fields_at(curriculum, level)
        config = curriculum.generate_configuration()
        try:
            if hasattr(config, "validate"):
                config.validate()
        except AssertionError:
            break
        levels.append({field: getattr(config, field) for field in fields})
    return levels


def _fields_at(curriculum: Any, level: int) -> list[str]:
    """Sets every attribute to the level, or to its last, and names the fields of the config that follow."""
    from reasoning_gym.coaching.attributes import RangeAttributeDefinition

    fields: list[str] = []
    for attribute in curriculum.attributes.values():
        curriculum.set_attr_level(attribute.name, min(level, len(attribute.levels) - 1))
        ranged = isinstance(attribute, RangeAttributeDefinition)
        fields += (attribute.lower_field_name, attribute.upper_field_name) if ranged else (attribute.field_name,)
    return fields


def _why_not(task: str) -> str:
    if task in LEFT_OUT:
        return f"reasoning-gym task {task!r} is left out: {LEFT_OUT[task]}"
    near = difflib.get_close_matches(task, SAFE_TASKS, 3) or sorted(SAFE_TASKS)[:5]
    return f"reasoning-gym has no task {task!r}; try {', '.join(near)}"


def _problem_id(task: str, question: str) -> str:
    return hashlib.sha256(f"{task}/{' '.join(question.split())}".encode()).hexdigest()[:16]
