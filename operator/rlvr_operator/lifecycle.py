"""What should be of a job, from what it asks for and what is there: the operator's one decision. Pure, and made anew at every look.

    decide(job, owner, site, previous status, children, now) -> Decision(status, objects to have, deletions, when to look again)

      over      keep its end; remove engines and verifiers, later the learner's pod
      suspend   end the learner (it commits), then everything else
      hold      the learner ended because its reward cannot be believed: engines and verifiers go, until the spec is changed
      queue     without quota: end what runs as in a suspension, give the quota back, wait for the queue (jobs that name one)
      run       an attempt of the learner (numbered, never reused), verifiers at once, engines once a learner's preflight has passed

The attempt's number is in the status before any of its objects exists. Nothing here remembers: killed at any point, the operator decides
the same from what it finds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from rlvr_api import names
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.process import ExitCode, Role
from rlvr_api.status import Progress, RLVRJobStatus, RoleStatus, Termination
from rlvr_operator import render
from rlvr_operator.attempts import LEAD_SECONDS, AttemptEnd, attempt_end, failures_after, next_attempt_at, telling_pod
from rlvr_operator.autoscale import Scale
from rlvr_operator.claims import (
    admitted_by,
    finished,
    in_use,
    is_outdated,
    released,
    why_not_admitted,
)
from rlvr_operator.look import Decision, Look, QueueUnavailableError
from rlvr_operator.observation import NO_QUEUE, Admission, Ending, Observation, Problem
from rlvr_operator.observe import Children, PodView, is_gone, is_idle
from rlvr_operator.problems import role_problems, unplaced
from rlvr_operator.removals import (
    Deletion,
    drain,
    needless_budgets,
    outdated_engines,
    remove_claim,
    remove_learners,
    remove_services,
    restarting_engines,
    wedged_pods,
)
from rlvr_operator.render import Object
from rlvr_operator.render.site import ANYWHERE, spec_hash
from rlvr_operator.render.workload import most
from rlvr_operator.status import next_status

HOW_TO_GO_ON = (
    "paused by spec.integrity.onViolation: mend the environment in a new job, or set onViolation to Warn to go on from the last checkpoint"
)
STOPPED = (Phase.SUSPENDING, Phase.SUSPENDED, Phase.QUEUED)
TO_THE_QUEUE = (Reason.WAITING_FOR_QUOTA, Reason.EVICTED_BY_QUEUE, Reason.REQUESTS_CHANGED)
"""Why a job that is stopped is on its way back into its queue, or in it."""


def decide(look: Look) -> Decision:
    """What should be of the job.

    Raises:
        QueueUnavailableError: it may not run without a queue, and there is none.
    """
    ending = ended(look.previous)
    if ending is not None:
        return _finish(look, ending)
    end = attempt_end(look.seen, look.previous, look.unborn, look.witnessed, look.now) if look.previous.execution_attempt else None
    if end is not None and end.is_done:
        return _finish(look, Ending(Phase.COMPLETING, Reason.ALL_STAGES_FINISHED, "all stages are finished"))
    if look.job.spec.suspend:
        return _suspend(look)
    previous = look.previous
    is_same = previous.observed_generation in (None, look.generation) and previous.reason not in TO_THE_QUEUE
    if end is not None and end.exit_code == ExitCode.UNTRUSTWORTHY and is_same:
        return _hold(look, end)
    return _run(look, end) if look.may_run else _queue(look)


def ended(status: RLVRJobStatus) -> Ending | None:
    """How the job has ended for good, if it has."""
    for condition in status.conditions:
        if condition.status == "True" and condition.type in (ConditionType.COMPLETE, ConditionType.FAILED):
            phase = Phase.FAILED if condition.type is ConditionType.FAILED else Phase.COMPLETING
            return Ending(phase, condition.reason, condition.message)
    return None


def _finish(look: Look, ending: Ending) -> Decision:
    """Keeps the end, and removes what costs after the times that the job names."""
    completed = look.previous.completion_time or look.now
    ttl, seen = look.job.spec.ttl, look.seen
    services_at = completed + timedelta(seconds=ttl.rollouts_after_finished_seconds)
    pods_at = completed + timedelta(seconds=ttl.pods_after_finished_seconds)
    deletions: list[Deletion] = []
    if look.now >= services_at or ending.phase is Phase.FAILED:
        deletions += remove_services(seen)
    if look.now >= pods_at:
        deletions += remove_learners(seen.learner_jobs)
    elif ending.phase is Phase.FAILED:
        deletions += remove_learners(job for job in seen.learner_jobs if not seen.is_over(job))
    deletions += wedged_pods(seen)
    drained = seen.rollout_set is None and seen.verifier_deployment is None and not (seen.of(Role.ROLLOUT) or seen.of(Role.VERIFIER))
    if ending.phase is Phase.COMPLETING and drained:
        ending = replace(ending, phase=Phase.SUCCEEDED)
    status = _status(look, look.previous, ending).model_copy(update={"completion_time": completed})
    later = [at for at in (services_at, pods_at) if at > look.now]
    claim_status = None
    if look.claim is not None and not look.claim.is_finished and is_idle(seen):
        claim_status = finished(look.claim, ending.phase is Phase.FAILED, ending.message, look.now)
    return Decision(status, deletions=tuple(deletions), claim_status=claim_status, look_again_at=min(later, default=None))


def _suspend(look: Look) -> Decision:
    """Ends the learner, which commits a checkpoint; what it needs goes after it."""
    gone = is_gone(look.seen)
    message = (
        "no pod of it exists; set spec.suspend to false to go on from the last checkpoint" if gone else "the learner commits a checkpoint"
    )
    ending = Ending(Phase.SUSPENDED if gone else Phase.SUSPENDING, Reason.SUSPEND_REQUESTED, message)
    deletions = (*drain(look.seen), *(remove_claim(look.claim) if gone else ()))
    return Decision(_status(look, _stopped(look), ending), objects=_standing(look), deletions=deletions)


def _stopped(look: Look) -> RLVRJobStatus:
    """What goes on from the status when a job is stopped and may be started anew."""
    return look.previous.model_copy(update={"restarts": 0, "start_time": None, "running_since": None})


def _queue(look: Look) -> Decision:
    """Ends what runs, which commits a checkpoint; gives the quota back once nothing is left; and waits for the queue."""
    if look.terms.problem is not None:
        raise QueueUnavailableError(look.terms.problem)
    claim, why = look.claim, why_not_admitted(look.claim, look.job)
    gone, standing = is_gone(look.seen), _standing(look)
    status = _status(look, _stopped(look), Ending(Phase.QUEUED if gone else Phase.SUSPENDING, why.reason, why.message))
    if not gone:
        return Decision(status, objects=standing, deletions=drain(look.seen))
    if claim is None or not (claim.is_reserved or claim.is_finished or claim.is_going):
        images = {role: look.image(role) for role in Role}
        return Decision(status, (*standing, render.workload(look.job, look.owner, look.site, images, look.terms.priority)))
    if claim.is_finished or is_outdated(claim, look.job):
        return Decision(status, standing, remove_claim(claim))
    return Decision(status, standing, claim_status=None if claim.evicted is None or claim.is_going else released(claim, look.now))


def _hold(look: Look, end: AttemptEnd) -> Decision:
    """The reward cannot be believed: engines and verifiers go, the learner's pod stays for its words, until the spec is changed."""
    progress = look.seen.progress or look.previous.progress
    found = end.message if progress is None or progress.reward_trust is None else progress.reward_trust.message
    message = f"{_how_to_go_on(progress)}; found: {found}"
    held = Ending(Phase.SUSPENDED, Reason.REWARD_NOT_TRUSTWORTHY, message)
    deletions = (*remove_services(look.seen), *wedged_pods(look.seen), *(remove_claim(look.claim) if is_idle(look.seen) else ()))
    return Decision(_status(look, _stopped(look), held), objects=_standing(look), deletions=deletions)


