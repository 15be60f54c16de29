"""The reconciler on a simulated API server: what it writes, in which order, and that dying after any write does no harm."""

import pytest
from operator_jobs import OWNER, manifest
from simulated_cluster import SimulatedCluster
from simulated_operator import SimulatedOperator, use_simulated_time

from rlvr_api import names
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.process import ExitCode, Role
from rlvr_api.status import Progress
from rlvr_operator.observe import controller_uid
from rlvr_operator.reconcile import read_status


@pytest.fixture
def cluster():
    cluster = SimulatedCluster()
    cluster.put_job(manifest())
    return cluster


@pytest.fixture
def clock(monkeypatch):
    return use_simulated_time(monkeypatch)


@pytest.fixture
def operator(cluster, clock):
    return SimulatedOperator(cluster, clock)


def owned_by_nobody(cluster):
    """Children whose owner is gone, controllers' pods included."""
    uids = {item["metadata"]["uid"] for item in cluster.objects.values()}
    return [slot for slot, item in cluster.objects.items() if slot[0] not in (names.KIND, "Event") and controller_uid(item) not in uids]


def live(operator, kill_at=None):
    """A whole life: start, run, lose the learner, be scaled, suspended, resumed, finish, be cleaned up.

    Args:
        kill_at: the operator dies after this many of its writes, counted over the whole life.
    """
    cluster, deadline = operator.cluster, 0 if kill_at is None else kill_at

    def turn(rounds=5):
        for _ in range(rounds):
            left = deadline - len(cluster.writes)
            if operator.look(kill_at=left if left > 0 else None) != "done":
                operator.look()
            cluster.run_controllers()
            cluster.stop_deleted()
            cluster.run()
            cluster.advance(1)

    turn(6)
    operator.learner_ends(1)
    turn(6)
    cluster.put_job(manifest(rollouts={"replicas": 2}))
    turn()
    cluster.put_job(manifest(rollouts={"replicas": 2}, suspend=True))
    turn(8)
    assert operator.status.phase is Phase.SUSPENDED
    cluster.put_job(manifest(rollouts={"replicas": 2}))
    turn(8)
    assert operator.status.phase is Phase.RUNNING
    operator.learner_ends(ExitCode.DONE)
    turn(2)
    cluster.advance(61)
    turn()
    assert operator.status.phase is Phase.SUCCEEDED
    cluster.advance(3600)
    turn()
    return len(cluster.writes)


def test_the_first_look_writes_status_then_what_pods_need_then_pods(operator, cluster):
    operator.look()
    verbs = [(verb, kind) for verb, kind, _ in cluster.writes if kind != "Event"]
    assert verbs[:3] == [("status", "RLVRJob"), ("create", "Secret"), ("apply", "ConfigMap")]
    assert verbs.index(("apply", "Job")) > max(verbs.index(("apply", kind)) for kind in ("ServiceAccount", "Service", "NetworkPolicy"))
    assert not [kind for _, kind in verbs if kind == "StatefulSet"]


def test_a_settled_job_costs_no_request(operator, cluster, monkeypatch):
    operator.bring_up()
    assert operator.status.phase is Phase.RUNNING
    before = len(cluster.writes)
    for name in ("get", "list"):
        monkeypatch.setattr(cluster, name, None)
    for _ in range(5):
        assert operator.look() == "done"
        cluster.advance(7)
    assert len(cluster.writes) == before


def test_a_restart_of_the_operator_writes_nothing(operator, cluster):
    operator.bring_up()
    before = len(cluster.writes)
    operator.restart()
    operator.settle()
    assert len(cluster.writes) == before


def test_progress_alone_is_written_at_most_every_half_minute(operator, cluster):
    operator.bring_up()
    (pod,) = cluster.pods(Role.LEARNER)

    def at(step):
        return Progress(stage="climb", stage_index=0, stages=1, step=step, steps=20, last_updated=cluster.now, weight_version=step)

    operator.progress[pod["metadata"]["uid"]] = at(1)
    operator.settle()
    before = len(cluster.writes)
    for step in range(2, 13):
        cluster.advance(2.9)
        operator.progress[pod["metadata"]["uid"]] = at(step)
        operator.look()
    assert [write[0] for write in cluster.writes[before:]] == ["status"]
    assert operator.status.progress.step == 12
    cluster.advance(2)
    operator.progress[pod["metadata"]["uid"]] = at(13)
    operator.look()
    assert operator.status.progress.step == 12
    assert operator.queue.seconds == [pytest.approx(28)]


@pytest.fixture(scope="module")
def writes_of_a_life():
    with pytest.MonkeyPatch.context() as patch:
        cluster = SimulatedCluster()
        cluster.put_job(manifest())
        operator = SimulatedOperator(cluster, use_simulated_time(patch))
        return live(operator)


def test_dying_after_any_write_of_a_life_leaves_no_duplicate_and_no_orphan(clock, writes_of_a_life):
    for kill_at in range(1, writes_of_a_life + 1):
        cluster = SimulatedCluster()
        jobs = {}
        cluster.on_write = lambda item, jobs=jobs: item["kind"] == "Job" and jobs.setdefault(item["metadata"]["name"], item)
        cluster.put_job(manifest(failure_policy={"maxLearnerRestarts": 1}))
        operator = SimulatedOperator(cluster, clock)
        live(operator, kill_at)
        assert operator.lives == 2, f"write {kill_at} was never reached"
        assert owned_by_nobody(cluster) == [], kill_at
        assert not cluster.pods(), kill_at
        attempts = [int(item["metadata"]["labels"][names.LABEL_ATTEMPT]) for item in jobs.values()]
        assert attempts == sorted(set(attempts)), kill_at
        assert len(attempts) == 3, kill_at
        assert operator.status.execution_attempt <= 4, kill_at


