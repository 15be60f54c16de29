"""What runs for a job: command, environment and port of every process. Both runtimes start exactly this.

    plan(job, addresses, places, attempt) -> Plan(workloads): rollout-0 ... rollout-n, verifier-0, learner

Pure: what only a machine knows (addresses, folders, the interpreter) comes in as arguments. Secrets are not part of a plan; the runtime
adds the S3 credentials to the processes that need them (`Workload.needs_storage`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from rlvr_api.names import workload_name
from rlvr_api.process import LEARNER_RENDEZVOUS_PORT, Role, Variable, verifier_command
from rlvr_api.spec import RLVRJob

SERVED_MODEL = "policy"
CPU_BLOCK_SIZE = 32
"""Tokens in a KV block on the CPU, where sizes are multiples of 32; the smallest shares the most of a prompt among its samples."""


@dataclass(frozen=True)
class Address:
    """Where one process is reached by the others."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Addresses:
    """Where every process listens."""

    bind_host: str
    """Interface that servers bind: 127.0.0.1 locally, 0.0.0.0 in pods."""
    engines: tuple[Address, ...]
    """One for each rollout engine, by ordinal."""
    verifier: Address
    """The verifier service."""
    learner: Address
    """The learner's status endpoint; engines reach its rendezvous store at the same host."""
    s3_endpoint: str | None = None
    """S3 endpoint that the runtime brings, for a job that names none."""


@dataclass(frozen=True)
class Places:
    """Files and folders that processes find, in the cluster by mounts."""

    python: str
    """Interpreter."""
    job_file: str
    """The job as JSON, with every default filled in."""
    model_dir: str
    """Local folder of the model."""
    seal_key_file: str
    """Key that seals gold answers."""
    work_dir: str
    """Scratch; each process has a folder of its name in it."""
    openmp_library: str | None = None
    """Intel's `libiomp5.so`, if there is one: CPU engines are up to three times as fast with it."""
    sandbox_socket: str | None = None
    """Unix socket of the container that runs code; None: children of the verifier do."""
    last_progress_file: str | None = None
    """Where the learner leaves its last progress; None: nowhere."""


@dataclass(frozen=True)
class HttpReadiness:
    """A process is ready when `GET path` answers 200."""

    path: str