def _how_to_go_on(progress: Progress | None) -> str:
    if progress is None or progress.rollback is None or progress.rollback.to_step != progress.step:
        return HOW_TO_GO_ON
    back = f"rolled back from step {progress.rollback.from_step} to step {progress.rollback.to_step} and {HOW_TO_GO_ON}"
    return back.replace("the last checkpoint", "that step")


def _run(look: Look, end: AttemptEnd | None) -> Decision:
    previous = look.previous
    resumes = previous.phase in STOPPED
    if resumes or previous.start_time is None:
        look = replace(look, previous=previous.model_copy(update={"start_time": look.now, "running_since": None}))
    if resumes or not previous.execution_attempt or _learner_is_outdated(look):
        return _carry_on(_next_attempt(look, failures=0 if resumes else previous.restarts))
    return _carry_on(look) if end is None else _recover(look, end)


def _recover(look: Look, end: AttemptEnd) -> Decision:
    """The attempt has ended and the job goes on, unless it may not."""
    previous, spec = look.previous, look.job.spec
    if end.exit_code == ExitCode.SUPERSEDED:
        return _finish(look, Ending(Phase.FAILED, Reason.SUPERSEDED, end.message))
    step = None if look.seen.progress is None else look.seen.progress.step
    refused = end.exit_code == ExitCode.BAD_INPUT and previous.running_since is None
    failures = previous.restarts if refused else failures_after(end, previous, step)
    if failures > spec.failure_policy.max_learner_restarts:
        message = (
            f"attempt {previous.execution_attempt} of the learner ended with exit code {end.exit_code}: {end.message} ({failures} attempts "
            f"in a row finished no step; failurePolicy.maxLearnerRestarts is {spec.failure_policy.max_learner_restarts})"
        )
        return _finish(look, Ending(Phase.FAILED, Reason.RESTART_BUDGET_EXHAUSTED, message))
    at = next_attempt_at(end, failures, previous.execution_attempt, refused)
    respecified = previous.observed_generation not in (None, look.generation)
    if look.now < at and not (refused and respecified):
        waiting = _carry_on(look)
        return replace(waiting, look_again_at=min(filter(None, (waiting.look_again_at, at))))
    return _carry_on(_next_attempt(look, failures))


