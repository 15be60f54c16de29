"""Names derived from the longest job name stay valid DNS labels, and no two parts share one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api import names
from rlvr_api.process import Role

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
JOB_NAMES = st.from_regex(LABEL, fullmatch=True).filter(lambda name: len(name) <= names.MAX_JOB_NAME)


@given(JOB_NAMES, st.integers(1, 9_999_999_999))
def test_child_names_are_labels(job, attempt):
    made = [names.child_name(job, Role.ROLLOUT), names.child_name(job, Role.VERIFIER), names.child_name(job, Role.LEARNER, attempt)]
    for name in made:
        assert LABEL.fullmatch(name)
        assert len(name) <= names.MAX_LABEL
    assert len(set(made)) == len(made)


def test_a_stateful_set_keeps_room_for_its_pods():
    """Kubernetes makes pods `<name>-<ordinal>`, and labels them with `<name>-<hash of 10 characters>`."""
    name = names.child_name("a" * names.MAX_JOB_NAME, Role.ROLLOUT)
    for suffix in ("-9999", "-" + 10 * "f"):
        assert len(name + suffix) <= names.MAX_LABEL


@pytest.mark.parametrize(("role", "attempt"), [(Role.LEARNER, None), (Role.ROLLOUT, 1)])
def test_only_learners_have_attempts(role, attempt):
    with pytest.raises(ValueError, match="only a learner"):
        names.child_name("job", role, attempt)


def test_selector_picks_the_labels_of_every_attempt():
    for part in names.selector("job", Role.LEARNER).split(","):
        key, _, value = part.partition("=")
        assert names.labels("job", Role.LEARNER, 7)[key] == value


def test_workload_names_are_those_the_learner_expects():
    """The learner numbers engines by their place in RLVR_ENGINE_URLS."""
    assert [names.workload_name(Role.ROLLOUT, n) for n in (0, 1)] == ["rollout-0", "rollout-1"]
    assert names.workload_name(Role.LEARNER, 0) == "learner"
