"""One look at one job: observe -> decide -> write. Level-triggered; whatever happened before, it goes by what is there now.

The order of writes is what makes a kill at any point harmless: a new attempt's number, its objects, deletions, the rest of the status. A
settled job costs no request at all.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pydantic import ValidationError

from rlvr_api import names
from rlvr_api.conditions import Phase, Reason
from rlvr_api.inputs import input_files
from rlvr_api.loading import InvalidJobError, job_from
from rlvr_api.process import Role
from rlvr_api.spec import RLVRJob
from rlvr_api.status import RLVRJobStatus
from rlvr_operator import metrics
from rlvr_operator.autoscale import Scale, next_scale
from rlvr_operator.cache import Cache
from rlvr_operator.cluster import Cluster, ConflictError, RefusedError
from rlvr_operator.kueue import Kueue
from rlvr_operator.lifecycle import decide, ended
from rlvr_operator.look import Decision, Look, QueueUnavailableError
from rlvr_operator.notices import Recorder, notices
from rlvr_operator.observe import Children, read_children
from rlvr_operator.pollers import Pollers, Target
from rlvr_operator.render import Object, Owner, Site
from rlvr_operator.render.site import addresses
from rlvr_operator.status import READINESS, refused_status
from rlvr_operator.warning_events import WarningEvents
from rlvr_operator.work_queue import Key, WorkQueue
from rlvr_operator.writer import NameConflictError, Writer

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0
"""Shortest time between two status writes that tell nothing but progress."""
REPLICAS_SECONDS = 5.0
"""The same where the number of engines has changed, too: whether they answer follows."""
RESTLESS_SECONDS = 10.0
"""A job that is under way but not running is looked at this often: volumes that cannot be mounted are told in events only, and nodes that
are lost say nothing."""
CONFLICT_SECONDS = 15.0
SEAL_SECONDS = 60.0
ROLE_OF = {kind: role for role, (kind, _) in READINESS.items()}
MOVING = (Phase.PENDING, Phase.PROVISIONING, Phase.RECOVERING, Phase.COMPLETING, Phase.SUSPENDING)


@dataclass
class Memory:
    """What a reconciler remembers of a job; losing it costs a request or two, or an attempt's number."""

    uid: str
    unborn: int | None = None
    witnessed: int = 0
    """Latest attempt whose Job was seen."""
    status_written: float = float("-inf")
    sealed: float = float("-inf")


