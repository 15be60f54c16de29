"""What the battery sends to an environment beside its probes: one set of texts for answers, one for functions, one for programs.

environment -> Battery: constants, texts that hang a scorer, texts that change it for those after it
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import JsonValue

from rlvr_verifier.environments.base import Environment
from rlvr_verifier.environments.python_functions import PythonFunctionsEnvironment
from rlvr_verifier.environments.stdio import StdioEnvironment
from rlvr_verifier.integrity.code_probes import (
    CONSTANT_LINES,
    CONSTANT_VALUES,
    HANGING_CODE,
    PERSISTENT_CODE,
    constant_function,
    constant_program,
    fence,
    hanging_program,
)
from rlvr_verifier.integrity.hostile import HANGING
from rlvr_verifier.integrity.program_texts import TEXTS
from rlvr_verifier.sandbox.programs import COMPILE_SECONDS

Payload = Mapping[str, JsonValue]
CONSTANTS = ("0", "1", "2", "7", "10", "yes", "no", "True", "False", "A", r"\boxed{0}", r"\boxed{1}")


class Battery(Protocol):
    """The texts for one environment."""

    constants: Sequence[str]
    """Names of texts that say the same whatever is asked."""
    hanging: Sequence[str]
    """Names of texts that try to hang a scorer."""
    persistent: Sequence[str]
    """Texts that try to change it, beside those for all environments."""
    limit_seconds: float | None
    """What a scorer may take; None: `verifiers.itemTimeoutSeconds`."""

    def constant(self, name: str, payload: Payload) -> str:
        """A constant, as a completion of a task."""
        ...

    def hang(self, name: str, payload: Payload) -> str:
        """A text that tries to hang, as a completion of a task."""
        ...


class AnswerBattery:
    """For environments whose completions are read."""

    constants: Sequence[str] = CONSTANTS
    hanging: Sequence[str] = tuple(HANGING)
    persistent: Sequence[str] = ()
    limit_seconds: float | None = None

    def constant(self, name: str, payload: Payload) -> str:
        """Itself."""
        return name

    def hang(self, name: str, payload: Payload) -> str:
        """The same for all tasks."""
        return HANGING[name]


class FunctionBattery:
    """For functions that are called."""

    constants: Sequence[str] = CONSTANT_VALUES
    hanging: Sequence[str] = tuple(HANGING_CODE)
    persistent: Sequence[str] = PERSISTENT_CODE

    def __init__(self, environment: PythonFunctionsEnvironment) -> None:
        self._environment = environment
        self.limit_seconds: float | None = environment.time_limit_seconds

    def constant(self, name: str, payload: Payload) -> str:
        """A function of the right name."""
        return constant_function(self._environment.row(payload).entry_point, name)

    def hang(self, name: str, payload: Payload) -> str:
        """A function of the right name."""
        return fence(HANGING_CODE[name].replace("{entry}", self._environment.row(payload).entry_point))


class ProgramBattery:
    """For programs that are run."""

    constants: Sequence[str] = CONSTANT_LINES

    def __init__(self, environment: StdioEnvironment) -> None:
        self._language = environment.language
        is_python = self._language == "python"
        self.hanging: Sequence[str] = tuple(HANGING_CODE if is_python else TEXTS[self._language].hanging)
        self.persistent: Sequence[str] = PERSISTENT_CODE if is_python else ()
        self.limit_seconds: float | None = environment.time_limit_seconds + (0.0 if is_python else COMPILE_SECONDS)

    def constant(self, name: str, payload: Payload) -> str:
        """A program that prints it."""
        return constant_program(name, self._language)

    def hang(self, name: str, payload: Payload) -> str:
        """The same for all tasks."""
        return hanging_program(name, self._language)


def battery_of(environment: Environment) -> Battery:
    """The battery for an environment."""
    if isinstance(environment, PythonFunctionsEnvironment):
        return FunctionBattery(environment)
    if isinstance(environment, StdioEnvironment):
        return ProgramBattery(environment)
    return AnswerBattery()
