"""SIGKILL to the engine, the verifier, the S3 server, the learner and the whole run, in a real job: real vLLM, real S3, real verifier.

Nothing but what was killed starts again, the job succeeds, and the records stay a chain that only grows.
"""

import random
import time

import pytest

pytestmark = pytest.mark.timeout(1200)  # for a busy machine
SERVICES = ("rollout-0", "verifier-0", "s3")
PARTS = {*SERVICES, "learner"}


def kill_and_check(run, name):
    """Kill one part, or the whole run; returns the records that were committed before."""
    before, earlier = run.parts(), run.records()
    run.kill(name)
    after = run.parts()
    spared = PARTS - {name} if name != "run" else set()
    assert {part: after[part] for part in spared} == {part: before[part] for part in spared}, run.said()
    return earlier


def test_services_are_killed_and_nothing_else_starts_again(make_run):
    run = make_run("services", steps=24)
    run.start()
    earlier = {}
    for number, name in enumerate(SERVICES):
        run.wait_for_step(4 + 5 * number)
        earlier |= kill_and_check(run, name)
    run.finish()
    assert len(earlier) >= 14
    run.check_exactly_once(earlier, 24)
    restarts = {role["name"]: role["restarts"] for role in run.status()["roles"]}
    assert restarts == {"rollout": 1, "verifier": 1, "learner": 0}
    assert run.status()["executionAttempt"] == 1


def test_the_learner_and_then_the_whole_run_are_killed_and_go_on(make_run):
    run = make_run("learner", steps=20)
    run.start()
    run.wait_for_step(5)
    earlier = kill_and_check(run, "learner")
    run.wait_for_step(12)
    earlier |= kill_and_check(run, "run")
    run.finish()
    assert len(earlier) >= 12
    run.check_exactly_once(earlier, 20)
    assert run.status()["executionAttempt"] == 3
    assert "<html" in (run.folder / "report.html").read_text()


@pytest.mark.long
def test_kills_at_random_moments(make_run):
    moments = random.Random(1)
    names = ["learner", "learner", "learner", *SERVICES, "run"]
    moments.shuffle(names)
    run = make_run("random", steps=60)
    run.start()
    earlier, step = {}, 0
    for name in names:
        step += moments.randint(1, 5)
        run.wait_for_step(step)
        time.sleep(moments.random())  # the moment within a step, from a committed record to a half-written checkpoint
        earlier |= kill_and_check(run, name)
        step = max(step, len(earlier))
    run.finish()
    run.check_exactly_once(earlier, 60)
