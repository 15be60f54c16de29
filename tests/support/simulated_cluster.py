"""A small API server with controllers and nodes, in memory: of Kubernetes what the operator meets, in the shapes of a real one.

    operator -> get, list, apply, apply_status, create, merge, delete      as `rlvr_operator.cluster.Cluster`, with its errors
    test     -> run_controllers(), start(), make_ready(), end(), evict(), stop_deleted(), lose_node(), advance()
    watches  -> deliver(cache) hands on what has changed, as late as the test likes

Objects are never changed in place, so nothing is copied.

Left out: admission, schemas, the scheduler, ReplicaSets (a Deployment makes its pods itself).
"""

import asyncio
import itertools
from collections import defaultdict
from datetime import timedelta

from operator_jobs import NOW

from rlvr_api import names
from rlvr_operator.cluster import ConflictError
from rlvr_operator.observe import controller_uid

TRACKING = "batch.kubernetes.io/job-tracking"
DEFAULTS = {
    "Job": {"manualSelector": False, "suspend": False},
    "StatefulSet": {"revisionHistoryLimit": 10},
    "Deployment": {"revisionHistoryLimit": 10, "progressDeadlineSeconds": 600},
    "Service": {"type": "ClusterIP", "sessionAffinity": "None"},
}


class OperatorKilledError(Exception):
    """The operator dies right after a write."""


def finished(coroutine):
    """The result of a coroutine."""
    return asyncio.run(coroutine)


def stamp(time):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


