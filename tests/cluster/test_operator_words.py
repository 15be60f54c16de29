"""Why a job does not run, in the words of whoever knows: scheduler, kubelet, API server. And that pods pass the strictest Pod Security."""

import json

import pytest
from cluster_operator import manifest
from commands import wait_for
from whole_jobs import assert_whole, settled

pytestmark = pytest.mark.timeout(240)
NOWHERE = {"pod": {"nodeSelector": {"rlvr.dev/no-such": "node"}}}


def scheduled(api, namespace, job, reason):
    """The condition `Scheduled`, once it is false for this reason."""

    def said():
        condition = api.condition(namespace, job, "Scheduled")
        return condition if condition.get("reason") == reason else None

    condition = wait_for(said, 60, lambda: f"{reason}: {api.status(namespace, job)}", every=0.3)
    assert condition["status"] == "False"
    return condition["message"]


def named_pod(api, namespace, message):
    """The pod that a message begins with, and the rest of the message."""
    name, _, rest = message.removeprefix("pod ").partition(": ")
    return api.get("Pod", namespace, name), rest


def waiting_words(pod):
    """`Reason: message` of containers that wait, on one line each."""
    statuses = [*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())]
    found = [status["state"]["waiting"] for status in statuses if "waiting" in status["state"]]
    return [f"{one['reason']}: {' '.join(one.get('message', '').split())}" for one in found]


def test_unschedulable(api, namespace, operators):
    operators.leader()
    api.create(manifest("job", namespace, fake=False, rollouts=NOWHERE, learner=NOWHERE, verifiers=NOWHERE))
    message = scheduled(api, namespace, "job", "Unschedulable")
    pod, words = named_pod(api, namespace, message)
    (placed,) = [condition for condition in pod["status"]["conditions"] if condition["type"] == "PodScheduled"]
    assert words == placed["message"]
    assert "didn't match Pod's node affinity/selector" in words
    status = api.status(namespace, "job")
    assert status["reason"] == "Unschedulable", "the printer column tells it, too"
    assert status["message"] == message
    assert status["phase"] == "Provisioning"


@pytest.fixture
def real_node(api):
    """A node with a kubelet and containers; returns an image that it has."""
    nodes = [node for node in api.call("GET", "/api/v1/nodes")["items"] if node["metadata"].get("labels", {}).get("type") != "fake"]
    names = [name for node in nodes for image in node["status"].get("images", ()) for name in image.get("names") or () if "@" not in name]
    if not names:
        pytest.skip("needs a node with a kubelet and at least one image")
    return names[0]


def test_images_that_cannot_be_pulled(api, namespace, operators, real_node):
    operators.leader(RLVR_IMAGE_PULL_POLICY="Never")
    api.create(manifest("job", namespace, fake=False))
    pod, words = named_pod(api, namespace, scheduled(api, namespace, "job", "ImagePullFailed"))
    assert words in waiting_words(pod)
    assert words.startswith("ErrImageNeverPull: ")
    assert "example.test/" in words


def test_a_secret_that_is_missing(api, namespace, operators, real_node):
    operators.leader(**{f"RLVR_{role}_IMAGE": real_node for role in ("ROLLOUT", "LEARNER", "VERIFIER")})
    api.create(manifest("job", namespace, fake=False))
    pod, words = named_pod(api, namespace, scheduled(api, namespace, "job", "ContainerConfigFailed"))
    assert words == 'CreateContainerConfigError: secret "s3" not found'
    assert words in waiting_words(pod)


def test_a_quota_that_is_used_up(api, namespace, operators, fake_nodes):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    api.call("POST", f"/api/v1/namespaces/{namespace}/resourcequotas", quota)
    wait_for(lambda: api.call("GET", f"/api/v1/namespaces/{namespace}/resourcequotas/none")["status"].get("hard"), 20, "the quota counts")
    operators.leader()
    api.create(manifest("job", namespace))
    message = scheduled(api, namespace, "job", "CreationRefused")
    assert "exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0" in message
    assert message.startswith(("Job job-learner-1: FailedCreate: ", "Deployment job-verifier: "))
    api.call("DELETE", f"/api/v1/namespaces/{namespace}/resourcequotas/none")
    assert_whole(api, namespace, "job", settled(api, namespace, "job"))


def test_pods_pass_pod_security_restricted_and_the_longest_name_fits(api, namespace, operators, fake_nodes):
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    api.call("PATCH", f"/api/v1/namespaces/{namespace}", label, "application/merge-patch+json")
    operators.leader()
    name = "a" * 40
    api.create(manifest(name, namespace))
    assert_whole(api, namespace, name, settled(api, namespace, name))


def test_a_job_that_fits_into_no_config_map(api, namespace, operators, fake_nodes):
    """The API server takes the job, and not the child that would hold it: nothing is half made."""
    operators.leader()
    api.create(manifest("job", namespace, rollouts={"engineArgs": {"chat-template-content": "x" * 1_100_000}}))
    accepted = wait_for(lambda: refused(api, namespace), 40, lambda: json.dumps(api.status(namespace, "job")))
    assert accepted["reason"] == "CreationRefused"
    assert 'ConfigMap "job-spec" is invalid' in accepted["message"]
    assert "Too long: may not be more than 1048576 bytes" in accepted["message"]
    assert api.children(namespace) == {}


def refused(api, namespace):
    accepted = api.condition(namespace, "job", "Accepted")
    return accepted if accepted.get("status") == "False" else None
