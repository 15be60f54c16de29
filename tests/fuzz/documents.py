"""Documents, tests, patterns, texts and replies of a judge, as a model or a dataset writes them."""

import json
import math
import re
from typing import Any

from pydantic import JsonValue

from rlvr_verifier.environments import instructions, json_schema
from rlvr_verifier.environments.asserts import NotRewritableError, Relation, read_asserts
from rlvr_verifier.environments.base import Score
from rlvr_verifier.environments.constraints import fold
from rlvr_verifier.environments.judge import judged_part, read_verdict
from rlvr_verifier.environments.regex import RegexRow, try_pattern
from rlvr_verifier.environments.schemas import open_validator
from rlvr_verifier.environments.strict_json import MAX_DEPTH, MAX_DIGITS, NotStrictJsonError, parse_json, same
from rlvr_verifier.sandbox.canonical import encode
from tests.fuzz.target import Target, check_score, text_of

CODE = "c0de"
MAX_CHARACTERS = 64
"""Of a pattern, and of what a judge is shown."""
EXCLUDED = "caf\u00e9"
RETURNED = (None, True, 1, -(10**400), 1e308, math.inf, math.nan, "x", [1], {1: 2})
"""By a function under test."""
SCHEMA: dict[str, JsonValue] = {
    "type": "object",
    "properties": {
        "n": {"type": "number", "multipleOf": 0.5},
        "when": {"type": "string", "format": "date-time"},
        "s": {"uniqueItems": True},
    },
    "required": ["n"],
    "additionalProperties": False,
}
_ROW = json_schema.SchemaRow.model_validate({"prompt": "p", "schema": SCHEMA, "expected": {"/n": 2.5}})
_VALIDATOR = open_validator(SCHEMA)
_PATTERNS = RegexRow(prompt="p", must_match=["ab"], must_not_match=["b", ""], reference="ab")
_TEXTS = instructions.InstructionRow.model_validate(
    {
        "prompt": "Write.",
        "constraints": [{"kind": "wordCount", "minimum": 1}, {"kind": "excludes", "phrases": [EXCLUDED]}],
        "refuseDegenerate": False,
    }
)


def check_strict_json(data: bytes) -> None:
    """What is taken is what Python reads, within the bounds and with each key once, and is the same once written; the rest is not JSON."""
    text = text_of(data)
    try:
        value = parse_json(text)
    except NotStrictJsonError as error:
        assert str(error)
        assert not is_strict(text), error
        return
    assert is_strict(text)
    assert encode(value) == encode(json.loads(text))
    assert same(value, parse_json(json.dumps(value, allow_nan=False)))


