"""What a local run checks before anything starts: files, packages, GPUs, disk, object store. All problems at once.

What only the processes can know (does the tokenizer have a chat template, is line 812 of the dataset valid) is theirs to refuse, with exit
code 2 and one line.
"""

import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rlvr_api.inputs import input_files, map_inputs
from rlvr_api.lifecycle import Scheduling, Ttl
from rlvr_api.loading import Problem
from rlvr_api.pods import Pod
from rlvr_api.process import JUDGE_API_KEY, TEACHER_API_KEY
from rlvr_api.spec import RLVRJob

FILE_SCHEME = "file://"
MINIMUM_FREE_BYTES = 1_000_000_000
PACKAGES = {"vllm": "rollout", "torch": "trainer", "fastapi": "verifier"}
"""A package that each part cannot do without, and the extra that brings it."""
ADVICE = {
    "403": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do",
    "404": "create the bucket, or name another",
}


def resolve_paths(job: RLVRJob, base_dir: Path) -> RLVRJob:
    """The job with absolute `file://` URIs; relative ones are taken from `base_dir`, the folder of the job's file."""
    model = job.spec.model.model_copy(update={"uri": _absolute(job.spec.model.uri, base_dir)})
    spec = map_inputs(job.spec, lambda uri: _absolute(uri, base_dir))
    return job.model_copy(update={"spec": spec.model_copy(update={"model": model})})


def find_problems(job: RLVRJob, runs_dir: Path) -> tuple[Problem, ...]:
    """Everything that would keep a resolved job from running on this machine."""
    return (
        *_cluster_problems(job),
        *_package_problems(),
        *_model_problems(job),
        *_dataset_problems(job),
        *_gpu_problems(job, count_gpus()),
        *_disk_problems(runs_dir),
        *_storage_problems(job),
    )


def count_gpus() -> int:
    """GPUs that the NVIDIA driver lists and CUDA_VISIBLE_DEVICES allows; 0 without a driver."""
    if (command := shutil.which("nvidia-smi")) is None:
        return 0
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return count if allowed is None else min(count, len([name for name in allowed.split(",") if name.strip()]))


def _absolute(uri: str, base_dir: Path) -> str:
    return FILE_SCHEME + str((base_dir / uri.removeprefix(FILE_SCHEME)).resolve()) if uri.startswith(FILE_SCHEME) else uri


