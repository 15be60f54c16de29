"""Asserts that are read as calls: what is read, what it means, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_verifier.environments.asserts import Assertion, NotRewritableError, Relation, read_asserts

literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(literals, literals, literals)
def test_what_an_assert_says_is_read_back(one: object, two: object, expected: object) -> None:
    (read,) = read_asserts(f"assert f({one!r}, {two!r}) == {expected!r}", "f")
    assert read == Assertion((one, two), Relation.EQUAL, expected)
    assert read.holds(expected)
    assert not read.holds([expected])


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_closeness_is_what_python_says(expected: float, found: float) -> None:
    (isclose,) = read_asserts(f"assert math.isclose(f(0), {expected!r}, rel_tol=0.01)", "f")
    (difference,) = read_asserts(f"assert abs({expected!r} - f(0)) < 0.5", "f")
    (approx,) = read_asserts(f"assert f(0) == pytest.approx({expected!r})", "f")
    assert difference.holds(found) is (abs(expected - found) < 0.5)
    assert approx.holds(found) is (found == pytest.approx(expected))
    # Of the expected value; Python's is of the larger of both, which differs within a hundredth of a hundredth.
    if abs(abs(found - expected) - 0.01 * abs(expected)) > 1e-3 * abs(expected):
        assert isclose.holds(found) is math.isclose(found, expected, rel_tol=0.01)


@pytest.mark.parametrize(
    ("source", "pays", "refuses"),
    [
        ("assert f(2) == 9", [9, 9.0], [10, "9", [9], None]),
        ("assert 9 == f(2), 'a message'", [9], [8]),
        ("assert f() is None", [None], [0, False, ""]),
        ("assert f(1) is True", [True], [1, "x"]),
        ("assert f(1)", [True], [1, "x", [0], False]),
        ("assert not f(1)", [False], [0, None, "", True]),
        ("assert f((1, -2)) == {'a': {1, 2}}", [{"a": {2, 1}}], [{"a": {1}}]),
        ("assert abs(f(1) - 2.5) <= 1e-2", [2.5, 2.505], [2.52, math.nan, math.inf, "2.5"]),
        ("import math\ndef check(candidate):\n    assert candidate(3) == 4\ncheck(f)", [4], [3]),
        ("METADATA = {'author': 'x'}\n\ndef check(g):\n    '''Doc.'''\n    assert g('a') == 'b'", ["b"], ["a"]),
    ],
)
def test_forms(source: str, pays: list[object], refuses: list[object]) -> None:
    (read,) = read_asserts(source, "f")
    assert [read.holds(value) for value in pays] == [True] * len(pays)
    assert [read.holds(value) for value in refuses] == [False] * len(refuses)


def test_an_integer_that_no_double_holds_has_a_verdict() -> None:
    large = 10**400
    (near,) = read_asserts("assert abs(f(1) - 2) <= 1e-6", "f")
    assert not near.holds(large)
    assert not near.holds(-large)
    (same,) = read_asserts(f"assert f(1) == pytest.approx({large})", "f")
    assert same.holds(large)
    assert not same.holds(1.0)


def test_a_test_is_read_without_a_warning() -> None:
    assert read_asserts("assert f('\\d') == 1", "f")


@pytest.mark.parametrize(
    "source",
    [
        "assert g(1) == 2", "assert f(x) == 2", "assert f(1) == g(1)", "assert f(1) == 1 + 1", "assert f(k=1) == 2", "assert f(1) != 2",
        "assert f(1) in (1, 2)", "assert f(1) == 2 == 2", "x = 1\nassert f(x) == 1", "for i in (1, 2):\n    assert f(i) == i",
        "assert f(f(1)) == 2", "assert f(1) is 7", "assert len(f(1)) == 2", "assert f(1) == __import__('os').system('x')", "assert True",
        "f(1)", "", "def check(c):\n    x = c(1)\n    assert x == 1", "assert (", "(" * 5000, "assert f(1) == pytest.approx([1.0])",
        "assert f(1) == pytest.approx(1.0, nan_ok=True)", "assert math.isclose(f(1))", "assert f(*[1]) == 1",
        "assert f(1) == pytest.approx()", "assert f(1) == pytest.approx(1.0, 0.5)", f"assert abs(f(1) - 2) < 1{'0' * 400}",
        f"a{'.a' * 900} = 1",
        f"assert a{'.a' * 900}(1)", f"x = 0x{'f' * 4_000}",
    ],
)  # fmt: skip
def test_what_is_no_call_with_literals_is_refused(source: str) -> None:
    with pytest.raises(NotRewritableError):
        read_asserts(source, "f")
