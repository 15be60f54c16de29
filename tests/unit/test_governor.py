"""The governor: by hand, and what holds whatever a run shows it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.algorithms import CORRECTION_KINDS
from rlvr_api.off_policy import OffPolicy
from rlvr_trainer.governor import LAST_NOTCH, GovernorState, Numbers, describe, govern, in_force

GOOD = Numbers(kl=0.001, ess=0.98, clip_fraction=0.0, staleness=2)
MIDDLING = replace(GOOD, kl=0.04)
"""Within the bounds, and not at less than half of them."""
HIGH = replace(GOOD, kl=0.08)
ABSURD = replace(GOOD, kl=2.0)


def settings(staleness=8, correction=None, **governor):
    return OffPolicy.model_validate({
        "maxStaleness": staleness, "dropBeyond": 16, "correction": correction or {"tokenTruncated": {"cap": 5.0}},
        "governor": {"healthySteps": 3, **governor},
    })  # fmt: skip


def follow(off_policy, numbers, state=GovernorState()):  # noqa: B008 - frozen
    """The states after each step, and the kinds of actions."""
    states, kinds = [], []
    for shown in numbers:
        state, actions = govern(off_policy, state, shown)
        states.append(state)
        kinds.append([action.kind for action in actions])
    return states, kinds


def bounds(off_policy, state):
    now = in_force(off_policy, state)
    return now.max_staleness, now.drop_beyond, now.correction.cap


def test_each_notch_halves_staleness_and_the_caps_distance_from_1():
    rungs = [bounds(settings(), GovernorState(notch)) for notch in range(LAST_NOTCH + 1)]
    assert rungs == [(8, 16, 5.0), (4, 16, 3.0), (2, 16, 2.0), (1, 16, 1.5), (0, 16, 1.25)]
    limited = settings(minStaleness=3, minCap=2.5)
    assert [bounds(limited, GovernorState(notch)) for notch in range(3)] == [(8, 16, 5.0), (4, 16, 3.0), (3, 16, 2.5)]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (HIGH, "KL 0.08 is above maxKl 0.05"),
        (replace(GOOD, ess=0.3), "effective sample size 0.3 is below minEss 0.5"),
        (replace(GOOD, clip_fraction=0.7), "clip fraction 0.7 is above maxClipFraction 0.5"),
        (replace(GOOD, kl=float("nan"), ess=0.3), "effective sample size"),
    ],
)
def test_a_bound_that_is_crossed_tightens_and_says_why(numbers, words):
    state, (action,) = govern(settings(), GovernorState(calm=2), numbers)
    assert (action.kind, action.max_staleness, action.cap) == ("tighten", 4, 3.0)
    assert words in str(action)
    assert str(action).endswith("maxStaleness is now 4, cap 3")
    assert state == GovernorState(1, settling=4)


def test_one_cause_tightens_once_until_what_was_admitted_before_is_used_up():
    states, kinds = follow(settings(staleness=4), [HIGH] * 9)
    assert kinds == [["tighten"], [], [], ["tighten"], [], ["tighten"], [], ["tighten"], ["pause"]]
    assert [bounds(settings(staleness=4), state)[0] for state in states] == [2, 2, 2, 1, 1, 0, 0, 0, 0]
    assert [state.notch for state in states] == [1, 1, 1, 2, 2, 3, 3, 4, 4]


def test_an_absurd_step_pauses_at_once_and_drops_what_is_stale():
    state, (action,) = govern(settings(), GovernorState(), ABSURD)
    assert action.kind == "pause"
    assert bounds(settings(minStaleness=2), state) == (0, 0, 1.25)
    assert describe(settings(), state).mode == "paused"


def test_a_pause_ends_with_the_first_step_within_bounds_and_stays_tight():
    (paused, resumed), kinds = follow(settings(), [ABSURD, MIDDLING])
    assert kinds == [["pause"], ["resume"]]
    assert resumed == GovernorState(paused.notch)
    assert bounds(settings(), resumed) == (0, 16, 1.25)


def test_fresh_tokens_beyond_a_bound_are_said_once_to_be_no_staleness():
    fresh = replace(HIGH, staleness=0)
    _, kinds = follow(settings(), [ABSURD, HIGH, fresh, fresh, HIGH, GOOD])
    assert kinds == [["pause"], [], ["pause"], [], [], ["resume"]]
    state, _ = govern(settings(), GovernorState(), ABSURD)
    _, (action,) = govern(settings(), state, fresh)
    assert "engines and learner compute different things" in str(action)


def test_it_loosens_by_one_notch_after_healthy_steps_in_a_row():
    _, kinds = follow(settings(), [GOOD, GOOD, MIDDLING, GOOD, GOOD, GOOD, GOOD, GOOD, GOOD], GovernorState(2))
    assert kinds == [[], [], [], [], [], ["loosen"], [], [], ["loosen"]]
    _, kinds = follow(settings(), [GOOD] * 5)
    assert kinds == [[]] * 5


def test_a_step_that_trained_nothing_says_nothing_and_no_governor_does_nothing():
    state = GovernorState(2, calm=1)
    assert govern(settings(), state, None) == (state, ())
    free = OffPolicy()
    assert govern(free, GovernorState(), ABSURD) == (GovernorState(), ())
    assert in_force(free, GovernorState()) is free


@pytest.mark.parametrize("kind", CORRECTION_KINDS)
def test_every_correction_keeps_its_kind_and_other_settings(kind):
    written = {"low": 0.25, "high": 3.0} if kind.endswith("masked") else {"cap": 3.0} if kind.endswith("truncated") else {}
    off_policy = OffPolicy.model_validate({"correction": {kind: written}, "governor": {}})
    now = in_force(off_policy, GovernorState(1))
    assert now.correction.kind == kind
    assert now.correction.cap == (None if kind == "none" else 2.0)
    if kind.endswith("masked"):
        assert getattr(now.correction, kind).low == 0.25


numbers = st.none() | st.builds(
    Numbers,
    kl=st.floats(0, 1) | st.just(float("inf")),
    ess=st.floats(0.01, 1),
    clip_fraction=st.floats(0, 1),
    staleness=st.integers(0, 8),
)


@st.composite
def governed(draw):
    staleness, cap = draw(st.integers(0, 64)), draw(st.floats(1, 10))
    correction = draw(st.sampled_from([{"tokenTruncated": {"cap": cap}}, {"sequenceMasked": {"high": cap + 0.1}}, {"none": {}}]))
    if "none" in correction:
        staleness = max(1, staleness)
    least = draw(st.integers(0, staleness)), draw(st.floats(1, cap))
    return OffPolicy.model_validate({
        "maxStaleness": staleness, "dropBeyond": 100, "correction": correction,
        "governor": {"minStaleness": least[0], "minCap": least[1], "healthySteps": draw(st.integers(1, 5))},
    })  # fmt: skip


@given(governed(), st.lists(numbers, max_size=60))
def test_it_stays_within_the_spec_and_moves_the_right_way(off_policy, shown):
    governor, state = off_policy.governor, GovernorState()
    cap = off_policy.correction.cap
    for numbers in shown:
        before, (state, actions) = in_force(off_policy, state), govern(off_policy, state, numbers)
        now = in_force(off_policy, state)
        assert now.max_staleness == 0 if state.paused else governor.min_staleness <= now.max_staleness <= off_policy.max_staleness
        assert now.correction.cap == cap is None or governor.min_cap <= now.correction.cap <= cap
        assert 0 <= state.notch <= LAST_NOTCH
        assert len(actions) <= 1
        if now != before:
            assert len(actions) == 1  # nothing changes in silence
        for action in actions:
            assert (action.max_staleness, action.cap) == (now.max_staleness, now.correction.cap)
            if action.kind in ("tighten", "pause"):
                assert now.max_staleness <= before.max_staleness
                assert cap is None or now.correction.cap <= before.correction.cap
            else:
                assert now.max_staleness >= before.max_staleness
                assert cap is None or now.correction.cap >= before.correction.cap


@given(governed(), st.lists(numbers, max_size=40), st.integers(0, 40))
def test_a_state_that_was_written_down_goes_on_as_if_nothing_had_happened(off_policy, shown, cut):
    straight, kinds = follow(off_policy, shown)
    first, _ = follow(off_policy, shown[:cut])
    kept = json.loads(json.dumps((first[-1] if first else GovernorState()).to_json()))
    second, rest = follow(off_policy, shown[cut:], GovernorState.from_json(kept))
    assert first + second == straight
    assert rest == kinds[cut:]


@given(governed(), st.lists(numbers, max_size=40))
def test_from_everywhere_bad_steps_lead_to_a_pause_and_good_ones_back(off_policy, shown):
    state = (follow(off_policy, shown)[0] or [GovernorState()])[-1]
    worst = follow(off_policy, [HIGH] * (2 * off_policy.max_staleness + 20), state)[0][-1]
    assert worst.paused
    healthy = follow(off_policy, [GOOD] * ((LAST_NOTCH + 1) * off_policy.governor.healthy_steps + 1), worst)[0][-1]
    assert (healthy.notch, healthy.paused) == (0, False)
    assert in_force(off_policy, healthy) is off_policy


def test_a_state_of_another_program_is_refused():
    with pytest.raises(ValueError, match="no state of a governor"):
        GovernorState.from_json({"level": 3})
    assert GovernorState.from_json(None) == GovernorState()
