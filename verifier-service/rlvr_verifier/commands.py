"""The command `rlvr environment certify`."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlvr_api.cli import Command, UserError
from rlvr_api.environments import DATASET_KINDS, SANDBOXED_KINDS, EnvironmentSpec
from rlvr_api.loading import InvalidJobError, load_job
from rlvr_api.spec import RLVRJob, Storage, Verifiers

if TYPE_CHECKING:
    from rlvr_verifier.integrity.certification import Certificate

DEFAULT_TASKS = 100


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    certify = actions.add_parser("certify", help="run the battery of known answers, exploits and hostile texts against an environment")
    certify.add_argument("environment", metavar="NAME|FILE", help="arithmetic, a reasoning-gym task such as chain_sum, or a job's file")
    certify.add_argument("--name", metavar="ENVIRONMENT", help="of a job with several environments, the one to certify")
    certify.add_argument("--tasks", type=int, default=DEFAULT_TASKS, help=f"how many tasks; default {DEFAULT_TASKS}")
    certify.add_argument("--seed", type=int, default=0, help="which tasks")
    certify.add_argument("--output", type=Path, metavar="FILE", help="also write the certificate as JSON")


def _run(arguments: argparse.Namespace) -> int:
    from rlvr_verifier.environments.base import EnvironmentSetupError

    if arguments.tasks < 2:
        raise UserError(f"--tasks {arguments.tasks} is too few: the answer of one task is tried on another, so write 2 or more")
    specs, storage, verifiers = _environments(arguments.environment, arguments.name)
    certified = True
    for spec in specs:
        try:
            found = asyncio.run(_certify(spec, storage, verifiers, arguments.tasks, arguments.seed))
        except EnvironmentSetupError as error:
            raise UserError(str(error)) from None
        _print(found)
        if arguments.output is not None:
            file = arguments.output if len(specs) == 1 else arguments.output.with_stem(f"{arguments.output.stem}-{spec.name}")
            file.write_text(found.model_dump_json(indent=1) + "\n")
            print(f"certificate: {file}")
        certified = certified and found.certified
    return 0 if certified else 1


def _environments(named: str, only: str | None) -> tuple[Sequence[EnvironmentSpec], Storage, Verifiers]:
    """The environments of a file, or the one of a name with its defaults."""
    file = Path(named)
    if not file.is_file():
        return (_by_name(named),), Storage(), Verifiers()
    try:
        spec = load_job(file.read_bytes()).spec
    except InvalidJobError as error:
        raise UserError(f"{file} is not a valid RLVRJob\n" + "\n".join(f"  {problem}" for problem in error.problems)) from None
    chosen = [environment for environment in spec.environments if only in (None, environment.name)]
    if not chosen:
        raise UserError(f"{file} has no environment {only!r}; it has {', '.join(environment.name for environment in spec.environments)}")
    code = [environment.name for environment in chosen if environment.kind in SANDBOXED_KINDS]
    if code:
        raise UserError(
            f"{file}: environment {code[0]} runs code, and the battery has no right and wrong programs for its tasks: choose others with "
            "--name; the sandbox itself is tried by `make bench NAME=exploits`"
        )
    return [_with_absolute_path(environment, file) for environment in chosen], spec.storage, spec.verifiers


def _by_name(name: str) -> EnvironmentSpec:
    from rlvr_verifier.environments.reasoning_gym import SAFE_TASKS

    if name == "arithmetic":
        return EnvironmentSpec.model_validate({"name": "arithmetic", "arithmetic": {}, "levels": {"maximum": 3}})
    if name in SAFE_TASKS:
        return EnvironmentSpec.model_validate({"name": name.replace("_", "-")[:40], "reasoningGym": {"task": name}})
    raise UserError(
        f"{name!r} is neither a file nor an environment with defaults; write arithmetic, {', '.join(sorted(SAFE_TASKS)[:3])}, ..."
    )


def _with_absolute_path(environment: EnvironmentSpec, file: Path) -> EnvironmentSpec:
    data = getattr(environment, environment.kind)
    if environment.kind not in DATASET_KINDS or not data.dataset.startswith("file://"):
        return environment
    path = (file.absolute().parent / data.dataset.removeprefix("file://")).resolve()
    return environment.model_copy(update={environment.kind: data.model_copy(update={"dataset": f"file://{path}"})})


async def _certify(spec: EnvironmentSpec, storage: Storage, verifiers: Verifiers, tasks: int, seed: int) -> "Certificate":
    from rlvr_verifier.environments import open_environments
    from rlvr_verifier.instruments import Instruments
    from rlvr_verifier.integrity.certification import Certification
    from rlvr_verifier.pool import WorkerPool
    from rlvr_verifier.seal import Seal
    from rlvr_verifier.service import VerifierService

    job = _job(spec, storage, verifiers)
    environments = open_environments(job, os.environ)
    pool = WorkerPool(job.model_dump_json(by_alias=True), job.spec)
    service = VerifierService(job.spec, environments, Seal(os.urandom(32)), pool, Instruments())
    try:
        return await Certification(job, environments[spec.name], service, tasks, seed).run()
    finally:
        service.close()


def _job(spec: EnvironmentSpec, storage: Storage, verifiers: Verifiers) -> RLVRJob:
    """A job with this environment alone, without audits and canaries: the battery is what is sent."""
    environment = spec.model_copy(update={"audit": None})
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


def _print(found: "Certificate") -> None:
    levels = f"{found.levels[0]}" if len(found.levels) == 1 else f"{found.levels[0]} to {found.levels[-1]}"
    print(f"{found.environment} ({found.kind} {found.version}), levels {levels}: {'certified' if found.certified else 'NOT certified'}")
    for check in found.checks:
        outcome = "ok  " if check.passed else "FAIL"
        print(f"  {outcome} {check.name}: {check.failures} of {check.trials} failed, at most {check.upper_bound:.1%}")
        for detail in () if check.passed else check.details:
            print(f"         {detail}")
    print(
        f"  false positives {found.false_positive_rate:.1%} (at most {found.false_positive_upper_bound:.1%}), false negatives "
        f"{found.false_negative_rate:.1%} (at most {found.false_negative_upper_bound:.1%}), base rate {found.base_rate:.1%} "
        f"({found.base_rate_text!r}), p99 {found.p99_seconds * 1000:.2f} ms, slowest hostile text {found.slowest_seconds:.2f} s"
    )
    sys.stdout.flush()


environment = Command("environment", "certify an environment: `rlvr environment certify NAME|FILE`", _configure, _run)
