"""The command `rlvr environment certify`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlvr_api.cli import Command, UserError
from rlvr_api.environments import EnvironmentSpec
from rlvr_api.inputs import map_inputs
from rlvr_api.loading import InvalidJobError, load_job
from rlvr_api.spec import Storage, Verifiers

if TYPE_CHECKING:
    from rlvr_verifier.integrity.certificates import Certificate

DEFAULT_TASKS = 100


def _configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    certify = actions.add_parser("certify", help="run the battery of known answers, exploits and hostile texts against an environment")
    certify.add_argument("environment", metavar="NAME|FILE", help="arithmetic, a reasoning-gym task such as chain_sum, or a job's file")
    certify.add_argument("--name", metavar="ENVIRONMENT", help="of a job with several environments, the one to certify")
    certify.add_argument("--tasks", type=int, default=DEFAULT_TASKS, help=f"how many tasks; default {DEFAULT_TASKS}")
    certify.add_argument("--seed", type=int, default=0, help="which tasks")
    certify.add_argument("--output", type=Path, metavar="FILE", help="write the certificate here, and not beside the dataset")


def _run(arguments: argparse.Namespace) -> int:
    from rlvr_verifier.environments.base import EnvironmentSetupError
    from rlvr_verifier.integrity.certify import certify
    from rlvr_verifier.sandbox.pool import SandboxError

    if arguments.tasks < 2:
        raise UserError(f"--tasks {arguments.tasks} is too few: the answer of one task is tried on another, so write 2 or more")
    specs, storage, verifiers = _environments(arguments.environment, arguments.name)
    certified = True
    for spec in specs:
        output: Path | None = arguments.output
        if output is not None and len(specs) > 1:
            output = output.with_stem(f"{output.stem}-{spec.name}")
        try:
            found = certify(spec, storage, verifiers, arguments.tasks, arguments.seed)
            _print(found)
            _keep(found, spec, storage, output)
        except (EnvironmentSetupError, SandboxError) as error:
            raise UserError(str(error)) from None
        certified = certified and found.certified
    return 0 if certified else 1


def _environments(named: str, only: str | None) -> tuple[Sequence[EnvironmentSpec], Storage, Verifiers]:
    """The environments of a file, or the one of a name with its defaults."""
    file = Path(named)
    if not file.is_file():
        return (_by_name(named),), Storage(), Verifiers()
    try:
        spec = map_inputs(load_job(file.read_bytes()).spec, lambda uri: _absolute(uri, file.absolute().parent))
    except InvalidJobError as error:
        raise UserError(f"{file} is not a valid RLVRJob\n" + "\n".join(f"  {problem}" for problem in error.problems)) from None
    chosen = [environment for environment in spec.environments if only in (None, environment.name)]
    if not chosen:
        raise UserError(f"{file} has no environment {only!r}; it has {', '.join(environment.name for environment in spec.environments)}")
    return chosen, spec.storage, spec.verifiers


def _by_name(name: str) -> EnvironmentSpec:
    from rlvr_verifier.environments.reasoning_gym_tasks import SAFE_TASKS

    if name == "arithmetic":
        return EnvironmentSpec.model_validate({"name": "arithmetic", "arithmetic": {}, "levels": {"maximum": 3}})
    if name in SAFE_TASKS:
        return EnvironmentSpec.model_validate({"name": name.replace("_", "-")[:40], "reasoningGym": {"task": name}})
    raise UserError(
        f"{name!r} is neither a file nor an environment with defaults; write arithmetic, {', '.join(sorted(SAFE_TASKS)[:3])}, ..."
    )


def _absolute(uri: str, folder: Path) -> str:
    return f"file://{(folder / uri.removeprefix('file://')).resolve()}" if uri.startswith("file://") else uri


def _keep(found: "Certificate", spec: EnvironmentSpec, storage: Storage, output: Path | None) -> None:
    """Write the certificate where the verifier service looks for it, or to a file that was asked for."""
    from rlvr_verifier.environments.datasets import DatasetReader
    from rlvr_verifier.integrity.certificates import certificate_uri

    if output is not None:
        output.write_text(found.to_json())
        print(f"certificate: {output}")
        return
    uri = certificate_uri(spec)
    if uri is not None:
        DatasetReader(storage, os.environ).write(uri, found.to_json().encode())
        print(f"certificate: {uri}")


def _print(found: "Certificate") -> None:
    levels = f"{found.levels[0]}" if len(found.levels) == 1 else f"{found.levels[0]} to {found.levels[-1]}"
    version = found.subject.version
    print(f"{found.environment} ({found.subject.kind} {version}), levels {levels}: {'certified' if found.certified else 'NOT certified'}")
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
