"""Jobs in queues of a real Kueue: admission places the pods, preemption and suspension give quota back, and whoever waits hears why."""

import json
import os
import subprocess
from dataclasses import dataclass

import pytest
from cluster_operator import manifest
from commands import kubectl, wait_for
from operator_rights import granted

from rlvr_api import names

pytestmark = [pytest.mark.usefixtures("fake_nodes"), pytest.mark.timeout(300)]
SETTINGS = ("kueue.enabled=true",)
USES_KUEUE = {"RLVR_KUEUE": "true"}
GPUS_OF_A_JOB = 2
CRD = "workloads.kueue.x-k8s.io"


@pytest.fixture
def chart_settings():
    return SETTINGS


@pytest.fixture(scope="module")
def kueue(api):
    """Kueue's definitions and manager."""
    found = kubectl("get", "crd", CRD, "--ignore-not-found", "-o", "name").strip()
    if not found and not os.environ.get("RLVR_NODE"):
        pytest.skip("needs Kueue 0.15 or newer on the cluster: let RLVR_NODE name a command that installs it by `$RLVR_NODE kueue`")
    if os.environ.get("RLVR_NODE"):
        subprocess.run([os.environ["RLVR_NODE"], "kueue"], check=True, timeout=120)


@dataclass(frozen=True)
class Team:
    """A LocalQueue with GPUs for one job at a time, and what belongs to it."""

    namespace: str

    def objects(self):
        group, name = f"{names.KUEUE_GROUP}/v1beta2", self.namespace
        quotas = [
            {"name": "nvidia.com/gpu", "nominalQuota": GPUS_OF_A_JOB},
            {"name": "cpu", "nominalQuota": 100},
            {"name": "memory", "nominalQuota": "1Ti"},
        ]
        fake = {
            "nodeLabels": {"type": "fake"},
            "tolerations": [{"key": "kwok.x-k8s.io/node", "operator": "Exists", "effect": "NoSchedule"}],
        }
        shares = [{"coveredResources": [one["name"] for one in quotas], "flavors": [{"name": name, "resources": quotas}]}]
        cluster_queue = {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
            "resourceGroups": shares,
            "preemption": {"withinClusterQueue": "LowerPriority"},
        }
        return [
            {"apiVersion": group, "kind": "ResourceFlavor", "metadata": {"name": name}, "spec": fake},
            {"apiVersion": group, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": cluster_queue},
            {"apiVersion": group, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": 1000},
            {"apiVersion": group, "kind": "LocalQueue", "metadata": {"name": "team", "namespace": name}, "spec": {"clusterQueue": name}},
        ]

    def job(self, name, is_urgent=False, **spec):
        queue = {"name": "team", **({"priorityClassName": self.namespace} if is_urgent else {})}
        asked = {
            "rollouts": {"gpusPerReplica": 1},
            "learner": {"gpus": 1},
            "verifiers": {"pod": {"resources": {"requests": {"cpu": "1"}}}},  # a flavor places only pods that ask for something of it
        }
        return manifest(name, self.namespace, fake=False, **{"scheduling": {"queue": queue}, **asked, **spec})

    def reserving(self):
        """Workloads that hold quota."""
        status = json.loads(kubectl("get", "clusterqueue", self.namespace, "-o", "json")).get("status", {})
        return status.get("reservingWorkloads", 0)


@pytest.fixture
def team(kueue, namespace):
    team = Team(namespace)
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": team.objects()}))
    yield team
    kubectl("-n", namespace, "delete", "rlvrjobs", "--all", "--wait=true", "--timeout=60s")
    kubectl("delete", "--wait=false", "--ignore-not-found", f"clusterqueue/{namespace}", f"resourceflavor/{namespace}")
    kubectl("delete", "--ignore-not-found", f"workloadpriorityclass/{namespace}")


def reach(api, team, job, phase, words=""):
    def there():
        status = api.status(team.namespace, job)
        return status.get("phase") == phase and words in status.get("message", "")

    wait_for(there, 60, lambda: f"{job} {phase} {words!r}: {json.dumps(api.status(team.namespace, job), indent=1)}")


def pods(api, team, job):
    return api.items("Pod", team.namespace, f"{names.LABEL_JOB}={job}")


def test_jobs_take_turns_and_each_hears_why_it_waits(api, team, operators, audit):
    audit.skip()
    operators.leader(**USES_KUEUE)
    api.create(team.job("first"))
    reach(api, team, "first", "Running")
    assert {pod["spec"]["nodeSelector"]["type"] for pod in pods(api, team, "first")} == {"fake"}, "placed by the flavor alone"
    assert api.condition(team.namespace, "first", "Admitted")["message"] == f"by ClusterQueue {team.namespace}"

    api.create(team.job("second"))
    reach(api, team, "second", "Queued", "insufficient unused quota for nvidia.com/gpu")
    assert pods(api, team, "second") == []

    api.create(team.job("urgent", is_urgent=True))
    reach(api, team, "urgent", "Running")
    reach(api, team, "first", "Queued")
    assert pods(api, team, "first") == []
    assert team.reserving() == 1

    api.delete("RLVRJob", team.namespace, "urgent")
    waiting = wait_for_one_running(api, team, "first", "second")
    running = ({"first", "second"} - {waiting}).pop()
    api.patch("RLVRJob", team.namespace, running, {"spec": {"suspend": True}})
    reach(api, team, running, "Suspended")
    reach(api, team, waiting, "Running")
    assert api.get("Workload", team.namespace, names.kueue_workload_name(running)) is None
    assert_rights_are_right(team, audit)


def wait_for_one_running(api, team, *jobs):
    """Returns the job that waits meanwhile."""
    phases = {}

    def there():
        phases.update({job: api.status(team.namespace, job)["phase"] for job in jobs})
        return sorted(phases.values()) == ["Queued", "Running"]

    wait_for(there, 60, lambda: f"one of {jobs} runs: {phases}")
    return next(job for job, phase in phases.items() if phase == "Queued")


def assert_rights_are_right(team, audit):
    """Nothing was denied; what the chart grants for queues was all used. `create` is checked for what is applied and not there yet."""
    requests = audit.requests()
    assert [one for one in requests if one.is_forbidden or one.code == 403] == []
    used = {one.right for one in requests}
    for_queues = granted(team.namespace, *SETTINGS) - granted(team.namespace)
    unused = for_queues - used - {(names.KUEUE_GROUP, "workloads", "create"), ("scheduling.k8s.io", "priorityclasses", "get")}
    assert unused - {(names.KUEUE_GROUP, "workloads", "get")} == set()


def test_a_queue_that_is_not_there_and_a_workload_that_is_put_aside_are_said_word_for_word(api, team, operators):
    operators.leader(**USES_KUEUE)
    api.create(team.job("lost", scheduling={"queue": {"name": "nowhere"}}))
    reach(api, team, "lost", "Queued", "LocalQueue nowhere doesn't exist")
    api.create(team.job("aside"))
    reach(api, team, "aside", "Running")
    workload = names.kueue_workload_name("aside")
    api.patch("Workload", team.namespace, workload, {"spec": {"active": False}})
    reach(api, team, "aside", "Queued", "set its spec.active to true")
    assert pods(api, team, "aside") == []
    wait_for(lambda: team.reserving() == 0, 30, "the quota is back")
    api.patch("Workload", team.namespace, workload, {"spec": {"active": True}})
    reach(api, team, "aside", "Running")


def test_the_operator_may_die_while_a_job_waits_runs_or_leaves(api, team, operators):
    """What it finds is enough: one Workload, no pod without quota, quota back in the end."""
    operators.leader(**USES_KUEUE)
    api.create(team.job("held"))
    reach(api, team, "held", "Running")
    operators.running[-1].kill()
    api.patch("Workload", team.namespace, names.kueue_workload_name("held"), {"spec": {"active": False}})
    operators.leader(**USES_KUEUE)
    reach(api, team, "held", "Queued")
    operators.running[-1].kill()
    api.patch("Workload", team.namespace, names.kueue_workload_name("held"), {"spec": {"active": True}})
    operators.leader(**USES_KUEUE)
    reach(api, team, "held", "Running")
    assert len(api.items("Workload", team.namespace)) == 1
    api.delete("RLVRJob", team.namespace, "held")
    wait_for(lambda: team.reserving() == 0 and api.items("Workload", team.namespace) == [], 60, "Workload and quota are gone")


def test_without_the_switch_a_job_that_names_a_queue_is_refused_with_the_way_out(api, team, operators):
    operators.leader()
    api.create(team.job("early"))
    wait_for(lambda: api.condition(team.namespace, "early", "Accepted").get("status") == "False", 30, "an answer")
    refused = api.condition(team.namespace, "early", "Accepted")
    assert (refused["reason"], "kueue.enabled" in refused["message"]) == ("QueueUnavailable", True)
    assert api.children(team.namespace, "early") == {}
    api.patch("RLVRJob", team.namespace, "early", {"spec": {"scheduling": {"queue": None}}})
    wait_for(lambda: pods(api, team, "early"), 30, "pods, without a queue")
