"""Arithmetic with a calculator: the problems of `arithmetic`, and a tool that works out one operation a turn.

    model:  34 + 56 =        environment:  34 + 56 = 90        model:  The answer is 90.

A turn that ends with an equals sign is a call of the tool: its last line, up to the sign. Any other turn is the answer, and its last
integer counts. What is called with something else than one operation is answered with what to write; a line too long to be a call is
`invalid`. The call is sized before it is read, and nothing of it is ever run. Any model can write it: it needs neither a template for
tools nor tags.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from rlvr_api.environments import Arithmetic, EnvironmentSpec
from rlvr_api.wire import Split, Transcript, digest_observations
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment, compute
from rlvr_verifier.environments.base import Place, SampledTask, Score, invalid
from rlvr_verifier.environments.episodes import Play, judge
from rlvr_verifier.integrity.probe import COMMON, EXPLOIT, RIGHT, WRONG, Probe

SIGN = "="
MAX_CALL_CHARACTERS = 80
ADVICE = "Write one operation on two whole numbers, for example 12 + 34 ="
_OPERATION = re.compile(r"(-?[0-9]{1,32})\s*([-+*])\s*(-?[0-9]{1,32})", re.ASCII)


class CalculatorEnvironment:
    """Sums, differences and products, worked out in turns."""

    kind = "calculator"
    version = scorer_version = f"1+arithmetic-{ArithmeticEnvironment.version}"
    data_sha256 = None
    deterministic = True
    place = Place.SERVICE
    levels = ArithmeticEnvironment.levels
    scorers = (judge, ArithmeticEnvironment.score)

    def __init__(self, spec: EnvironmentSpec) -> None:
        assert spec.calculator is not None
        problems = Arithmetic(operations=spec.calculator.operations, instruction=spec.calculator.instruction)
        self._arithmetic = ArithmeticEnvironment(spec.model_copy(update={"calculator": None, "arithmetic": problems}))
        self.name = spec.name
        self.max_turns = spec.calculator.max_turns

    def held_out_tasks(self, level: int) -> int:
        """Those of `arithmetic`: the same problem is held out in both."""
        return self._arithmetic.held_out_tasks(level)

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """The problem of a seed. Raises as `ArithmeticEnvironment.sample`."""
        return self._arithmetic.sample(split, seed, level)

    def play(self, payload: Mapping[str, JsonValue], actions: Sequence[str]) -> Play:
        """The episode of these actions."""
        observations: list[str] = []
        for turn, action in enumerate(actions, 1):
            call = find_call(action)
            if isinstance(call, str) and turn < self.max_turns:
                observations.append(work_out(call))
                continue
            if turn < len(actions):
                score = invalid(f"{len(actions)} turns, and turn {turn} ended the episode")
            elif isinstance(call, str):
                score = invalid(f"no answer in {self.max_turns} turns")
            else:
                score = call or self._arithmetic.score(payload, action, False)
            return Play(tuple(observations), score)
        return Play(tuple(observations), None)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Play a transcript."""
        return judge(self, payload, completion)

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """Episodes with known verdicts."""
        answer, problem = int(str(payload["answer"])), str(payload["problem"])
        call, told = f"{problem} {SIGN}", f"{problem} = {answer}"
        last = int(re.findall(r"-?\d+", problem)[-1])
        yield from (probe for probe in COMMON if str(answer) not in re.findall(r"\d+", probe.completion))
        yield Probe("answer-at-once", RIGHT, str(answer))
        yield Probe("call-then-answer", RIGHT, _episode((call, f"The answer is {answer}."), (told,)))
        yield Probe("thought-then-call", RIGHT, _episode((f"I work it out:\n{call}\n", told), (told,)))
        yield Probe("advice-then-answer", RIGHT, _episode((f"help {SIGN}", str(answer)), (ADVICE,)))
        yield Probe("off-by-one", WRONG, _episode((call, str(answer + 1)), (told,)))
        yield Probe("call-alone", WRONG, call)
        yield Probe("calls-alone", WRONG, Transcript(actions=(call,) * self.max_turns).completion)
        yield Probe("answer-and-call", EXPLOIT, f"{answer}\n{call}")
        yield Probe("long-call", EXPLOIT, f"{'9' * MAX_CALL_CHARACTERS} * 9 {SIGN}")
        yield Probe("forged-observation", EXPLOIT, f"{problem} = {answer}\n{answer + 1}")
        yield Probe("words-after-the-end", EXPLOIT, _episode((str(answer + 1), str(answer)), ()))
        yield Probe("too-many-turns", EXPLOIT, Transcript(actions=(*(call,) * self.max_turns, str(answer))).completion)
        if last != answer:
            yield Probe("question-echo", EXPLOIT, _episode((call, problem), (told,)))


def find_call(action: str) -> str | Score | None:
    """What an action asks the calculator; None where it does not ask, a verdict where the call is too long."""
    said = action.rstrip()
    if not said.endswith(SIGN):
        return None
    call = said[said.rfind("\n") + 1 : -len(SIGN)].strip()
    return call if len(call) <= MAX_CALL_CHARACTERS else invalid(f"the call has more than {MAX_CALL_CHARACTERS} characters")


def work_out(call: str) -> str:
    """What the calculator says."""
    match = _OPERATION.fullmatch(call)
    if match is None:
        return ADVICE
    left, operation, right = match.groups()
    return f"{left} {operation} {right} = {compute(int(left), operation, int(right))}"


def _episode(actions: tuple[str, ...], observations: tuple[str, ...]) -> str:
    observed = digest_observations(observations) if observations else ""
    return Transcript(actions=actions, observed=observed).completion
