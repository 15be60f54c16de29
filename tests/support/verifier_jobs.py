"""Jobs for tests of the verifier service: what it judges matters, and nothing else does."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from rlvr_api.environments import EnvironmentSpec, PythonFunctions
from rlvr_api.spec import RLVRJob, Storage
from rlvr_verifier.environments import ENVIRONMENTS
from rlvr_verifier.environments.base import Environment
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.python_functions import PythonFunctionsEnvironment


def write_problems(folder: Path, problems: Iterable[tuple[str, str]]) -> str:
    """Write problems and answers as a dataset; returns its URI."""
    data = folder / "math.jsonl"
    data.write_text("\n".join(json.dumps({"problem": problem, "answer": answer}) for problem, answer in problems))
    return f"file://{data}"


def verifier_job(environments: list[dict[str, Any]], integrity: dict[str, Any] | None = None, **verifiers: Any) -> RLVRJob:
    """A job with these environments; `verifiers` are fields of `spec.verifiers`."""
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": "verify"},
        "spec": {
            "model": {"uri": "file:///none"},
            "environments": environments,
            "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
            "verifiers": verifiers,
            "integrity": {"allowUncertified": True, **(integrity or {})},
        },
    })  # fmt: skip


def sums_and_math(folder: Path, problems: Iterable[tuple[str, str]], **verifiers: Any) -> RLVRJob:
    """A job with sums and a dataset of problems."""
    return verifier_job(
        [{"name": "sums", "arithmetic": {}}, {"name": "math", "math": {"dataset": write_problems(folder, problems)}}], **verifiers
    )


def write_rows(folder: Path, *rows: object) -> str:
    """Write a dataset of JSON lines; returns its URI."""
    data = folder / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    return f"file://{data}"


def open_functions(folder: Path, sandbox: Any, *rows: object, **settings: Any) -> PythonFunctionsEnvironment:
    """An environment of functions to write, all of whose rows are for training."""
    kind = PythonFunctions(dataset=write_rows(folder, *rows), held_out=1e-4, **settings)
    return PythonFunctionsEnvironment(EnvironmentSpec(name="code", python_functions=kind), DatasetReader(Storage(), {}), sandbox)


def open_rows(folder: Path, kind: str, *rows: object, **settings: Any) -> Environment:
    """An environment of these rows, all of which are for training."""
    spec = {"name": "rows", to_camel(kind): {"dataset": write_rows(folder, *rows), "heldOut": 1e-4, **settings}}
    return ENVIRONMENTS[kind](EnvironmentSpec.model_validate(spec), DatasetReader(Storage(), {}))
