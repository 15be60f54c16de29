"""The rules of restarts, without processes: back-off, budgets, status, and what a begun run may change."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.changes import fixed_changes
from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.loading import load_job
from rlvr_api.process import Role
from rlvr_api.status import Progress, RewardTrust, RLVRJobStatus, RoleStatus, Termination, WaitShares
from rlvr_operator.backoff import Backoff
from rlvr_operator.local.supervision import SETTLED_SECONDS, Streak
from rlvr_operator.local.view import PlainView, duration, panel, step_line
from rlvr_operator.observation import Ending, Observation
from rlvr_operator.status import next_status

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EXAMPLE = Path(__file__).parents[2] / "examples" / "02-tiny.yaml"


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_within_its_bounds(failures, unit_random):
    backoff = Backoff(base_seconds=1.0, maximum_seconds=60.0, jitter=0.25)
    assert 0.75 <= backoff.delay_seconds(failures, unit_random) <= 75.0


def test_backoff_doubles_until_its_maximum():
    backoff = Backoff(base_seconds=1.0, maximum_seconds=10.0, jitter=0.0)
    assert [backoff.delay_seconds(n, 0.5) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_budget_counts_failures_in_a_row_without_becoming_ready():
    streak = Streak(limit=2)
    assert [streak.record(None), streak.record(None), streak.record(None)] == [True, True, False]
    streak = Streak(limit=2)
    assert all(streak.record(ready) for ready in (None, 1.0, None, 1.0, None, 1.0))


def test_a_crash_loop_that_becomes_ready_slows_down_until_it_settles():
    streak = Streak(limit=2)
    for _ in range(4):
        streak.record(1.0)
    assert streak.unsettled == 4
    streak.record(SETTLED_SECONDS)
    assert streak.unsettled == 1


def roles(rollout=(1, 1), verifier=1, learner=1, **more):
    return (
        RoleStatus(name=Role.ROLLOUT, ready=rollout[0], desired=rollout[1], **more),
        RoleStatus(name=Role.VERIFIER, ready=verifier, desired=1),
        RoleStatus(name=Role.LEARNER, ready=learner, desired=1),
    )


SPEC = load_job(EXAMPLE.read_bytes()).spec
RAN_BEFORE = RLVRJobStatus(running_since=NOW)
AT_LEAST_TWO = SPEC.model_copy(update={"rollouts": SPEC.rollouts.model_copy(update={"min_available": 2})})


def observed(seen_roles, ending=None, progress=None, spec=SPEC):
    return Observation(spec, seen_roles, attempt=1, failures=0, progress=progress, ending=ending)


@pytest.mark.parametrize(
    ("before", "seen", "phase"),
    [
        (None, observed(()), Phase.PROVISIONING),
        (None, observed(roles(rollout=(0, 1), learner=0)), Phase.PROVISIONING),
        (None, observed(roles(rollout=(0, 1))), Phase.PROVISIONING),
        (None, observed(roles()), Phase.RUNNING),
        (None, observed(roles(rollout=(1, 2))), Phase.RUNNING),
        (RAN_BEFORE, observed(roles(rollout=(0, 2))), Phase.RECOVERING),
        (RAN_BEFORE, observed(roles(rollout=(1, 2)), spec=AT_LEAST_TWO), Phase.RECOVERING),
        (RAN_BEFORE, observed(roles(rollout=(1, 1)), spec=AT_LEAST_TWO), Phase.RUNNING),
        (RAN_BEFORE, observed(roles(verifier=0)), Phase.RECOVERING),
        (RAN_BEFORE, observed(roles(learner=0)), Phase.RECOVERING),
        (None, observed(roles(rollout=(0, 0))), Phase.RUNNING),
        (None, observed(roles(), ending=Ending(Phase.COMPLETING, Reason.ALL_STAGES_FINISHED, "")), Phase.COMPLETING),
    ],
)
def test_phase_follows_from_what_is_observed(before, seen, phase):
    assert next_status(before, seen, NOW).phase is phase


def condition(status, kind):
    return next(condition for condition in status.conditions if condition.type is kind)


def test_transition_times_move_only_with_the_status():
    first = next_status(None, observed(roles(rollout=(1, 2))), NOW)
    later = next_status(first, observed(roles(rollout=(0, 2))), NOW + timedelta(seconds=5))
    ready = next_status(later, observed(roles(rollout=(2, 2))), NOW + timedelta(seconds=9))
    times = [condition(status, ConditionType.ROLLOUTS_READY).last_transition_time for status in (first, later, ready)]
    assert times == [NOW, NOW, NOW + timedelta(seconds=9)]
    assert [condition(status, ConditionType.ROLLOUTS_READY).reason for status in (first, later, ready)] == [
        Reason.SOME_NOT_READY, Reason.STARTING, Reason.ALL_READY,
    ]  # fmt: skip


def test_a_missing_engine_is_explained_by_its_last_words():
    end = Termination(exit_code=-9, message="Killed", time=NOW)
    status = next_status(None, observed(roles(rollout=(0, 1), last_termination=end)), NOW)
    found = condition(status, ConditionType.ROLLOUTS_READY)
    assert (found.reason, found.message) == (Reason.RESTARTING, "0 of 1 engines answer; exit code -9: Killed")


def test_refused_input_makes_the_job_unaccepted_and_failed():
    status = next_status(None, observed(roles(), ending=Ending(Phase.FAILED, Reason.INVALID_SPEC, "line 3\nis bad")), NOW)
    assert condition(status, ConditionType.ACCEPTED).status == "False"
    assert condition(status, ConditionType.FAILED).message == "line 3 is bad"
    assert condition(status, ConditionType.ROLLOUTS_READY).reason is Reason.RUN_ENDED


def with_spec(job, **fields):
    return job.spec.model_copy(update=fields)


def test_how_a_run_is_carried_out_may_change_and_what_is_trained_may_not():
    job = load_job(EXAMPLE.read_bytes())
    spec = job.spec
    more_engines = with_spec(job, rollouts=spec.rollouts.model_copy(update={"replicas": 3}))
    assert fixed_changes(spec, more_engines) == ()
    other_seed = with_spec(job, seed=7, rollouts=more_engines.rollouts)
    assert fixed_changes(spec, other_seed) == ("spec.seed was 0 and is now 7",)
    larger = spec.stages[0].model_copy(update={"rlvr": spec.stages[0].rlvr.model_copy(update={"group_size": 4})})
    assert fixed_changes(spec, with_spec(job, stages=(larger,))) == ("spec.stages[0].rlvr.groupSize was 8 and is now 4",)


def test_every_changeable_path_exists():
    from rlvr_api.changes import CHANGEABLE
    from rlvr_api.schema import schema_at, structural_schema
    from rlvr_api.spec import RLVRJobSpec

    schema = structural_schema(RLVRJobSpec)
    assert [path for path in CHANGEABLE if schema_at(schema, path) is None] == []


def progress(step):
    return Progress(
        stage="climb",
        stage_index=0,
        stages=1,
        step=step,
        steps=9,
        reward=0.25,
        pass_rate=0.25,
        held_out_pass_rate=0.5,
        level={"sums": 1},
        tokens_per_second=120.4,
        staleness=0.5,
        weight_version=step,
        checkpoint_step=0,
        eta_seconds=75,
        wait_shares=WaitShares(generate=0.75, train=0.25),
        bottleneck="generate",
        message="collecting [bold]groups[/bold]",
        last_updated=NOW,
    )


def test_plain_view_prints_each_step_once():
    stream = io.StringIO()
    view = PlainView("job", stream)
    for step in (1, 1, 2):
        view.update(next_status(None, observed(roles(), progress=progress(step)), NOW))
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    assert [line.partition("  ")[0] for line in lines] == ["job is Running", "climb step 1/9", "climb step 2/9"]
    assert "reward 0.250  pass 0.250  held-out 0.500  level sums 1  tokens/s 120  staleness 0.50" in lines[1]
    assert lines[1].endswith("bottleneck generate  ETA 1:15")


def test_a_distrusted_reward_is_shown_with_every_step():
    trust = RewardTrust(status="False", reason=Reason.HACK_RATE_EXCEEDED, message="environment sums pays wrong answers")
    assert "reward not to be believed HackRateExceeded" in step_line(progress(3).model_copy(update={"reward_trust": trust}))
    believed = trust.model_copy(update={"status": "True", "reason": Reason.BOUNDS_HELD})
    assert "believed" not in step_line(progress(3).model_copy(update={"reward_trust": believed}))


def test_panel_shows_everything_that_is_known_and_no_markup_of_others():
    from rich.console import Console

    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    console.print(panel("job", next_status(None, observed(roles(), progress=progress(3)), NOW), elapsed_seconds=61))
    text = console.file.getvalue()
    for part in (
        "job  Running",
        "climb (1/1)",
        "3/9",
        "ETA 1:15",
        "held-out 0.500",
        "generate 75%",
        "bottleneck generate",
        "engines 1/1",
        "1:01",
    ):
        assert part in text
    assert "collecting [bold]groups[/bold]" in text


@pytest.mark.parametrize(("seconds", "text"), [(4.2, "0:04"), (75, "1:15"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert duration(seconds) == text