class SimulatedCluster:
    """All objects of one namespace, and a clock."""

    def __init__(self):
        self.objects, self.now, self._version, self._serial = {}, NOW, 100, itertools.count(1)
        self.writes, self.kill_at, self.on_write = [], None, lambda item: None
        self.lost, self.changes = set(), defaultdict(list)

    # what the operator calls

    async def get(self, kind, namespace, name):
        return self.objects.get((kind, name))

    async def list(self, kind, namespace, labels="", fields=""):
        wanted = dict(pair.split("=") for pair in fields.split(",") if pair)
        found = [item for (found, _), item in self.objects.items() if found == kind]
        if kind == "Event":
            found = [event for event in found if event["involvedObject"]["name"] == wanted["involvedObject.name"]]
        return found

    async def apply(self, item, uid=None):
        known = self.objects.get(_slot(item))
        if uid is not None and (known is None or known["metadata"]["uid"] != uid):
            raise ConflictError(
                f"{_slot(item)}: the uid is another one", (item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])
            )
        self.on_write(item)
        answer = self._merge(item, known)
        self._wrote("apply", item)
        return answer

    async def apply_status(self, namespace, name, resource_version, status):
        known = self.objects.get((names.KIND, name))
        if known is None or known["metadata"]["resourceVersion"] != resource_version:
            raise ConflictError(f"{name}: the object has been modified", (names.KIND, namespace, name))
        self.on_write({**known, "status": status})
        self._store({**known, "status": status})
        self._wrote("status", known)
        return self.objects[names.KIND, name]

    async def create(self, item):
        if _slot(item) in self.objects:
            return False
        self._merge(item, None)
        self._wrote("create", item)
        return True

    async def merge(self, kind, namespace, name, patch, subresource=None):
        known = self.objects[kind, name]
        if patch.get("metadata", {}).get("resourceVersion", known["metadata"]["resourceVersion"]) != known["metadata"]["resourceVersion"]:
            raise ConflictError(f"{name}: the object has been modified", (kind, namespace, name))
        changed = {key: value for key, value in patch.items() if key not in ("metadata", "status")}
        status = {key: value for key, value in {**known.get("status", {}), **patch.get("status", {})}.items() if value is not None}
        self._store({**known, **changed, "status": status})
        self._wrote("merge", known)
        return self.objects[kind, name]

    async def delete(self, namespace, deletion):
        known = self.objects.get((deletion.kind, deletion.name))
        if known is not None and known["metadata"]["uid"] == deletion.uid:
            self.remove(deletion.kind, deletion.name, deletion.grace_seconds)
        self._wrote("delete", {"kind": deletion.kind, "metadata": {"name": deletion.name}})

    # what people, controllers and nodes do

    def put_job(self, manifest):
        """Create a job, or change its spec."""
        known = self.objects.get((names.KIND, manifest["metadata"]["name"]))
        return self._merge(manifest, known)

    def remove(self, kind, name, grace_seconds=None):
        """Delete an object; pods get their grace, and Job pods wait for the Job controller, too."""
        item = self.objects[kind, name]
        if kind != "Pod":
            return self._drop(item)
        ended = item["status"]["phase"] in ("Succeeded", "Failed")
        grace = 0 if ended else item["spec"]["terminationGracePeriodSeconds"] if grace_seconds is None else grace_seconds
        if grace == 0 and not item["metadata"]["finalizers"]:
            return self._drop(item)
        until = min(filter(None, (stamp(self.now + timedelta(seconds=grace)), item["metadata"].get("deletionTimestamp"))))
        return self._store({**item, "metadata": {**item["metadata"], "deletionTimestamp": until, "deletionGracePeriodSeconds": grace}})

    def run_controllers(self):
        """One pass of every controller, in no useful order."""
        for item in list(self.objects.values()):
            self._collect_garbage(item)
        for kind, control in (("Job", self._job), ("StatefulSet", self._stateful_set), ("Deployment", self._deployment)):
            for item in self.of(kind):
                control(item)
        for pod in self.of("Pod"):
            self._release(pod)

    def of(self, kind):
        return [item for (found, _), item in list(self.objects.items()) if found == kind]

    def pods(self, role=None, attempt=None):
        """Pods of a role, by name."""
        labels = {names.LABEL_ROLE: role, names.LABEL_ATTEMPT: None if attempt is None else str(attempt)}
        wanted = {key: str(value) for key, value in labels.items() if value is not None}
        return sorted((pod for pod in self.of("Pod") if pod["metadata"]["labels"].items() >= wanted.items()), key=lambda pod: _slot(pod))

    def start(self, pod):
        """A node takes the pod, and runs it."""
        (name,) = [container["name"] for container in pod["spec"]["containers"]]
        state = {"name": name, "ready": False, "restartCount": 0, "state": {"running": {"startedAt": stamp(self.now)}}, "lastState": {}}
        self._report(pod, phase="Running", podIP=f"10.244.0.{next(self._serial)}", containerStatuses=[state], ready=False)

    def make_ready(self, pod, ready=True):
        """Its probe answers."""
        self._report(pod, ready=ready)

    def run(self, role=None):
        """Start every pod of a role that is not deleted, and have it ready."""
        for pod in self.pods(role):
            if "deletionTimestamp" not in pod["metadata"] and pod["status"]["phase"] in ("Pending", "Running"):
                if not pod["status"].get("podIP"):
                    self.start(pod)
                self.make_ready(self.objects["Pod", pod["metadata"]["name"]])

    def end(self, pod, exit_code, reason=None, message="", restart_reason="CrashLoopBackOff"):
        """The pod's container ends; the kubelet starts it again where its policy says so."""
        (container,) = pod["status"].get("containerStatuses") or [{"name": pod["metadata"]["labels"][names.LABEL_ROLE], "restartCount": 0}]
        reason = reason or ("Completed" if exit_code == 0 else "Error")
        end = {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": stamp(self.now), "finishedAt": stamp(self.now)}
        if pod["spec"]["restartPolicy"] == "Never":
            container = {**container, "ready": False, "state": {"terminated": end}}
            return self._report(pod, phase="Failed" if exit_code else "Succeeded", containerStatuses=[container], ready=False)
        waiting = {"reason": restart_reason, "message": "back-off 10s restarting failed container"}
        states = {"state": {"waiting": waiting}, "lastState": {"terminated": end}, "restartCount": container["restartCount"] + 1}
        return self._report(pod, containerStatuses=[{**container, "ready": False, **states}], ready=False)

    def evict(self, pod):
        """The kubelet is short of memory."""
        self._report(pod, phase="Failed", reason="Evicted", message="The node was low on resource: memory.", ready=False)

    def stop_deleted(self, exit_code=75, message=""):
        """Nodes end the processes of deleted pods; at the next call they let the pods go."""
        for pod in self.of("Pod"):
            if "deletionTimestamp" in pod["metadata"] and pod["metadata"]["uid"] not in self.lost:
                learns = pod["spec"]["restartPolicy"] == "Never"
                if learns and pod["status"]["phase"] not in ("Succeeded", "Failed"):
                    self.end(pod, exit_code, message=message)
                elif not pod["metadata"]["finalizers"]:
                    self._drop(pod)

    def lose_node(self, pod):
        """The pod's node is not heard of any more; the cluster deletes its pods."""
        self.lost.add(pod["metadata"]["uid"])
        self.make_ready(pod, ready=False)
        self.remove("Pod", pod["metadata"]["name"])

    def advance(self, seconds):
        self.now += timedelta(seconds=seconds)

    def deliver(self, cache, kinds=None):
        """Tell a cache what has changed since, of all kinds or of some."""
        for kind in list(self.changes) if kinds is None else kinds:
            for event, item in self.changes.pop(kind, ()):
                cache.put(item) if event == "put" else cache.remove(item)

    # inside

    def _merge(self, item, known):
        """Server-side apply of all that the operator owns: what others wrote stays."""
        meta = {"uid": f"uid-{next(self._serial)}", "creationTimestamp": stamp(self.now), "generation": 1, "finalizers": []}
        kept = (
            {} if known is None else {name: known["metadata"][name] for name in (*meta, "deletionTimestamp") if name in known["metadata"]}
        )
        spec = {"spec": {**DEFAULTS.get(item["kind"], {}), **item["spec"]}} if "spec" in item else {}
        new = {**item, **spec, "metadata": {**item["metadata"], **meta, **kept}}
        new["status"] = {} if known is None else known.get("status", {})
        if known is not None and known.get("spec") != new.get("spec"):
            new["metadata"]["generation"] += 1
        return self._store(new)

    def _store(self, item):
        known = self.objects.get(_slot(item))
        if known is not None and _bare(known) == _bare(item):
            return known
        self._version += 1
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}
        self.objects[_slot(item)] = item
        self.changes[item["kind"]].append(("put", item))
        return item

    def _drop(self, item):
        del self.objects[_slot(item)]
        self.changes[item["kind"]].append(("remove", item))

    def _wrote(self, verb, item):
        self.writes.append((verb, item["kind"], item["metadata"]["name"]))
        if self.kill_at is not None and len(self.writes) >= self.kill_at:
            raise OperatorKilledError(self.writes[-1])

    def _report(self, pod, ready, **status):
        known = self.objects[_slot(pod)]
        conditions = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True" if ready else "False"}]
        self._store({**known, "status": {**known["status"], **status, "conditions": conditions}})

    def _collect_garbage(self, item):
        owner = controller_uid(item)
        if owner is not None and owner not in {other["metadata"]["uid"] for other in self.objects.values()}:
            if item["kind"] != "Pod":
                self._drop(item)
            elif "deletionTimestamp" not in item["metadata"]:
                self.remove("Pod", item["metadata"]["name"])

    def _make_pod(self, owner, name, finalizers=(), annotations=None):
        template, meta = owner["spec"]["template"], owner["metadata"]
        reference = {"kind": owner["kind"], "name": meta["name"], "uid": meta["uid"], "controller": True}
        own = {"uid": f"uid-{next(self._serial)}", "creationTimestamp": stamp(self.now), "finalizers": list(finalizers)}
        own["annotations"] = {**template["metadata"].get("annotations", {}), **(annotations or {})}
        metadata = {**template["metadata"], **own, "name": name, "namespace": meta["namespace"], "ownerReferences": [reference]}
        self._store({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})

    def _owned(self, owner):
        return [pod for pod in self.pods() if controller_uid(pod) == owner["metadata"]["uid"]]

    def _job(self, job):
        status, pods = job["status"], self._owned(job)
        if not status:
            for index in range(job["spec"]["completions"]):
                name = f"{job['metadata']['name']}-{index}-{next(self._serial):05}"
                self._make_pod(job, name, [TRACKING], {"batch.kubernetes.io/job-completion-index": str(index)})
            self._store({**job, "status": {"startTime": stamp(self.now), "active": job["spec"]["completions"]}})
        elif not status.get("conditions"):
            phases = [pod["status"]["phase"] for pod in pods]
            if phases.count("Succeeded") == job["spec"]["completions"]:
                self._store({**job, "status": {**status, "active": 0, "conditions": [self._condition("Complete", "CompletionsReached")]}})
            elif len(pods) < job["spec"]["completions"] or "Failed" in phases:
                for pod in pods:
                    if pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]:
                        self.remove("Pod", pod["metadata"]["name"])
                self._store({**job, "status": {**status, "active": 0, "conditions": [self._condition("Failed", "BackoffLimitExceeded")]}})
            else:
                active = sum("deletionTimestamp" not in pod["metadata"] for pod in pods)
                self._store({**job, "status": {**status, "active": active}})

    def _condition(self, kind, reason):
        message = "Job has reached the specified backoff limit" if kind == "Failed" else "Reached expected number of succeeded pods"
        return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": stamp(self.now)}

    def _stateful_set(self, item):
        wanted = [f"{item['metadata']['name']}-{n}" for n in range(item["spec"]["replicas"])]
        self._scale(item, wanted)

    def _deployment(self, item):
        digest = item["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_SPEC_HASH][:6]
        self._scale(item, [f"{item['metadata']['name']}-{digest}-{n}" for n in range(item["spec"]["replicas"])])

    def _scale(self, owner, wanted):
        for pod in self._owned(owner):
            unwanted = pod["metadata"]["name"] not in wanted or pod["status"]["phase"] in ("Succeeded", "Failed")
            if unwanted and "deletionTimestamp" not in pod["metadata"]:
                self.remove("Pod", pod["metadata"]["name"])
        for name in wanted:
            if ("Pod", name) not in self.objects:
                self._make_pod(owner, name)

    def _release(self, pod):
        """The Job controller lets go of a pod once it has counted it, or once its Job is gone."""
        orphan = controller_uid(pod) not in {job["metadata"]["uid"] for job in self.of("Job")}
        counted = pod["status"]["phase"] in ("Succeeded", "Failed")
        if not pod["metadata"]["finalizers"] or not (orphan or counted):
            return
        if "deletionTimestamp" in pod["metadata"] and (counted or pod["metadata"]["deletionGracePeriodSeconds"] == 0):
            self._drop(pod)
        else:
            self._store({**pod, "metadata": {**pod["metadata"], "finalizers": []}})


def _slot(item):
    return item["kind"], item["metadata"]["name"]


def _bare(item):
    return {**item, "metadata": {key: value for key, value in item["metadata"].items() if key != "resourceVersion"}}
