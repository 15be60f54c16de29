"""Problems with one final answer: a strict gate, a fast path for plain numbers, then math-verify in a killable process.

The gate decides what may be compared at all, since math-verify pays for echoing the question: exactly one boxed answer, after the thinking,
without relations, text, or operations that are left to be carried out. Numbers are compared exactly as fractions.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping
from fractions import Fraction

from pydantic import JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.answers import after_thinking
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, Place, SampledTask, Score, failed, invalid, passed
from rlvr_verifier.environments.datasets import DatasetReader, parse_rows

MAX_ANSWER_CHARACTERS = 512
MAX_DIGITS = 100
TAIL_CHARACTERS = 8_192
"""The answer stands at the end; no more than this is searched for it."""
_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d+))?", re.ASCII)
_FRACTION = re.compile(r"([+-]?)\\[dt]?frac\{([+-]?\d+)\}\{(\d+)\}|([+-]?\d+)\s*/\s*(\d+)", re.ASCII)
_RELATION = re.compile(
    r"[=<>≠≤≥≈∼]|\\(?:neq?|leq?|geq?|lt|gt|approx|sim|equiv|cong|neg|lnot|not|in|notin|subset|propto|to|implies|iff)(?![A-Za-z])"
)
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|operatorname)(?![A-Za-z])|[A-Za-z]{4,}(?<!sqrt)(?<!frac)")
_LITERAL = re.compile(r"(?:[\d.,/(){}^ +-]|\\[dt]?frac|\\(?:times|cdot)(?= *10 *\^))*", re.ASCII)
"""What a number may be written with, beside a number: no operation but a fraction, a power, and the power of ten of scientific notation."""
_SUM = re.compile(r"[\d)}] *[+-] *[\d(\\]", re.ASCII)
_OPERATION = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim|[dt]?binom|det|gcd|lcm|[pb]?mod|partial|nabla|max|min|sup|inf)(?![A-Za-z])|!"
    r"|\\[dt]?frac *\{? *d(?![A-Za-z])|\bd */ *d"
)
"""Refused beside every answer that does not have the same one: the question echoed, for the grader to work out."""
_FUNCTION = re.compile(r"\\(?:log|lg|ln|exp|(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|lfloor|lceil|lvert|Re|Im)(?![A-Za-z])|\|")
"""Refused beside a constant that does not have the same one."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LIST = re.compile(r"([(\[]|\\\{)([^()\[\]]*?)([)\]]|\\\})")
_COMMAND_WORD = re.compile(r"\\[A-Za-z]+")


class MathEnvironment:
    """A dataset of problems and answers."""

    kind = "math"
    deterministic = True
    place = Place.WORKER
    levels = (0, 0)
    scorer_version = "2+math-verify-0.9.0"

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader) -> None:
        assert spec.math is not None
        self.name = spec.name
        self._spec = spec.math
        data = reader.read(spec.math.dataset)
        self.data_sha256 = hashlib.sha256(data).hexdigest()
        self.version = f"{self.scorer_version}+{self.data_sha256[:12]}"
        self._train, self._held_out = _split(data, spec.math.dataset, spec.math.held_out)

    def held_out_tasks(self, level: int) -> int:
        """Problems kept for evaluation."""
        return len(self._held_out)

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """A problem; held-out ones by number, training ones by seed modulo their count.

        Raises:
            NoSuchTaskError: there is no held-out problem of that number.
        """
        rows = self._held_out if split == "heldOut" else self._train
        if split == "heldOut" and seed >= len(rows):
            raise NoSuchTaskError(f"environment {self.name} has {len(rows)} held-out tasks, so none with seed {seed}")
        row = rows[seed % len(rows)]
        text = f"{row['problem']}\n{self._spec.instruction}" if self._spec.instruction else row["problem"]
        return SampledTask(_problem_id(row["problem"]), (Message(role="user", content=text),), {**row})

    def answers(self) -> Iterator[str]:
        """Every gold answer."""
        return (row["answer"] for row in (*self._train, *self._held_out))

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Gate, then compare."""
        return judge(str(payload["problem"]), str(payload["answer"]), completion)


def warm_up() -> None:
    """Import and run math-verify once, which takes seconds on a busy machine: no candidate's time-out."""
    judge("", "x+1", r"\boxed{1+x}")


def judge(problem: str, gold: str, completion: str) -> Score:
    """The verdict on a completion; see the module's docstring for the rules."""
    answer = extract_answer(completion)
    if isinstance(answer, Score):
        return answer
    gold = normalize(gold)
    expected, found = parse_number(gold), parse_number(answer)
    if expected is not None and found is not None:
        return passed("the number is right") if expected == found else failed("the number is wrong")
    if answer.replace(" ", "") == gold.replace(" ", ""):
        return passed("the answer is the expected one")
    members, others = parse_list(gold), parse_list(answer)
    if members is not None and others is not None:
        return passed("all members are right") if members == others else failed("the members, or their brackets, are wrong")
    if members is not None and not (answer.startswith(members[0]) and answer.endswith(members[1])):
        return failed("the brackets are wrong")
    fault = _gate(problem, gold, answer, gold_is_number=expected is not None)
    if fault:
        return invalid(fault)
    from rlvr_verifier.environments.equivalence import are_equivalent  # with sympy, in a worker alone

    return passed("the answer is equivalent") if are_equivalent(gold, answer) else failed("the answer is not equivalent")


