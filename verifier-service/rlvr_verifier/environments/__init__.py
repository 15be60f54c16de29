"""One file a kind of environment; `ENVIRONMENTS` finds it by the member of `rlvr_api.environments.EnvironmentSpec` that is set."""

from collections.abc import Callable, Mapping

from pydantic.alias_generators import to_camel

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.spec import RLVRJob
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment
from rlvr_verifier.environments.base import Environment, EnvironmentSetupError
from rlvr_verifier.environments.calculator import CalculatorEnvironment
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.gymnasium_steps import GymnasiumEnvironment
from rlvr_verifier.environments.instructions import InstructionsEnvironment
from rlvr_verifier.environments.json_schema import JsonSchemaEnvironment
from rlvr_verifier.environments.judge import JudgeEnvironment
from rlvr_verifier.environments.math_problems import MathEnvironment
from rlvr_verifier.environments.plugin import PluginEnvironment
from rlvr_verifier.environments.python_functions import PythonFunctionsEnvironment
from rlvr_verifier.environments.reasoning_gym import ReasoningGymEnvironment
from rlvr_verifier.environments.regex import RegexEnvironment
from rlvr_verifier.environments.sql import SqlEnvironment
from rlvr_verifier.environments.stdio import StdioEnvironment
from rlvr_verifier.environments.taskset import TasksetEnvironment
from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.probe import Level, ProbeReport

Factory = Callable[[EnvironmentSpec, DatasetReader], Environment]

ENVIRONMENTS: Mapping[str, Factory] = {
    "arithmetic": lambda spec, _: ArithmeticEnvironment(spec),
    "calculator": lambda spec, _: CalculatorEnvironment(spec),
    "reasoning_gym": lambda spec, _: ReasoningGymEnvironment(spec),
    "math": MathEnvironment,
    "json_schema": JsonSchemaEnvironment,
    "regex": RegexEnvironment,
    "instructions": InstructionsEnvironment,
    "sql": SqlEnvironment,
    "judge": JudgeEnvironment,
    "plugin": PluginEnvironment,
    "gymnasium": lambda spec, _: GymnasiumEnvironment(spec),
    "taskset": TasksetEnvironment,
}
SANDBOXED: Mapping[str, type[PythonFunctionsEnvironment] | type[StdioEnvironment]] = {
    "python_functions": PythonFunctionsEnvironment,
    "stdio": StdioEnvironment,
}
"""Those that run what the model wrote."""


def open_environments(
    job: RLVRJob, environ: Mapping[str, str], sandbox: Sandbox | None = None, *, checked: bool = False
) -> dict[str, Environment]:
    """The environments of a job, by name.

    Args:
        sandbox: for those that run what the model wrote; None: they are left out.
        checked: their datasets were checked before, by the service whose worker this is.

    Raises:
        EnvironmentSetupError: one cannot be used as the job describes it, or the sandbox keeps out too little.
    """
    reader = DatasetReader(job.spec.storage, environ, checked=checked)
    opened = {spec.name: ENVIRONMENTS[spec.kind](spec, reader) for spec in job.spec.environments if spec.kind in ENVIRONMENTS}
    return opened if sandbox is None else opened | open_sandboxed(job, environ, sandbox)


def open_sandboxed(job: RLVRJob, environ: Mapping[str, str], sandbox: Sandbox) -> dict[str, Environment]:
    """The environments of a job that run what the model wrote, by name.

    Raises:
        EnvironmentSetupError: one cannot be used as the job describes it, or the sandbox keeps out too little.
    """
    reader = DatasetReader(job.spec.storage, environ)
    opened: dict[str, Environment] = {}
    for spec in job.spec.environments:
        if spec.kind not in SANDBOXED:
            continue
        _check_level(spec, sandbox.report)
        opened[spec.name] = SANDBOXED[spec.kind](spec, reader, sandbox)
    return opened


def _check_level(spec: EnvironmentSpec, measured: ProbeReport) -> None:
    code = spec.python_functions or spec.stdio
    assert code is not None
    needed = Level(code.min_sandbox_level)
    attacks = measured.open_below(needed)
    if not attacks:
        return
    advice = (
        "use Linux 6.12 or newer on x86-64, with Landlock among its security modules"
        if measured.level is Level.L0
        else f"set {to_camel(spec.kind)}.minSandboxLevel to {measured.level}, or let the sandbox be {needed} (docs/security.md)"
    )
    raise EnvironmentSetupError(
        f"environment {spec.name} runs what the model wrote and needs sandbox level {needed}; this one is {measured.level}, for in it "
        f"attacks succeed: {', '.join(attacks)}; {'; '.join([*measured.faults, advice])}"
    )
