"""What the next prompts are drawn from, as the run has gone so far: levels, shares of environments, and problems that are left alone.

    finished group -> Outcome -> observe -> levels, shares, reason_to_skip, for the groups that are admitted from then on

- Levels: each environment keeps the pass rates of its last `window` groups at its current level; when their mean reaches `raiseAt` the
  next level begins with an empty window. Groups of an earlier level that arrive late do not count. Levels never fall.
- Shares: weight times mean learnability of an environment's last groups at its level, within `mixing`'s bounds.
- Problems whose samples all passed (solved) or all failed (hopeless) are left alone until the cursor is `revisit` admissions further; so
  are held-out ones, always, whatever environment gives them out.

All of it is a function of `state`, which records and checkpoints keep, and of the outcomes since, in their order: an ordered stage, which
observes groups in the order of their index, goes on after a crash as it would have without.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec, Mixing
from rlvr_api.stages import Revisit
from rlvr_trainer.collector.mixing import UNKNOWN, bounded_shares, learnability
from rlvr_trainer.rollout import RolloutGroup

SOLVED, HOPELESS, HELD_OUT = "solved", "hopeless", "held_out"
"""Reasons to leave a problem alone."""
DECIDED = "_decided"
"""Key of the state that is no environment's: a name cannot begin with an underscore."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished group says of its task."""

    index: int
    environment: str
    level: int
    problem_id: str
    pass_rate: float
    """Share of the judged rollouts that passed."""
    learnability: float | None = None
    """None where fewer than two were judged, or the verifier's error rates leave no signal."""

    @classmethod
    def of(cls, group: RolloutGroup) -> "Outcome":
        """Of a group with at least one judged rollout."""
        admission, verdicts = group.admission, [rollout.verdict for rollout in group.rollouts if rollout.reward is not None]
        passed = sum((verdict.score or 0.0) > 0 for verdict in verdicts)
        false_positive = fmean(verdict.false_positive_rate or 0.0 for verdict in verdicts)
        false_negative = fmean(verdict.false_negative_rate or 0.0 for verdict in verdicts)
        known = len(verdicts) > 1 and false_positive + false_negative < 1
        return cls(
            index=admission.index,
            environment=admission.environment,
            level=admission.level,
            problem_id=group.problem_id,
            pass_rate=passed / len(verdicts),
            learnability=learnability(passed, len(verdicts), false_positive, false_negative) if known else None,
        )


class Curriculum:
    """Levels, shares and problems left alone, of one stage.

    Args:
        environments: the job's environments.
        mixing: None draws by weight alone.
        revisit: how long problems are left alone.
        held_out: problems that are never to be trained on.
        state: what `state` of an earlier curriculum gave; None starts at each environment's first level.
    """

    def __init__(
        self, environments: Iterable[EnvironmentSpec], *, mixing: Mixing | None = None, revisit: Revisit | None = None,
        held_out: Collection[str] = frozenset(), state: Mapping[str, JsonValue] | None = None,
    ) -> None:  # fmt: skip
        self._environments = {environment.name: environment for environment in environments}
        self._mixing, self._revisit, self._held_out = mixing, revisit or Revisit(), held_out
        self._level = {name: environment.levels.start for name, environment in self._environments.items()}
        self._passed: dict[str, deque[float]] = {name: deque(maxlen=one.levels.window) for name, one in self._environments.items()}
        self._learnable: dict[str, deque[float]] = {
            name: deque(maxlen=mixing.window if mixing is not None else 0) for name in self._environments
        }
        self._decided: dict[str, tuple[str, int]] = {}
        """Reason by problem, and the index from which it is asked again."""
        self._restore(state or {})

    @property
    def levels(self) -> dict[str, int]:
        """Current level by environment."""
        return dict(self._level)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the prompts by environment, 1 together."""
        weights = {name: environment.weight for name, environment in self._environments.items()}
        if self._mixing is None:
            total = sum(weights.values())
            return {name: weight / total for name, weight in weights.items()}
        found = {name: max(0.0, fmean(values)) if values else UNKNOWN for name, values in self._learnable.items()}
        return bounded_shares({name: weight * found[name] for name, weight in weights.items()}, self._mixing.floor, self._mixing.cap)

    def reason_to_skip(self, problem_id: str, index: int) -> str | None:
        """Why a problem is not to be sampled at this index; None when it is."""
        if problem_id in self._held_out:
            return HELD_OUT
        reason, until = self._decided.get(problem_id, ("", 0))
        return reason if index < until else None

    def observe(self, outcome: Outcome) -> bool:
        """Take note of a finished group; True when the environment's level rose because of it."""
        self._decide(outcome)
        name = outcome.environment
        if outcome.level != self._level[name]:
            return False
        if outcome.learnability is not None:
            self._learnable[name].append(outcome.learnability)
        levels, window = self._environments[name].levels, self._passed[name]
        window.append(outcome.pass_rate)
        if outcome.level >= levels.maximum or len(window) < levels.window or fmean(window) < levels.raise_at:
            return False
        self._level[name] += 1
        window.clear()
        self._learnable[name].clear()
        return True

    def state(self) -> dict[str, JsonValue]:
        """What a checkpoint or record keeps."""
        found: dict[str, JsonValue] = {}
        for name, level in self._level.items():
            kept: dict[str, JsonValue] = {"level": level, "passRates": list(self._passed[name])}
            if self._mixing is not None:
                kept["learnability"] = list(self._learnable[name])
            found[name] = kept
        if self._decided:
            found[DECIDED] = {problem: [reason, until] for problem, (reason, until) in self._decided.items()}
        return found

    def _decide(self, outcome: Outcome) -> None:
        waits = {1.0: (SOLVED, self._revisit.solved_after), 0.0: (HOPELESS, self._revisit.hopeless_after)}
        reason, wait = waits.get(outcome.pass_rate, ("", 0))
        if wait:
            self._decided[outcome.problem_id] = (reason, outcome.index + 1 + wait)
        else:
            self._decided.pop(outcome.problem_id, None)
        self._decided = {problem: entry for problem, entry in self._decided.items() if entry[1] > outcome.index}

    def _restore(self, state: Mapping[str, JsonValue]) -> None:
        for name, saved in state.items():
            assert isinstance(saved, dict)
            if name == DECIDED:
                self._decided = {problem: (str(entry[0]), int(entry[1])) for problem, entry in saved.items()}  # type: ignore[index, arg-type]
            elif name in self._environments:
                level = saved["level"]
                assert isinstance(level, int)
                self._level[name] = level
                self._passed[name].extend(_numbers(saved["passRates"]))
                self._learnable[name].extend(_numbers(saved.get("learnability", [])))


def levels_in(state: Mapping[str, JsonValue]) -> dict[str, int]:
    """Level by environment in what `Curriculum.state` gave."""
    return {
        name: saved["level"]
        for name, saved in state.items()
        if name != DECIDED and isinstance(saved, dict) and isinstance(saved["level"], int)
    }


def _numbers(values: JsonValue) -> list[float]:
    assert isinstance(values, list)
    return [float(value) for value in values if isinstance(value, int | float)]
