"""`python -m rlvr_verifier --host HOST --port PORT`: the verifier service of the job in `RLVR_JOB_FILE`."""

import argparse
import logging
import os
import sys
from pathlib import Path

import uvicorn

from rlvr_api.process import ExitCode, Variable
from rlvr_api.spec import RLVRJob
from rlvr_verifier import telemetry
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import FINISH_SECONDS, Drain, DrainingServer
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.integrity.certificates import find_uncertified
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.sandbox.pool import SandboxError
from rlvr_verifier.sandboxed import SandboxedScorers, start_sandbox
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService


def main() -> int:
    """Serve until asked to stop; requests under way are finished first."""
    parser = argparse.ArgumentParser(prog="python -m rlvr_verifier", description="Samples tasks and judges completions of one RLVRJob.")
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        job = RLVRJob.model_validate_json(Path(os.environ[Variable.JOB_FILE]).read_bytes())
        sandbox = start_sandbox(job.spec, job.spec.verifiers.workers, os.environ.get(Variable.SANDBOX_SOCKET))
        environments = open_environments(job, os.environ, sandbox)
        uncertified = find_uncertified(job, environments, DatasetReader(job.spec.storage, os.environ))
        seal = Seal.from_file(os.environ.get(Variable.SEAL_KEY_FILE))
    except KeyError as error:
        return _refuse(f"the environment variable {error.args[0]} is not set; start the service with `rlvr run` or the operator")
    except SandboxError as error:
        return _refuse(str(error))
    except (OSError, ValueError) as error:
        return _refuse(str(error) if isinstance(error, EnvironmentSetupError) else f"{type(error).__name__}: {error}")
    telemetry.start(job.spec.observability.tracing, job.metadata.name)
    pool, instruments, drain = WorkerPool(job.model_dump_json(), job.spec), Instruments(), Drain()
    sandboxed = None if sandbox is None else SandboxedScorers(sandbox, job.spec.verifiers.workers)
    service = VerifierService(job.spec, environments, seal, pool, instruments, sandboxed, uncertified)
    app = build_app(service, instruments, drain)
    config = uvicorn.Config(app, host=arguments.host, port=arguments.port, log_level="warning", timeout_graceful_shutdown=FINISH_SECONDS)
    DrainingServer(config, drain).run()
    return ExitCode.DONE


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return ExitCode.BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
