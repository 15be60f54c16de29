"""Verifiers are added while completions wait, taken away slowly, and never swing."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from operator_jobs import NOW

from rlvr_operator.autoscale import LOWER_AFTER_SECONDS, RAISE_AFTER_SECONDS, Scale, next_scale

WAITS = st.none() | st.floats(0, 100)


def ago(seconds):
    return NOW - timedelta(seconds=seconds)


def test_a_queue_that_waits_gets_half_as_many_again_but_not_more_than_the_most():
    long_ago = ago(RAISE_AFTER_SECONDS + 1)
    assert next_scale(Scale(4, long_ago), 2, 20, 1.0, NOW) == Scale(6, NOW)
    assert next_scale(Scale(4, None), 2, 5, 1.0, NOW) == Scale(5, NOW)
    just = Scale(4, ago(RAISE_AFTER_SECONDS - 1))
    assert next_scale(just, 2, 20, 1.0, NOW) is just


def test_an_idle_queue_loses_one_after_a_while_but_not_the_last_ones():
    for wait in (None, 0.0):
        assert next_scale(Scale(4, ago(LOWER_AFTER_SECONDS + 1)), 2, 20, wait, NOW) == Scale(3, NOW)
        for kept in (Scale(4, ago(LOWER_AFTER_SECONDS - 1)), Scale(2, ago(LOWER_AFTER_SECONDS + 1))):
            assert next_scale(kept, 2, 20, wait, NOW) is kept


def test_between_the_bounds_nothing_changes():
    scale = Scale(4, None)
    assert next_scale(scale, 2, 20, 0.2, NOW) is scale


def test_new_limits_hold_at_once():
    just = ago(0)
    assert next_scale(Scale(9, just), 2, 5, 0.2, NOW) == Scale(5, NOW)
    assert next_scale(Scale(1, just), 3, 5, 0.2, NOW) == Scale(3, NOW)


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 50), WAITS, WAITS)
def test_it_stays_within_its_limits_and_changes_once_in_a_moment(replicas, least, more, first, second):
    once = next_scale(Scale(replicas, None), least, least + more, first, NOW)
    assert least <= once.replicas <= least + more
    twice = next_scale(once, least, least + more, second, NOW)
    assert once.changed is None or twice is once
