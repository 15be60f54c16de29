"""The API server's audit log of an operator with the chart's rights: no write at rest, nothing denied, nothing granted that is unused."""

import time

import pytest
from cluster_operator import manifest
from commands import wait_for
from operator_rights import granted

pytestmark = [pytest.mark.usefixtures("fake_nodes"), pytest.mark.timeout(300)]
REST_SECONDS = 60.0
RESYNC_SECONDS = 10.0
APPLIED = {
    ("apps", "deployments"), ("apps", "statefulsets"), ("batch", "jobs"), ("", "configmaps"), ("", "serviceaccounts"), ("", "services"),
    ("networking.k8s.io", "networkpolicies"), ("policy", "poddisruptionbudgets"),
}  # fmt: skip
UNSEEN = {
    ("rlvr.dev", "rlvrjobs/finalizers", "update"): "checked, and never logged, where owner references that block deletion are restricted",
    **{(*kind, "create"): "checked when what is applied is not there yet; the log says patch" for kind in APPLIED},
}
"""Rights that the log does not show, and why they are granted."""
SOMETIMES = {
    ("rlvr.dev", "rlvrjobs", "get"): "a job is read anew when its status was written on old news, which happens or does not",
}
"""Rights that a life may do without."""


def phase(api, namespace, job):
    return api.status(namespace, job).get("phase")


def reach(api, namespace, job, *phases):
    wait_for(lambda: phase(api, namespace, job) in phases, 40, lambda: f"{phases}: {api.status(namespace, job)}")


def test_settled_jobs_cost_no_write(api, namespace, operators, audit):
    """With lists every few seconds, and through a restart of the operator."""
    jobs = {
        "plain": manifest("plain", namespace),
        "guarded": manifest("guarded", namespace, scheduling={"disruptionBudget": True}),
        "scaled": manifest("scaled", namespace, verifiers={"replicas": 1, "maxReplicas": 3}),
        "asleep": manifest("asleep", namespace, suspend=True),
    }
    first = operators.leader(RLVR_RESYNC_SECONDS=str(RESYNC_SECONDS))
    for job in jobs.values():
        api.create(job)
    for job in jobs:
        reach(api, namespace, job, "Suspended" if job == "asleep" else "Running")
    wait_for(lambda: quiet_for(audit, 3.0), 40, "the last write of the start")
    audit.skip()
    looks = first.metric("controller_runtime_reconcile_total")
    wait_for(lambda: first.metric("controller_runtime_reconcile_total") >= looks + 3 * len(jobs), REST_SECONDS, "looks at all jobs")
    first.stop()
    second = operators.leader(RLVR_RESYNC_SECONDS=str(RESYNC_SECONDS))
    time.sleep(REST_SECONDS / 2)  # nothing is to happen: there is no condition to wait for
    assert second.metric("controller_runtime_reconcile_total") >= 3 * len(jobs)
    requests = audit.requests()
    assert [(one.right, one.name) for one in requests if one.is_write] == []
    assert {one.right[2] for one in requests if one.right[1] == "leases"} >= {"get", "update"}, "the log is that of this operator"


def quiet_for(audit, seconds):
    """Whether no write comes in the next seconds."""
    audit.skip()
    time.sleep(seconds)
    return not any(one.is_write for one in audit.requests())


def test_rights_are_enough_and_none_is_unused(api, namespace, operators, audit):
    audit.skip()
    operators.leader()
    live_through_everything(api, namespace, "a")
    operators.running[-1].stop()
    operators.leader()
    api.create(manifest("b", namespace, scheduling={"priorityClassName": "missing"}))
    for condition in ("Scheduled", "LearnerReady"):  # for a learner's Job, only events say why it has no pod
        wait_for(
            lambda name=condition: api.condition(namespace, "b", name).get("reason") == "CreationRefused",
            40,
            lambda: api.status(namespace, "b"),
        )
    requests = audit.requests()
    assert [one for one in requests if one.is_forbidden or one.code == 403] == []
    used, given = {one.right for one in requests}, granted(namespace)
    assert used - given == set()
    assert given - used - UNSEEN.keys() - SOMETIMES.keys() == set(), "granted, and never used in a whole life"
    assert used & UNSEEN.keys() == set(), "seen after all: take it off the list of exceptions"


def live_through_everything(api, namespace, job):
    """All that an operator can be asked to do with one job."""
    api.create(manifest(job, namespace, scheduling={"disruptionBudget": True}))
    reach(api, namespace, job, "Running")
    for spec in ({"scheduling": {"disruptionBudget": False}}, {"rollouts": {"replicas": 2}}, {"rollouts": {"env": {"NCCL_DEBUG": "INFO"}}}):
        api.patch("RLVRJob", namespace, job, {"spec": spec})
        generation = api.get("RLVRJob", namespace, job)["metadata"]["generation"]
        wait_for(lambda generation=generation: api.status(namespace, job)["observedGeneration"] == generation, 20, "seen")
    wait_for(lambda: engines_are_new(api, namespace, job), 60, lambda: f"new engines: {api.children(namespace, job)}")
    assert api.get("PodDisruptionBudget", namespace, f"{job}-rollout") is None
    for _ in range(2):
        api.patch("RLVRJob", namespace, job, {"spec": {"suspend": True}})
        reach(api, namespace, job, "Suspended")
        api.patch("RLVRJob", namespace, job, {"spec": {"suspend": False}})
        reach(api, namespace, job, "Running")


def engines_are_new(api, namespace, job):
    engines = [pod for pod in api.items("Pod", namespace, "rlvr.dev/role=rollout") if pod["metadata"]["name"].startswith(f"{job}-")]
    env = [{entry["name"] for entry in pod["spec"]["containers"][0]["env"]} for pod in engines]
    return len(engines) == 2 and all("NCCL_DEBUG" in names for names in env)
