"""The spec of an RLVRJob: everything a person may ask of a run.

Variants are optional members of which exactly one is set. Validation that needs nothing but the spec is here, and the CRD
generator turns the same models into schema and CEL. What only the cluster, the model's folder or the bucket can know is checked by
the learner's preflight.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator
from pydantic.alias_generators import to_camel

from rlvr_api.environments import INTERACTIVE_KINDS, SANDBOXED_KINDS, EnvironmentSpec, Mixing
from rlvr_api.integrity import Integrity, check_integrity
from rlvr_api.lifecycle import Deadlines, FailurePolicy, Scheduling, Ttl
from rlvr_api.model import ApiModel, Name, PositiveSeconds, Uri
from rlvr_api.observability import Observability
from rlvr_api.off_policy import OffPolicy, check_off_policy
from rlvr_api.pods import Environment, Pod, Resources, SecretReference, refuse_reserved
from rlvr_api.provenance import Provenance
from rlvr_api.stages import Stage, check_turns
from rlvr_api.weight_sync import WeightSync

Dtype = Literal["float32", "bfloat16"]


class Lora(ApiModel):
    """Train two small matrices beside each linear layer but the head, and leave the model as it is (arXiv 2106.09685): gradients, optimizer
    state, checkpoints and weight updates have a few percent of the size. Learning rates are about ten times higher."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the product B·A."""
    alpha: Annotated[float, Field(gt=0.0, le=4096.0)] = 32.0
    """The product is scaled by alpha / rank."""


class Model(ApiModel):
    """The model that is trained."""

    uri: Annotated[Uri, Field(pattern=r"^(file://|s3://).+")]
    """A Hugging Face folder with safetensors: `file:///path`, `s3://bucket/prefix`, or in local runs
    `file://path` relative to the job's file."""
    from_: Annotated[Uri, Field(pattern=r"^s3://[^/]+/.+$")] | None = Field(alias="from", default=None)
    """Fork: begin with the weights of another run's checkpoint, in float32, and take only configuration and tokenizer from `uri`. Its job's
    folder, `<storage.uri>/<job>`, for the newest; with `/<NN-stage>` for that stage's newest; with `/checkpoints/<step>` for that one. It
    is fixed at the first attempt. Final weights of a run, in `<NN-stage>/model`, can be `uri` itself."""
    max_model_len: Annotated[int, Field(ge=16, le=10_000_000)] = 4096
    """Longest prompt and completion together, in tokens."""
    chat_template: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    """Jinja chat template; unset: the tokenizer's own."""
    lora: Lora | None = None
    """Unset: all weights are trained."""


class Precision(ApiModel):
    """Number formats. Master weights and optimizer state are always float32."""

    learner_compute: Dtype = "float32"
    """Forward and backward of the learner; bfloat16 on GPUs."""
    engine: Dtype = "float32"
    """Weights and compute of the rollout engines. Where it differs from `learnerCompute`, sampler and trainer disagree more."""


class Storage(ApiModel):
    """Where checkpoints, rollouts and records live."""

    uri: Annotated[Uri, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/].*)?$")] = "s3://runs"
    """`s3://bucket/prefix`; the job's name is added to it."""
    endpoint: Annotated[Uri, Field(pattern=r"^https?://.+")] | None = None
    """S3 endpoint. Unset: a local run starts its own S3 server."""
    region: Annotated[str, Field(max_length=64)] = "us-east-1"
    """Region for request signatures."""
    credentials_secret: SecretReference | None = None
    """In clusters: Secret with the keys `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. Unset: the pods' own identity (workload
    identity). A local run takes these variables from its environment."""


class Sampling(ApiModel):
    """How completions are drawn in training. There is no top-p, top-k, penalty or stop string: they would make the sampler's log-probs
    those of another distribution than the one that is trained."""

    temperature: Annotated[float, Field(gt=0.0, le=2.0)] = 1.0
    """Temperature of sampler and trainer alike."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Longest completion, in tokens; in an environment of several turns, longest turn."""