class Reconciler:
    """Looks at jobs, one at a time for each key."""

    def __init__(self, cluster: Cluster, cache: Cache, site: Site, queue: WorkQueue, phases: metrics.JobPhases, kueue: Kueue) -> None:
        self._cluster, self._cache, self._site, self._queue, self._phases = cluster, cache, site, queue, phases
        self._writer, self._kueue = Writer(cluster, cache), kueue
        self._recorder = Recorder(cluster)
        self._warnings = WarningEvents(cluster)
        self._memories: dict[Key, Memory] = {}
        self._targets: dict[Key, Target] = {}
        self.pollers = Pollers(self.targets, queue.add)

    def targets(self) -> Mapping[Key, Target]:
        """Whose learners and verifiers are asked how they are."""
        return dict(self._targets)

    def uid(self, key: Key) -> str | None:
        """Uid of a job that is known."""
        item = self._cache.job(key)
        return None if item is None else str(item["metadata"]["uid"])

    async def reconcile(self, key: Key) -> None:
        """Look at one job.

        Raises:
            ConflictError: something is not as it was seen; it was read anew, so that the next look sees it.
            ClusterError: a request failed; the job must be looked at again.
        """
        try:
            await self._reconcile(key)
        except ConflictError as error:
            if error.about is not None:
                found = await self._cluster.get(*error.about)
                self._cache.forget(key, error.about) if found is None else self._cache.put(found)
            raise

    async def _reconcile(self, key: Key) -> None:
        item = self._cache.job(key)
        if item is None or "deletionTimestamp" in item["metadata"]:
            self._forget(key)
            return
        meta = item["metadata"]
        owner = Owner(meta["name"], meta["namespace"], meta["uid"])
        memory = self._memory(key, owner.uid)
        previous = read_status(item)
        try:
            job = read_job(item)
        except ValueError as error:
            await self._refuse(key, item, previous, Reason.INVALID_SPEC, str(error))
            return
        look = await self._look(key, item, job, owner, previous, memory)
        try:
            await self._carry_out(key, item, look, decide(look), memory)
        except QueueUnavailableError as error:
            await self._refuse(key, item, previous, Reason.QUEUE_UNAVAILABLE, str(error))
            self._queue.add_after(key, CONFLICT_SECONDS)
        except NameConflictError as error:
            await self._refuse(key, item, previous, Reason.NAME_CONFLICT, str(error))
            self._queue.add_after(key, CONFLICT_SECONDS)
        except RefusedError as error:
            await self._refuse(key, item, previous, Reason.CREATION_REFUSED, str(error))
            raise

    async def _look(self, key: Key, item: Object, job: RLVRJob, owner: Owner, previous: RLVRJobStatus, memory: Memory) -> Look:
        now = datetime.now(UTC)
        seen = read_children(owner, self._cache.children(key), now)
        attempt = previous.execution_attempt
        if seen.learner_job(attempt) is not None:
            memory.witnessed = attempt
        lead = seen.lead(attempt)
        learner = lead if lead is not None and not lead.ended and lead.address else None
        uid = "" if lead is None else lead.uid
        progress, step_seconds = self.pollers.progress(key, uid)
        left = next((pod.last_progress for pod in seen.of(Role.LEARNER, attempt) if pod.last_progress is not None), None)
        seen = replace(seen, progress=left or progress, step_seconds=step_seconds)
        seen = replace(seen, warnings=await self._warnings.find(owner, seen, attempt))
        seen, terms = await self._kueue.terms(owner, job, seen, may_ask=not job.spec.suspend and ended(previous) is None)
        look = Look(
            job=job, owner=owner, generation=item["metadata"]["generation"], site=self._site, previous=previous, seen=seen, now=now,
            unborn=memory.unborn, witnessed=memory.witnessed, terms=terms,
        )  # fmt: skip
        if learner is not None and learner.address is not None and not learner.deleting:
            self._targets[key] = _target(look.granted, owner, seen, learner.uid, learner.address)
        else:
            self._targets.pop(key, None)
        return replace(look, scale=self._scale(key, look.granted, seen, now))

    def _scale(self, key: Key, job: RLVRJob, seen: Children, now: datetime) -> Scale | None:
        most = job.spec.verifiers.max_replicas
        if most is None:
            return None
        current = read_scale(seen.verifier_deployment, job.spec.verifiers.replicas)
        return next_scale(current, job.spec.verifiers.replicas, most, self.pollers.queue_wait_seconds(key), now)

    async def _carry_out(self, key: Key, item: Object, look: Look, decision: Decision, memory: Memory) -> None:
        status = decision.status
        planned = await self._writer.compare(look.owner, decision.objects, look.seen)
        if status.execution_attempt != look.previous.execution_attempt:
            item = await self._write_status(key, item, look.owner, look.previous, status, memory)
            memory.unborn = status.execution_attempt
        if decision.needs_seal and self._lacks_seal(look.seen, memory):
            await self._writer.seal(look.owner)
            memory.sealed = time.monotonic()
        await self._writer.write(planned)
        learner = names.child_name(look.owner.name, Role.LEARNER, status.execution_attempt) if status.execution_attempt else ""
        if any(child["kind"] == "Job" and child["metadata"]["name"] == learner for child in decision.objects):
            memory.unborn, memory.witnessed = None, status.execution_attempt
        await self._writer.delete(look.owner, decision.deletions, look.seen)
        if decision.claim_status is not None:
            workload = names.kueue_workload_name(look.owner.name)
            self._cache.put(await self._cluster.merge("Workload", look.owner.namespace, workload, decision.claim_status, "status"))
        await self._settle(key, item, look, decision, memory)
        logger.debug("%s/%s: %d writes, %d deletions", *key, len(planned), len(decision.deletions))

    async def _settle(self, key: Key, item: Object, look: Look, decision: Decision, memory: Memory) -> None:
        """Tell the status if it has changed, and make the next appointment."""
        status, known = decision.status, read_status(item)
        if status != known:
            wait = memory.status_written + _pause_seconds(known, status) - time.monotonic()
            if wait > 0:
                self._queue.add_after(key, wait)
            else:
                await self._write_status(key, item, look.owner, known, status, memory)
        self._phases.note(key, str(status.phase))
        if decision.look_again_at is not None:
            self._queue.add_after(key, (decision.look_again_at - look.now).total_seconds())
        if status.phase in MOVING or (look.scale is not None and status.phase is Phase.RUNNING):
            self._queue.add_after(key, RESTLESS_SECONDS, is_routine=True)

    async def _write_status(
        self, key: Key, item: Object, owner: Owner, before: RLVRJobStatus, status: RLVRJobStatus, memory: Memory
    ) -> Object:
        """Write a status and tell what changed; returns the job as it is now."""
        body = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        written = await self._cluster.apply_status(owner.namespace, owner.name, item["metadata"]["resourceVersion"], body)
        memory.status_written = time.monotonic()
        self._cache.put(written)
        _measure(owner, before, status)
        await asyncio.gather(*(self._recorder.record(owner, notice) for notice in notices(before, status)))
        return written

    async def _refuse(self, key: Key, item: Object, previous: RLVRJobStatus, reason: Reason, message: str) -> None:
        meta = item["metadata"]
        status = refused_status(previous, reason, message, meta["generation"], datetime.now(UTC))
        if status != previous:
            owner = Owner(meta["name"], meta["namespace"], meta["uid"])
            await self._write_status(key, self._cache.job(key) or item, owner, previous, status, self._memory(key, owner.uid))
        self._phases.note(key, str(status.phase))

    def _lacks_seal(self, seen: Children, memory: Memory) -> bool:
        if seen.verifier_deployment is None:
            return True
        return not any(pod.ready for pod in seen.of(Role.VERIFIER)) and time.monotonic() - memory.sealed > SEAL_SECONDS

    def _memory(self, key: Key, uid: str) -> Memory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != uid:
            if memory is not None:
                self._warnings.forget(memory.uid)
            memory = self._memories[key] = Memory(uid)
        return memory

    def _forget(self, key: Key) -> None:
        if (memory := self._memories.pop(key, None)) is not None:
            self._warnings.forget(memory.uid)
        self._targets.pop(key, None)
        self._writer.forget(*key)
        self._kueue.forget(*key)
        self._phases.note(key, None)


