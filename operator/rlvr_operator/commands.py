"""The commands `rlvr validate`, `rlvr crd` and `rlvr run`."""

import argparse
import sys
from pathlib import Path

from rlvr_api.cli import BAD_INPUT, Command
from rlvr_api.crd import crd_yaml
from rlvr_api.loading import InvalidJobError, load_job


def _configure_validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="RLVRJob as YAML or JSON")


def _validate(arguments: argparse.Namespace) -> int:
    code = 0
    for file in arguments.files:
        try:
            job = load_job(file.read_bytes())
        except OSError as error:
            problems: tuple[str, ...] = (f"cannot be read: {error.strerror}",)
        except InvalidJobError as error:
            problems = tuple(map(str, error.problems))
        else:
            stages, environments = (", ".join(item.name for item in items) for items in (job.spec.stages, job.spec.environments))
            print(f"{file}: job {job.metadata.name} is valid (stages: {stages}; environments: {environments})")
            continue
        code = BAD_INPUT
        for problem in problems:
            print(f"{file}: {problem}", file=sys.stderr)
    return code


def _configure_crd(parser: argparse.ArgumentParser) -> None:
    del parser  # it takes no arguments


def _crd(arguments: argparse.Namespace) -> int:
    del arguments
    print(crd_yaml(), end="")
    return 0


def _configure_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="JOB.yaml", help="RLVRJob as YAML or JSON")
    parser.add_argument(
        "--runs-dir", type=Path, default=Path("runs"), help="where runs are kept, each in a folder of its job's name (runs)"
    )
    parser.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")


def _run(arguments: argparse.Namespace) -> int:
    from rlvr_operator.local.session import run_job_file  # its libraries come with the extra, and take half a second

    return run_job_file(arguments.file, arguments.runs_dir, arguments.plain)


validate = Command("validate", "check RLVRJob files and say everything that is wrong with them", _configure_validate, _validate)
crd = Command("crd", "print the CustomResourceDefinition of RLVRJob", _configure_crd, _crd)
run = Command("run", "run an RLVRJob on this machine, or go on with it", _configure_run, _run)
