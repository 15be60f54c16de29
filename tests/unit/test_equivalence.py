"""Quick decisions and the two-stage parser change no verdict of math-verify."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from latex2sympy2_extended import latex2sympy2
    from math_verify import parse, verify
    from math_verify.parser import parse_latex_cached
    from sympy import srepr

from rlvr_verifier.environments.equivalence import TwoStageParser, _decide, _parse, are_equivalent

PAIRS = {
    ("x^2-7", r"(x-\sqrt{7})(x+\sqrt{7})"): True,
    ("x^2-7", "x^2-8"): False,
    ("2x", "2y"): False,
    (r"\sqrt{12}", r"2\sqrt{3}"): True,
    (r"\sqrt{12}", r"2\sqrt{2}"): False,
    (r"\frac{7}{x}", "7x^{-1}"): True,
    (r"\sin^2(x)", r"1-\cos^2(x)"): True,
    (r"e^{i\pi}", "-1"): False,
    ("0.333333", r"\frac{1}{3}"): True,
    (r"25\%", "0.25"): True,
    (r"25\%", "25"): True,
    ("(1,2)", "(2,1)"): False,
    (r"\{x, y\}", r"\{y, x\}"): True,
    ("[0,1)", "[0,1]"): False,
    (r"\sqrt{x^2}", "x"): False,
    (r"\sqrt{x^2}", "|x|"): True,
    (r"\frac{1}{0}", r"\frac{2}{0}"): False,
    (r"\infty", r"-\infty"): False,
    ("1+", "1"): False,
}
TEXTS = (
    *{text for pair in PAIRS for text in pair}, "x^2", "2^{10}x_1", r"\frac{x^2+1}{x-1}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"\log_2 8", "f(x)", "x!", "3x^2y-2xy^2", r"\pi r^2", r"-\frac{3}{4}", "1,000", r"\left(1,\infty\right)", r"\sum_{k=1}^n k",
)  # fmt: skip
LEAVES = st.sampled_from(["x", "y", "2", "3", "7", r"\sqrt{2}", r"\pi", r"\frac{1}{3}"])
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda part: st.one_of(
        st.builds("{}+{}".format, part, part),
        st.builds("({})({})".format, part, part),
        st.builds("({})^2".format, part),
        st.builds(r"\frac{{{}}}{{{}}}".format, part, part),
        st.builds("-({})".format, part),
    ),
    max_leaves=4,
)


def by_math_verify(gold, answer):
    """The verdict without anything of ours but the parser."""
    return bool(verify(_parse(gold), _parse(answer), strict=True, timeout_seconds=0))


@pytest.mark.parametrize(("pair", "equal"), PAIRS.items(), ids=map(str, PAIRS))
def test_the_verdict_is_that_of_math_verify(pair, equal):
    assert are_equivalent(*pair) == by_math_verify(*pair) == equal


@given(gold=EXPRESSIONS, answer=EXPRESSIONS)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_clear_is_what_math_verify_finds(gold, answer):
    clear = _decide(_parse(gold), _parse(answer))
    assert clear is None or clear == by_math_verify(gold, answer)


def test_most_is_clear():
    """Or none of it would be faster."""
    pairs = [("x^2-7", "x^2-8"), (r"\sqrt{12}", r"2\sqrt{3}"), (r"\frac{7}{x}", "7x^{-1}"), ("3x+1", "1+3x"), (r"\pi r^2", r"2\pi r")]
    assert all(_decide(_parse(gold), _parse(answer)) is not None for gold, answer in pairs)


POWERS = (
    "x^2", "2x^2", "x^2 y", "xy^2", "x^{-1}", "x_1^2", "3x^{2}y^{3}-z^4", "x^2(x+1)", "x^2/y^2", "-x^2", "x^x", "x^{x^2}", r"x^\frac{1}{2}",
    r"\frac{4}{3}\pi r^3", "x^2=4", "(x^2,y^2)", r"\{x^2,1\}", "[x^2,3)", "x^2!", "|x^2|", r"\log x^2", r"\sin x^2", r"\sin^2 x",
    "f^{-1}(x)", "e^x", "x^23", "2^{x^2}", r"\alpha^2", "ab^2", "x^ 2", r"\frac{d^2y}{dx^2}",
)  # fmt: skip


@pytest.mark.parametrize("text", POWERS)
def test_a_power_that_is_spelled_with_braces_is_the_same(text):
    def tree(found):
        return [srepr(one) if hasattr(one, "args") else str(one) for one in found if not isinstance(one, str)]

    assert tree(_parse(text)) == tree(parse(f"\\boxed{{{text}}}", parsing_timeout=0))


@pytest.mark.parametrize("text", sorted(TEXTS))
def test_two_stages_give_the_tree_of_full_context(text, monkeypatch):
    def parsed():
        parse_latex_cached.cache_clear()
        return [srepr(one) if hasattr(one, "args") else one for one in parse(f"\\boxed{{{text}}}", parsing_timeout=0)]

    two_stages = parsed()
    monkeypatch.setattr(latex2sympy2, "PSParser", TwoStageParser.__bases__[0])
    assert parsed() == two_stages