class Evaluation(ApiModel):
    """Held-out evaluation: fixed tasks that training never sees, pinned to one weight version."""

    every_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps between evaluations; unset: before the first and after the last step of each stage only."""
    tasks_per_environment: Annotated[int, Field(ge=1, le=100_000)] = 30
    """Held-out tasks of each environment and level, at most what it has."""
    samples_per_task: Annotated[int, Field(ge=2, le=1024)] = 8
    """Completions of each task; eight or more make the error of a task's pass rate small beside that between tasks."""


class Rollouts(ApiModel):
    """The rollout engines (vLLM)."""

    replicas: Annotated[int, Field(ge=0, le=4096)] = 1
    """Engines. `kubectl scale` changes it while a run goes on."""
    min_available: Annotated[int, Field(ge=1, le=4096)] = 1
    """Engines that must answer for the run to count as running; at most `replicas` are asked for."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that share one engine; must be 1 without GPUs."""
    gpus_per_replica: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of one engine; 0 runs it on the CPU."""
    cpu_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Compute threads of a CPU engine."""
    kv_cache_gib: Annotated[int, Field(ge=1, le=4096)] = 1
    """KV cache of a CPU engine, GiB."""
    engine_args: Annotated[dict[str, JsonValue], Field(max_length=64)] = Field(default_factory=dict)
    """Further vLLM server arguments, for example `{max-num-seqs: 128}`. Those that the plan sets itself are refused."""
    env: Environment = Field(default_factory=dict)
    """Further variables of the engines, for example `NCCL_IB_HCA`."""
    pod: Pod = Pod()
    """Size and place of an engine's pod."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_reserved(self.env, "env")
        if self.tensor_parallel > max(1, self.gpus_per_replica):
            raise ValueError(
                f"tensorParallel {self.tensor_parallel} needs as many GPUs, and gpusPerReplica is {self.gpus_per_replica}: "
                "raise the one or lower the other"
            )
        taken = sorted(set(self.engine_args) & RESERVED_ENGINE_ARGS)
        if taken:
            raise ValueError(f"engineArgs may not set {', '.join(taken)}: the plan does, from the spec's own fields")
        for name, value in self.engine_args.items():
            if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):  # vLLM also takes underscores and dots, past the check above
                raise ValueError(f"engineArgs has '{name}': write vLLM's argument without leading dashes, for example max-num-seqs")
            if value is None:
                raise ValueError(f"engineArgs.{name} has no value: give it one, true for a bare flag, or remove it")
        return self


RESERVED_ENGINE_ARGS = frozenset({
    "model", "host", "port", "dtype", "max-model-len", "served-model-name", "enable-scale-out", "logprobs-mode", "weight-transfer-config",
    "generation-config", "tensor-parallel-size", "otlp-traces-endpoint", "api-key", "enforce-eager",
    "enable-chunked-prefill", "no-enable-chunked-prefill", "config", "uds", "root-path",
    "ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "disable-uvicorn-access-log",
})  # fmt: skip


class Checkpoint(ApiModel):
    """When the learner commits a checkpoint, and how many it keeps."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """Optimizer steps between checkpoints; a stage's last step always commits one."""
    keep_last: Annotated[int, Field(ge=1, le=1000)] = 3
    """Committed checkpoints kept."""


