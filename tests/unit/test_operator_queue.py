"""Jobs that name a queue: no pod without quota, quota back once no pod is left, and the words of the queue for whoever waits."""

import pytest
from operator_jobs import OWNER, SITE, make_job, manifest
from simulated_cluster import SimulatedCluster, stamp
from simulated_operator import SimulatedOperator, use_simulated_time

from rlvr_api import names
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.process import ExitCode, Role
from rlvr_operator.claims import claim_hash, read_claim
from rlvr_operator.kueue import NOT_THERE, TURNED_OFF, Kueue
from rlvr_operator.render.workload import workload

WORKLOAD = ("Workload", names.kueue_workload_name(OWNER.name))
FLAVOR = {
    "kind": "ResourceFlavor",
    "metadata": {"name": "h100", "namespace": "", "uid": "flavor", "resourceVersion": "1"},
    "spec": {"nodeLabels": {"gpu": "h100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
}


def queued(**sections):
    return manifest(**{"scheduling": {"queue": {"name": "team"}}, **sections})


class Queue:
    """Kueue, as far as it changes a Workload."""

    def __init__(self, cluster):
        self.cluster = cluster

    @property
    def item(self):
        return self.cluster.objects.get(WORKLOAD)

    def condition(self, kind):
        found = [entry for entry in self.item.get("status", {}).get("conditions", ()) if entry["type"] == kind]
        return found[0]["status"] if found else None

    def tell(self, *conditions, **status):
        told = {entry["type"]: entry for entry in self.item.get("status", {}).get("conditions", ())}
        for kind, value, reason, message in conditions:
            told[kind] = {
                "type": kind,
                "status": value,
                "reason": reason,
                "message": message,
                "lastTransitionTime": stamp(self.cluster.now),
            }
        self.cluster._store({**self.item, "status": {**self.item["status"], **status, "conditions": list(told.values())}})

    def admit(self, **counts):
        sets = [
            {"name": entry["name"], "count": counts.get(entry["name"], entry["count"]), "flavors": {"nvidia.com/gpu": "h100"}}
            for entry in self.item["spec"]["podSets"]
        ]
        self.tell(
            ("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", ""), ("Evicted", "False", "QuotaReserved", ""),
            admission={"clusterQueue": "gpus", "podSetAssignments": sets},
        )  # fmt: skip

    def evict(self, reason="Preempted", message="to accommodate a workload of higher priority"):
        self.tell(("Evicted", "True", reason, message))


@pytest.fixture
def cluster():
    cluster = SimulatedCluster()
    cluster.objects["ResourceFlavor", "h100"] = FLAVOR
    cluster.put_job(queued())
    return cluster


@pytest.fixture
def operator(cluster, monkeypatch):
    return SimulatedOperator(cluster, use_simulated_time(monkeypatch))


@pytest.fixture
def queue(cluster):
    return Queue(cluster)


@pytest.fixture
def running(operator, queue):
    operator.settle()
    queue.admit()
    operator.bring_up()
    assert operator.status.phase is Phase.RUNNING
    return operator


def admitted(operator):
    return next(condition for condition in operator.status.conditions if condition.type is ConditionType.ADMITTED)


def settle(operator):
    """Also what the operator takes its time to say."""
    operator.settle()
    operator.cluster.advance(31)
    operator.settle()


def drain(operator):
    """The job's pods end, as fast as nodes let them."""
    for _ in range(6):
        operator.settle()
        operator.cluster.run_controllers()
        operator.cluster.stop_deleted()
    settle(operator)


def test_without_quota_there_is_a_claim_and_no_pod_and_the_words_of_the_queue(operator, cluster, queue):
    operator.settle()
    cluster.run_controllers()
    assert cluster.pods() == []
    assert [(one["name"], one["count"]) for one in queue.item["spec"]["podSets"]] == [("learner", 1), ("rollout", 1), ("verifier", 1)]
    assert (operator.status.phase, admitted(operator).reason, operator.status.execution_attempt) == (
        Phase.QUEUED, Reason.WAITING_FOR_QUOTA, 0,
    )  # fmt: skip
    queue.tell(("QuotaReserved", "False", "Pending", "insufficient unused quota for nvidia.com/gpu"))
    settle(operator)
    assert "insufficient unused quota for nvidia.com/gpu" in operator.status.message


def test_waiting_costs_no_request(operator, cluster, monkeypatch):
    operator.settle()
    before = len(cluster.writes)
    for name in ("get", "list"):
        monkeypatch.setattr(cluster, name, None)
    for _ in range(3):
        assert operator.look() == "done"
        cluster.advance(7)
    assert len(cluster.writes) == before


def test_admitted_pods_go_where_the_flavor_is_and_kueue_hears_that_they_are_ready(running, cluster, queue):
    for role in Role:
        (pod,) = cluster.pods(role)
        assert pod["spec"]["nodeSelector"] == {"gpu": "h100"}
        assert {"key": "gpu", "operator": "Exists"} in pod["spec"]["tolerations"]
        assert pod["metadata"]["labels"][names.KUEUE_POD_SET] == role
        assert pod["metadata"]["annotations"][names.KUEUE_WORKLOAD] == WORKLOAD[1]
    assert queue.condition("PodsReady") == "True"
    assert (admitted(running).status, admitted(running).message) == ("True", "by ClusterQueue gpus")


def test_a_preempted_job_gives_its_quota_back_when_no_pod_is_left_and_goes_on_once_admitted_again(running, cluster, queue):
    queue.evict()
    settle(running)
    assert (running.status.phase, running.status.reason) == (Phase.SUSPENDING, Reason.EVICTED_BY_QUEUE)
    assert queue.condition("QuotaReserved") == "True", "pods are still there"
    drain(running)
    assert cluster.pods() == []
    assert (queue.condition("QuotaReserved"), queue.condition("Admitted"), queue.condition("Requeued")) == ("False", "False", "True")
    assert "admission" not in queue.item["status"]
    assert running.status.phase is Phase.QUEUED
    queue.admit()
    running.bring_up()
    assert (running.status.phase, running.status.execution_attempt, running.status.restarts) == (Phase.RUNNING, 2, 0)


def test_a_deactivated_workload_stays_out_until_a_person_says_otherwise(running, cluster, queue):
    cluster._store({**queue.item, "spec": {**queue.item["spec"], "active": False}})
    queue.evict("Deactivated", "The workload is deactivated")
    drain(running)
    assert queue.condition("Requeued") == "False"
    assert "set its spec.active to true" in running.status.message


def test_suspending_gives_the_claim_up_and_resuming_queues_anew(running, cluster, queue):
    before = queue.item["metadata"]["uid"]
    cluster.put_job(queued(suspend=True))
    drain(running)
    assert (queue.item, running.status.phase, admitted(running).reason) == (None, Phase.SUSPENDED, Reason.QUOTA_RELEASED)
    cluster.put_job(queued())
    running.settle()
    assert queue.item["metadata"]["uid"] != before
    assert cluster.pods() == []


def test_a_finished_job_frees_its_quota_and_says_so_for_good(running, cluster, queue):
    running.learner_ends(ExitCode.DONE)
    for _ in range(4):
        running.settle()
        cluster.advance(31)
        cluster.run_controllers()
        cluster.stop_deleted()
    assert running.status.phase is Phase.SUCCEEDED
    assert queue.condition("Finished") == "True"
    cluster.advance(1e6)
    settle(running)
    assert (admitted(running).status, admitted(running).reason) == ("False", Reason.QUOTA_RELEASED)


def test_asking_for_other_pods_queues_anew(running, cluster, queue):
    cluster.put_job(queued(learner={"pod": {"resources": {"requests": {"cpu": "2"}}}}))
    settle(running)
    assert running.status.reason is Reason.REQUESTS_CHANGED
    drain(running)
    assert queue.condition("Admitted") is None, "a new claim, which nobody has admitted"
    assert queue.item["spec"]["podSets"][0]["template"]["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "2"}


def test_more_engines_than_quota_are_not_started_and_fewer_give_theirs_back(running, cluster, queue):
    cluster.put_job(queued(rollouts={"replicas": 3}))
    running.bring_up()
    settle(running)
    assert len(cluster.pods(Role.ROLLOUT)) == 1
    assert "1 of 3 engines" in admitted(running).message
    cluster.put_job(queued(rollouts={"replicas": 3}, suspend=True))
    drain(running)
    cluster.put_job(queued(rollouts={"replicas": 3}))
    running.settle()
    queue.admit()
    running.bring_up()
    assert len(cluster.pods(Role.ROLLOUT)) == 3
    cluster.put_job(queued(rollouts={"replicas": 2}))
    running.settle()
    assert "reclaimablePods" not in queue.item["status"], "the third one still runs"
    for _ in range(3):
        cluster.run_controllers()
        cluster.stop_deleted()
        running.settle()
    assert queue.item["status"]["reclaimablePods"] == [{"name": "rollout", "count": 1}]


def test_a_job_that_leaves_its_queue_keeps_running(running, cluster, queue):
    uids = {pod["metadata"]["uid"] for pod in cluster.pods()}
    cluster.put_job(manifest())
    running.settle()
    cluster.run_controllers()
    assert queue.item is None
    assert {pod["metadata"]["uid"] for pod in cluster.pods()} == uids


@pytest.mark.parametrize("problem", ["off", "absent", "class"])
def test_a_queue_that_cannot_be_is_refused_with_the_way_out(operator, cluster, problem):
    wanted = {"off": TURNED_OFF, "absent": NOT_THERE, "class": "WorkloadPriorityClass urgent"}[problem]
    if problem == "off":
        operator.reconciler._kueue = Kueue(cluster, operator.cache, is_enabled=False)
    if problem == "absent":
        operator.cache.note_served("Workload", is_served=False)
    if problem == "class":
        cluster.put_job(queued(scheduling={"queue": {"name": "team", "priorityClassName": "urgent"}}))
    operator.look()
    refused = next(condition for condition in operator.status.conditions if condition.type is ConditionType.ACCEPTED)
    assert (refused.status, refused.reason) == ("False", Reason.QUEUE_UNAVAILABLE)
    assert wanted in refused.message
    assert [kind for _, kind, _ in cluster.writes if kind not in (names.KIND, "Event")] == []


def test_dying_after_any_write_of_a_queued_life_leaves_one_claim_and_no_pod_without_quota(monkeypatch):
    total = queued_life(monkeypatch, None)
    assert total > 20
    for write in range(1, total + 1):
        queued_life(monkeypatch, write)


def queued_life(monkeypatch, kill_at):
    """Wait, run, be preempted, run again, finish; returns the number of writes."""
    cluster = SimulatedCluster()
    cluster.objects["ResourceFlavor", "h100"] = FLAVOR
    cluster.put_job(queued())
    operator, queue = SimulatedOperator(cluster, use_simulated_time(monkeypatch)), Queue(cluster)

    def turn(rounds=6):
        for _ in range(rounds):
            left = 0 if kill_at is None else kill_at - len(cluster.writes)
            if operator.look(kill_at=left if left > 0 else None) != "done":
                operator.look()
            claim = read_claim(queue.item)
            cluster.run_controllers()
            assert (claim is not None and claim.is_reserved) or not cluster.pods(), "a pod without quota"
            cluster.stop_deleted()
            cluster.run()
            cluster.advance(1)

    turn()
    queue.admit()
    turn(8)
    assert operator.status.phase is Phase.RUNNING
    queue.evict()
    turn(8)
    assert (operator.status.phase, queue.condition("QuotaReserved")) == (Phase.QUEUED, "False")
    queue.admit()
    turn(8)
    assert operator.status.phase is Phase.RUNNING
    assert operator.status.execution_attempt in (2, 3), "a number whose Job may have been made is not used again"
    operator.learner_ends(ExitCode.DONE)
    turn(2)
    cluster.advance(61)
    turn()
    assert (operator.status.phase, queue.condition("Finished")) == (Phase.SUCCEEDED, "True")
    return len(cluster.writes)


def test_another_version_of_the_operator_evicts_nobody():
    job = make_job(scheduling={"queue": {"name": "team"}})
    other = make_job(scheduling={"queue": {"name": "team"}}, ttl={"podsAfterFinishedSeconds": 5}, rollouts={"replicas": 4})
    assert claim_hash(job) == claim_hash(other)
    assert claim_hash(job) != claim_hash(make_job(scheduling={"queue": {"name": "other"}}))


def test_several_learner_pods_are_claimed_as_many():
    job = make_job(scheduling={"queue": {"name": "team"}}, learner={"nodes": 4})
    item = workload(job, OWNER, SITE, SITE.images, 0)
    assert {one["name"]: one["count"] for one in item["spec"]["podSets"]} == {"learner": 4, "rollout": 1, "verifier": 1}


def test_a_claim_without_a_status_waits(cluster, operator, queue):
    operator.settle()
    claim = read_claim(queue.item)
    assert (claim.is_reserved, claim.is_usable, claim.evicted) == (False, False, None)
