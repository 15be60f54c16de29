"""The status of a job from what is observed of it. Pure: the clock comes in as an argument.

    Observation (roles, problems, progress, how it ends) -> conditions -> phase -> RLVRJobStatus, with transition times kept

Both runtimes use it. The phase is a summary: `Running` once every role has answered, `Recovering` while one of them is missing afterwards.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.process import Role
from rlvr_api.status import CheckpointStatus, Condition, RLVRJobStatus, RoleStatus
from rlvr_operator.observation import Observation
from rlvr_operator.run_conditions import NO_QUOTA, run_conditions, trust_condition

READINESS = {
    Role.ROLLOUT: (ConditionType.ROLLOUTS_READY, "engines"),
    Role.VERIFIER: (ConditionType.VERIFIERS_READY, "verifiers"),
    Role.LEARNER: (ConditionType.LEARNER_READY, "learners"),
}
FINAL = {
    Phase.COMPLETING: ConditionType.COMPLETE,
    Phase.SUCCEEDED: ConditionType.COMPLETE,
    Phase.FAILED: ConditionType.FAILED,
    Phase.SUSPENDED: ConditionType.SUSPENDED,
}
"""What is true in a phase that a run ends in, or waits in."""
FOREMOST = (
    ConditionType.ACCEPTED, ConditionType.ADMITTED, ConditionType.SCHEDULED, ConditionType.VERIFIERS_READY,
    ConditionType.LEARNER_READY, ConditionType.ROLLOUTS_READY,
)  # fmt: skip
"""In this order a person is told what a run waits for: each can be what keeps those after it from being true."""
MAX_MESSAGE = 1024


def next_status(previous: RLVRJobStatus | None, seen: Observation, now: datetime) -> RLVRJobStatus:
    """The status that follows `previous`."""
    previous = RLVRJobStatus() if previous is None else previous
    running_since = previous.running_since or (now if seen.ending is None and seen.all_needed_ready() else None)
    trust = trust_condition(seen.progress or previous.progress, now)
    conditions = _timed(sorted((*_conditions(seen, running_since, now), trust), key=lambda condition: condition.type), previous)
    phase = _phase(seen, running_since)
    reason, message = _foremost(seen, phase, conditions)
    engines = next((role for role in seen.roles if role.name is Role.ROLLOUT), RoleStatus(name=Role.ROLLOUT, desired=0))
    progress = seen.progress
    step = None if progress is None else progress.checkpoint_step
    return previous.model_copy(
        update={
            "phase": phase,
            "reason": reason,
            "message": message[:MAX_MESSAGE],
            "running_since": running_since,
            "execution_attempt": seen.attempt,
            "restarts": seen.failures,
            "stage": previous.stage if progress is None else progress.stage,
            "conditions": conditions,
            "roles": seen.roles,
            "rollout_replicas": engines.desired,
            "rollouts_summary": f"{engines.ready}/{engines.desired}",
            "progress": previous.progress if progress is None else progress,
            "checkpoint": previous.checkpoint if step is None else CheckpointStatus(step=step),
        }
    )


def refused_status(previous: RLVRJobStatus, reason: Reason, message: str, generation: int, now: datetime) -> RLVRJobStatus:
    """The status of a job that cannot be acted upon as it is written; what runs goes on as it was."""
    accepted = Condition(
        type=ConditionType.ACCEPTED, status="False", reason=reason, message=_line(message), last_transition_time=now,
        observed_generation=generation,
    )  # fmt: skip
    others = [condition for condition in previous.conditions if condition.type is not ConditionType.ACCEPTED]
    conditions = _timed(sorted([*others, accepted], key=lambda condition: condition.type), previous)
    update = {"conditions": conditions, "reason": reason, "message": _line(message)[:MAX_MESSAGE], "observed_generation": generation}
    return previous.model_copy(update=update)


def _phase(seen: Observation, running_since: datetime | None) -> Phase:
    if seen.ending is not None:
        return seen.ending.phase
    if running_since is None:
        return Phase.PROVISIONING
    return Phase.RUNNING if seen.all_needed_ready() else Phase.RECOVERING


def _foremost(seen: Observation, phase: Phase, conditions: tuple[Condition, ...]) -> tuple[Reason | None, str]:
    """What a person should know first: why it ended, or what it waits for."""
    if seen.ending is not None:
        return seen.ending.reason, _line(seen.ending.message)
    if phase is Phase.RUNNING:
        return None, "" if seen.progress is None else seen.progress.message
    by_type = {condition.type: condition for condition in conditions}
    for kind in FOREMOST:
        condition = by_type.get(kind)
        if condition is not None and condition.status == "False":
            return condition.reason, condition.message
    return None, ""


def _conditions(seen: Observation, running_since: datetime | None, now: datetime) -> Iterator[Condition]:
    ending = seen.ending
    invalid = ending is not None and ending.reason is Reason.INVALID_SPEC
    yield Condition(
        type=ConditionType.ACCEPTED,
        status="False" if invalid else "True",
        reason=Reason.INVALID_SPEC if invalid else Reason.VALID,
        message=_line(ending.message) if invalid and ending is not None else "",
        last_transition_time=now,
    )
    over = ending is not None and ending.phase in FINAL
    for role in seen.roles:
        yield _readiness(seen, role, over, now)
    if seen.in_cluster:
        yield from run_conditions(seen, running_since, over, now)
    if ending is not None and ending.phase in FINAL:
        yield Condition(
            type=FINAL[ending.phase], status="True", reason=ending.reason, message=_line(ending.message), last_transition_time=now
        )


def _readiness(seen: Observation, role: RoleStatus, over: bool, now: datetime) -> Condition:
    kind, noun = READINESS[role.name]
    message, problem = f"{role.ready} of {role.desired} {noun} answer", seen.problems.get(role.name)
    if over:
        reason, message = Reason.RUN_ENDED, "the run has ended"
    elif seen.ending is not None and seen.ending.phase is Phase.QUEUED:
        reason, message = Reason.WAITING_FOR_QUOTA, NO_QUOTA
    elif role.ready >= role.desired:
        reason = Reason.ALL_READY
    elif problem is not None:
        reason, message = problem.reason, f"{message}; {_line(problem.message)}"
    elif role.ready > 0:
        reason = Reason.SOME_NOT_READY
    else:
        reason = Reason.STARTING if role.last_termination is None else Reason.RESTARTING
    if problem is None and role.last_termination is not None and role.ready < role.desired and not over:
        message += f"; exit code {role.last_termination.exit_code}: {role.last_termination.message}"
    holds = not over and reason is not Reason.WAITING_FOR_QUOTA and role.ready >= (seen.needed(role) if seen.in_cluster else role.desired)
    status: Literal["True", "False"] = "True" if holds else "False"
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=now)


def _line(text: str) -> str:
    return " ".join(text.split())


def _timed(conditions: list[Condition], previous: RLVRJobStatus) -> tuple[Condition, ...]:
    """Keeps the transition time while the status stays."""
    before = {condition.type: condition for condition in previous.conditions}
    return tuple(
        condition
        if (old := before.get(condition.type)) is None or old.status != condition.status
        else condition.model_copy(update={"last_transition_time": old.last_transition_time})
        for condition in conditions
    )
