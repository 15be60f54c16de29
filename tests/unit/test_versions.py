"""Weight versions are never used twice, and a token's age counts optimizer steps."""

import pytest

from rlvr_trainer.versions import KEPT_VERSIONS, UnknownVersionError, VersionHistory


def test_versions_grow_and_know_their_step() -> None:
    history = VersionHistory()
    assert [history.publish(step) for step in (0, 1, 3)] == [0, 1, 2]
    assert (history.current, history.step_of(2)) == (2, 3)
    with pytest.raises(UnknownVersionError, match="version 7 was never published"):
        history.step_of(7)


def test_a_resumed_history_uses_no_number_that_an_engine_may_have_seen() -> None:
    history = VersionHistory()
    for step in range(3):
        history.publish(step)
    resumed = VersionHistory()
    resumed.restore(history.state())
    resumed.reserve(9)
    resumed.reserve(4)
    assert resumed.publish(3) == 9
    assert resumed.step_of(1) == 1


def test_a_state_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="not a pair"):
        VersionHistory().restore([[1, "x"]])


def test_only_recent_versions_are_remembered() -> None:
    history = VersionHistory()
    for step in range(KEPT_VERSIONS + 5):
        history.publish(step)
    with pytest.raises(UnknownVersionError):
        history.step_of(4)
    assert history.step_of(5) == 5


def test_a_step_that_changes_no_weights_ages_no_version() -> None:
    history = VersionHistory()
    old, new = history.publish(4), history.publish(5)
    for _ in range(20):
        history.skip_step()
    assert 25 - history.step_of(new) == 0, "its groups are as fresh as any that could be sampled"
    assert 25 - history.step_of(old) == 1
    assert 26 - history.step_of(history.publish(26)) == 0
