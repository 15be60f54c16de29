"""What the operator decides as a job is edited, scaled, suspended, reaches its bounds, and ends."""

import pytest
from decided_world import World

from rlvr_api import names
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.process import ExitCode, Role


@pytest.fixture
def running():
    """A job that runs, at step 3."""
    world = World()
    assert world.bring_up(step=3).status.phase is Phase.RUNNING
    return world


def fail(world):
    world.cluster.end(world.learner(), 1, message="error: the store is gone")


# new settings


def test_new_settings_of_the_learner_end_the_attempt_in_order_and_no_two_learners_live(running):
    old = running.learner()["metadata"]["name"]
    running.edit(learner={"checkpoint": {"everySteps": 5}})
    running.settle()
    assert running.status.execution_attempt == 2
    assert running.jobs() == []
    assert "deletionTimestamp" in running.cluster.objects["Pod", old]["metadata"]
    running.drain()
    assert running.jobs() == [2]
    assert running.status.restarts == 0


def test_new_settings_of_engines_replace_one_while_the_others_serve():
    world = World(rollouts={"replicas": 3})
    world.bring_up()
    before = world.uids(Role.ROLLOUT)
    world.edit(rollouts={"replicas": 3, "engineArgs": {"max-num-seqs": 64}})
    for replaced in range(1, 4):
        world.settle()
        assert sum("deletionTimestamp" in pod["metadata"] for pod in world.cluster.pods(Role.ROLLOUT)) == 1
        world.cluster.stop_deleted()
        world.settle()
        assert len(before.items() - world.uids(Role.ROLLOUT).items()) == replaced
        world.cluster.run(Role.ROLLOUT)
    assert not world.settle().deletions
    assert world.status.execution_attempt == 1


def test_engines_that_do_not_serve_are_replaced_at_once_by_new_settings():
    world = World(rollouts={"replicas": 3})
    world.bring_up()
    engines = world.cluster.pods(Role.ROLLOUT)
    for pod in engines[:2]:
        world.cluster.end(pod, 1)
    world.edit(rollouts={"replicas": 3, "engineArgs": {"max-num-seqs": 64}})
    world.look()
    gone = [pod["metadata"]["name"] for pod in world.cluster.pods(Role.ROLLOUT) if "deletionTimestamp" in pod["metadata"]]
    assert gone == [pod["metadata"]["name"] for pod in engines[:2]]


def test_an_engine_that_only_a_new_process_helps_is_replaced(running):
    running.wait(60)
    engine = {"status": "lost", "reason": "its NCCL context is broken", "needs_restart": True}
    running.progress = running.progress_at(4, engines={"rollout-0": engine})
    running.look()
    (pod,) = running.cluster.pods(Role.ROLLOUT)
    assert "deletionTimestamp" in pod["metadata"]
    running.cluster.stop_deleted()
    running.settle()
    running.cluster.run(Role.ROLLOUT)
    running.settle()  # the report is older than the new pod
    (pod,) = running.cluster.pods(Role.ROLLOUT)
    assert "deletionTimestamp" not in pod["metadata"]
    assert running.status.execution_attempt == 1


def test_scaling_restarts_nothing(running):
    learner, engines = running.uids(Role.LEARNER), running.uids(Role.ROLLOUT)
    running.edit(rollouts={"replicas": 3})
    running.bring_up(step=4)
    assert running.uids(Role.ROLLOUT).items() > engines.items()
    running.edit(rollouts={"replicas": 1})
    running.settle()
    running.cluster.stop_deleted()
    running.settle()
    assert (running.uids(Role.LEARNER), running.uids(Role.ROLLOUT)) == (learner, engines)
    assert (running.status.execution_attempt, running.status.rollout_replicas, running.status.phase) == (1, 1, Phase.RUNNING)


def test_an_upgrade_of_the_operator_changes_no_image_of_a_running_attempt(running):
    running.site = type(running.site)(images=dict.fromkeys(Role, "newer"))
    uids = [running.uids(role) for role in Role]
    decision = running.settle()
    assert (decision.deletions, [running.uids(role) for role in Role]) == ((), uids)
    fail(running)
    running.wait(2)
    running.settle()
    assert set(running.status.images.values()) == {"newer"}


# a reward that cannot be believed


def distrusted(world, **progress):
    """The learner pauses the job, as `integrity.onViolation: Pause` has it."""
    trust = {"status": "False", "reason": "HackRateExceeded", "message": "environment sums pays wrong answers in 9 % of the rollouts"}
    world.progress = world.progress_at(7, reward_trust=trust, **progress)
    world.cluster.end(world.learner(), ExitCode.UNTRUSTWORTHY)
    world.settle()


