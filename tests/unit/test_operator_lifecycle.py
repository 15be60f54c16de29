"""What the operator decides as a job starts, and as it loses its learner."""

import pytest
from decided_world import World

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
