"""Puts the learner process together, and checks what only the store, the model and the verifier service can know.

    store -> claim the attempt -> newest checkpoint -> model -> verifier service -> prompts fit? traces clean? -> ready
                                                                                                    -> engines' publisher -> Run

In a cluster engines are started only when the learner is ready, so nothing before that may wait for one. Everything that a person must
mend is a `BadInputError` before the first GPU second is spent.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.spec import RLVRJobSpec
from rlvr_api.wire import EnvironmentsResponse, TaskRequest
from rlvr_trainer import telemetry
from rlvr_trainer.chat import ChatFormat, PromptTooLongError
from rlvr_trainer.collector.collector import EventLoopThread
from rlvr_trainer.collector.engines import EnginePool
from rlvr_trainer.collector.episode import EpisodeRunner
from rlvr_trainer.collector.http import RequestRefusedError
from rlvr_trainer.collector.verifiers import VerifierClient
from rlvr_trainer.context import BadInputError, RunContext
from rlvr_trainer.distributed.ranks import ALONE, Ranks
from rlvr_trainer.evaluation import plan_evaluation
from rlvr_trainer.fleet import EngineFleet
from rlvr_trainer.fork import begin_with, open_fork
from rlvr_trainer.gathering import gather_all
from rlvr_trainer.metrics_log import MetricsLog
from rlvr_trainer.policy import Policy
from rlvr_trainer.progress import ProgressBoard, serving
from rlvr_trainer.provenance import Provenance, begin_lineage
from rlvr_trainer.run import Run
from rlvr_trainer.storage.attempts import AttemptClaim, claim_attempt
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.errors import StorageError
from rlvr_trainer.storage.lineage import Lineage
from rlvr_trainer.trace_preflight import check_traces, find_contamination, find_references, held_out_tasks
from rlvr_trainer.versions import VersionHistory
from rlvr_trainer.weights.probe import Probe, default_tolerance
from rlvr_trainer.weights.publisher import WeightPublisher

logger = logging.getLogger(__name__)

PREFLIGHT_TASKS = 4
"""Tasks of each environment and level that are rendered before anything is trained."""


def total_steps(spec: RLVRJobSpec) -> int:
    """Optimizer steps of all stages together, as far as the spec fixes them."""
    return sum(stage.planned_steps for stage in spec.stages)


def open_store(context: RunContext) -> ObjectStore:
    """The job's folder in the object store, proved to work.

    Raises:
        BadInputError: credentials, bucket, rights or address are wrong.
        StorageError: the store failed; trying again may help.
    """
    storage, metadata = context.job.spec.storage, context.job.metadata
    try:
        store = ObjectStore.open(storage.uri, S3Settings(context.s3_endpoint, storage.region), metadata.name)
        store.check()
    except StorageError as error:
        if error.permanent:
            raise BadInputError(f"spec.storage: {error}") from error
        raise
    return store


@contextmanager
def assemble(
    context: RunContext, stop: threading.Event, store: ObjectStore, claim: AttemptClaim, lineage: Lineage | None, ranks: Ranks = ALONE
) -> Iterator[Run]:
    """Make the parts, serve the status, and take everything down at the end.

    Args:
        lineage: of the newest checkpoint; None when there is none.
        ranks: the processes that the model is spread over, of which this one is the lead.
    """
    spec = context.job.spec
    fleet = EngineFleet(context.engine_urls)
    board = ProgressBoard(spec.stages[0].name, len(spec.stages), total_steps(spec), fleet)
    board.update(message="loading the model")
    loop = EventLoopThread("collector")
    client = _http_client(spec)
    metrics = MetricsLog(store)
    try:
        with serving(board, loop, _bind_host(context.advertised_host), context.status_port):
            policy = _load_policy(context, ranks)
            chat = _chat_format(context)
            traces = check_traces(context, chat)
            fork = open_fork(context, store, claim)
            if lineage is None and fork is not None:
                begin_with(fork, policy.load_tensors)
            lineage = lineage or begin_lineage(context.job, context.model_dir, fork)
            verifiers = VerifierClient(context.verifier_url, client, spec.deadlines.stall_seconds)
            board.update(message="waiting for the verifier service")
            service, prompt_ids = loop.submit(_preflight(verifiers, chat, spec)).result()
            known = service.environments
            board.update(sandbox_level=service.sandbox_level, uncertified=list(service.uncertified))
            held_out = loop.submit(held_out_tasks(verifiers, spec, known)).result()
            references = find_references(context, held_out)
            contamination = find_contamination(spec.provenance.contamination, traces, references)
            board.update(message="waiting for engines")
            with _open_publisher(context, policy, fleet, prompt_ids, store) as publisher:
                fleet.attach(publisher)
                board.ready.set()
                engines = EnginePool(fleet, client, spec.sampling, chat.end_token_ids)
                yield Run(
                    context=context,
                    stop=stop,
                    store=store,
                    claim=claim,
                    policy=policy,
                    publisher=publisher,
                    runner=EpisodeRunner(engines, verifiers, chat, spec.deadlines.provisioning_seconds),
                    loop=loop,
                    board=board,
                    metrics=metrics,
                    instruments=telemetry.StepInstruments(),
                    held_out=known,
                    evaluation=plan_evaluation(spec.evaluation, spec.environments, known),
                    versions=VersionHistory(),
                    provenance=Provenance(lineage, known),
                    contamination=contamination,
                    fork=fork,
                    held_out_problems=frozenset(task.problem_id for task in held_out),
                    references=references,
                )
    finally:
        metrics.close()
        loop.submit(client.aclose()).result(10)
        loop.close()


def take_over(context: RunContext, store: ObjectStore) -> AttemptClaim:
    """Claim the attempt, after which no older one can commit."""
    return claim_attempt(store, context.attempt)


def _bind_host(advertised: str) -> str:
    # In a pod the status endpoint is reached from outside, and NetworkPolicies say by whom; a local run keeps to the loopback.
    return advertised if advertised in ("127.0.0.1", "localhost", "::1") else "0.0.0.0"  # noqa: S104


def _http_client(spec: RLVRJobSpec) -> httpx.AsyncClient:
    # A request for samples lasts as long as they take; what bounds it is the time after which the run counts as stalled.
    timeout = httpx.Timeout(10.0, read=spec.deadlines.stall_seconds, pool=None)
    return httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64))


def _load_policy(context: RunContext, ranks: Ranks) -> Policy:
    try:
        return Policy.load(context.model_dir, context.job.spec, ranks)
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"spec.model.uri {context.job.spec.model.uri}: the model in {context.model_dir} cannot be loaded: {error}"
        ) from error


def _chat_format(context: RunContext) -> ChatFormat:
    model, sampling = context.job.spec.model, context.job.spec.sampling
    try:
        return ChatFormat(context.model_dir, model.chat_template, model.max_model_len - sampling.max_tokens)
    except (OSError, ValueError) as error:
        raise BadInputError(f"spec.model: {error}") from error


def _open_publisher(
    context: RunContext, policy: Policy, fleet: EngineFleet, prompt_ids: Sequence[int], store: ObjectStore
) -> WeightPublisher:
    spec = context.job.spec
    probe = Probe(
        prompt_ids=tuple(prompt_ids),
        logprobs=lambda prompt, completion: policy.sequence_logprobs(prompt, completion, spec.precision.engine),
        tolerance=spec.weight_sync.probe_tolerance or default_tolerance(spec.precision),
        max_tokens=min(8, spec.sampling.max_tokens),
    )
    return WeightPublisher(
        fleet.handles(),
        transport=spec.weight_sync.transport,
        timeout_seconds=spec.weight_sync.timeout_seconds,
        probe=probe,
        advertised_host=context.advertised_host,
        attempt=context.attempt,
        engine_dtype=spec.precision.engine,
        adapter_scale=policy.adapter_scale,
        on_event=fleet.note,
        open_store=lambda: store,
    )


async def _preflight(verifiers: VerifierClient, chat: ChatFormat, spec: RLVRJobSpec) -> tuple[EnvironmentsResponse, tuple[int, ...]]:
    """What the verifier service knows, once prompts of every environment and level are known to fit; and one of them, for probes."""
    service = await verifiers.environments()
    known = {info.name: info for info in service.environments}
    missing = [environment.name for environment in spec.environments if environment.name not in known]
    if missing:
        raise BadInputError(
            f"the verifier service has no environment {missing[0]!r}, only {', '.join(known)}; was it started with this job?"
        )
    try:
        prompts = await gather_all(_render_some(verifiers, chat, environment) for environment in spec.environments)
    except (PromptTooLongError, RequestRefusedError) as error:
        raise BadInputError(str(error)) from error
    return service, prompts[0]


async def _render_some(verifiers: VerifierClient, chat: ChatFormat, environment: EnvironmentSpec) -> tuple[int, ...]:
    prompt_ids: tuple[int, ...] = ()
    for level in range(environment.levels.start, environment.levels.maximum + 1):
        for seed in range(PREFLIGHT_TASKS):
            task = await verifiers.sample(TaskRequest(environment=environment.name, split="train", seed=seed, level=level))
            prompt_ids = chat.render(task.messages)
    return prompt_ids
