"""A learner of several pods: what is rendered, when it counts as ready, and what the loss of one of them means."""

import pytest
from decided_world import World
from operator_jobs import OWNER, SITE, make_job

from rlvr_api import names
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.process import ExitCode, Role, Variable
from rlvr_operator import render
from rlvr_operator.attempts import LEAD_SECONDS
from rlvr_operator.observe import COMPLETION_INDEX

LEARNER = {"nodes": 3, "processesPerNode": 2}


@pytest.fixture
def running():
    """A job of three learner pods that runs, at step 3."""
    world = World(learner=LEARNER)
    assert world.bring_up(step=3).status.phase is Phase.RUNNING
    return world


def node(world, index, attempt=None):
    """The newest pod of that index."""
    pods = world.cluster.pods(Role.LEARNER, attempt)
    return [pod for pod in pods if pod["metadata"]["annotations"][COMPLETION_INDEX] == str(index)][-1]


def test_the_job_has_a_pod_for_each_node_that_find_the_first_by_its_name():
    job = make_job(learner=LEARNER, scheduling={"disruptionBudget": True, "topologyKey": "topology.kubernetes.io/zone"})
    item = render.learner(job, OWNER, SITE, SITE.images[Role.LEARNER], 4)
    spec, pod = item["spec"], item["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"], spec["backoffLimit"]) == ("Indexed", 3, 3, 0)
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert env[Variable.RENDEZVOUS_PORT] == "29400"
    assert env[Variable.ADVERTISED_HOST] == f"{OWNER.name}-learner-4-0.{OWNER.name}-learner.{OWNER.namespace}.svc"
    assert Variable.NODE_RANK not in env  # the Job controller sets it in each pod
    assert pod["affinity"]["podAffinity"]
    budgets = {item["metadata"]["name"]: item["spec"] for item in kinds(job, "PodDisruptionBudget")}
    assert budgets[f"{OWNER.name}-learner"]["minAvailable"] == 3


def kinds(job, kind):
    return [item for item in render.standing(job, OWNER, SITE) if item["kind"] == kind]


def test_pods_of_a_learner_reach_each_other_and_no_other_pods_do():
    job = make_job(learner=LEARNER)
    (policy,) = [item for item in kinds(job, "NetworkPolicy") if item["metadata"]["name"] == f"{OWNER.name}-learner"]
    mesh = policy["spec"]["ingress"][0]
    assert names.labels(OWNER.name, Role.LEARNER) in [peer["podSelector"]["matchLabels"] for peer in mesh["from"]]
    assert "ports" not in mesh


def test_one_pod_needs_no_rendezvous():
    item = render.learner(make_job(), OWNER, SITE, SITE.images[Role.LEARNER], 1)
    names_set = {entry["name"] for entry in item["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert Variable.RENDEZVOUS_PORT not in names_set
    assert (item["spec"]["completions"], item["spec"]["parallelism"]) == (1, 1)


def test_engines_start_when_the_lead_is_ready_and_not_when_others_are():
    world = World(learner=LEARNER)
    world.settle()
    world.cluster.run(Role.VERIFIER)
    for index in (1, 2):
        world.cluster.start(node(world, index))
        world.cluster.make_ready(node(world, index))
    world.settle()
    assert not world.cluster.of("StatefulSet")
    condition = world.condition(ConditionType.LEARNER_READY)
    assert condition.status == "False"
    assert condition.message == f"2 of 3 learners answer; 1 of 3 pods are missing: {OWNER.name}-learner-1-0 is not ready"
    world.cluster.run(Role.LEARNER)
    world.settle()
    assert world.cluster.of("StatefulSet")


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("how", ["fails", "deleted", "evicted", "node lost"])
def test_the_loss_of_any_pod_ends_the_attempt_and_the_next_begins_with_all(running, index, how):
    engines = running.uids(Role.ROLLOUT)
    pod = node(running, index)
    if how == "fails":
        running.cluster.end(pod, 137, "OOMKilled")
    elif how == "evicted":
        running.cluster.evict(pod)
    elif how == "deleted":
        running.cluster.remove("Pod", pod["metadata"]["name"])
        running.cluster.stop_deleted()
    else:
        running.cluster.lose_node(pod)
        running.wait(pod["spec"]["terminationGracePeriodSeconds"] + 11)
    running.settle()
    running.cluster.stop_deleted(1)  # the Job's controller ends the others
    running.settle()
    running.wait(LEAD_SECONDS + 1)
    for _ in range(4):
        running.settle(2)
        running.cluster.stop_deleted(1)
        running.wait(2)
    assert running.status.execution_attempt == 2
    running.settle()
    assert running.jobs() == [2]
    assert running.uids(Role.ROLLOUT) == engines
    running.progress = None
    assert running.bring_up(step=3).status.phase is Phase.RUNNING
    assert len(running.cluster.pods(Role.LEARNER, 2)) == 3


def test_a_lead_that_waits_in_vain_is_given_up_and_ends_before_the_next_attempt(running):
    running.cluster.end(node(running, 2), 137, "OOMKilled")
    decision = running.decide()
    assert decision.status.execution_attempt == 1
    assert decision.look_again_at == running.later(LEAD_SECONDS)
    running.wait(LEAD_SECONDS)
    decision = running.decide()
    assert decision.status.execution_attempt == 2
    assert "Job" not in {item["kind"] for item in decision.objects}
    assert [deletion.kind for deletion in decision.deletions] == ["Job"]


def test_the_pod_that_failed_first_is_named_and_not_those_that_ended_for_it(running):
    running.cluster.end(node(running, 1), 137, "OOMKilled")
    running.cluster.advance(0.1)
    running.cluster.end(node(running, 2), 1, message="error: connection closed")
    running.cluster.end(node(running, 0), 1, message="error: connection closed by peer")
    running.look()
    assert running.status.execution_attempt == 1
    condition = running.condition(ConditionType.LEARNER_READY)
    assert node(running, 1)["metadata"]["name"] in condition.message
    assert condition.reason is Reason.OUT_OF_MEMORY
    running.wait(60)
    running.look()
    assert running.status.execution_attempt == 2
    (learner,) = [role for role in running.status.roles if role.name is Role.LEARNER]
    assert learner.last_termination.exit_code == 137


@pytest.mark.parametrize("code", [ExitCode.BAD_INPUT, ExitCode.UNTRUSTWORTHY, ExitCode.SUSPENDED])
def test_what_the_lead_says_of_its_end_counts_also_when_others_ended_before(running, code):
    running.cluster.end(node(running, 1), 1, message="error: connection closed")
    running.wait(1)
    running.cluster.end(node(running, 2), 1, message="error: connection closed")
    running.cluster.end(node(running, 0), code, message="error: the dataset is empty")
    decision = running.decide()
    if code == ExitCode.UNTRUSTWORTHY:
        assert decision.status.phase is Phase.SUSPENDED
    else:
        assert decision.status.phase in (Phase.RECOVERING, Phase.PROVISIONING, Phase.FAILED)


def test_the_job_is_done_when_all_pods_are(running):
    for index in (1, 2):
        running.cluster.end(node(running, index), 0)
    assert running.settle().status.execution_attempt == 1
    assert running.status.phase is not Phase.SUCCEEDED
    running.cluster.end(node(running, 0), 0)
    running.settle()
    assert running.status.phase in (Phase.COMPLETING, Phase.SUCCEEDED)
