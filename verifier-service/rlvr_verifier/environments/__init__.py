"""One file a kind of environment; `ENVIRONMENTS` finds it by the member of `rlvr_api.environments.EnvironmentSpec` that is set."""

from collections.abc import Callable, Mapping

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.spec import RLVRJob
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment
from rlvr_verifier.environments.base import Environment
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.math_problems import MathEnvironment
from rlvr_verifier.environments.reasoning_gym import ReasoningGymEnvironment

Factory = Callable[[EnvironmentSpec, DatasetReader], Environment]

ENVIRONMENTS: Mapping[str, Factory] = {
    "arithmetic": lambda spec, _: ArithmeticEnvironment(spec),
    "reasoning_gym": lambda spec, _: ReasoningGymEnvironment(spec),
    "math": MathEnvironment,
}


def open_environments(job: RLVRJob, environ: Mapping[str, str]) -> dict[str, Environment]:
    """The environments of a job, by name.

    Raises:
        EnvironmentSetupError: one cannot be used as the job describes it.
    """
    reader = DatasetReader(job.spec.storage, environ)
    return {spec.name: ENVIRONMENTS[spec.kind](spec, reader) for spec in job.spec.environments}
