"""Environments of the Gymnasium interface, stepped by texts.

    seed -> make, reset -> instruction and first observation                                     the task
    seed, actions -> make, reset, step, step ... -> observations; at the end the return -> score    `play`

An environment object is made for each call and closed after it: nothing is kept, and what `reset(seed)` and the actions lead to must be the
same each time, which the digest of the observations checks. `sample` runs in the service, `play` in killable workers; an exception of the
environment is an `infra_error`, and its words stay inside. An action is the stripped text of a turn: for `Discrete` one integer alone.
What is no action of the space ends the episode as `invalid`.
Not covered: distrust, as for plug-ins; spaces of arrays, for which the package brings a wrapper; tasks that differ by more than their seed,
such as levels.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version as version_of
from typing import Any

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split, Transcript
from rlvr_verifier.environments.base import (
    EnvironmentSetupError,
    NoSuchTaskError,
    Place,
    SampledTask,
    Score,
    UnjudgedError,
    invalid,
    score_between,
)
from rlvr_verifier.environments.distributions import describe_origin, import_library
from rlvr_verifier.environments.episodes import Play, judge
from rlvr_verifier.faults import fault
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, Probe

SEEDS = 2**31
_INTEGER = re.compile(r"-?[0-9]{1,9}", re.ASCII)


class GymnasiumEnvironment:
    """One environment id, a task a seed."""

    kind = "gymnasium"
    data_sha256 = None
    deterministic = True
    place = Place.WORKER
    levels = (0, 0)
    scorers = (judge,)

    def __init__(self, spec: EnvironmentSpec) -> None:
        assert spec.gymnasium is not None
        self.name, self._spec, self.max_turns = spec.name, spec.gymnasium, spec.gymnasium.max_turns
        if spec.levels.maximum != 0:
            raise EnvironmentSetupError(f"environment {spec.name}: a Gymnasium environment has level 0 alone: remove levels")
        gymnasium = import_library(spec.name, "gymnasium")
        self._spaces = gymnasium.spaces
        self._make_any: Any = gymnasium.make
        try:
            with self._made() as made:
                self._check_spaces(made)
                self._solvable = callable(getattr(made.unwrapped, "solve", None))
                owner = type(made.unwrapped)
        except EnvironmentSetupError:
            raise
        except Exception as error:  # noqa: BLE001 - the border of foreign code
            raise EnvironmentSetupError(
                f"environment {spec.name}: {self._spec.id} cannot be made: {type(error).__name__}: {error}"
            ) from None
        self.version = self.scorer_version = f"1+gymnasium-{version_of('gymnasium')}+{describe_origin(owner)}"

    def held_out_tasks(self, level: int) -> int:
        """`heldOutSeeds`."""
        return self._spec.held_out_seeds

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """The task of a seed: held-out ones have the seeds below `heldOutSeeds`, training ones all others.

        Raises:
            NoSuchTaskError: there is no held-out task of that number.
            EnvironmentSetupError: the environment failed.
        """
        held_out = self._spec.held_out_seeds
        if split == "heldOut" and seed >= held_out:
            raise NoSuchTaskError(f"environment {self.name} has {held_out} held-out tasks, so none with seed {seed}")
        chosen = seed if split == "heldOut" else held_out + seed % (SEEDS - held_out)
        try:
            with self._made() as made:
                observation = self._text(made.reset(seed=chosen)[0])
        except Exception as error:  # noqa: BLE001 - the border of foreign code
            raise EnvironmentSetupError(f"environment {self.name}: it failed to reset: {fault(error)}") from None
        text = f"{self._spec.instruction}\n{observation}" if self._spec.instruction else observation
        canonical = json.dumps([self._spec.id, self._spec.options, chosen], sort_keys=True)
        problem_id = hashlib.sha256(f"gymnasium/{canonical}".encode()).hexdigest()[:16]
        return SampledTask(problem_id, (Message(role="user", content=text),), {"seed": chosen})

    def play(self, payload: Mapping[str, JsonValue], actions: Sequence[str]) -> Play:
        """The episode of these actions.

        Raises:
            UnjudgedError: a reward is not finite, or an observation is no text.
            Exception: whatever the environment raises.
        """
        observations: list[str] = []
        total, ended = 0.0, False
        with self._made() as made:
            made.reset(seed=payload["seed"])
            for turn, text in enumerate(actions, 1):
                if ended:
                    return Play(tuple(observations), invalid(f"{len(actions)} turns, and turn {turn - 1} ended the episode"))
                action = self._action(made, text.strip())
                if action is None:
                    return Play(tuple(observations), invalid(f"what was said in turn {turn} is no action"))
                observation, reward, terminated, truncated, _ = made.step(action)
                total += float(reward)
                ended = bool(terminated or truncated) or turn == self.max_turns
                if not ended:
                    observations.append(self._text(observation))
        if not math.isfinite(total):
            raise UnjudgedError(f"environment {self.name} gave a reward that is not finite")
        return Play(tuple(observations), self._score(total) if ended else None)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Play a transcript."""
        return judge(self, payload, completion)

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """Of an environment that knows its solution: it, what is no action, and the solution with more behind it."""
        if not self._solvable:
            return
        with self._made() as made:
            made.reset(seed=payload["seed"])
            solution = tuple(str(action) for action in made.unwrapped.solve())
        yield from COMMON
        yield Probe("solution", RIGHT, Transcript(actions=solution).completion)
        yield Probe("solution-and-more", EXPLOIT, Transcript(actions=(*solution, solution[-1])).completion)
        yield Probe("solution-in-one-turn", EXPLOIT, " ".join(solution) + " ;")

    @contextmanager
    def _made(self) -> Iterator[Any]:
        made = self._make_any(self._spec.id, **self._spec.options, disable_env_checker=True)
        try:
            yield made
        finally:
            made.close()

    def _check_spaces(self, made: Any) -> None:
        allowed = (self._spaces.Text, self._spaces.Discrete)
        for name, space in (("observation_space", made.observation_space), ("action_space", made.action_space)):
            if not isinstance(space, allowed):
                raise EnvironmentSetupError(
                    f"environment {self.name}: the {name} of {self._spec.id} is {type(space).__name__}, and only Text and Discrete can be "
                    "said in words: register it with a wrapper"
                )

    def _action(self, made: Any, text: str) -> object | None:
        space = made.action_space
        action: object = text
        if isinstance(space, self._spaces.Discrete):
            if _INTEGER.fullmatch(text) is None:
                return None
            action = int(text)
        return action if space.contains(action) else None

    def _text(self, observation: object) -> str:
        if isinstance(observation, str):
            return observation
        return str(int(observation))  # type: ignore[call-overload]

    def _score(self, total: float) -> Score:
        return score_between(total, self._spec.lowest_return, self._spec.highest_return, f"the return is {total:g}")
