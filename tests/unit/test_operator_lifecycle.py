"""What the operator decides as a job starts, loses parts, is suspended, scaled, edited, and ends."""

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


def kinds(decision):
    return {item["kind"] for item in decision.objects}


# start


def test_a_new_job_gets_an_attempt_and_everything_but_engines():
    world = World()
    decision = world.decide()
    assert (decision.status.execution_attempt, decision.status.phase, decision.needs_seal) == (1, Phase.PROVISIONING, True)
    assert {"ConfigMap", "Deployment", "Job"} <= kinds(decision)
    assert "StatefulSet" not in kinds(decision)
    assert decision.objects[0]["kind"] == "ConfigMap"
    assert decision.status.images == dict(world.site.images)


def test_engines_start_once_the_learner_has_found_all_in_order():
    world = World()
    world.settle()
    world.cluster.run(Role.VERIFIER)
    world.cluster.start(world.learner())
    assert "StatefulSet" not in kinds(world.settle())
    assert world.condition(ConditionType.ROLLOUTS_READY).reason is Reason.WAITING_FOR_PREFLIGHT
    world.cluster.run(Role.LEARNER)
    assert "StatefulSet" in kinds(world.settle())
    world.cluster.run()
    decision = world.settle()
    assert decision.status.phase is Phase.RUNNING
    assert decision.status.running_since == world.cluster.now
    assert decision.status.rollouts_summary == "1/1"


def test_a_job_that_runs_needs_nothing_more(running):
    before = running.status
    decision = running.decide()
    assert decision.status == before
    assert (decision.deletions, decision.look_again_at) == ((), None)


def test_min_available_engines_are_enough_to_run():
    world = World(rollouts={"replicas": 3, "minAvailable": 2})
    world.bring_up()
    world.cluster.make_ready(world.cluster.pods(Role.ROLLOUT)[2], ready=False)
    assert world.settle().status.phase is Phase.RUNNING
    assert world.condition(ConditionType.ROLLOUTS_READY).message.startswith("2 of 3")
    world.cluster.make_ready(world.cluster.pods(Role.ROLLOUT)[1], ready=False)
    assert world.settle().status.phase is Phase.RECOVERING


# losing the learner


def fail(world):
    world.cluster.end(world.learner(), 1, message="error: the store is gone")


def crash_of_memory(world):
    world.cluster.end(world.learner(), 137, "OOMKilled")


def evict(world):
    world.cluster.evict(world.learner())


def delete_pod(world):
    world.cluster.remove("Pod", world.learner()["metadata"]["name"])
    world.cluster.stop_deleted()


def delete_pod_for_good(world):
    delete_pod(world)
    world.cluster.run_controllers()
    world.cluster.stop_deleted()
    assert not world.cluster.pods(Role.LEARNER)


def delete_job(world):
    (job,) = world.cluster.of("Job")
    world.cluster.remove("Job", job["metadata"]["name"])
    for _ in range(2):
        world.cluster.run_controllers()
        world.cluster.stop_deleted()


def lose_node(world):
    world.cluster.lose_node(world.learner())
    world.wait(world.learner()["spec"]["terminationGracePeriodSeconds"] + 11)


LOSSES = [fail, crash_of_memory, evict, delete_pod, delete_pod_for_good, delete_job, lose_node]


@pytest.mark.parametrize("lose", LOSSES, ids=lambda lose: lose.__name__)
def test_a_lost_learner_gets_a_new_attempt_within_seconds_while_engines_stay(running, lose):
    engines, verifiers = running.uids(Role.ROLLOUT), running.uids(Role.VERIFIER)
    lose(running)
    running.settle()
    assert running.status.phase is Phase.RECOVERING
    for _ in range(4):
        running.wait(0.75)
        running.settle(2)
    assert running.status.execution_attempt == 2
    assert running.jobs() == [2]
    assert (running.uids(Role.ROLLOUT), running.uids(Role.VERIFIER)) == (engines, verifiers)
    running.progress = None
    assert running.bring_up(step=3).status.phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("lose", "reason", "words"),
    [
        (fail, Reason.RESTARTING, "Error, exit code 1: the store is gone"),
        (crash_of_memory, Reason.OUT_OF_MEMORY, "OOMKilled, exit code 137"),
        (evict, Reason.EVICTED, "Evicted: The node was low on resource: memory."),
    ],
)
def test_the_loss_of_a_learner_is_told_in_the_words_of_who_knows(running, lose, reason, words):
    lose(running)
    running.look()
    condition = running.condition(ConditionType.LEARNER_READY)
    assert (condition.status, condition.reason) == ("False", reason)
    assert words in condition.message
    assert running.status.message == condition.message
    assert running.status.reason is reason