def is_strict(text: str) -> bool:
    """Whether a text is JSON within the bounds, by a reader of its own on top of Python's lenient one."""
    lists: list[list[tuple[str, Any]]] = []
    numbers: list[str] = []

    def keep(pairs: list[tuple[str, Any]]) -> list[Any]:
        lists.append(pairs)
        return [value for _, value in pairs]

    try:
        document = json.loads(text, object_pairs_hook=keep, parse_int=numbers.append, parse_float=numbers.append, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    has_twice = any(len({key for key, _ in pairs}) < len(pairs) for pairs in lists)
    return (
        not has_twice and depth_of(document) <= MAX_DEPTH and all(len(one) <= MAX_DIGITS and math.isfinite(float(one)) for one in numbers)
    )


def _refuse(name: str) -> None:
    raise ValueError(name)


def depth_of(value: object) -> int:
    """Lists around the innermost value, which may be an empty one."""
    return max((1 + depth_of(one) for one in value), default=0) if isinstance(value, list) else 0


def check_document(data: bytes) -> None:
    """A document is paid only as one object with the value that is asked for."""
    text = text_of(data)
    score = json_schema.judge(_ROW, _VALIDATOR, text)
    check_score(score)
    if score.score > 0:
        answer = text.rpartition("</think>")[2]
        document = json.loads(answer[answer.index("{") : answer.rindex("}") + 1])
        assert document["n"] == 2.5
        assert set(document) <= {"n", "when", "s"}


def check_asserts(data: bytes) -> None:
    """A test is read as calls with values, or refused in words."""
    text = text_of(data)
    try:
        found = read_asserts(text, "f")
    except NotRewritableError as error:
        assert str(error)
        return
    assert found
    for one in found:
        assert "f" in text or "candidate" in text
        assert not one.holds(object())
        assert all(type(one.holds(value)) is bool for value in RETURNED)
        if one.relation is Relation.CLOSE:
            assert one.holds(one.expected) is (one.expected == one.expected)


def check_pattern(data: bytes) -> None:
    """Whatever a pattern is, it has a verdict."""
    text = text_of(data)
    score = try_pattern(_PATTERNS, text, MAX_CHARACTERS)
    check_score(score)
    assert score.score == 0 or len(text) <= MAX_CHARACTERS


def check_constraints(data: bytes) -> None:
    """A folded text has no disguise left, and one that has what is excluded, in whatever disguise, is not paid."""
    text = text_of(data)
    folded = fold(text)
    assert fold(folded) == folded
    score = instructions.judge(_TEXTS, text)
    check_score(score)
    answer = text.rpartition("</think>")[2]
    assert score.score == 0 or EXCLUDED not in fold(fold(answer))


def check_judge(data: bytes) -> None:
    """A judge is shown a part without control characters; its reply is a verdict only if it is the one object with the right code."""
    text = text_of(data)
    shown = judged_part(text, MAX_CHARACTERS)
    if isinstance(shown, Score):
        check_score(shown)
    else:
        assert 0 < len(shown) <= MAX_CHARACTERS
        assert shown in text
        assert not any(ord(character) < 32 and character not in "\n\t\r" for character in shown)
    verdict = read_verdict(text, CODE)
    if verdict in ("pass", "fail"):
        reply = text.rpartition("</think>")[2]
        assert json.loads(reply[reply.index("{") : reply.rindex("}") + 1]) == {"id": CODE, "verdict": verdict}
    else:
        assert verdict.startswith(("the ", "there "))


_JSON = (
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"n":',
    "NaN",
    "-Infinity",
    "1e999",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "0.5",
    "```json\n",
    "\n```",
)
TARGETS = {
    "strict-json": Target(
        check_strict_json,
        (
            '{"a": [1, -2.5e3, null], "b": {"c": "\\u00e9"}}',
            "[NaN]",
            '{"a": 1, "a": 1}',
            "1e400",
            "9" * 101,
            "[" * 65 + "]" * 65,
            "\ufeff1",
            '"\\ud800"',
            "[" * 64 + "]" * 64,
        ),
        _JSON,
    ),
    "document": Target(
        check_document,
        (
            '{"n": 2.5}',
            '```json\n{"n": 25e-1, "when": "2026-01-02T03:04:05Z", "s": [1, true]}\n```',
            '{"n": 3.25}',
            '{"n": "2.5"}',
            '{"n": 2.5, "when": "2026-13-01T00:00:00+00:00"}',
        ),
        (*_JSON, '"when":', '"s":', "2026-01-02T03:04:05+00:00"),
    ),
    "asserts": Target(
        check_asserts,
        (
            "assert f(1, 'x') == [2]",
            "assert f(1) is None\nassert not f(2)",
            "assert abs(f(1) - 2.5) < 1e-6",
            "assert f(1) == pytest.approx(2.5, rel=1e-3, abs=1)",
            "import math\nassert math.isclose(2.0, f(1), rel_tol=0.1)",
            "METADATA = {}\ndef check(candidate):\n    assert candidate({1: (2,)}) == {3}\ncheck(f)",
            "assert f(0x1) == approx()",
            "a.b.c = 1",
            "assert f(b'x') == -1j",
        ),
        (
            "assert ",
            "f(",
            "candidate(",
            "approx(",
            "rel=",
            "abs(",
            "**",
            "1e999",
            "0x",
            " == ",
            " is ",
            " < ",
            "not ",
            "lambda: ",
            "[]",
            "{}",
            "\n    ",
        ),
    ),
    "pattern": Target(
        check_pattern,
        (
            "ab",
            "(?i)A(?:b|c)",
            "(?P<x>a)(?P=x)?b",
            "a{1,2}[b-d]",
            "(?a)(?u)ab",
            "(?<=a)b|\\N{DIGIT ONE}",
            "(?>a)b*+",
            "(?(1)a|b)",
            "\\u0061\\142",
        ),
        ("(?", "(?P<", "(?a)", "(?u)", "(?L)", "(?x)", "(?i:", "(?-i:", "(?<!", "(?(1)", "\\N{", "\\x", "{,", "[^", "[[", "--", "&&"),
        max_bytes=24,  # what a short pattern needs is seconds at most
        others=(re._parser, re._compiler),
    ),
    "constraints": Target(
        check_constraints,
        (
            "Some words.",
            "caf\u00e9",
            "CAFE\u0301",
            "ca\u200bfe\u0301",
            "cafe\u200d\u0301",
            "\u1e9e \ufb03 \u0345",
            "<think>caf\u00e9</think>tea",
            "\u03f4\u0345\u0300",
        ),
        (
            "\u200d",
            "\u0301",
            "\u00e9",
            "\u0345",
            "\u00ad",
            "\ufb01",
            "\u212b",
            "\u1e9e",
            "\u0130",
            "\u1fb7",
            "<think>",
            "</think>",
            "e",
            "E",
            "cafe",
        ),
    ),
    "judge": Target(
        check_judge,
        (
            '{"id": "c0de", "verdict": "pass"}',
            '```json\n{"verdict": "fail", "id": "c0de"}\n```',
            '<think>pass</think>{"id": "code", "verdict": "pass"}',
            '{"id": "\\u00630de", "verdict": "pass"}',
            "An answer\tof words.",
            "\x1b[2J words",
            '{"id": "c0de", "verdict": "pass", "id": "c0de"}',
        ),
        (*_JSON, '"id":', '"verdict":', '"pass"', '"fail"', '"c0de"', "<think>", "</think>"),
    ),
}
