"""Functions that the model writes, called on hidden inputs; the process that runs them never holds an expected value.

    load:   rows -> references run in the sandbox -> expected values kept here
    score:  code block -> inputs, and those of a generator, shuffled -> one run in a slot -> a canonical value for each -> compared here

The verdict is pass or nothing: a part of the inputs is not paid, since a constant gets a part of them right. Not covered: hidden inputs
that do not tell a wrong solution from a right one.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.model import ApiModel
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.asserts import MAX_TEST_CHARACTERS, Assertion, NotRewritableError, read_asserts
from rlvr_verifier.environments.base import Score, UnjudgedError, failed, passed
from rlvr_verifier.environments.code import CodeEnvironment, extract_code
from rlvr_verifier.environments.datasets import DatasetReader, parse_models
from rlvr_verifier.environments.generated_inputs import BATCH_INPUTS, GeneratedInputs, Generator, GeneratorError, batch_number
from rlvr_verifier.environments.prompts import PromptDataset, split_rows
from rlvr_verifier.environments.two_boxes import NOTHING, TRIAL_BYTES, TRIAL_SECONDS, Trial, try_code
from rlvr_verifier.integrity.code_probes import function_probes
from rlvr_verifier.integrity.probe import Probe
from rlvr_verifier.processor_time import describe_limit
from rlvr_verifier.sandbox.canonical import NotCanonicalError, Value, decode, encode, equal
from rlvr_verifier.sandbox.pool import ItemLostError, Sandbox
from rlvr_verifier.sandbox.protocol import SolutionError, TranscriptError, read_transcript
from rlvr_verifier.sandbox.slot import Ending, Item, Run

MAX_INPUTS = 1_000
Arguments = Annotated[list[JsonValue], Field(max_length=64)]


class FunctionRow(ApiModel):
    """One line of a dataset."""

    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    entry_point: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=100)]
    visible: Annotated[list[Arguments], Field(max_length=MAX_INPUTS, default_factory=list)]
    hidden: Annotated[list[Arguments], Field(max_length=MAX_INPUTS, default_factory=list)]
    tests: Annotated[list[Annotated[str, Field(max_length=MAX_TEST_CHARACTERS)]], Field(max_length=MAX_INPUTS, default_factory=list)]
    reference: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    expected: list[JsonValue] | None = None
    generator: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tests:
            if self.visible or self.hidden or self.expected is not None or self.generator is not None:
                raise ValueError("tests stand for visible, hidden, expected and generator: leave those out")
            return self
        if not self.hidden:
            raise ValueError("neither hidden nor tests has an input")
        if self.reference is None and self.expected is None:
            raise ValueError("neither reference nor expected is given")
        if self.generator is not None and self.reference is None:
            raise ValueError("a generator needs a reference, which gives the values of its inputs")
        count = len(self.visible) + len(self.hidden)
        if self.expected is not None and len(self.expected) != count:
            raise ValueError(f"expected has {len(self.expected)} values for {count} inputs")
        return self


@dataclass(frozen=True, slots=True)
class FunctionProblem:
    """A row that can be judged."""

    prompt: str
    entry_point: str
    inputs: tuple[str, ...]
    """Canonical argument tuples."""
    expected: tuple[Value, ...]
    visible: int
    """How many of the first inputs the prompt shows."""
    reference: str | None
    assertions: tuple[Assertion, ...] | None = None
    """What must hold for each input, where the row has tests; otherwise values are compared with their types."""
    generator: Generator | None = None
    """Makes further inputs for each completion."""
    key: bytes = b""
    """Of the row as nobody who answers it knows it: says which generated inputs a completion meets."""
    tests: tuple[str, ...] = ()
    """That are more than calls with literals; `inputs` and `expected` are then what they call the reference with, and its values, or empty
    where a table of these is not right."""


class PythonFunctionsEnvironment(CodeEnvironment[FunctionProblem]):
    """A dataset of functions to write."""

    kind = "python_functions"
    _SCORER = "2"

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader, sandbox: Sandbox) -> None:
        assert spec.python_functions is not None
        self._spec = spec.python_functions
        self._sandbox = sandbox
        self._generated = GeneratedInputs(self._call)
        data = reader.read(self._spec.dataset)
        super().__init__(spec.name, self._spec.instruction, data, self._load(data))

    @property
    def time_limit_seconds(self) -> float:
        """Wall time of one completion."""
        return self._spec.time_limit_seconds

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """Solutions that are tables of the inputs, and code that cheats."""
        problem = self.row(payload)
        return function_probes(
            problem.entry_point, problem.inputs, problem.expected, problem.visible, problem.reference,
            problem.generator is None and bool(problem.inputs),
        )  # fmt: skip

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Run the code block on all inputs in an order that nobody knows beforehand, and compare."""
        code = extract_code(completion)
        if isinstance(code, Score):
            return code
        problem = self._extended(self.row(payload), code)
        if problem.tests:
            return self._try(code, problem.entry_point, problem.tests).verdict
        order = list(range(len(problem.inputs)))
        random.SystemRandom().shuffle(order)
        try:
            found = self._call(code, problem.entry_point, [problem.inputs[index] for index in order])
        except ItemLostError as error:
            return failed(str(error))
        if isinstance(found, Score):
            return found
        wrong = sum(not self._agrees(problem, index, value) for index, value in zip(order, found, strict=True))
        return failed(f"wrong for {wrong} of {len(order)} inputs") if wrong else passed(f"right for all {len(order)} inputs")

    def _extended(self, problem: FunctionProblem, code: str) -> FunctionProblem:
        """The problem with the generated inputs that this code meets."""
        if problem.generator is None:
            return problem
        try:
            batch = self._generated.batch(problem.generator, batch_number(problem.key, code))
        except (GeneratorError, ItemLostError) as error:
            raise UnjudgedError(f"no inputs were generated: {error}") from None
        return replace(problem, inputs=problem.inputs + batch.inputs, expected=problem.expected + batch.expected)

    def _agrees(self, problem: FunctionProblem, index: int, found: Value) -> bool:
        if problem.assertions is not None:
            return problem.assertions[index].holds(found)
        return equal(problem.expected[index], found, self._spec.float_tolerance)

    def _call(self, source: str, entry_point: str, inputs: Sequence[str]) -> list[Value] | Score:
        spec = self._spec
        item = Item(source, entry_point, inputs, seconds=spec.time_limit_seconds, memory_bytes=spec.memory_megabytes << 20)
        return values_of(self._sandbox.run(item), item)

    def _load(self, data: bytes) -> PromptDataset[FunctionProblem]:
        faults: list[str] = []
        numbered: list[tuple[int, FunctionProblem]] = []
        for number, row in parse_models(data, self._spec.dataset, FunctionRow):
            problem = self._prepare(row)
            if isinstance(problem, str):
                faults.append(f"line {number}: {problem}")
            else:
                numbered.append((number, problem))
        return split_rows(self.kind, self._spec.dataset, self._spec.held_out, numbered, faults)

    def _prepare_tests(self, row: FunctionRow) -> FunctionProblem | str:
        try:
            asserts = tuple(one for test in row.tests for one in read_asserts(test, row.entry_point))
            if len(asserts) > MAX_INPUTS:
                return f"its tests have {len(asserts)} asserts, more than {MAX_INPUTS}"
            inputs = tuple(encode(one.arguments) for one in asserts)
            expected = tuple(decode(encode(one.expected)) for one in asserts)
        except NotRewritableError as error:
            return self._prepare_boxes(row, str(error))
        except NotCanonicalError as error:
            return f"a value cannot be sent: {error}"
        problem = FunctionProblem(row.prompt, row.entry_point, inputs, expected, 0, row.reference, asserts)
        if row.reference is None:
            return problem
        found = self._call(row.reference, row.entry_point, inputs)
        if isinstance(found, Score):
            return f"its reference fails: {found.reason}"
        agree = [self._agrees(problem, index, value) for index, value in enumerate(found)]
        return problem if all(agree) else f"its reference fails assert {agree.index(False)} of its tests"

    def _prepare_boxes(self, row: FunctionRow, reason: str) -> FunctionProblem | str:
        """The problem of tests that are not read as calls, once its reference has passed them, and a function that does nothing has not."""
        if row.reference is None:
            return f"a test cannot be read as a call: {reason}; or give a reference, which tests that are run must pass"
        tests = tuple(row.tests)
        trial = self._try(row.reference, row.entry_point, tests)
        if trial.verdict.status is not VerdictStatus.PASS:
            return f"its reference fails: {trial.verdict.reason}"
        if self._try(NOTHING.replace("{entry}", row.entry_point), row.entry_point, tests).verdict.status is VerdictStatus.PASS:
            return "its tests pass for a function that does nothing"
        inputs, expected = tuple(one for one, _ in trial.calls), tuple(value for _, value in trial.calls)
        return FunctionProblem(row.prompt, row.entry_point, inputs, expected, 0, row.reference, tests=tests)

    def _try(self, code: str, entry_point: str, tests: Sequence[str]) -> Trial:
        """Code by its tests, each of the two in slots of its own; the limit of time is of all runs of the code together."""
        spec, left = self._spec, self._spec.time_limit_seconds

        def run_tests(source: str, entry: str, inputs: Sequence[str]) -> list[Value] | Score:
            item = Item(source, entry, inputs, seconds=TRIAL_SECONDS, memory_bytes=TRIAL_BYTES)
            return values_of(self._sandbox.run(item), item)

        def run_code(source: str, entry: str, inputs: Sequence[str]) -> list[Value] | Score:
            nonlocal left
            if left <= 0:
                return timed_out(spec.time_limit_seconds)
            item = Item(source, entry, inputs, seconds=left, memory_bytes=spec.memory_megabytes << 20)
            run = self._sandbox.run(item)
            left -= run.cpu_seconds
            return values_of(run, item)

        try:
            return try_code(run_code, run_tests, code, entry_point, tests)
        except ItemLostError as error:
            return Trial(failed(str(error)))

    def _prepare(self, row: FunctionRow) -> FunctionProblem | str:
        """The problem of a row, or what is wrong with it."""
        if row.tests:
            return self._prepare_tests(row)
        try:
            inputs = tuple(encode(tuple(arguments)) for arguments in [*row.visible, *row.hidden])
            given = None if row.expected is None else [decode(encode(value)) for value in row.expected]
        except NotCanonicalError as error:
            return f"a value cannot be sent: {error}"
        found = given if row.reference is None else self._call(row.reference, row.entry_point, inputs)
        if isinstance(found, Score):
            return f"its reference fails: {found.reason}"
        assert found is not None
        agree = [equal(one, other, self._spec.float_tolerance) for one, other in zip(given or found, found, strict=True)]
        if not all(agree):
            which = agree.index(False)
            return (
                f"its reference and expected disagree on input {which}"
                if given
                else f"the value of input {which} has NaN, which equals nothing"
            )
        problem = FunctionProblem(row.prompt, row.entry_point, inputs, tuple(found), len(row.visible), row.reference)
        return problem if row.generator is None else self._with_generator(row, problem)

    def _with_generator(self, row: FunctionRow, problem: FunctionProblem) -> FunctionProblem | str:
        """With its generator, if that gives inputs that differ and values that can be compared."""
        generator = Generator(row.generator or "", row.reference or "", row.entry_point)
        try:
            batch = self._generated.batch(generator, 0)
        except GeneratorError as error:
            return str(error)
        new = len(set(batch.inputs) - set(problem.inputs))
        if new < BATCH_INPUTS // 2:
            return f"its generator gives {new} inputs for {BATCH_INPUTS} seeds beside the row's own, and must give {BATCH_INPUTS // 2}"
        return replace(problem, generator=generator, key=hashlib.sha256(row.model_dump_json().encode()).digest())


def values_of(run: Run, item: Item) -> list[Value] | Score:
    """What a run of an item gave for each of its inputs, or the verdict where it gave something else."""
    fault = fault_of(run, item.seconds)
    if fault is not None:
        return fault
    try:
        return [decode(text) for text in read_transcript(run.output, len(item.inputs))]
    except SolutionError as error:
        return failed(f"the code raised {error}")
    except (TranscriptError, NotCanonicalError) as error:
        return failed(f"the code wrote no proper result: {error}")


def timed_out(seconds: float) -> Score:
    """The verdict on code that used up its time."""
    return Score(VerdictStatus.TIMEOUT, 0.0, f"the code ran for more than {describe_limit(seconds)}")


def fault_of(run: Run, seconds: float) -> Score | None:
    """The verdict on a run that did not come to its end."""
    match run.ending:
        case Ending.TIMEOUT:
            return timed_out(seconds)
        case Ending.OVERFLOW:
            return failed("the code wrote too much")
        case Ending.SIGNALLED:
            return failed(f"the code was ended by signal {-run.code}")
        case Ending.EXITED:
            return None
