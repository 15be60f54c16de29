"""Runs the battery on one environment as a job would open it, in this process; and, as a program, on all that this package certifies.

`python -m rlvr_verifier.integrity.certify` -> arithmetic and every reasoning-gym task -> built_in_certificates.json
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.spec import RLVRJob, Storage, Verifiers
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.reasoning_gym_tasks import SAFE_TASKS
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.integrity.certificates import SHIPPED, Certificate
from rlvr_verifier.integrity.certification import Certification
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.sandboxed import SandboxedScorers, start_sandbox
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService

UNCERTIFIED: Mapping[str, frozenset[str]] = {
    "one constant passes more than half of the tasks": frozenset({
        "circuit_logic", "course_schedule", "game_of_life_halting", "largest_island", "letter_counting", "mahjong_puzzle",
        "n_queens", "polynomial_equations", "syllogism", "zebra_puzzles",
    }),
    "the answer of another task can be right": frozenset({
        "graph_color", "jugs",
    }),
    "the battery has not been run on it": frozenset({
        "intermediate_integration",
    }),
}  # fmt: skip
"""Tasks of reasoning-gym that ship without a certificate, by the reason, at the level that is tried."""
TASKS = 100
"""Of each environment: none failing leaves at most 3.6 %."""


def certify(spec: EnvironmentSpec, storage: Storage, verifiers: Verifiers, tasks: int, seed: int) -> Certificate:
    """The certificate of an environment.

    Raises:
        EnvironmentSetupError: it cannot be opened.
        SandboxError: it runs code, and there is no sandbox.
    """
    job = _job(spec, storage, verifiers)
    with ExitStack() as opened:
        sandbox = start_sandbox(job.spec, verifiers.workers)
        if sandbox is not None:
            opened.callback(sandbox.close)
        environments = open_environments(job, os.environ, sandbox)
        pool = WorkerPool(job.model_dump_json(by_alias=True), job.spec)
        scorers = None if sandbox is None else SandboxedScorers(sandbox, verifiers.workers)
        service = VerifierService(job.spec, environments, Seal(os.urandom(32)), pool, Instruments(), scorers)
        opened.callback(service.close)
        return asyncio.run(Certification(job, environments[spec.name], service, tasks, seed).run())


def _job(spec: EnvironmentSpec, storage: Storage, verifiers: Verifiers) -> RLVRJob:
    """A job with this environment alone, without audits and canaries: the battery is what is sent."""
    environment = spec.model_copy(update={"audit": None, "noise": None})
    sections: dict[str, Any] = {
        name: json.loads(section.model_dump_json(by_alias=True, exclude_none=True))
        for name, section in (("storage", storage), ("verifiers", verifiers))
    }
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": "certify"},
        "spec": {
            "model": {"uri": "file:///no/model/is/loaded"},
            "environments": [json.loads(environment.model_dump_json(by_alias=True, exclude_none=True))],
            "stages": [{"name": "measure", "evaluate": {}}],
            "integrity": {"canaryRate": 0.0},
            **sections,
        },
    })  # fmt: skip


def built_in_environments() -> Iterator[EnvironmentSpec]:
    """What this package certifies: every way to read a number that holds, and every safe task with its own settings that can be."""
    for extraction in ("lastInteger", "exact"):
        arithmetic = {"operations": ["+", "-", "*"], "extraction": extraction}
        yield EnvironmentSpec.model_validate({"name": "arithmetic", "arithmetic": arithmetic, "levels": {"maximum": 3}})
    yield EnvironmentSpec.model_validate({"name": "calculator", "calculator": {"operations": ["+", "-", "*"]}, "levels": {"maximum": 3}})
    for task in sorted(SAFE_TASKS.difference(*UNCERTIFIED.values())):
        yield EnvironmentSpec.model_validate({"name": task.replace("_", "-"), "reasoningGym": {"task": task}})


def main() -> int:
    """Certify all of them, and write their certificates; those that fail are kept out, with a line each."""
    found = []
    for spec in built_in_environments():
        certificate = certify(spec, Storage(), Verifiers(), TASKS, seed=0)
        failed = [check.name for check in certificate.checks if not check.passed]
        print(f"{spec.name}: {'certified' if certificate.certified else failed}", flush=True)
        found.append(certificate)
    certified = [certificate for certificate in found if certificate.certified]
    file = Path(__file__).with_name(SHIPPED)
    file.write_text("[\n" + ",\n".join(certificate.model_dump_json() for certificate in certified) + "\n]\n")
    return 0 if len(certified) == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
