"""Conditions of a run in a cluster beyond the readiness of its roles: placement, weights, checkpoints, progress. Pure.

Trust in the reward is judged by the learner, and said in local runs as well.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Literal

from rlvr_api.conditions import ConditionType, Reason
from rlvr_api.process import Role
from rlvr_api.status import Condition, EngineProgress, Progress
from rlvr_operator.observation import Observation

Truth = Literal["True", "False", "Unknown"]
Verdict = tuple[Truth, Reason, str]

STALE_INTERVALS = 2
"""A checkpoint older than this many intervals is overdue."""


OVER: Verdict = ("Unknown", Reason.RUN_ENDED, "the run has ended")
NO_QUOTA = "no pod is started without quota"
NOT_AT_WORK: Verdict = ("Unknown", Reason.NOT_RUNNING, "the learner is not at work")


def run_conditions(seen: Observation, running_since: datetime | None, over: bool, now: datetime) -> Iterator[Condition]:
    """Admitted, Scheduled, WeightsInSync, CheckpointFresh, Progressing: `Unknown` before the run is under way, and once it is over."""
    yield _condition(ConditionType.ADMITTED, _admitted(seen, over), now)
    yield _condition(ConditionType.SCHEDULED, _scheduled(seen, over), now)
    learner = next((role for role in seen.roles if role.name is Role.LEARNER), None)
    at_work = not over and running_since is not None and seen.progress is not None and learner is not None and learner.ready > 0
    idle: Verdict = (
        ("Unknown", Reason.RUN_ENDED, "the run has ended") if over else ("Unknown", Reason.NOT_RUNNING, "the learner is not at work")
    )
    progress = seen.progress
    for kind, judge in (
        (ConditionType.WEIGHTS_IN_SYNC, _weights),
        (ConditionType.CHECKPOINT_FRESH, _checkpoint),
        (ConditionType.PROGRESSING, _progressing),
    ):
        yield _condition(kind, judge(seen, progress) if at_work and progress is not None else idle, now)


def trust_condition(progress: Progress | None, now: datetime) -> Condition:
    """RewardTrustworthy, in the words of the learner; it outlives the learner, since a paused or finished run is judged by it."""
    trust = None if progress is None else progress.reward_trust
    if trust is None:
        return _condition(ConditionType.REWARD_TRUSTWORTHY, ("Unknown", Reason.NOT_RUNNING, "no step was finished yet"), now)
    return _condition(ConditionType.REWARD_TRUSTWORTHY, (trust.status, trust.reason, trust.message), now)


def _condition(kind: ConditionType, verdict: Verdict, now: datetime) -> Condition:
    status, reason, message = verdict
    return Condition(type=kind, status=status, reason=reason, message=" ".join(message.split()), last_transition_time=now)


def _admitted(seen: Observation, over: bool) -> Verdict:
    if over and seen.admission.holds:
        return OVER
    return "True" if seen.admission.holds else "False", seen.admission.reason, seen.admission.message


def _scheduled(seen: Observation, over: bool) -> Verdict:
    if over:
        return OVER
    if not seen.admission.holds:
        return "Unknown", Reason.NOT_RUNNING, NO_QUOTA
    if seen.unplaced is not None:
        return "False", seen.unplaced.reason, seen.unplaced.message
    return "True", Reason.ALL_SCHEDULED, ""


def _weights(seen: Observation, progress: Progress) -> Verdict:
    joining = {name: engine for name, engine in progress.engines.items() if engine.status != "clean"}
    if not progress.engines or len(joining) == len(progress.engines):
        return "False", Reason.JOINING, f"no engine has the newest weights yet: {_words(joining)}"
    if joining:
        return "False", Reason.JOINING, _words(joining)
    return "True", Reason.IN_SYNC, f"{len(progress.engines)} engines have version {progress.weight_version}"


def _words(engines: Mapping[str, EngineProgress]) -> str:
    return "; ".join(f"{name} is {engine.status} ({engine.reason})" for name, engine in sorted(engines.items())) or "there is none"


def _checkpoint(seen: Observation, progress: Progress) -> Verdict:
    every, last = seen.spec.learner.checkpoint.every_steps, progress.checkpoint_step
    if last is None:
        late = progress.step > STALE_INTERVALS * every
        return (
            "False",
            Reason.OVERDUE if late else Reason.NONE_YET,
            f"no checkpoint by step {progress.step}; learner.checkpoint.everySteps is {every}",
        )
    if progress.step - last > STALE_INTERVALS * every:
        return (
            "False",
            Reason.OVERDUE,
            f"the last checkpoint is of step {last}, and the run is at {progress.step}: look at the learner's log",
        )
    return "True", Reason.COMMITTED, f"step {last}"


def _progressing(seen: Observation, progress: Progress) -> Verdict:
    limit = seen.spec.deadlines.stall_seconds
    if seen.step_seconds is not None and seen.step_seconds > limit:
        waits = f"; most of the time goes to: {progress.bottleneck}" if progress.bottleneck else ""
        return (
            "False",
            Reason.STALLED,
            f"no step was finished for {seen.step_seconds:.0f} s (deadlines.stallSeconds {limit:.0f}){waits}; {progress.message}",
        )
    return "True", Reason.STEPPING, f"step {progress.step} of {progress.steps}"
