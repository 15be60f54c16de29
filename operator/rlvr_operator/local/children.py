"""From workloads to child processes: the environment that a plan does not set, log files, GPUs, and the S3 server as one more child.

Children inherit the person's environment, since libraries are configured there, but for the S3 credentials, which only the processes that
use the store get, the keys of teachers and judges, which only the learner and the verifier get, and for proxies, which loopback must not go
through.
"""

import os
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlvr_api.embedded_s3 import EmbeddedS3
from rlvr_api.process import JUDGE_API_KEY, TEACHER_API_KEY, Role
from rlvr_operator.local.folder import RunFolder
from rlvr_operator.local.ports import HOST
from rlvr_operator.local.process import ChildSpec
from rlvr_operator.plan import Workload

S3_NAME = "s3"
CREDENTIAL_PREFIX = "AWS_"
KEYS = {TEACHER_API_KEY: Role.LEARNER, JUDGE_API_KEY: Role.VERIFIER}
"""Beginnings of variables that hold keys, and who gets them."""
LOOPBACK = f"{HOST},localhost"


def child_spec(
    workload: Workload, folder: RunFolder, environ: Mapping[str, str], secrets: Mapping[str, str], gpus: Iterable[int]
) -> ChildSpec:
    """How `workload` is started here.

    Args:
        environ: the runtime's own environment.
        secrets: S3 credentials, for a workload that needs storage; empty: those of `environ`.
        gpus: indices of the GPUs that are its own.
    """
    keep = workload.needs_storage
    inherited = {
        key: value
        for key, value in environ.items()
        if (keep or not key.startswith(CREDENTIAL_PREFIX))
        and all(workload.role is role or not key.startswith(prefix) for prefix, role in KEYS.items())
    }
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    env = {
        **inherited,
        "NO_PROXY": ",".join(filter(None, (environ.get("NO_PROXY"), LOOPBACK))),
        "no_proxy": ",".join(filter(None, (environ.get("no_proxy"), LOOPBACK))),
        # Indices count among the GPUs that the person allows, which may be named by number or by UUID.
        "CUDA_VISIBLE_DEVICES": ",".join(visible[gpu] if "CUDA_VISIBLE_DEVICES" in environ else str(gpu) for gpu in gpus),
        **workload.env,
        **(secrets if keep else {}),
    }
    return ChildSpec(
        name=workload.name,
        command=workload.command,
        env=env,
        readiness_url=f"http://{HOST}:{workload.port}{workload.readiness.path}",
        log_file=folder.logs_dir / f"{workload.name}.log",
        work_dir=folder.work_dir / workload.name,
    )


def s3_spec(server: EmbeddedS3, folder: RunFolder) -> ChildSpec:
    """How the S3 server is started: its inner ports are chosen anew each time, its S3 port stays."""
    server.choose_ports()
    return ChildSpec(
        name=S3_NAME,
        command=server.command(),
        env=dict(os.environ),
        readiness_url=f"{server.endpoint}/healthz",
        log_file=folder.logs_dir / f"{S3_NAME}.log",
        work_dir=folder.work_dir / S3_NAME,
    )


def allot_gpus(workloads: Iterable[Workload]) -> dict[str, range]:
    """Indices of the GPUs of each workload, in the order given; no GPU is given twice."""
    allotted, following = {}, 0
    for workload in workloads:
        allotted[workload.name] = range(following, following + workload.gpus)
        following += workload.gpus
    return allotted


def find_openmp_library() -> str | None:
    """Intel's OpenMP library of this Python environment."""
    library = Path(sysconfig.get_path("data"), "lib", "libiomp5.so")
    return str(library) if library.is_file() else None
