"""The reconciler on a simulated API server: what it writes, in which order, and that dying after any write does no harm."""

import pytest
from operator_jobs import manifest
from simulated_cluster import SimulatedCluster
from simulated_operator import SimulatedOperator, use_simulated_time

from rlvr_api import names
from rlvr_api.conditions import Phase
from rlvr_api.process import ExitCode, Role
from rlvr_api.status import Progress
from rlvr_operator.observe import controller_uid


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