def test_a_paused_job_frees_its_engines_and_says_why_and_how_to_go_on(running):
    distrusted(running)
    running.cluster.stop_deleted()
    running.wait(600)
    running.settle()
    status = running.status
    assert (status.phase, status.reason, status.execution_attempt) == (Phase.SUSPENDED, Reason.REWARD_NOT_TRUSTWORTHY, 1)
    assert not running.cluster.pods(Role.ROLLOUT)
    assert not running.cluster.pods(Role.VERIFIER)
    for part in ("set onViolation to Warn", "9 % of the rollouts"):
        assert part in status.message
    trust = running.condition(ConditionType.REWARD_TRUSTWORTHY)
    assert (trust.status, trust.reason, trust.message) == ("False", Reason.HACK_RATE_EXCEEDED, running.progress.reward_trust.message)


def test_a_job_that_was_rolled_back_says_where_to(running):
    distrusted(running, rollback={"number": 1, "fromStep": 31, "toStep": 7})
    assert "rolled back from step 31 to step 7 and paused by" in running.status.message
    assert "to go on from that step; found: environment sums" in running.status.message


def test_a_paused_job_goes_on_when_its_spec_is_changed_and_not_before(running):
    distrusted(running)
    running.cluster.stop_deleted()
    running.settle()
    assert running.jobs() == [1]
    running.edit(integrity={"onViolation": "Warn"})
    running.settle()
    running.drain()
    assert running.status.execution_attempt == 2
    assert running.bring_up(step=8).status.phase is Phase.RUNNING


# suspension


def test_suspend_lets_the_learner_commit_then_removes_every_pod_and_resume_goes_on():
    world = World()
    world.bring_up(step=3)
    world.edit(suspend=True)
    world.settle()
    assert world.status.phase is Phase.SUSPENDING
    assert world.cluster.of("StatefulSet")
    assert world.cluster.of("Deployment")
    world.drain()
    world.drain()
    assert not world.cluster.pods()
    assert world.status.phase is Phase.SUSPENDED
    assert world.condition(ConditionType.SUSPENDED).status == "True"
    assert not world.decide().deletions
    world.wait(100_000)
    assert world.decide().status.phase is Phase.SUSPENDED
    world.progress = None
    world.edit(suspend=False)
    world.settle()
    assert (world.status.phase, world.status.execution_attempt, world.status.restarts) == (Phase.PROVISIONING, 2, 0)
    assert world.status.start_time == world.cluster.now
    assert ConditionType.SUSPENDED not in {condition.type for condition in world.status.conditions}
    assert world.bring_up(step=3).status.phase is Phase.RUNNING


def test_a_job_resumed_while_its_learner_still_drains_waits_for_it(running):
    running.edit(suspend=True)
    running.settle()
    running.edit(suspend=False)
    running.settle()
    assert (running.status.execution_attempt, running.jobs()) == (2, [])
    running.drain()
    assert (running.status.execution_attempt, running.jobs(), running.status.restarts) == (2, [2], 0)


def test_a_job_that_is_suspended_from_the_start_has_no_pod():
    world = World(suspend=True)
    world.settle()
    assert world.status.phase is Phase.SUSPENDED
    assert world.status.execution_attempt == 0
    world.edit(suspend=False)
    world.settle()
    assert world.jobs() == [1]


def test_a_learner_that_finishes_while_it_is_asked_to_stop_has_finished(running):
    running.edit(suspend=True)
    running.settle()
    running.cluster.stop_deleted(ExitCode.DONE)  # ended, and not yet gone
    running.look()
    assert running.status.phase in (Phase.COMPLETING, Phase.SUCCEEDED)


# bounds


def test_a_job_that_never_runs_fails_at_its_deadline_and_says_what_it_waited_for():
    world = World(deadlines={"provisioningSeconds": 600})
    decision = world.settle()
    assert decision.look_again_at == world.later(600)
    pod = world.learner()
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    world.cluster.objects["Pod", pod["metadata"]["name"]] = {**pod, "status": {"phase": "Pending", "conditions": conditions}}
    world.settle()
    assert world.condition(ConditionType.SCHEDULED).status == "False"
    world.wait(601)
    world.settle()
    assert (world.status.phase, world.status.reason) == (Phase.FAILED, Reason.PROVISIONING_DEADLINE_EXCEEDED)
    assert message in world.status.message
    assert not world.cluster.of("Deployment")


def test_the_deadline_does_not_bind_a_job_that_ran(running):
    fail(running)
    running.wait(100_000)
    running.settle()
    assert running.status.phase is Phase.RECOVERING


@pytest.mark.parametrize("role", [Role.ROLLOUT, Role.VERIFIER])
def test_a_pod_that_crashes_for_ever_ends_the_job(role):
    world = World(failure_policy={"maxRoleRestarts": 2})
    world.bring_up()
    for _ in range(3):
        (pod,) = world.cluster.pods(role)
        world.cluster.end(pod, 3, message="error: no such device")
        world.settle()
    assert (world.status.phase, world.status.reason) == (Phase.FAILED, Reason.RESTART_BUDGET_EXHAUSTED)
    assert "no such device" in world.status.message
    assert "maxRoleRestarts 2" in world.status.message


