"""Programs that the model writes, which read standard input and write standard output, in Python or another language.

    code block -> compiled, which is untrusted too and is timed by itself -> a run for each test -> its output, compared here

Each test is a run of its own in a slot, in an order that nobody knows beforehand, until one fails; the output is compared out here, line by
line, without trailing space. Not covered: threads, which the sandbox refuses, and tasks with more than one right output.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated

from pydantic import Field, JsonValue

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.model import ApiModel
from rlvr_verifier.environments.base import EnvironmentSetupError, Score, failed, passed
from rlvr_verifier.environments.code import TITLES, CodeEnvironment, extract_code
from rlvr_verifier.environments.datasets import DatasetReader, parse_models
from rlvr_verifier.environments.prompts import split_rows
from rlvr_verifier.environments.python_functions import fault_of, timed_out
from rlvr_verifier.integrity.code_probes import program_probes
from rlvr_verifier.integrity.probe import Probe
from rlvr_verifier.processor_time import WALL_FACTOR
from rlvr_verifier.sandbox.pool import ItemLostError, Sandbox
from rlvr_verifier.sandbox.programs import CompileError, compiled
from rlvr_verifier.sandbox.slot import Item, Run

Text = Annotated[str, Field(max_length=1_000_000)]


class StdioTest(ApiModel):
    """What a program is given, and what it must write."""

    input: Text
    output: Text


class StdioRow(ApiModel):
    """One line of a dataset."""

    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    tests: Annotated[list[StdioTest], Field(min_length=1, max_length=1_000)]


class StdioEnvironment(CodeEnvironment[StdioRow]):
    """A dataset of programs to write."""

    kind = "stdio"

    def __init__(self, spec: EnvironmentSpec, reader: DatasetReader, sandbox: Sandbox) -> None:
        assert spec.stdio is not None
        self._spec = spec.stdio
        self._sandbox = sandbox
        self.language = self._spec.language
        if self.language != "python" and self.language not in sandbox.languages:
            raise EnvironmentSetupError(
                f"environment {spec.name} judges {TITLES[self.language]}, which the sandbox cannot run: {sandbox.missing[self.language]}"
            )
        data = reader.read(self._spec.dataset)
        rows = list(parse_models(data, self._spec.dataset, StdioRow))
        blank = [
            f"line {number}: the output of a test is empty" for number, row in rows if any(not _lines(test.output) for test in row.tests)
        ]
        dataset = split_rows(self.kind, self._spec.dataset, self._spec.held_out, rows, blank)
        default = f"Answer with one {TITLES[self.language]} program in a code block."
        instruction = default if self._spec.instruction is None else self._spec.instruction
        if self.language == "python":
            super().__init__(spec.name, instruction, data, dataset)
        else:
            runtime = f"{self.language}-{sandbox.languages[self.language].version.replace(' ', '-')}"
            super().__init__(spec.name, instruction, data, dataset, runtime)

    @property
    def time_limit_seconds(self) -> float:
        """Processor time of one completion."""
        return self._spec.time_limit_seconds

    def probes(self, payload: Mapping[str, JsonValue]) -> Iterator[Probe]:
        """A program that is a table of the tests, and some that cheat."""
        return program_probes({test.input: test.output for test in self.row(payload).tests}, self.language)

    def score(self, payload: Mapping[str, JsonValue], completion: str, truncated: bool) -> Score:
        """Run the program on the tests until one fails."""
        code = extract_code(completion, self.language)
        if isinstance(code, Score):
            return code
        tests = list(self.row(payload).tests)
        random.SystemRandom().shuffle(tests)
        try:
            if self.language == "python":
                return self._try(partial(self._run_python, code), tests)
            with compiled(self._sandbox, self.language, code) as program:
                return self._try(program.run, tests)
        except (ItemLostError, CompileError) as error:
            return failed(str(error))

    def _run_python(self, code: str, stdin: str, seconds: float, wall_seconds: float, memory_bytes: int) -> Run:
        return self._sandbox.run(Item(code, stdin=stdin, seconds=seconds, wall_seconds=wall_seconds, memory_bytes=memory_bytes))

    def _try(self, run: Callable[[str, float, float, int], Run], tests: Sequence[StdioTest]) -> Score:
        left = limit = self._spec.time_limit_seconds
        deadline = time.monotonic() + WALL_FACTOR * limit
        for test in tests:
            wall = deadline - time.monotonic()
            if left <= 0 or wall <= 0:
                return timed_out(limit)
            done = run(test.input, left, wall, self._spec.memory_megabytes << 20)
            left -= done.cpu_seconds
            verdict = self._judge(done, test)
            if verdict is not None:
                return verdict
        return passed(f"right for all {len(tests)} tests")

    def _judge(self, run: Run, test: StdioTest) -> Score | None:
        """Why a test fails; None when it does not."""
        fault = fault_of(run, self._spec.time_limit_seconds)
        if fault is not None:
            return fault
        if run.code != 0:
            return failed(f"the program ended with exit code {run.code}")
        try:
            lines = _lines(run.output.decode())
        except UnicodeDecodeError:
            return failed("the output is not UTF-8")
        return None if lines == _lines(test.output) else failed("the output of a test is wrong")


def _lines(text: str) -> list[str]:
    # Spaces alone: other characters that Python strips, such as escape's neighbours, are part of what was printed.
    lines = [line.rstrip(" \t\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