def _next_attempt(look: Look, failures: int) -> Look:
    """The same look with the next attempt allotted, with today's default images."""
    attempt = look.previous.execution_attempt + 1
    images = {role: look.site.images[role] for role in Role}
    update = {"execution_attempt": attempt, "restarts": failures, "attempt_first_step": None, "images": images}
    return replace(look, previous=look.previous.model_copy(update=update), unborn=attempt)


def _learner_is_outdated(look: Look) -> bool:
    """Whether the running attempt was started with settings that have changed since."""
    job = look.seen.learner_job(look.previous.execution_attempt)
    return job is not None and not job.failed and job.settings_hash != spec_hash(look.job, Role.LEARNER, look.image(Role.LEARNER))


def _carry_on(look: Look) -> Decision:
    """Everything that a running job has, for the attempt in `look.previous`."""
    attempt, seen, previous = look.previous.execution_attempt, look.seen, look.previous
    if previous.attempt_first_step is None and seen.progress is not None and seen.learner_job(attempt) is not None:
        look = replace(look, previous=previous.model_copy(update={"attempt_first_step": seen.progress.step}))
    status = _status(look, look.previous, None)
    hopeless = _hopeless(look, status)
    if hopeless is not None:
        return _finish(look, hopeless)
    image, standing = look.image(Role.ROLLOUT), _standing(look)
    deletions = [
        *remove_learners(job for job in seen.learner_jobs if job.attempt != attempt),
        *outdated_engines(seen, spec_hash(look.job, Role.ROLLOUT, image)),
        *restarting_engines(seen),
        *wedged_pods(seen),
        *needless_budgets(seen, standing),
        *(() if look.is_queued else remove_claim(look.claim)),
    ]
    again = None if status.running_since else _provisioning_deadline(look)
    if any(pod.is_lost for pod in seen.of(Role.LEARNER, attempt)):  # the lead of several may need to be given up
        again = min(filter(None, (again, look.now + timedelta(seconds=LEAD_SECONDS))))
    told = _use_of_claim(look, is_ready=status.running_since is not None)
    return Decision(status, (*standing, *_workloads(look)), tuple(deletions), told, needs_seal=True, look_again_at=again)


def _use_of_claim(look: Look, is_ready: bool) -> Object | None:
    """What Kueue is told while the job runs: that its pods are ready, and which of them are gone for good."""
    if look.claim is None or not look.is_queued:
        return None
    wanted = {Role.ROLLOUT: look.job.spec.rollouts.replicas, Role.VERIFIER: most(look.job)}
    spare = {role: look.claim.limit(role) - count for role, count in wanted.items() if len(look.seen.of(role)) <= count}
    return in_use(look.claim, is_ready, spare, look.now)


def _standing(look: Look) -> tuple[Object, ...]:
    return render.standing(look.granted, look.owner, look.site)


def _workloads(look: Look) -> Iterator[Object]:
    job, owner, site, seen, attempt = look.granted, look.owner, look.site, look.seen, look.previous.execution_attempt
    place = {role: look.terms.placements.get(role, ANYWHERE) for role in Role}
    scale = look.scale or Scale(job.spec.verifiers.replicas, None)
    yield render.verifiers(job, owner, site, look.image(Role.VERIFIER), scale, place[Role.VERIFIER])
    if seen.rollout_set is not None or _preflight_passed(seen, attempt):
        yield render.rollouts(job, owner, site, look.image(Role.ROLLOUT), place[Role.ROLLOUT])
    older = any(not pod.ended for pod in seen.of(Role.LEARNER) if pod.attempt != attempt)
    if attempt == look.unborn and seen.learner_job(attempt) is None and not older:
        yield render.learner(job, owner, site, look.image(Role.LEARNER), attempt, place[Role.LEARNER])


def _preflight_passed(seen: Children, attempt: int) -> bool:
    lead = seen.lead(attempt)
    return lead is not None and lead.ready


