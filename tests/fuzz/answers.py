"""Answers in completions: where they are found, and how numbers are read, beside another reading of the same text."""

import re
import unicodedata
from fractions import Fraction

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import MAX_TURNS, Transcript, VerdictStatus
from rlvr_verifier.environments.answers import after_thinking, fenced_blocks, only_answer
from rlvr_verifier.environments.arithmetic import MAX_DIGITS, MAX_TERMS, ArithmeticEnvironment
from rlvr_verifier.environments.base import Score
from rlvr_verifier.environments.calculator import ADVICE, CalculatorEnvironment, find_call, work_out
from rlvr_verifier.environments.code import TITLES, extract_code
from rlvr_verifier.environments.math_problems import MAX_ANSWER_CHARACTERS, extract_answer, judge, normalize, parse_list, parse_number
from tests.fuzz.target import Target, check_score, text_of

GOLD = -90_210
_SUMS = ArithmeticEnvironment(EnvironmentSpec.model_validate({"name": "sums", "arithmetic": {}}))
_TURNS = CalculatorEnvironment(EnvironmentSpec.model_validate({"name": "turns", "calculator": {}}))
_PLAIN = re.compile(r"[-+]?[0-9]*\.?[0-9]+|[-+]?[0-9]+/[0-9]+")


def check_boxed(data: bytes) -> None:
    """An answer was in a box behind the thinking, and a plain number is paid if and only if it is the gold one."""
    text = text_of(data)
    answer = extract_answer(text)
    assert extract_answer(f"<think>\\boxed{{7}}</think>{text}") == answer
    if isinstance(answer, Score):
        check_score(answer)
        assert answer.status is VerdictStatus.INVALID
        assert judge("", str(GOLD), text) == answer
        return
    assert 0 < len(answer) <= MAX_ANSWER_CHARACTERS
    assert not any(unicodedata.category(character) == "Cc" for character in answer)
    assert re.search(r"\\boxed\s*\{", text.rpartition("</think>")[2])
    if (number := parse_number(answer)) is not None:  # anything else is left to math-verify
        score = judge("", str(GOLD), text)
        check_score(score, GOLD)
        assert (score.score > 0) is (number == GOLD)


def check_numbers(data: bytes) -> None:
    """One spelling has no mark-up left; a plain number is Python's own fraction; members of a list are such numbers, as they stand."""
    text = normalize(text_of(data))
    assert text == " ".join(text.split())
    assert not set("$~°") & set(text)
    compact = text.replace(" ", "")
    number = parse_number(text)
    assert number == parse_number(compact)
    if _PLAIN.fullmatch(compact):
        assert number == (None if re.search("/0+$", compact) else Fraction(compact))
    if number is not None:
        assert text.isascii()
        assert parse_number(f"-{compact}") == (None if compact[0] in "+-" else -number)
    if (found := parse_list(text)) is not None:
        assert number is None
        assert len(found[2]) > 1 or found[0] == "\\{"
        assert compact.startswith(found[0])
        assert compact.endswith(found[1])
        written = [parse_number(part) for part in compact[len(found[0]) : -len(found[1])].split(",")]
        assert list(found[2]) == (sorted({one for one in written if one is not None}) if found[0] == "\\{" else written)


def check_arithmetic(data: bytes) -> None:
    """Each way to find an integer pays if and only if another reading of the text finds the gold one."""
    text = text_of(data)
    for extraction, found in (("lastInteger", last_integer(text)), ("exact", only_integer(text)), ("expression", last_expression(text))):
        score = _SUMS.score({"answer": str(GOLD), "extraction": extraction}, text, False)
        check_score(score, GOLD)
        assert (score.score > 0) is (found == GOLD), (extraction, found)
        assert (score.status is VerdictStatus.INVALID) is (found is None), (extraction, found)


def last_integer(text: str) -> int | None:
    """The last run of digits, below zero where a minus that no digit precedes stands before it."""
    end = len(text)
    while end and text[end - 1] not in "0123456789":
        end -= 1
    start = end
    while start and text[start - 1] in "0123456789":
        start -= 1
    is_negative = text[start - 1 : start] == "-" and text[start - 2 : start - 1] not in tuple("0123456789") if start else False
    return None if start == end or end - start + is_negative > MAX_DIGITS else int(text[start - is_negative : end])


def only_integer(text: str) -> int | None:
    """The text, if it is an integer."""
    digits = text.strip().removeprefix("-")
    return int(text.strip()) if digits.isascii() and digits.isdigit() and len(text.strip()) <= MAX_DIGITS else None


def last_expression(text: str) -> int | None:
    """The value of the last expression, worked out by Python."""
    found = ""
    for match in re.finditer(r"(?<![0-9])-[0-9]+(\s*[-+*]\s*[0-9]+)*|[0-9]+(\s*[-+*]\s*[0-9]+)*", text, re.ASCII):
        found = match[0]
    numbers = re.findall("[0-9]+", found)
    if not numbers or len(numbers) > MAX_TERMS or max(map(len, numbers)) > MAX_DIGITS:
        return None
    return int(eval(re.sub(r"(?<![0-9])0+(?=[0-9])", "", "".join(found.split())), {"__builtins__": {}}))


