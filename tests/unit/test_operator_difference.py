"""An object with the API server's defaults is as wanted; one in which anything that was asked for differs is not."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlvr_operator.difference import is_as_wanted

GOLDEN = Path(__file__).parents[1] / "golden"
OBJECTS = [item for name in ("cpu", "full") for item in json.loads((GOLDEN / f"{name}.objects.json").read_text())]


def with_defaults(value):
    """As the API server answers: with more fields everywhere, and without empty ones."""
    if isinstance(value, dict):
        return {"addedByTheServer": 1, **{key: with_defaults(item) for key, item in value.items() if item not in ({}, [], None)}}
    return [with_defaults(item) for item in value] if isinstance(value, list) else value


def leaves(value, path=()):
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, (*path, key))
    else:
        yield path


@pytest.mark.parametrize("item", OBJECTS, ids=lambda item: f"{item['kind']}-{item['metadata']['name']}")
def test_an_object_with_defaults_is_as_wanted(item):
    assert is_as_wanted(with_defaults(item), item)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(OBJECTS), st.data())
def test_any_other_value_is_a_difference(item, data):
    path = data.draw(st.sampled_from(list(leaves(item))))
    observed = with_defaults(copy.deepcopy(item))
    place = observed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = "something else"
    assert not is_as_wanted(observed, item)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(OBJECTS), st.data())
def test_any_missing_value_is_a_difference(item, data):
    path = data.draw(st.sampled_from([path for path in leaves(item) if isinstance(path[-1], str)]))
    observed = with_defaults(copy.deepcopy(item))
    place = observed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    assert not is_as_wanted(observed, item)


@pytest.mark.parametrize(
    ("observed", "wanted", "same"),
    [
        ("500m", "0.5", True), ("16Mi", "16384Ki", True), (1, 1.0, True), ("1", 1, True), ("1Gi", "1G", False),
        (True, 1, True), ("a", "b", False),
        ([{"name": "b"}, {"name": "a"}], [{"name": "a"}, {"name": "b"}], True),
        ([{"name": "a"}, {"name": "b"}], [{"name": "a"}], False),
        (["a", "b"], ["b", "a"], False),
        ({"limits": {}}, {"limits": None}, True), ({}, {"limits": {}}, True), ({}, {"limits": {"cpu": "1"}}, False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same(observed, wanted, same):
    assert is_as_wanted({"x": observed}, {"x": wanted}) is same
