"""What a job on a cluster must look like as a whole, and how long to wait until it does."""

from commands import wait_for

STANDING = {
    ("ConfigMap", "spec"), ("ServiceAccount", "pods"), ("Service", "rollout"), ("Service", "learner"), ("Service", "verifier"),
    ("NetworkPolicy", "rollout"), ("NetworkPolicy", "learner"), ("NetworkPolicy", "verifier"),
}  # fmt: skip
WORKLOADS = {("StatefulSet", "rollout"), ("Deployment", "verifier")}


def own_names(children, job):
    """Kinds and names of children, without the job's name, the pods, and what Kubernetes makes by itself."""
    return {(kind, name.removeprefix(f"{job}-")) for kind, name in children if kind not in ("Pod", "ReplicaSet")}


def versions(children):
    """What every write changes."""
    return {key: item["metadata"]["resourceVersion"] for key, item in children.items()}


def is_running(api, namespace, job, attempts=(1, 2)):
    """Its status, if it runs; an operator that was killed may have lost an attempt's number."""
    status = api.status(namespace, job)
    return status if status.get("phase") == "Running" and status["executionAttempt"] in attempts else None


def assert_whole(api, namespace, job, status):
    """One of each child, all of this very job, one learner's Job, one pod a role."""
    mine = uid(api, namespace, job)
    children = api.children(namespace, job)
    learner = ("Job", f"learner-{status['executionAttempt']}")
    assert own_names(children, job) == STANDING | WORKLOADS | {learner}
    for (kind, name), item in children.items():
        owner = item["metadata"]["ownerReferences"][0]
        assert kind == "Pod" or owner["uid"] == mine, name
    pods = sorted(item["metadata"]["labels"]["rlvr.dev/role"] for (kind, _), item in children.items() if kind == "Pod")
    assert pods == ["learner", "rollout", "verifier"]
    assert children["StatefulSet", f"{job}-rollout"]["metadata"]["generation"] == 1
    assert children["Deployment", f"{job}-verifier"]["metadata"]["generation"] == 1
    assert api.get("Secret", namespace, f"{job}-seal")["metadata"]["ownerReferences"][0]["uid"] == mine


def settled(api, namespace, job, attempts=(1, 2)):
    """Waits until the job runs and nothing of it changes any more; returns the status."""
    seen = {}

    def at_rest():
        status = is_running(api, namespace, job, attempts)
        now = status and versions(api.children(namespace, job))
        quiet = status and seen.get("now") == now
        seen["now"] = now
        return status if quiet else None

    return wait_for(at_rest, 60, lambda: f"{job}: {api.status(namespace, job)}", every=0.5)


def finish(api, pod, exit_code):
    """End a pretended pod as a kubelet would."""
    ended = {"exitCode": exit_code, "reason": "Completed" if exit_code == 0 else "Error", "finishedAt": "2026-01-01T00:00:00Z"}
    containers = [{**status, "ready": False, "state": {"terminated": ended}} for status in pod["status"]["containerStatuses"]]
    conditions = [{**one, "status": "False"} if one["type"].endswith("Ready") else one for one in pod["status"]["conditions"]]
    status = {"phase": "Failed" if exit_code else "Succeeded", "containerStatuses": containers, "conditions": conditions}
    path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
    api.call("PATCH", f"{path}/status", {"status": status}, "application/merge-patch+json")


def uid(api, namespace, job):
    """Uid of a job; None if there is none."""
    found = api.get("RLVRJob", namespace, job)
    return found and found["metadata"]["uid"]


def nothing_left(api, namespace):
    """Waits until no child of any job is there."""
    wait_for(lambda: not api.children(namespace), 60, lambda: f"left: {sorted(api.children(namespace))}")