def _hopeless(look: Look, status: RLVRJobStatus) -> Ending | None:
    """A bound of the job that has been reached."""
    limit = look.job.spec.failure_policy.max_role_restarts
    for pod in look.seen.pods:
        if pod.role is not Role.LEARNER and not pod.ready and pod.restarts > limit:
            words = "" if pod.termination is None else f": exit code {pod.termination.exit_code}: {pod.termination.message}"
            message = f"pod {pod.name} was restarted {pod.restarts} times (failurePolicy.maxRoleRestarts {limit}){words}"
            return Ending(Phase.FAILED, Reason.RESTART_BUDGET_EXHAUSTED, message)
    if status.running_since is None and look.now >= _provisioning_deadline(look):
        seconds = look.job.spec.deadlines.provisioning_seconds
        message = f"not running within deadlines.provisioningSeconds {seconds:.0f}: {status.message or 'some role never answered'}"
        return Ending(Phase.FAILED, Reason.PROVISIONING_DEADLINE_EXCEEDED, message)
    return None


def _provisioning_deadline(look: Look) -> datetime:
    return (look.previous.start_time or look.now) + timedelta(seconds=look.job.spec.deadlines.provisioning_seconds)


def _status(look: Look, base: RLVRJobStatus, ending: Ending | None) -> RLVRJobStatus:
    seen, attempt = look.seen, base.execution_attempt
    problems = {} if ending is not None else dict(role_problems(seen, look.owner.name, attempt))
    if ending is None and seen.rollout_set is None and Role.ROLLOUT not in problems and not _preflight_passed(seen, attempt):
        problems[Role.ROLLOUT] = Problem(
            Reason.WAITING_FOR_PREFLIGHT, "they start once the learner has found store, model and verifiers in order"
        )
    observation = Observation(
        spec=look.job.spec,
        roles=_roles(look, base, over=ending is not None),
        attempt=attempt,
        failures=base.restarts,
        progress=seen.progress,
        ending=ending,
        problems=problems,
        unplaced=unplaced(problems),
        admission=_admission(look, ending),
        in_cluster=True,
        step_seconds=seen.step_seconds,
    )
    status = next_status(base, observation, look.now)
    conditions = tuple(condition.model_copy(update={"observed_generation": look.generation}) for condition in status.conditions)
    return status.model_copy(
        update={
            "observed_generation": look.generation,
            "rollout_selector": names.selector(look.owner.name, Role.ROLLOUT),
            "rollout_replicas": len(seen.of(Role.ROLLOUT)),
            "conditions": conditions,
        }
    )


def _admission(look: Look, ending: Ending | None) -> Admission:
    if not look.is_queued:
        return NO_QUEUE
    if look.claim is not None and look.may_run:
        return Admission(True, Reason.ADMITTED, admitted_by(look.claim, look.job))
    if ending is not None and ending.reason not in TO_THE_QUEUE:
        return Admission(False, Reason.QUOTA_RELEASED, f"{ending.reason}: the job needs no quota")
    why = why_not_admitted(look.claim, look.job)
    return Admission(False, why.reason, why.message)


def _roles(look: Look, base: RLVRJobStatus, over: bool) -> tuple[RoleStatus, ...]:
    spec = look.granted.spec
    verifiers = look.scale.replicas if look.scale is not None else spec.verifiers.replicas
    desired = {Role.ROLLOUT: spec.rollouts.replicas, Role.VERIFIER: verifiers, Role.LEARNER: spec.learner.nodes}
    return tuple(_role(look, base, role, None if over else desired[role]) for role in (Role.LEARNER, Role.ROLLOUT, Role.VERIFIER))


def _ends(pods: Sequence[PodView], role: Role) -> list[Termination]:
    """The latest ends of a role's pods; of a learner's attempt the one that the others ended for."""
    if role is Role.LEARNER:
        attempts = {pod.attempt for pod in pods}
        pods = [telling_pod([pod for pod in pods if pod.attempt == attempt]) for attempt in attempts]
    return [pod.termination for pod in pods if pod.termination is not None]


def _role(look: Look, base: RLVRJobStatus, role: Role, desired: int | None) -> RoleStatus:
    """Args:
    desired: pods wanted; None: no more than are left.
    """
    before = next((status for status in base.roles if status.name is role), None)
    pods = look.seen.of(role, base.execution_attempt)
    ends = _ends(look.seen.of(role), role)
    if before is not None and before.last_termination is not None and (not ends or role is not Role.LEARNER):
        ends.append(before.last_termination)
    restarts = max(base.execution_attempt - 1, 0) if role is Role.LEARNER else sum(pod.restarts for pod in pods)
    last = max(ends, key=lambda end: end.time, default=None)
    ready = sum(pod.is_fine for pod in pods)
    return RoleStatus(name=role, desired=ready if desired is None else desired, ready=ready, restarts=restarts, last_termination=last)