def test_the_next_attempt_waits_longer_after_each_failure_without_progress():
    world = World(failure_policy={"maxLearnerRestarts": 5})
    world.settle()
    waits = []
    for attempt in range(1, 5):
        assert world.status.execution_attempt == attempt
        world.cluster.start(world.learner())
        fail(world)
        world.settle()
        began = world.cluster.now
        while world.status.execution_attempt == attempt:
            world.wait(0.5)
            world.settle(2)
        waits.append((world.cluster.now - began).total_seconds())
    assert waits == [1, 2, 4, 8]


def test_a_wait_for_the_next_attempt_names_its_end(running):
    fail(running)
    decision = running.look()
    assert decision.look_again_at is not None
    assert 0 < (decision.look_again_at - running.cluster.now).total_seconds() <= 1


def end_attempts(world, count, code=1):
    for _ in range(count):
        world.cluster.end(world.learner(), code)
        world.settle()
        world.wait(61)
        world.settle()


def test_attempts_that_finish_no_step_use_up_the_budget(running):
    running.progress = running.progress_at(3)
    end_attempts(running, 3)
    assert running.status.restarts == 3
    assert running.status.phase is Phase.RECOVERING
    end_attempts(running, 1)
    assert (running.status.phase, running.status.reason) == (Phase.FAILED, Reason.RESTART_BUDGET_EXHAUSTED)
    assert "maxLearnerRestarts is 3" in running.status.message
    assert running.condition(ConditionType.FAILED).status == "True"


def test_an_attempt_that_finished_a_step_begins_the_count_anew(running):
    end_attempts(running, 3)
    running.settle()
    running.progress = running.progress_at(4)
    end_attempts(running, 1)
    assert (running.status.phase, running.status.restarts) == (Phase.RECOVERING, 1)


def test_an_orderly_stop_after_progress_counts_as_no_failure(running):
    running.progress = running.progress_at(7)
    running.cluster.end(running.learner(), ExitCode.SUSPENDED)
    running.wait(2)
    running.settle()
    assert (running.status.execution_attempt, running.status.restarts) == (2, 0)


def test_a_newer_attempt_that_has_committed_ends_the_job(running):
    running.cluster.end(running.learner(), ExitCode.SUPERSEDED, message="error: attempt 9 has committed")
    running.settle()
    assert (running.status.phase, running.status.reason) == (Phase.FAILED, Reason.SUPERSEDED)
    assert "attempt 9" in running.status.message


def test_the_number_of_an_attempt_whose_birth_nobody_saw_is_passed_over_and_costs_nothing():
    world = World(failure_policy={"maxLearnerRestarts": 0})
    world._write(world.decide().status)
    world.wait(30)
    decision = world.look()  # another process: it does not know that the Job was never created
    assert decision.status.execution_attempt == 2
    assert decision.status.restarts == 0
    assert world.jobs() == [2]


# preflight


def refuse(world):
    world.cluster.start(world.learner())
    world.cluster.end(world.learner(), ExitCode.BAD_INPUT, message="log line\nerror: s3://models/tiny: NoSuchBucket")


def test_a_refused_preflight_is_told_word_for_word_and_tried_again_for_nothing():
    world = World(failure_policy={"maxLearnerRestarts": 0})
    for attempt in range(1, 5):
        world.settle()
        world.cluster.run(Role.VERIFIER)
        assert world.status.execution_attempt == attempt
        refuse(world)
        world.look()
        assert world.status.phase is Phase.PROVISIONING
        assert world.status.reason is Reason.PREFLIGHT_REFUSED
        assert world.status.message.endswith("s3://models/tiny: NoSuchBucket")
        world.wait(61)
    assert world.status.restarts == 0


def test_a_refused_preflight_is_tried_again_at_once_when_the_spec_is_edited():
    world = World()
    world.settle()
    refuse(world)
    world.settle()
    assert world.status.execution_attempt == 1
    world.edit(model={"uri": "s3://models/tiny-2"})
    world.settle()
    assert world.status.execution_attempt == 2


def test_bad_input_after_the_job_ran_counts(running):
    running.cluster.end(running.learner(), ExitCode.BAD_INPUT, message="error: the checkpoint is of another model")
    running.wait(2)
    running.settle()
    assert running.status.restarts == 1


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
