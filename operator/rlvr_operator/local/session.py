"""`rlvr run`: from a job's file to an exit code.

read -> resolve paths -> preflight (nothing has started yet) -> lock the folder -> compare with the begun run -> model -> runtime
"""

import asyncio
import os
import subprocess
import sys
import uuid
from pathlib import Path

from rlvr_api.changes import fixed_changes
from rlvr_api.cli import BAD_INPUT, INTERRUPTED, UserError
from rlvr_api.conditions import Phase, Reason
from rlvr_api.embedded_s3 import EmbeddedS3Error
from rlvr_api.loading import InvalidJobError, load_job
from rlvr_api.spec import RLVRJob
from rlvr_operator.local.folder import RunFolder
from rlvr_operator.local.parts import Site
from rlvr_operator.local.preflight import FILE_SCHEME, find_problems, resolve_paths
from rlvr_operator.local.runtime import LocalRuntime
from rlvr_operator.local.view import open_view
from rlvr_operator.observation import Ending
from rlvr_operator.plan import model_source


def run_job_file(file: Path, runs_dir: Path, plain: bool) -> int:
    """Runs the job of `file` to its end, goes on with it, or says why not.

    Raises:
        UserError: the file cannot be read, or the run's folder cannot be used.
    """
    if not sys.platform.startswith("linux"):
        raise UserError(f"local runs need Linux, and this is {sys.platform}: use a container or a cluster")
    job = read_job_file(file)
    problems = find_problems(job, runs_dir)
    if problems:
        raise UserError(f"{file} cannot run here\n" + "\n".join(f"  {problem}" for problem in problems))
    with RunFolder(runs_dir, job.metadata.name) as folder:
        if _is_finished(folder, job):
            report = f"its report is {folder.report_file}; " if folder.report_file.exists() else ""
            print(f"{job.metadata.name} is finished; {report}move {folder.path} away to run it anew")
            return 0
        folder.write_job(job)
        site = Site(job, folder, _provide_model(job, folder), marker=str(uuid.uuid4()))
        return _conclude(_supervise(site, plain), folder)


def read_job_file(file: Path) -> RLVRJob:
    """The job of `file`, with absolute paths.

    Raises:
        UserError: with every problem.
    """
    try:
        return resolve_paths(load_job(file.read_bytes()), file.absolute().parent)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except InvalidJobError as error:
        raise UserError(f"{file} is not a valid RLVRJob\n" + "\n".join(f"  {problem}" for problem in error.problems)) from None


def _is_finished(folder: RunFolder, job: RLVRJob) -> bool:
    """Whether this very job has come to its end here; refuses a job that is not the one that was begun."""
    before = folder.read_job()
    if before is None:
        return False
    changes = fixed_changes(before.spec, job.spec)
    if changes and folder.read_state().attempt > 0:
        raise UserError(
            f"the run in {folder.path} was begun with another spec; take the change back, rename the job, or move the folder away\n"
            + "\n".join(f"  {change}" for change in changes)
        )
    status = folder.read_status()
    return not changes and status is not None and status.phase is Phase.SUCCEEDED


def _provide_model(job: RLVRJob, folder: RunFolder) -> str:
    uri, source = job.spec.model.uri, model_source(job, sys.executable, str(folder.job_file), str(folder.model_dir))
    if source is None:
        return uri.removeprefix(FILE_SCHEME)
    print(f"fetching {uri} into {folder.model_dir} ...", flush=True)
    ended = subprocess.run(source.command, env={**os.environ, **source.env}, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode != 0:
        last_line = next(iter(ended.stderr.strip().splitlines()[::-1]), f"exit code {ended.returncode}")
        raise UserError(f"the model could not be fetched: {last_line.removeprefix('error: ')}")
    return str(folder.model_dir)


def _supervise(site: Site, plain: bool) -> Ending:
    with open_view(site.job.metadata.name, plain) as view:
        try:
            return asyncio.run(LocalRuntime(site, view).run())
        except EmbeddedS3Error as error:
            raise UserError(str(error)) from None
        except OSError as error:  # a full disk; everything has been stopped
            message = f"{error.filename or site.folder.path}: {error.strerror}; make room, and the same command goes on"
            return Ending(Phase.FAILED, Reason.RUNTIME_FAILED, message)


def _conclude(ending: Ending, folder: RunFolder) -> int:
    if ending.phase is Phase.SUCCEEDED:
        print(ending.message)
        return 0
    if ending.phase is Phase.SUSPENDED and ending.reason is not Reason.REWARD_NOT_TRUSTWORTHY:
        print(ending.message)
        return INTERRUPTED
    print(f"rlvr run: {ending.message}", file=sys.stderr)
    if ending.reason is Reason.INVALID_SPEC:
        return BAD_INPUT
    print(
        f"rlvr run: {'paused' if ending.phase is Phase.SUSPENDED else 'failed'} ({ending.reason}); logs are in {folder.logs_dir}",
        file=sys.stderr,
    )
    return 1
