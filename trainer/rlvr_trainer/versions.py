"""Weight versions: which optimizer step each was published after, so that a token's age can be counted in steps.

A version number is never used twice, over attempts and restarts of engines too: whatever engines or stores have seen is below the next.
"""

from pydantic import JsonValue

from rlvr_trainer.rollout import RolloutGroup

KEPT_VERSIONS = 4096
"""Versions whose step is remembered; rollouts that old are far beyond any bound on staleness."""


class UnknownVersionError(ValueError):
    """A token of a version that was never published."""


class VersionHistory:
    """Published versions and their steps."""

    def __init__(self) -> None:
        self._steps: dict[int, int] = {}
        self._next = 0

    @property
    def current(self) -> int:
        """The newest version."""
        return self._next - 1

    def restore(self, state: JsonValue) -> None:
        """Take in what `state` gave in an earlier attempt."""
        for pair in state if isinstance(state, list) else ():
            match pair:
                case [int(version), int(step)]:
                    self.note(version, step)
                case _:
                    raise ValueError(f"{pair!r} is not a pair of weight version and step; the checkpoint is of another program version")
        self._next = max(self._next, max(self._steps, default=-1) + 1)

    def reserve(self, next_version: int) -> None:
        """Leave out all numbers below `next_version`: somebody may have seen them."""
        self._next = max(self._next, next_version)

    def publish(self, step: int) -> int:
        """Number the weights after optimizer step `step` (counted over all stages)."""
        version = self._next
        self._next += 1
        self.note(version, step)
        return version

    def note(self, version: int, step: int) -> None:
        """Remember that `version` was published after `step`."""
        self._steps[version] = step
        while len(self._steps) > KEPT_VERSIONS:
            del self._steps[min(self._steps)]

    def skip_step(self) -> None:
        """Count an optimizer step that changed no weights: no version ages by it, else a stage without signal would run out of fresh
        groups for good."""
        self._steps = {version: step + 1 for version, step in self._steps.items()}

    def step_of(self, version: int) -> int:
        """The optimizer step that `version` dates from; later steps that changed no weights are not counted.

        Raises:
            UnknownVersionError: it never was.
        """
        try:
            return self._steps[version]
        except KeyError:
            raise UnknownVersionError(
                f"weight version {version} was never published; known are {min(self._steps)} to {self.current}"
            ) from None

    def staleness(self, group: RolloutGroup, step: int) -> int:
        """Optimizer steps between the oldest token of `group` and `step`."""
        return step - self.step_of(group.oldest_version)

    def state(self) -> JsonValue:
        """What a checkpoint keeps: pairs of version and step."""
        return [[version, step] for version, step in sorted(self._steps.items())]