def extract_answer(completion: str) -> str | Score:
    r"""The one final answer in `\boxed{}`, normalised; a `Score` says why there is none."""
    tail = after_thinking(completion)
    if isinstance(tail, Score):
        return tail
    tail = tail[-TAIL_CHARACTERS:]
    boxes = _boxes(tail)
    if not boxes:
        return invalid(r"no \boxed{} answer at the end of the completion")
    if any(_CONTROL.search(box) for box in boxes):
        return invalid("the boxed answer has control characters")
    answers = {normalize(box) for box in boxes}
    if len(answers) > 1:
        return invalid(f"{len(answers)} different boxed answers")
    answer = answers.pop()
    if not answer:
        return invalid("the boxed answer is empty")
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return invalid(f"the boxed answer has more than {MAX_ANSWER_CHARACTERS} characters")
    if re.search(rf"\d{{{MAX_DIGITS + 1},}}", answer) or re.search(r"\^\{?-?\d{4,}|\^\{[^}]*\^", answer):
        return invalid("the boxed answer has numbers too large to compare")
    return answer


def normalize(answer: str) -> str:
    """One spelling for what is only spelled differently: NFKC, thin spaces, dollar signs, degree signs, a trailing point."""
    text = unicodedata.normalize("NFKC", answer)
    text = re.sub(r"\\[,!;:]|~|\\ |\\left|\\right|\$", "", text)
    text = re.sub(r"\^\{?\\circ\}?|°", "", text)
    return re.sub(r"(?<=\d)\.$", "", " ".join(text.split())).strip()


def parse_number(text: str) -> Fraction | None:
    """The exact value of a plain number or fraction; None for anything else. Only ASCII digits are digits."""
    compact = text.replace(" ", "")
    found = _FRACTION.fullmatch(compact)
    if found is not None:
        sign, top, bottom, plain_top, plain_bottom = found.groups()
        numerator, denominator = int(top or plain_top), int(bottom or plain_bottom)
        return None if denominator == 0 else Fraction(-numerator if sign == "-" else numerator, denominator)
    number = _NUMBER.fullmatch(compact)
    if number is None or (number[2] is None and number[3] is None):
        return None
    value = Fraction(f"{(number[2] or '0').replace(',', '')}.{number[3] or '0'}")
    return -value if number[1] == "-" else value


def parse_list(text: str) -> tuple[str, str, tuple[Fraction, ...]] | None:
    r"""Brackets and exact members of a point, an interval or a set `\{...\}` of at least two plain numbers; None for anything else.

    The members of a set are sorted, and each stands for itself once.
    """
    found = _LIST.fullmatch(text.replace(" ", ""))
    if found is None:
        return None
    members = [parse_number(member) for member in found[2].split(",")]
    numbers = [member for member in members if member is not None]
    if len(numbers) < max(2, len(members)):
        return None
    is_set = found[1] == "\\{"
    return found[1], found[3], tuple(sorted(set(numbers))) if is_set else tuple(numbers)


def _gate(problem: str, gold: str, answer: str, *, gold_is_number: bool) -> str:
    """Why an answer may not be compared; empty when it may."""
    if not answer.isascii():
        return "the answer has characters beyond ASCII"
    if _RELATION.search(answer):
        return "the answer is a relation, not a value"
    words = _COMMAND_WORD.sub(" ", answer)
    if _TEXT.search(words) or re.search(r"\\(?:text|mathrm|mbox|textbf|operatorname)(?![A-Za-z])", answer):
        return "the answer has words in it"
    if gold_is_number and (_LITERAL.fullmatch(answer) is None or _SUM.search(answer)):
        return "the answer is not a number that is worked out"
    if _is_undone(gold, answer):
        return "the answer is left to be worked out"
    if len(answer) > 3 and answer.replace(" ", "") in normalize(problem).replace(" ", "") and not parse_number(answer):
        return "the answer repeats the question"
    return ""


def _is_undone(gold: str, answer: str) -> bool:
    """Whether an answer has operations that its gold answer does without."""
    if set(_OPERATION.findall(answer)) - set(_OPERATION.findall(gold)):
        return True
    gold_is_constant = re.search("[A-Za-z]", _COMMAND_WORD.sub("", gold)) is None
    return gold_is_constant and bool(set(_FUNCTION.findall(answer)) - set(_FUNCTION.findall(gold)))


def _boxes(text: str) -> list[str]:
    found: list[str] = []
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, start = 1, match.end()
        for position in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                found.append(text[start:position])
                break
    return found


def _problem_id(problem: str) -> str:
    return hashlib.sha256(f"math/{' '.join(problem.split())}".encode()).hexdigest()[:16]


def _split(data: bytes, uri: str, share: float) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and held-out rows, once every row was checked."""
    seen: dict[str, int] = {}
    faults: list[str] = []
    train: list[dict[str, str]] = []
    held_out: list[dict[str, str]] = []
    for number, row in parse_rows(data, uri, ("problem", "answer")):
        key = _problem_id(row["problem"])
        if key in seen:
            faults.append(f"line {number} repeats the problem of line {seen[key]}")
        seen.setdefault(key, number)
        if isinstance(extract_answer(f"\\boxed{{{row['answer']}}}"), Score):
            faults.append(f"line {number} has an answer that the verifier itself refuses")
        (held_out if int(key[:8], 16) / 2**32 < share else train).append(row)
    if faults:
        raise EnvironmentSetupError(f"dataset {uri}: {'; '.join(faults[:20])}")
    if not train:
        raise EnvironmentSetupError(f"dataset {uri} leaves no training problem beside heldOut {share}; add problems or lower it")
    return train, held_out