def check_turns(data: bytes) -> None:
    """The calculator says what Python says, and an episode is paid if and only if its last turn, the first that calls nothing, is right."""
    text = text_of(data)
    call = find_call(text)
    if isinstance(call, str):
        said = work_out(call)
        assert said == ADVICE or int(eval(re.sub(r"(?<![0-9])0+(?=[0-9])", "", said.partition(" = ")[0]))) == int(said.partition(" = ")[2])
    transcript = Transcript.of(text)
    assert transcript == Transcript.of(transcript.completion)
    assert 0 < len(transcript.actions) <= MAX_TURNS
    score = _TURNS.score({"answer": str(GOLD), "extraction": "lastInteger"}, text, False)
    check_score(score, GOLD)
    *calls, last = transcript.actions
    may_pay = len(calls) < _TURNS.max_turns and all(isinstance(find_call(action), str) for action in calls) and find_call(last) is None
    assert score.score == 0 or (may_pay and last_integer(last) == GOLD)
    if may_pay and not transcript.observed:
        assert (score.score > 0) is (last_integer(last) == GOLD)


def check_blocks(data: bytes) -> None:
    """Blocks stand in the text in order, between fences of their own, and code is the last of its language, behind the thinking."""
    text = text_of(data)
    answer = after_thinking(text)
    assert isinstance(answer, Score) or (text.endswith(answer) and "</think>" not in answer and "<think>" not in answer)
    blocks = answer if isinstance(answer, Score) else fenced_blocks(answer)
    end = 0
    for block in () if isinstance(blocks, Score) else blocks:
        assert isinstance(answer, str)
        assert end <= block.span[0] < block.span[1]
        end = block.span[1]
        opening, *lines, closing = answer[block.span[0] : end].split("\n")
        assert block.content == "".join(f"{line}\n" for line in lines)
        assert closing.strip()[:3] == opening.strip()[:3]
        assert block.language in opening.lower()
    for language in TITLES:
        code = extract_code(text, language)
        if isinstance(code, Score):
            check_score(code)
            assert code.status is VerdictStatus.INVALID
        else:
            assert not isinstance(blocks, Score)
            assert code.strip()
            assert code in [block.content for block in blocks]


def check_only_answer(data: bytes) -> None:
    """The only answer is a part of the text without space around it; alone, it is all of it but the fences."""
    text = text_of(data)
    for alone in (False, True):
        answer = only_answer(text, ("json",), alone=alone)
        if isinstance(answer, Score):
            check_score(answer)
            assert answer.status is VerdictStatus.INVALID
            continue
        rest = text.rpartition("</think>")[2]
        assert answer
        assert answer == answer.strip()
        assert answer in rest
        if alone and answer != rest.strip():
            opening, _, after = rest.strip().partition("\n")
            assert re.fullmatch(r"(`{3,}|~{3,})[ \t]*(json)?[^`]*", opening, re.IGNORECASE)
            assert re.fullmatch(r"(`{3,}|~{3,})[^`]*", after.rpartition("\n")[2].strip())


_FENCES = ("```", "~~~", "````", "```python\n", "\n```\n", "```json\n", "<think>", "</think>", "\n", " ")
_BOXES = (
    "\\boxed{",
    "}",
    "<think>",
    "</think>",
    str(GOLD),
    "\\frac{",
    "}{",
    "\\left",
    "\\{",
    "\\}",
    "^\\circ",
    "$",
    "\\,",
    ",",
    ".",
    "/",
    "+",
    "-",
)
TARGETS = {
    "boxed": Target(
        check_boxed,
        (
            "\\boxed{-90210}",
            "<think>\\boxed{1}</think> so $\\boxed{-90,210}$.",
            "\\boxed{\\frac{-180420}{2}}",
            "\\boxed {1}\\boxed{\\text{a}}",
            "\\boxed{\\left(3,4\\right)}",
            "\\boxed{90^\\circ.}",
            "\\boxed{\\boxed{5}}",
            "\\boxed{２}",
        ),
        _BOXES,
    ),
    "numbers": Target(
        check_numbers,
        (
            "-90,210.50",
            "\\frac{-1}{2}",
            "-\\dfrac{3}{4}",
            "+12/34",
            "\\{3, 1,2\\}",
            "[0.5,1)",
            "(1,1/2,\\tfrac{1}{3})",
            "$1\\,000$",
            "5^{\\circ}",
            "3.",
        ),
        _BOXES,
    ),
    "arithmetic": Target(
        check_arithmetic,
        (
            "-90210",
            "It is -90210.",
            "7 - 90217",
            "5*-3",
            "-45105 * 2 + 0",
            "00012 + 3",
            "x--5",
            "9" * 65,
            "1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1",
            "٣",
        ),
        (str(GOLD), " - ", "+", "*", "0", "\n", "\x0b", "\x1c"),
    ),
    "turns": Target(
        check_turns,
        (
            "-90210",
            "12 + 34 =",
            "-3 * -4=",
            '{"actions":["1 + 2 =","-90210"],"observed":""}',
            '{"actions":["1 + 2 =","3 ="]}',
            "007 - 08 =",
        ),
        ('{"actions":["', '","', '"],"observed":"', '"}', " =", str(GOLD), " + ", " - ", " * ", "\\n"),
    ),
    "blocks": Target(
        check_blocks,
        (
            "```python\nprint(1)\n```",
            "<think>```</think>\n~~~ C++ x\nint a;\n~~~~\n",
            "```\n``\n```js\n```",
            "````py\n```\n````\n```go\nx\n```",
            "```c\n\n```",
        ),
        (*_FENCES, "cpp", "go", "js"),
    ),
    "only-answer": Target(
        check_only_answer,
        ('{"a": 1}', "```json\n[1]\n```", "so\n~~~\n1\n~~~\n", "<think>\n```\n</think> 7 ", "``` JSON\n1\n```\n```\n2\n```"),
        _FENCES,
    ),
}
