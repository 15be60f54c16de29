"""What a worker process does: it judges one item after the other, those of `Place.FORK` each in a fork.

environments of the job -> ready -> (environment, payload, completion) -> score, or why there is none -> ...
"""

import json
import os
import signal
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

from pydantic import JsonValue

from rlvr_api.spec import RLVRJob
from rlvr_api.wire import Transcript
from rlvr_verifier.environments import math_problems, open_environments
from rlvr_verifier.environments.base import Environment, Place, UnjudgedError
from rlvr_verifier.environments.episodes import Interactive, step
from rlvr_verifier.faults import fault
from rlvr_verifier.scorer_forks import ScorerForks


def serve(pipe: Connection, job_json: str) -> None:
    """Judge what comes through the pipe until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = RLVRJob.model_validate_json(job_json)
    environments = open_environments(job, os.environ, checked=True)
    if any(environment.kind == math_problems.MathEnvironment.kind for environment in environments.values()):
        math_problems.warm_up()
    forking = any(environment.place is Place.FORK for environment in environments.values())
    forks = ScorerForks(job.spec.verifiers.item_timeout_seconds) if forking else None
    pipe.send_bytes(b"ready")
    with suppress(EOFError, ConnectionError):  # the service is gone
        while True:
            name, payload, completion, truncated = json.loads(pipe.recv_bytes())
            environment = environments[name]
            judge = partial(_answer, environment, payload, completion, truncated)
            answer = forks.run(judge) if forks is not None and environment.place is Place.FORK else judge()
            pipe.send_bytes(answer.encode())


def _answer(environment: Environment, payload: dict[str, JsonValue], completion: str, truncated: bool | None) -> str:
    try:
        if truncated is None:
            assert isinstance(environment, Interactive)
            result = step(environment, payload, Transcript.of(completion))
            return json.dumps(result.model_dump(mode="json"), ensure_ascii=False)
        score = environment.score(payload, completion, truncated)
    except UnjudgedError as error:
        return json.dumps(str(error))
    except Exception as error:  # noqa: BLE001 - the border of the process: the parent makes an infra_error of it
        return json.dumps(f"{fault(error)}, in the scorer's process")
    return json.dumps([score.status.value, score.score, score.reason])