def _cluster_problems(job: RLVRJob) -> Iterator[Problem]:
    """Settings that only a cluster reads: a local run that ignored them would not be the run that was asked for."""
    spec = job.spec
    pods = {"rollouts": spec.rollouts.pod, "learner": spec.learner.pod, "verifiers": spec.verifiers.pod}
    set_fields = [f"spec.{role}.pod" for role, pod in pods.items() if pod != Pod()]
    set_fields += ["spec.verifiers.sandboxResources"] if spec.verifiers.sandbox_resources is not None else []
    set_fields += [f"spec.{name}" for name, value in (("scheduling", spec.scheduling != Scheduling()), ("ttl", spec.ttl != Ttl())) if value]
    if spec.storage.credentials_secret is not None:
        yield Problem(
            "spec.storage.credentialsSecret", "is for clusters: remove it, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )
    if spec.teacher_secrets:
        yield Problem(
            "spec.stages", f"a teacher's credentialsSecret is for clusters: remove it, and set {TEACHER_API_KEY} in the environment instead"
        )
    for index, environment in enumerate(spec.environments):
        if environment.judge is not None and environment.judge.credentials_secret is not None:
            yield Problem(
                f"spec.environments[{index}].judge.credentialsSecret",
                f"is for clusters: remove it, and set {JUDGE_API_KEY} in the environment instead",
            )
    if spec.suspend:
        yield Problem("spec.suspend", "is for clusters: remove it; a local run stops on Ctrl-C and goes on with the same command")
    if spec.verifiers.replicas > 1 or spec.verifiers.max_replicas not in (None, 1):
        yield Problem("spec.verifiers.replicas", "is for clusters: a local run has one verifier; raise verifiers.workers instead")
    if spec.learner.nodes > 1:
        yield Problem(
            "spec.learner.nodes", f"is for clusters: a local run is on one machine; write processesPerNode {spec.learner.processes} instead"
        )
    for path in set_fields:
        yield Problem(path, "is for clusters, and a local run would ignore it: remove it")


def _package_problems() -> Iterator[Problem]:
    for package, extra in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            yield Problem(
                "", f"the Python package {package} is not installed: pip install 'rlvr-operator[{extra}]', or run `make demo` once"
            )


def _model_problems(job: RLVRJob) -> Iterator[Problem]:
    if job.spec.model.from_ is not None and job.spec.storage.endpoint is None:
        yield Problem(
            "spec.model.from",
            f"is {job.spec.model.from_}, and without spec.storage.endpoint the run's own S3 server has nothing but this run: set the "
            "endpoint of the store that holds it",
        )
    uri, path = job.spec.model.uri, "spec.model.uri"
    if not uri.startswith(FILE_SCHEME):
        if job.spec.storage.endpoint is None:
            yield Problem(
                path, f"is {uri}, and without spec.storage.endpoint the run's own S3 server is empty: set the endpoint, or use file://"
            )
        return
    folder = Path(uri.removeprefix(FILE_SCHEME))
    if not folder.is_dir():
        yield Problem(path, f"there is no folder {folder}: put a Hugging Face model there (`rlvr model --help` makes two small ones)")
        return
    if not any(folder.glob("*.safetensors")):
        yield Problem(path, f"{folder} has no *.safetensors: save the model with save_pretrained(..., safe_serialization=True)")
    if not (folder / "config.json").is_file():
        yield Problem(path, f"{folder} has no config.json: it is not a Hugging Face model")
        return
    yield from _context_problems(job, folder / "config.json")


def _context_problems(job: RLVRJob, config_file: Path) -> Iterator[Problem]:
    try:
        config = json.loads(config_file.read_bytes())
        longest, scaled = config.get("max_position_embeddings"), config.get("rope_scaling")
    except (ValueError, OSError, AttributeError) as error:
        yield Problem("spec.model.uri", f"{config_file} is not a model's configuration ({error})")
        return
    if isinstance(longest, int) and not scaled and job.spec.model.max_model_len > longest:
        yield Problem(
            "spec.model.maxModelLen", f"is {job.spec.model.max_model_len}, and the model has {longest} positions: write at most that"
        )


def _dataset_problems(job: RLVRJob) -> Iterator[Problem]:
    for file in input_files(job.spec):
        local = Path(file.uri.removeprefix(FILE_SCHEME))
        if file.uri.startswith(FILE_SCHEME) and not local.is_file():
            yield Problem(file.path, f"there is no file {local}; it is {file.form}")


def _gpu_problems(job: RLVRJob, gpus: int) -> Iterator[Problem]:
    rollouts, learner = job.spec.rollouts, job.spec.learner
    wanted = rollouts.replicas * rollouts.gpus_per_replica + learner.gpus
    if wanted > gpus:
        yield Problem(
            "spec.rollouts.gpusPerReplica",
            f"{rollouts.replicas} engines with {rollouts.gpus_per_replica} GPUs each and the learner's {learner.gpus} make {wanted}, "
            f"and this machine has {gpus}: lower replicas or gpusPerReplica (and tensorParallel), or set learner.gpus to 0",
        )


def _disk_problems(runs_dir: Path) -> Iterator[Problem]:
    existing = next(folder for folder in (runs_dir.absolute(), *runs_dir.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < MINIMUM_FREE_BYTES:
        yield Problem(
            "",
            f"{existing} has {free / 1e6:.0f} MB free, and a run needs at least {MINIMUM_FREE_BYTES / 1e6:.0f} MB: make room, or choose "
            "another folder with --runs-dir",
        )


def _storage_problems(job: RLVRJob) -> Iterator[Problem]:
    storage = job.spec.storage
    if storage.endpoint is None:
        return
    bucket = storage.uri.removeprefix("s3://").partition("/")[0]
    config = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2})
    try:
        client = boto3.Session().client("s3", endpoint_url=storage.endpoint, region_name=storage.region, config=config)
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        yield Problem("spec.storage.uri", f"{storage.endpoint} answered {code} for bucket '{bucket}': {ADVICE.get(code, str(error))}")
    except (BotoCoreError, ValueError) as error:
        yield Problem("spec.storage.endpoint", f"bucket '{bucket}' at {storage.endpoint} cannot be reached: {error}")
