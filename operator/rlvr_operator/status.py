"""The status of a job from what is observed of it. Pure: the clock comes in as an argument.

Observation (roles, progress, how it ended) -> conditions -> phase -> RLVRJobStatus, with transition times kept from the previous one
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.process import Role
from rlvr_api.status import CheckpointStatus, Condition, Progress, RLVRJobStatus, RoleStatus

READINESS = {
    Role.ROLLOUT: (ConditionType.ROLLOUTS_READY, "engines"),
    Role.VERIFIER: (ConditionType.VERIFIERS_READY, "verifiers"),
    Role.LEARNER: (ConditionType.LEARNER_READY, "learners"),
}
FINAL = {
    Phase.SUCCEEDED: ConditionType.COMPLETE,
    Phase.FAILED: ConditionType.FAILED,
    Phase.SUSPENDED: ConditionType.SUSPENDED,
}


@dataclass(frozen=True)
class Ending:
    """Where a run is going, or has gone."""

    phase: Phase
    """Completing, Succeeded, Suspending, Suspended or Failed."""
    reason: Reason
    message: str


@dataclass(frozen=True)
class Observation:
    """What is seen of a run at one moment."""

    roles: tuple[RoleStatus, ...]
    attempt: int
    failures: int
    """Failed attempts in a row."""
    learner_was_ready: bool
    """In this session of the runtime."""
    progress: Progress | None
    ending: Ending | None = None


def next_status(previous: RLVRJobStatus | None, seen: Observation, now: datetime) -> RLVRJobStatus:
    """The status that follows `previous`."""
    before = {} if previous is None else {condition.type: condition for condition in previous.conditions}
    conditions = tuple(_timed(condition, before.get(condition.type)) for condition in _conditions(seen, now))
    phase = _phase(seen)
    engines = next((role for role in seen.roles if role.name is Role.ROLLOUT), RoleStatus(name=Role.ROLLOUT, desired=0))
    progress = seen.progress
    step = None if progress is None else progress.checkpoint_step
    return RLVRJobStatus(
        phase=phase,
        reason=seen.ending.reason if seen.ending else None,
        execution_attempt=seen.attempt,
        restarts=seen.failures,
        stage=None if progress is None else progress.stage,
        conditions=tuple(sorted(conditions, key=lambda condition: condition.type)),
        roles=seen.roles,
        rollout_replicas=engines.desired,
        rollouts_summary=f"{engines.ready}/{engines.desired}",
        progress=progress,
        checkpoint=None if step is None else CheckpointStatus(step=step),
    )


def _phase(seen: Observation) -> Phase:
    if seen.ending is not None:
        return seen.ending.phase
    if not seen.learner_was_ready:
        return Phase.PROVISIONING
    needed = all(role.ready > 0 for role in seen.roles if role.desired > 0)
    return Phase.RUNNING if needed else Phase.RECOVERING


def _conditions(seen: Observation, now: datetime) -> Iterator[Condition]:
    invalid = seen.ending is not None and seen.ending.reason is Reason.INVALID_SPEC
    yield Condition(
        type=ConditionType.ACCEPTED,
        status="False" if invalid else "True",
        reason=Reason.INVALID_SPEC if invalid else Reason.VALID,
        message=" ".join(seen.ending.message.split()) if invalid and seen.ending is not None else "",
        last_transition_time=now,
    )
    over = seen.ending is not None and seen.ending.phase in FINAL
    for role in seen.roles:
        yield _readiness(role, over, now)
    for phase, kind in FINAL.items():
        if seen.ending is not None and seen.ending.phase is phase:
            message = " ".join(seen.ending.message.split())
            yield Condition(type=kind, status="True", reason=seen.ending.reason, message=message, last_transition_time=now)


def _readiness(role: RoleStatus, over: bool, now: datetime) -> Condition:
    kind, noun = READINESS[role.name]
    message = f"{role.ready} of {role.desired} {noun} answer"
    if over:
        reason, message = Reason.RUN_ENDED, "the run has ended"
    elif role.ready >= role.desired:
        reason = Reason.ALL_READY
    elif role.ready > 0:
        reason = Reason.SOME_NOT_READY
    else:
        reason = Reason.STARTING if role.last_termination is None else Reason.RESTARTING
    if role.last_termination is not None and role.ready < role.desired and not over:
        message += f"; exit code {role.last_termination.exit_code}: {role.last_termination.message}"
    status: Literal["True", "False"] = "True" if reason is Reason.ALL_READY else "False"
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=now)


def _timed(condition: Condition, before: Condition | None) -> Condition:
    """Keeps the transition time while the status stays."""
    if before is None or before.status != condition.status:
        return condition
    return condition.model_copy(update={"last_transition_time": before.last_transition_time})