def read_job(item: Object) -> RLVRJob:
    """The job of an object on the API server.

    Raises:
        ValueError: it is not valid, or nothing that a cluster can run; the message is for the user.
    """
    try:
        job = job_from(item)
    except InvalidJobError as error:
        raise ValueError("; ".join(map(str, error.problems))) from None
    uris = [("spec.model.uri", job.spec.model.uri), *((file.path, file.uri) for file in input_files(job.spec))]
    for path, uri in uris:
        if uri.startswith("file://"):
            raise ValueError(f"{path}: {uri} is a folder, which pods do not have: upload it and write s3://bucket/prefix")
    return job


def read_status(item: Object) -> RLVRJobStatus:
    """The status of a job. What another version of the operator wrote and this one does not know is left out, never the attempt."""
    raw = item.get("status") or {}
    try:
        return RLVRJobStatus.model_validate(raw)
    except ValidationError as error:
        logger.warning("%s: the status is not of this version and is written anew: %s", item["metadata"]["name"], error.errors()[0]["msg"])
        kept = {name: raw[name] for name in ("executionAttempt", "restarts") if isinstance(raw.get(name), int)}
        phase = raw.get("phase") if raw.get("phase") in tuple(Phase) else Phase.PENDING
        return RLVRJobStatus.model_validate({**kept, "phase": phase})


def read_scale(deployment: Object | None, least: int) -> Scale:
    """Replicas of the verifiers' Deployment, and when the operator last changed them."""
    if deployment is None:
        return Scale(least, None)
    text = deployment["metadata"].get("annotations", {}).get(names.ANNOTATION_SCALED_AT)
    return Scale(int(deployment["spec"].get("replicas", least)), None if text is None else datetime.fromisoformat(text))


def _target(job: RLVRJob, owner: Owner, seen: Children, uid: str, address: str) -> Target:
    engines = {f"{Role.ROLLOUT}-{n}": engine.url for n, engine in enumerate(addresses(job, owner, 1).engines)}
    scaled = job.spec.verifiers.max_replicas is not None
    verifiers = tuple(pod.address for pod in seen.of(Role.VERIFIER) if pod.ready and pod.address) if scaled else ()
    return Target(uid, address, engines, verifiers)


def _pause_seconds(before: RLVRJobStatus, after: RLVRJobStatus) -> float:
    """How long after the last write a status may be written that differs like this; 0 where a person waits for it."""

    def core(status: RLVRJobStatus) -> object:
        quiet = {"progress": None, "message": "", "attempt_first_step": None, "rollout_replicas": 0, "conditions": ()}
        return status.model_copy(update=quiet), [(condition.type, condition.status, condition.reason) for condition in status.conditions]

    if core(before) != core(after):
        return 0.0
    return PROGRESS_SECONDS if before.rollout_replicas == after.rollout_replicas else REPLICAS_SECONDS


def _measure(owner: Owner, before: RLVRJobStatus, after: RLVRJobStatus) -> None:
    if after.execution_attempt > max(1, before.execution_attempt):
        metrics.RESTARTS.labels(namespace=owner.namespace, role=str(Role.LEARNER)).inc()
    olds = {role.name: role for role in before.roles}
    for role in after.roles:
        if role.name is not Role.LEARNER and role.name in olds and role.restarts > olds[role.name].restarts:
            metrics.RESTARTS.labels(namespace=owner.namespace, role=str(role.name)).inc(role.restarts - olds[role.name].restarts)
    lost = {condition.type: condition for condition in before.conditions if condition.status == "False"}
    for condition in after.conditions:
        name = ROLE_OF.get(condition.type)
        if name is not None and condition.status == "True" and condition.type in lost and before.running_since is not None:
            seconds = (condition.last_transition_time - lost[condition.type].last_transition_time).total_seconds()
            metrics.RECOVERY_SECONDS.labels(role=str(name)).observe(seconds)
