"""Who may reach a job's pods while its NetworkPolicies are enforced: its own pods and the operator, and nobody else.

Needs RLVR_NODE, the test node's command, or a cluster whose network plug-in enforces policies (RLVR_POLICIES=1 says that it does).
"""

import json
import os
import secrets

import pytest
from commands import kubectl, wait_for
from training_cluster import MONITORING, TAG

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (os.environ.get("RLVR_NODE") or os.environ.get("RLVR_POLICIES")), reason="needs a cluster that enforces NetworkPolicies"
    ),
]
TRY = """
import socket, sys, time

def reaches(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 4).close()
    except OSError:
        return False
    return True

opened, closed = (text.split() for text in sys.argv[1:])
deadline = time.monotonic() + 60
for target in opened:
    while not (found := reaches(target)) and time.monotonic() < deadline:
        time.sleep(0.5)
    print(target, "reached" if found else "refused")
for target in closed:
    print(target, "reached" if reaches(target) else "refused")
"""
"""What is open is tried until it is reached: a network plug-in hears of a new pod a moment later. What is closed is tried once."""


@pytest.fixture
def reach(job):
    """Tries to connect from a pod with given labels in a given namespace; asserts that it reaches what is open, and that alone."""
    made = []

    def attempt(namespace, labels, opened, closed):
        name = f"probe-{secrets.token_hex(3)}"
        made.append((namespace, name))
        container = {
            "name": "probe", "image": f"rlvr/verifier:{TAG}",
            "command": ["/opt/venv/bin/python", "-c", TRY, " ".join(opened), " ".join(closed)],
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True,
                                "seccompProfile": {"type": "RuntimeDefault"}},
        }  # fmt: skip
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }  # fmt: skip
        kubectl("apply", "-f", "-", text=json.dumps(pod))
        phase = ("get", "pod", name, "-o", "jsonpath={.status.phase}")
        wait_for(lambda: kubectl("-n", namespace, *phase) == "Succeeded", 90, lambda: kubectl("-n", namespace, "describe", "pod", name))
        found = dict(line.split() for line in kubectl("-n", namespace, "logs", name).splitlines())
        assert found == dict.fromkeys(opened, "reached") | dict.fromkeys(closed, "refused"), namespace

    yield attempt
    for namespace, name in made:
        kubectl("-n", namespace, "delete", "pod", name, "--wait=false")


def endpoints(job):
    """Address and port of an engine, a verifier and the learner."""
    ports = {"rollout": 8000, "verifier": 8081, "learner": 8082}
    return [f"{job.live_pods(role)[0]['status']['podIP']}:{port}" for role, port in ports.items()]


def test_a_foreign_pod_reaches_no_part_of_a_job(job, store, reach):
    closed = endpoints(job)
    open_to_all = f"{store.address()}:8333"
    for namespace in (job.namespace, "default"):
        reach(namespace, {"app": "stranger"}, opened=[open_to_all], closed=closed)
    job.steps_go_on(60)


def test_who_reads_metrics_reaches_learner_and_verifier_and_no_engine(job, reach):
    engine, verifier, learner = endpoints(job)
    reach(job.namespace, MONITORING, opened=[verifier, learner], closed=[engine])


def test_a_verifier_reaches_the_store_and_not_the_engines(job, store, reach):
    labels = {"rlvr.dev/job": job.name, "rlvr.dev/role": "verifier"}
    engine, _, learner = endpoints(job)
    shop = f"{store.address()}:8333"
    reach(job.namespace, labels, opened=[shop], closed=[engine, learner])