def condition(operator, kind):
    return next(condition for condition in operator.status.conditions if condition.type == kind)


def test_an_object_of_somebody_else_is_named_and_nothing_of_it_or_of_the_job_is_written(operator, cluster):
    theirs = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "arithmetic-learner", "namespace": OWNER.namespace},
        "spec": {"ports": [{"port": 80}]},
    }  # fmt: skip
    before = cluster.put_job(theirs)
    operator.look()
    assert cluster.objects["Service", "arithmetic-learner"] == before
    accepted = condition(operator, ConditionType.ACCEPTED)
    assert (accepted.status, accepted.reason) == ("False", Reason.NAME_CONFLICT)
    assert "Service arithmetic-learner exists and belongs to nobody in particular" in accepted.message
    assert operator.status.execution_attempt == 0, "no number is spent"
    children = {slot for slot in cluster.objects if slot[0] not in (names.KIND, "Event")}
    assert children == {("Service", "arithmetic-learner")}
    assert operator.queue.seconds, "it looks again"
    cluster.remove("Service", "arithmetic-learner")
    operator.bring_up()
    assert condition(operator, ConditionType.ACCEPTED).status == "True"
    assert operator.status.phase is Phase.RUNNING


def test_a_job_of_the_same_name_waits_for_what_the_earlier_one_left(operator, cluster):
    operator.bring_up()
    first = operator.item["metadata"]["uid"]
    cluster.remove(names.KIND, OWNER.name)
    cluster.put_job(manifest())
    assert operator.item["metadata"]["uid"] != first
    operator.look()
    assert condition(operator, ConditionType.ACCEPTED).reason is Reason.NAME_CONFLICT
    assert "belongs to an earlier job" in condition(operator, ConditionType.ACCEPTED).message
    for _ in range(4):
        cluster.run_controllers()
        cluster.stop_deleted()
    operator.bring_up()
    assert operator.status.phase is Phase.RUNNING
    assert owned_by_nobody(cluster) == []
    assert {controller_uid(item) for item in cluster.of("ConfigMap")} == {operator.item["metadata"]["uid"]}


def test_a_job_that_no_pod_could_run_is_refused_with_the_place_and_the_next_step(operator, cluster):
    cluster.put_job(manifest(model={"uri": "file:///models/base"}))
    operator.look()
    accepted = condition(operator, ConditionType.ACCEPTED)
    assert (accepted.status, accepted.reason) == ("False", Reason.INVALID_SPEC)
    assert accepted.message.startswith("spec.model.uri: file:///models/base is a folder")
    assert not cluster.of("ConfigMap")
    before = len(cluster.writes)
    operator.look()
    assert len(cluster.writes) == before, "it is said once"


def test_a_spec_that_becomes_impossible_leaves_what_runs_as_it_is(operator, cluster):
    operator.bring_up()
    pods = cluster.pods()
    cluster.put_job(manifest(model={"uri": "file:///models/base"}))
    operator.settle()
    assert condition(operator, ConditionType.ACCEPTED).status == "False"
    assert cluster.pods() == pods


def test_after_a_conflict_what_was_met_is_read_anew_and_the_next_look_needs_no_watch(operator, cluster):
    operator.bring_up()
    cluster.put_job(manifest(rollouts={"replicas": 2}))
    operator.cluster.deliver(operator.cache)
    cluster.put_job(manifest(rollouts={"replicas": 3}))
    assert operator.look(fresh=False) == "conflict"
    assert operator.look(fresh=False) == "done"
    assert cluster.objects["StatefulSet", "arithmetic-rollout"]["spec"]["replicas"] == 3


def test_after_a_conflict_with_an_object_that_is_gone_it_is_made_anew(operator, cluster):
    operator.bring_up()
    cluster.put_job(manifest(rollouts={"replicas": 2}))
    operator.cluster.deliver(operator.cache)
    cluster._drop(cluster.objects["StatefulSet", "arithmetic-rollout"])
    assert operator.look(fresh=False) == "conflict"
    assert operator.look(fresh=False) == "done"
    assert cluster.objects["StatefulSet", "arithmetic-rollout"]["spec"]["replicas"] == 2


def test_an_object_that_somebody_changed_is_put_right_once(operator, cluster):
    operator.bring_up()
    item = cluster.objects["StatefulSet", "arithmetic-rollout"]
    cluster._store({**item, "spec": {**item["spec"], "replicas": 7}})
    before = len(cluster.writes)
    operator.settle()
    assert [kind for verb, kind, _ in cluster.writes[before:] if verb == "apply"] == ["StatefulSet"]
    assert cluster.objects["StatefulSet", "arithmetic-rollout"]["spec"]["replicas"] == 1


def test_a_status_of_another_version_keeps_the_attempt(caplog):
    known = {"phase": "Running", "executionAttempt": 7, "restarts": 2}
    item = {"metadata": {"name": "arithmetic"}, "status": {**known, "novelty": {"of": "a later version"}}}
    status = read_status(item)
    assert (status.phase, status.execution_attempt, status.restarts) == (Phase.RUNNING, 7, 2)
    assert "not of this version" in caplog.text
    assert read_status({"metadata": {"name": "a"}, "status": {"phase": "Dreaming", "executionAttempt": 3}}).execution_attempt == 3
    assert read_status({"metadata": {"name": "a"}}).execution_attempt == 0
