"""The governor of one stage: keeps its state, and tells what it did in log, trace and status.

record (state before the step) -> train with `in_force` -> observe -> learner, collector, status -> checkpoint (state after the step)
"""

import logging

from opentelemetry import trace
from pydantic import JsonValue

from rlvr_api.off_policy import OffPolicy
from rlvr_trainer.governor import Action, GovernorState, Numbers, describe, govern, in_force
from rlvr_trainer.learner import StepReport
from rlvr_trainer.metrics import GovernorMetrics
from rlvr_trainer.progress import ProgressBoard
from rlvr_trainer.telemetry import EventName

logger = logging.getLogger(__name__)

STATE_KEY = "governor"
"""Of its state among a checkpoint's scalars."""


class StageGovernor:
    """Begins open; without `offPolicy.governor` it never does anything."""

    def __init__(self, off_policy: OffPolicy, board: ProgressBoard) -> None:
        self._off_policy = off_policy
        self._board = board
        self._state = GovernorState()
        self._actions: tuple[Action, ...] = ()
        self._show({})

    @property
    def in_force(self) -> OffPolicy:
        """What holds for the next step."""
        return in_force(self._off_policy, self._state)

    @property
    def began_pause(self) -> bool:
        """The last step made it pause: what engines have in flight is of no use."""
        return any(action.kind == "pause" for action in self._actions)

    def state(self) -> JsonValue:
        """What a record or checkpoint keeps; None without a governor."""
        return self._state.to_json() if self._off_policy.governor is not None else None

    def restore(self, state: JsonValue) -> None:
        """Go on from what `state` gave; None is that of a stage's start.

        Raises:
            ValueError: it is of another program version.
        """
        self._state = GovernorState.from_json(state)
        self._show({})

    def observe(self, report: StepReport, total_step: int) -> None:
        """Look at a step, the `total_step`-th over all stages, and change what holds for the next."""
        tokens = report.tokens
        numbers = None
        if tokens is not None:
            numbers = Numbers(tokens.mismatch_k3, tokens.ess, tokens.clip_fraction, report.batch.staleness_max or 0)
        self._state, self._actions = govern(self._off_policy, self._state, numbers)
        for action in self._actions:
            logger.warning("after step %d: %s", total_step, action)
            trace.get_current_span().add_event(EventName.GOVERNOR, {"action": action.kind, "message": str(action)})
            self._show({"step": total_step, "message": str(action)})

    def metrics(self) -> GovernorMetrics | None:
        """What holds after the last step, and what it did about it."""
        if self._off_policy.governor is None:
            return None
        now = self.in_force
        return GovernorMetrics(
            max_staleness=now.max_staleness, cap=now.correction.cap, paused=self._state.paused, actions=tuple(map(str, self._actions))
        )

    def _show(self, changes: dict[str, int | str]) -> None:
        if self._off_policy.governor is not None:
            shown = describe(self._off_policy, self._state).model_copy(update=changes)
            self._board.update(governor=shown.model_dump(mode="json", exclude_none=True))
