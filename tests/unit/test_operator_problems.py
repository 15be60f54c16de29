"""Why a pod does not run, from objects as a kubelet, a scheduler and a Job controller left them: word for word, with the place."""

import pytest
from operator_jobs import NOW, OWNER

from rlvr_api import names
from rlvr_api.conditions import Reason
from rlvr_api.process import Role
from rlvr_operator.last_words import last_words
from rlvr_operator.observe import read_children
from rlvr_operator.problems import role_problems, unplaced

PULL = 'Back-off pulling image "localhost/none:1": ErrImagePull: failed to resolve image: connection refused'
START = 'runc create failed: exec: "/nowhere": stat /nowhere: no such file or directory'
NO_NODE = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available."
EPOCH = "1970-01-01T00:00:00Z"


def pod(role=Role.ROLLOUT, name="arithmetic-rollout-0", *, status, attempt=None, uid=OWNER.uid, **meta):
    labels = {**names.MANAGED_BY, **names.labels(OWNER.name, role, attempt), names.LABEL_JOB_UID: uid}
    common = {
        "name": name,
        "namespace": OWNER.namespace,
        "uid": f"uid-{name}",
        "creationTimestamp": "2026-05-04T08:59:00Z",
        "labels": labels,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**common, **meta}, "status": status}


def conditions(ready="False", scheduled="True"):
    return [
        {"lastProbeTime": None, "observedGeneration": 1, "status": ready, "type": "Ready", "reason": "ContainersNotReady"},
        {"lastProbeTime": None, "observedGeneration": 1, "status": scheduled, "type": "PodScheduled"},
    ]


def container(state, last=None, restarts=0, name="rollout"):
    return {"name": name, "ready": False, "restartCount": restarts, "started": False, "state": state, "lastState": last or {}}


def status(state, last=None, phase="Pending", restarts=0, **more):
    return {
        "phase": phase,
        "conditions": conditions(),
        "containerStatuses": [container(state, last, restarts)],
        "qosClass": "BestEffort",
        **more,
    }


def waiting(reason, message=None):
    return {"waiting": {"reason": reason, **({} if message is None else {"message": message})}}


def terminated(code, reason, message="", at="2026-05-04T08:59:30Z", started=EPOCH):
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": at, "startedAt": started}}


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_NODE}],
}
CRASH = waiting("CrashLoopBackOff", "back-off 10s restarting failed container=rollout")
INIT_FAILED = {
    "phase": "Failed",
    "conditions": conditions(),
    "containerStatuses": [container(waiting("PodInitializing"))],
    "initContainerStatuses": [container(terminated(2, "Error", "reading\nerror: s3://models/tiny: NoSuchKey"), name="model")],
}
INIT_DONE = {
    "phase": "Pending",
    "conditions": conditions(),
    "containerStatuses": [container(waiting("PodInitializing"))],
    "initContainerStatuses": [container(terminated(0, "Completed"), name="model")],
}
EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.", "conditions": conditions()}

CASES = {
    "no node": (UNSCHEDULABLE, Reason.UNSCHEDULABLE, NO_NODE),
    "no image": (status(waiting("ImagePullBackOff", PULL)), Reason.IMAGE_PULL_FAILED, f"ImagePullBackOff: {PULL}"),
    "invalid image": (status(waiting("InvalidImageName", "couldn't parse")), Reason.IMAGE_PULL_FAILED, "InvalidImageName: couldn't parse"),
    "no secret": (
        status(waiting("CreateContainerConfigError", 'secret "s3" not found')),
        Reason.CONTAINER_CONFIG_FAILED, 'CreateContainerConfigError: secret "s3" not found',
    ),
    "no command": (
        status(waiting("RunContainerError", START), terminated(128, "StartError", START), "Running", 4),
        Reason.CONTAINER_CONFIG_FAILED, f"RunContainerError: {START}",
    ),
    "crash loop": (
        status(CRASH, terminated(1, "Error", "Traceback\nValueError: no such dtype\n"), "Running", 3),
        Reason.CRASH_LOOPING, "Error, exit code 1: ValueError: no such dtype",
    ),
    "out of memory": (status(CRASH, terminated(137, "OOMKilled"), "Running", 1), Reason.OUT_OF_MEMORY, "OOMKilled, exit code 137: "),
    "model not there": (INIT_FAILED, Reason.RESTARTING, "Error, exit code 2: s3://models/tiny: NoSuchKey"),
    "evicted": (EVICTED, Reason.EVICTED, "Evicted: The node was low on resource: memory."),
}  # fmt: skip


