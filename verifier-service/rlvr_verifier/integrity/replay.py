"""Makes and judges the same tasks in a fresh process with a given hash seed, to see whether anything depends on the process.

job and examples as JSON on stdin -> `python -m rlvr_verifier.integrity.replay` -> what it made of them as JSON on stdout
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from rlvr_api.spec import RLVRJob
from rlvr_api.wire import TaskRequest
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import Environment
from rlvr_verifier.sandboxed import start_sandbox

TIMEOUT_SECONDS = 600.0


class Example(BaseModel):
    """A task, and completions to judge."""

    model_config = ConfigDict(frozen=True)
    request: TaskRequest
    completions: tuple[str, ...]


class Replayed(BaseModel):
    """What a process made of an example."""

    model_config = ConfigDict(frozen=True)
    problem_id: str
    prompt: str
    statuses: tuple[str, ...]


class _Order(BaseModel):
    job: RLVRJob
    examples: tuple[Example, ...]


class _Answer(BaseModel):
    replayed: tuple[Replayed, ...]


class ReplayError(RuntimeError):
    """The other process failed."""


def replay(job: RLVRJob, examples: Sequence[Example], hash_seed: int) -> tuple[Replayed, ...]:
    """What a process with `PYTHONHASHSEED=hash_seed` makes of the examples, in order.

    Raises:
        ReplayError: it failed; the message has its last line.
    """
    order = _Order(job=job, examples=tuple(examples)).model_dump_json()
    environ = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", __name__]
    ended = subprocess.run(command, input=order.encode(), capture_output=True, env=environ, timeout=TIMEOUT_SECONDS, check=False)
    if ended.returncode != 0:
        words = ended.stderr.decode(errors="replace").strip().splitlines()
        raise ReplayError(f"the process with hash seed {hash_seed} ended with code {ended.returncode}: {words[-1] if words else 'no word'}")
    return _Answer.model_validate_json(ended.stdout).replayed


def _replay(environment: Environment, example: Example) -> Replayed:
    task = environment.sample(example.request.split, example.request.seed, example.request.level)
    statuses = tuple(environment.score(task.payload, text, False).status.value for text in example.completions)
    return Replayed(problem_id=task.problem_id, prompt=task.messages[-1].content, statuses=statuses)


def main() -> None:
    """Read an order on stdin, and answer on stdout."""
    order = _Order.model_validate_json(sys.stdin.buffer.read())
    sandbox = start_sandbox(order.job.spec, 1)
    try:
        environments = open_environments(order.job, os.environ, sandbox)
        replayed = [_replay(environments[example.request.environment], example) for example in order.examples]
    finally:
        if sandbox is not None:
            sandbox.close()
    sys.stdout.write(_Answer(replayed=tuple(replayed)).model_dump_json())


if __name__ == "__main__":
    main()