@dataclass(frozen=True)
class Sidecar:
    """A process that runs beside another one, in a container of its own: without its files, variables and credentials."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Workload:
    """One process of a job."""

    role: Role
    name: str
    """Unique in the job, for example `rollout-0`."""
    ordinal: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    """Variables that the plan sets, on top of what the runtime gives every process."""
    port: int
    readiness: HttpReadiness
    gpus: int = 0
    """GPUs that it needs to itself; 0 hides all."""
    needs_storage: bool = False
    """Whether it gets the S3 credentials."""
    sidecar: Sidecar | None = None
    """What it cannot do without, and must be kept away from."""


@dataclass(frozen=True)
class Preparation:
    """A process that ends before those that need its work begin."""

    command: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """All processes of one attempt."""

    workloads: tuple[Workload, ...]
    model_source: Preparation | None = None
    """What brings the model into engines and learner; None when it is a folder already. It gets the S3 credentials."""

    def of(self, role: Role) -> tuple[Workload, ...]:
        """The processes of one role, by ordinal."""
        return tuple(workload for workload in self.workloads if workload.role is role)


def plan(job: RLVRJob, addresses: Addresses, places: Places, attempt: int) -> Plan:
    """The processes of attempt `attempt` (from 1) of `job`. Only the learner differs between attempts; where it has several nodes, each
    runs the same command and variables, and `Variable.NODE_RANK` tells them apart.

    Raises:
        ValueError: not one address for each engine.
    """
    if len(addresses.engines) != job.spec.rollouts.replicas:
        raise ValueError(f"{len(addresses.engines)} engine addresses for rollouts.replicas {job.spec.rollouts.replicas}: give one each")
    engines = tuple(engine_workload(job, addresses.bind_host, engine.port, places, n) for n, engine in enumerate(addresses.engines))
    workloads = (*engines, _verifier(job, addresses, places), _learner(job, addresses, places, attempt))
    return Plan(workloads, model_source(job, places.python, places.job_file, places.model_dir))


def model_source(job: RLVRJob, python: str, job_file: str, model_dir: str) -> Preparation | None:
    """What brings the model of `job` to `model_dir`; None when its URI names a folder."""
    if not job.spec.model.uri.startswith("s3://"):
        return None
    env = {Variable.JOB_FILE: job_file, Variable.MODEL_DIR: model_dir, "PYTHONUNBUFFERED": "1"}
    return Preparation((python, "-m", "rlvr_trainer.model_source"), _plain(env))


def engine_workload(job: RLVRJob, bind_host: str, port: int, places: Places, ordinal: int) -> Workload:
    """One engine. All are alike but for their names, so a cluster makes a template of the first, also while it has none."""
    name = workload_name(Role.ROLLOUT, ordinal)
    on_cpu = job.spec.rollouts.gpus_per_replica == 0
    command = (
        places.python, "-m", "vllm.entrypoints.openai.api_server",
        "--model", places.model_dir,
        "--host", bind_host,
        "--port", str(port),
        "--dtype", job.spec.precision.engine,
        "--max-model-len", str(job.spec.model.max_model_len),
        "--served-model-name", SERVED_MODEL,
        "--enable-scale-out",
        "--logprobs-mode", "processed_logprobs",
        "--generation-config", "vllm",
        "--weight-transfer-config", json.dumps({"backend": f"rlvr_{job.spec.weight_sync.transport_kind}"}),
        "--disable-uvicorn-access-log",
        *(_cpu_flags(job) if on_cpu else _gpu_flags(job)),
        *_tracing_flags(job),
        *_flags(job.spec.rollouts.engine_args),
    )  # fmt: skip
    env = {
        **_common_env(job, places, name, "rlvr-rollout"),
        Variable.MODEL_DIR: places.model_dir,
        "VLLM_SERVER_DEV_MODE": "1",  # registers the routes of weight updates
        "VLLM_NO_USAGE_STATS": "1",
        **(_engine_cpu_env(job, places) if on_cpu else {}),
        **job.spec.rollouts.env,
    }
    return Workload(
        Role.ROLLOUT, name, ordinal, command, _plain(env), port, HttpReadiness("/health"), gpus=job.spec.rollouts.gpus_per_replica
    )


def _verifier(job: RLVRJob, addresses: Addresses, places: Places) -> Workload:
    name, port = workload_name(Role.VERIFIER, 0), addresses.verifier.port
    command = verifier_command(places.python, addresses.bind_host, port)
    env = {
        **_common_env(job, places, name, "rlvr-verifier"),
        **_storage_env(addresses),
        Variable.SEAL_KEY_FILE: places.seal_key_file,
        "OMP_NUM_THREADS": "1",
    }
    sidecar = None
    if job.spec.runs_code and places.sandbox_socket is not None:
        env[Variable.SANDBOX_SOCKET] = places.sandbox_socket
        host: tuple[str, ...] = (places.python, "-m", "rlvr_verifier.sandbox.host", "--socket", places.sandbox_socket)
        host += tuple(word for language in job.spec.languages for word in ("--language", language))
        host += tuple(word for level in job.spec.sandbox_levels for word in ("--level", level))
        sidecar = Sidecar("sandbox", host, {"PYTHONUNBUFFERED": "1"})
    return Workload(Role.VERIFIER, name, 0, command, _plain(env), port, HttpReadiness("/readyz"), needs_storage=True, sidecar=sidecar)


def _learner(job: RLVRJob, addresses: Addresses, places: Places, attempt: int) -> Workload:
    name, learner = workload_name(Role.LEARNER, 0), addresses.learner
    env = {
        **_common_env(job, places, name, "rlvr-learner"),
        **_storage_env(addresses),
        Variable.ATTEMPT: str(attempt),
        Variable.ENGINE_URLS: ",".join(engine.url for engine in addresses.engines),
        Variable.VERIFIER_URL: addresses.verifier.url,
        Variable.ADVERTISED_HOST: learner.host,
        Variable.STATUS_PORT: str(learner.port),
        Variable.MODEL_DIR: places.model_dir,
        **job.spec.learner.env,
    }
    if job.spec.learner.nodes > 1:
        env[Variable.RENDEZVOUS_PORT] = str(LEARNER_RENDEZVOUS_PORT)
    if places.last_progress_file is not None:
        env[Variable.LAST_PROGRESS_FILE] = places.last_progress_file
    if job.spec.learner.gpus == 0:
        env["OMP_NUM_THREADS"] = str(job.spec.learner.cpu_threads)
    command = (places.python, "-m", "rlvr_trainer")
    gpus = job.spec.learner.gpus
    return Workload(Role.LEARNER, name, 0, command, _plain(env), learner.port, HttpReadiness("/readyz"), gpus=gpus, needs_storage=True)


def _common_env(job: RLVRJob, places: Places, name: str, service: str) -> dict[str, str]:
    env = {
        Variable.JOB_FILE: places.job_file,
        Variable.WORK_DIR: f"{places.work_dir}/{name}",
        "HF_HUB_OFFLINE": "1",  # models come from the job's own URIs, never from a hub by accident
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",  # the last line before a crash is the one that matters
    }
    if job.spec.observability.tracing is not None:
        env["OTEL_SERVICE_NAME"] = service
        env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
    return env


def _storage_env(addresses: Addresses) -> dict[str, str]:
    return {} if addresses.s3_endpoint is None else {Variable.S3_ENDPOINT: addresses.s3_endpoint}


def _cpu_flags(job: RLVRJob) -> tuple[str, ...]:
    own_block_size = "block-size" in job.spec.rollouts.engine_args
    # A prompt prefilled in chunks makes vLLM rewind the request's seeded generator, which CPU generators cannot do: the engine dies.
    return ("--enforce-eager", "--no-enable-chunked-prefill", *(() if own_block_size else ("--block-size", str(CPU_BLOCK_SIZE))))


def _gpu_flags(job: RLVRJob) -> tuple[str, ...]:
    return ("--tensor-parallel-size", str(job.spec.rollouts.tensor_parallel))


def _engine_cpu_env(job: RLVRJob, places: Places) -> dict[str, str]:
    env = {
        "VLLM_CPU_KVCACHE_SPACE": str(job.spec.rollouts.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM's own binding keeps a core for itself
        "OMP_NUM_THREADS": str(job.spec.rollouts.cpu_threads),
        # The model in the process of the scheduler, as on a GPU: one process less that imports vLLM, a third of an engine's start. vLLM
        # would keep them apart for threads that it binds to cores, which this one does not.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCHDYNAMO_DISABLE": "1",  # log-probs run a compiled function even under --enforce-eager; images have no compiler
    }
    return env if places.openmp_library is None else {**env, "LD_PRELOAD": places.openmp_library}


def _tracing_flags(job: RLVRJob) -> tuple[str, ...]:
    tracing = job.spec.observability.tracing
    return () if tracing is None else ("--otlp-traces-endpoint", f"{tracing.endpoint.rstrip('/')}/v1/traces")


def _flags(arguments: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """Command-line flags, sorted by name: true is `--name`, false `--no-name`, a list repeats values, a mapping is JSON."""
    flags: list[str] = []
    for name, value in sorted(arguments.items()):
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(_word, value)]
        else:
            flags += [f"--{name}", _word(value)]
    return tuple(flags)


def _word(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(env: Mapping[str, str]) -> dict[str, str]:
    """Plain strings in a fixed order: the order of variables in a pod is part of its identity."""
    return {str(key): str(env[key]) for key in sorted(env)}