class Learner(ApiModel):
    """The learner."""

    nodes: Annotated[int, Field(ge=1, le=256)] = 1
    """Pods, in clusters. The loss of one ends the attempt, and the next begins with all of them; a local run has one."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes of each pod. The model, its gradients and the optimizer are sharded over those of all pods (FSDP2). They give what one
    process gives, but for rounding, and a checkpoint of any number of them goes on with any other."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of each pod, one for each process; 0 runs it on the CPU."""
    cpu_threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Compute threads of each process when it runs on the CPU."""
    tokens_per_micro_batch: Annotated[int, Field(ge=16, le=10_000_000)] = 4096
    """Tokens packed into one forward pass of one process. A group that is larger by itself makes a micro-batch of its own."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    checkpoint: Checkpoint = Checkpoint()
    """Checkpoints."""
    env: Environment = Field(default_factory=dict)
    """Further variables of the learner, for example `NCCL_SOCKET_IFNAME`."""
    pod: Pod = Pod()
    """Size and place of the learner's pod."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_reserved(self.env, "env")
        if self.gpus not in (0, self.processes_per_node):
            raise ValueError(
                f"gpus {self.gpus} and processesPerNode {self.processes_per_node}: each process has one GPU, so write the same number, or "
                "gpus 0 for the CPU"
            )
        return self

    @property
    def processes(self) -> int:
        """Of all pods together."""
        return self.nodes * self.processes_per_node


class Verifiers(ApiModel):
    """The verifier service."""

    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    """Fewest pods, in clusters; a local run has one."""
    max_replicas: Annotated[int, Field(ge=1, le=256)] | None = None
    """Most pods: the operator adds some while completions wait for a verdict. Unset: as many as `replicas`."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Killable worker processes that run slow scorers, and slots that run code, in each replica: one a core."""
    item_timeout_seconds: PositiveSeconds = 2.0
    """Processor time of one scorer; beyond it, or twice as long by the clock, its process is killed and the verdict is `timeout`."""
    pod: Pod = Pod()
    """Size and place of a verifier's pod."""
    sandbox_resources: Resources | None = None
    """What the container of that pod asks for that runs what the model wrote: processor time above all. Its memory, where no limit says
    otherwise, is what its `workers` slots may use together, and is set aside as a whole."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"maxReplicas {self.max_replicas} is below replicas {self.replicas}: raise the one or lower the other")
        return self


class RLVRJobSpec(ApiModel):
    """What is trained, on what, how, and with which parts."""

    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Seed of task order and sampling."""
    model: Model
    """Where the weights come from."""
    precision: Precision = Precision()
    """Number formats."""
    storage: Storage = Storage()
    """Object store."""
    environments: Annotated[tuple[EnvironmentSpec, ...], Field(min_length=1, max_length=64)]
    """Sources of tasks, keyed by name."""
    mixing: Mixing | None = None
    """How environments share the prompts of `rlvr` and `rejectionSampling`; unset: by their weights alone."""
    sampling: Sampling = Sampling()
    """How completions are drawn."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=16)]
    """What happens, in order."""
    evaluation: Evaluation = Evaluation()
    """Held-out evaluation."""
    rollouts: Rollouts = Rollouts()
    """Engines."""
    learner: Learner = Learner()
    """Learner."""
    verifiers: Verifiers = Verifiers()
    """Verifiers."""
    weight_sync: WeightSync = WeightSync()
    """Weight updates."""
    off_policy: OffPolicy = OffPolicy()
    """Asynchrony."""
    provenance: Provenance = Provenance()
    """What the model may come from."""
    integrity: Integrity = Integrity()
    """Whether the reward can be believed."""
    failure_policy: FailurePolicy = FailurePolicy()
    """Restart budgets."""
    deadlines: Deadlines = Deadlines()
    """Bounds on waiting."""
    observability: Observability = Observability()
    """Traces."""
    scheduling: Scheduling = Scheduling()
    """Place of all pods, in clusters."""
    ttl: Ttl = Ttl()
    """What is cleaned up after the end, in clusters."""
    suspend: bool = False
    """In clusters: commit a checkpoint, end all pods and wait until it is false again. A local run stops on Ctrl-C."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _unique("environments", (e.name for e in self.environments))
        _unique("stages", (s.name for s in self.stages))
        secrets = sorted({secret.name for secret in self.teacher_secrets})
        if len(secrets) > 1:
            raise ValueError(
                f"stages name the teachers' Secrets {', '.join(secrets)}, and a job has one: name the same one, or make two jobs"
            )
        if self.sampling.max_tokens >= self.model.max_model_len:
            raise ValueError(
                f"sampling.maxTokens {self.sampling.max_tokens} leaves no room for a prompt in model.maxModelLen {self.model.max_model_len}"
            )
        if self.verifiers.sandbox_resources is not None and not self.runs_code:
            raise ValueError("verifiers.sandboxResources means nothing without an environment that runs code: remove it")
        count = len(self.environments)
        if self.mixing is not None and not self.mixing.floor * count <= 1 <= self.mixing.cap * count:
            raise ValueError(
                f"mixing.floor {self.mixing.floor} and cap {self.mixing.cap} cannot hold for {count} environments: write a floor of at "
                f"most {1 / count:.3g} and a cap of at least that"
            )
        for index, stage in enumerate(self.stages):
            self._check_promotion(index, stage)
            self._check_provenance(index, stage)
            if stage.on_policy_distillation is not None and self.sampling.temperature != 1.0:
                raise ValueError(
                    f"stages[{index}].onPolicyDistillation compares the model's distribution with the teacher's, and sampling.temperature "
                    f"{self.sampling.temperature} changes one of them: write 1"
                )
        check_off_policy(self.off_policy, self.stages, self.sampling.max_tokens)
        check_turns(self.stages, [environment.name for environment in self.environments if environment.kind in INTERACTIVE_KINDS])
        check_integrity(self.integrity, self.environments, self.stages)
        return self

    @property
    def runs_code(self) -> bool:
        """Whether an environment runs what the model wrote."""
        return any(environment.kind in SANDBOXED_KINDS for environment in self.environments)

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that the sandbox needs the tools of: of all programs, beside Python."""
        named = {environment.stdio.language for environment in self.environments if environment.stdio is not None}
        return tuple(sorted(named - {"python"}))

    @property
    def sandbox_levels(self) -> tuple[str, ...]:
        """Levels of the sandbox above L1 that environments need."""
        code = (environment.python_functions or environment.stdio for environment in self.environments)
        return tuple(sorted({one.min_sandbox_level for one in code if one is not None} - {"L1"}))

    @property
    def teacher_secrets(self) -> tuple[SecretReference, ...]:
        """Secrets of all teachers; at most one by name."""
        teachers = (stage.teacher for stage in self.stages if stage.teacher is not None)
        return tuple(teacher.credentials_secret for teacher in teachers if teacher.credentials_secret is not None)

    def _check_provenance(self, index: int, stage: Stage) -> None:
        if self.provenance.external_traces == "Forbidden" and stage.uses_external_traces:
            raise ValueError(
                f"stages[{index}].{to_camel(stage.kind)} learns from words that are not the model's own, and provenance.externalTraces is "
                "Forbidden: take the stage out, or write rejectionSampling, which learns from what the model says itself"
            )

    def _check_promotion(self, index: int, stage: Stage) -> None:
        names = [environment.name for environment in self.environments]
        if stage.promote_when is not None and stage.promote_when.environment not in (None, *names):
            raise ValueError(
                f"stages[{index}].promoteWhen.environment is '{stage.promote_when.environment}', and the job has {', '.join(names)}"
            )


def _unique(field: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{field} has the name '{name}' twice; rename one")
        seen.add(name)


class ObjectMeta(ApiModel):
    """The part of Kubernetes' metadata that this project reads; the rest is kept by the API server."""

    name: Name
    """Name of the job."""
    namespace: Annotated[str, Field(max_length=63)] = "default"
    """Namespace; local runs use it in identifiers only."""


class RLVRJob(ApiModel):
    """One run, from a base model to a trained one."""

    api_version: Literal["rlvr.dev/v1alpha1"]
    """Version of this schema."""
    kind: Literal["RLVRJob"]
    """Kind."""
    metadata: ObjectMeta
    """Name."""
    spec: RLVRJobSpec
    """What is asked for."""