def problems(*items, warnings=None, attempt=1):
    seen = read_children(OWNER, items, NOW)
    return role_problems(type(seen)(**{**vars(seen), "warnings": warnings or {}}), OWNER.name, attempt)


@pytest.mark.parametrize(("state", "reason", "words"), CASES.values(), ids=CASES)
def test_a_pod_that_does_not_run_says_why(state, reason, words):
    found = problems(pod(status=state))
    assert set(found) == {Role.ROLLOUT}
    assert (found[Role.ROLLOUT].reason, found[Role.ROLLOUT].message) == (reason, f"pod arithmetic-rollout-0: {words}")
    placement = reason in (Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG_FAILED)
    assert (unplaced(found) is not None) is placement


@pytest.mark.parametrize("state", [INIT_DONE, status(waiting("ContainerCreating")), {"phase": "Pending"}, {}])
def test_a_pod_that_is_starting_has_no_problem(state):
    assert problems(pod(status=state)) == {}


def test_volumes_that_cannot_be_mounted_are_told_by_their_event():
    warning = 'FailedMount: MountVolume.SetUp failed for volume "seal" : secret "nope" not found'
    found = problems(pod(status=status(waiting("ContainerCreating"))), warnings={"arithmetic-rollout-0": warning})
    assert found[Role.ROLLOUT].reason is Reason.CONTAINER_CONFIG_FAILED
    assert found[Role.ROLLOUT].message.endswith(warning)


def test_a_learner_whose_preflight_refuses_is_told_as_such():
    state = {**status(terminated(2, "Error", "error: bucket runs: AccessDenied"), phase="Failed")}
    learner = pod(Role.LEARNER, "arithmetic-learner-1-0-x", attempt=1, status=state)
    assert problems(learner)[Role.LEARNER].reason is Reason.PREFLIGHT_REFUSED
    assert problems(learner, attempt=2) == {}, "it speaks of the attempt before"


def test_ready_and_deleted_pods_have_no_problem():
    ready = {"phase": "Running", "conditions": conditions(ready="True"), "containerStatuses": [container({}, terminated(1, "Error"))]}
    deleted = pod(status=CASES["crash loop"][0], deletionTimestamp="2026-05-04T09:00:30Z")
    assert problems(pod(status=ready)) == {}
    assert problems(deleted) == {}


def test_pods_of_an_earlier_job_of_the_name_and_of_no_role_are_not_looked_at():
    other = pod(status=CASES["no image"][0], uid="another")
    roleless = pod(status=CASES["no image"][0])
    del roleless["metadata"]["labels"][names.LABEL_ROLE]
    assert read_children(OWNER, [other, roleless], NOW).pods == ()


@pytest.mark.parametrize(("deadline", "overdue"), [("2026-05-04T08:59:51Z", False), ("2026-05-04T08:59:49Z", True)])
def test_a_deleted_pod_is_overdue_some_seconds_after_its_deadline(deadline, overdue):
    running = {"phase": "Running", "conditions": conditions(ready="True"), "podIP": "10.244.0.8"}
    (view,) = read_children(OWNER, [pod(status=running, deletionTimestamp=deadline)], NOW).pods
    assert (view.deleting, view.ready, view.wedged, view.ended) == (True, False, overdue, overdue)


def test_a_pod_that_was_deleted_without_grace_is_not_deleted_again():
    gone = {"deletionTimestamp": "2026-05-04T08:50:00Z", "deletionGracePeriodSeconds": 0, "finalizers": ["example.test/kept"]}
    (view,) = read_children(OWNER, [pod(status={"phase": "Running"}, **gone)], NOW).pods
    assert (view.wedged, view.ended) == (False, True)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""), ("one\ntwo\n\n", "two"), ("error: why\n  File x\nbye", "why"), ("error: a\nerror:  b \nc", "b"),
        ("x" * 5000, "x" * 900), ("a\x1b[31mb", "a[31mb"),
        ("ValueError: why\n/a/b.py:254: UserWarning: 1 leaked\n  warnings.warn('x'\n/b.py:1: FutureWarning: y\n  z", "ValueError: why"),
        ("/a/b.py:254: UserWarning: 1 leaked\n  warnings.warn('x'", ""),
    ],
)  # fmt: skip
def test_the_last_words_of_a_log_are_its_last_error_or_its_last_line(log, words):
    assert last_words(log, 900) == words