def test_a_crash_loop_is_told_with_the_last_words_of_the_process(running):
    (pod,) = running.cluster.pods(Role.ROLLOUT)
    running.cluster.end(pod, 1, message="Traceback\nValueError: bad dtype\n")
    running.settle()
    condition = running.condition(ConditionType.ROLLOUTS_READY)
    assert condition.reason is Reason.CRASH_LOOPING
    assert condition.message.endswith("Error, exit code 1: ValueError: bad dtype")
    assert running.status.execution_attempt == 1
    assert running.uids(Role.LEARNER)


# a lost node


def test_no_new_learner_before_the_old_one_is_known_or_presumed_dead(running):
    running.cluster.lose_node(running.learner())
    for _ in range(12):
        running.wait(10)
        running.settle(2)
        assert running.status.execution_attempt == 1
    running.wait(11)
    assert [(deletion.kind, deletion.grace_seconds) for deletion in running.look().deletions] == [("Job", None), ("Pod", 0)]
    for _ in range(4):
        running.wait(1)
        running.settle(2)
    assert (running.status.execution_attempt, running.jobs()) == (2, [2])
    assert len(running.cluster.pods(Role.LEARNER)) == 1


def test_engines_of_a_lost_node_are_forgotten_so_that_others_take_their_names(running):
    (engine,) = running.cluster.pods(Role.ROLLOUT)
    running.cluster.lose_node(engine)
    running.wait(41)
    running.settle()
    (pod,) = running.cluster.pods(Role.ROLLOUT)
    assert pod["metadata"]["uid"] != engine["metadata"]["uid"]
    assert running.status.execution_attempt == 1


# the end


def test_a_finished_job_keeps_its_log_for_a_while_and_then_nothing():
    world = World(ttl={"rolloutsAfterFinishedSeconds": 60, "podsAfterFinishedSeconds": 600})
    world.bring_up(step=20)
    world.cluster.end(world.learner(), ExitCode.DONE)
    decision = world.settle()
    finished_at = world.cluster.now
    assert (world.status.phase, world.status.completion_time) == (Phase.COMPLETING, finished_at)
    assert world.condition(ConditionType.COMPLETE).status == "True"
    assert decision.look_again_at == world.later(60)
    assert world.cluster.pods(Role.ROLLOUT)
    world.wait(60)
    world.settle()
    world.cluster.stop_deleted()
    decision = world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert [pod["metadata"]["labels"][names.LABEL_ROLE] for pod in world.cluster.pods()] == ["learner"]
    assert decision.look_again_at == world.later(540)
    world.wait(540)
    world.settle()
    world.cluster.stop_deleted()
    assert not world.cluster.pods()
    decision = world.settle()
    assert (decision.deletions, decision.look_again_at, decision.status.completion_time) == ((), None, finished_at)


def test_engines_of_a_lost_node_do_not_keep_a_job_from_succeeding(running):
    (engine,) = running.cluster.pods(Role.ROLLOUT)
    running.cluster.end(running.learner(), ExitCode.DONE)
    running.settle()
    running.cluster.lose_node(engine)
    running.wait(61)
    running.settle()
    running.cluster.stop_deleted()
    running.wait(61)
    running.settle()
    assert running.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("code", [ExitCode.DONE, ExitCode.SUPERSEDED])
def test_an_end_is_for_good(running, code):
    running.cluster.end(running.learner(), code)
    running.settle()
    end, completed = running.status.phase, running.status.completion_time
    conditions = [condition for condition in running.status.conditions if condition.type in (ConditionType.COMPLETE, ConditionType.FAILED)]
    final = {Phase.COMPLETING, Phase.SUCCEEDED} if code == ExitCode.DONE else {Phase.FAILED}
    for edit in ({"suspend": True}, {"suspend": False}, {"rollouts": {"replicas": 4}}, {"model": {"uri": "s3://other"}}):
        running.edit(**edit)
        running.wait(1800)
        running.settle()
        assert running.status.phase in final
        assert running.status.completion_time == completed
        assert running.status.execution_attempt == 1
        now = [condition for condition in running.status.conditions if condition.type in (ConditionType.COMPLETE, ConditionType.FAILED)]
        assert [(c.type, c.status, c.last_transition_time) for c in now] == [(c.type, c.status, c.last_transition_time) for c in conditions]
        assert running.status.observed_generation == running.item["metadata"]["generation"]
    assert end in final


def test_a_failed_job_stops_what_costs_at_once(running):
    running.cluster.end(running.cluster.pods(Role.ROLLOUT)[0], 1)
    running.cluster.end(running.learner(), ExitCode.SUPERSEDED)
    running.settle()
    assert not running.cluster.of("StatefulSet")
    assert not running.cluster.of("Deployment")
    assert running.cluster.pods(Role.LEARNER), "its log stays"
