"""`python -m rlvr_trainer`: the learner of a job, with its collector; of a learner of several processes the lead, which starts the others.

    environment -> store -> claim -> parts -> stages, one after the other -> final model

On the other nodes of a learner of several the same command starts processes that do what the lead says (`distributed.node`).

SIGTERM and SIGINT ask it to stop: it commits a checkpoint and ends with `ExitCode.SUSPENDED`. The last line on stderr of a failure is one
sentence for a person.
"""

import logging
import signal
import sys
import threading

from rlvr_api.process import MAX_LAST_PROGRESS_BYTES, ExitCode
from rlvr_trainer import telemetry
from rlvr_trainer.assembly import assemble, open_store, take_over
from rlvr_trainer.context import BadInputError, RunContext, read_context
from rlvr_trainer.distributed.lead import open_ranks
from rlvr_trainer.distributed.node import follow_lead
from rlvr_trainer.final_model import export_final_model
from rlvr_trainer.promotion import check_promotion
from rlvr_trainer.run import Run, StopRequestedError, UntrustworthyRewardError
from rlvr_trainer.stages import STAGES
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint, latest_manifest, load_latest
from rlvr_trainer.storage.errors import SupersededError
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.lineage import Lineage
from rlvr_trainer.storage.records import RecordConflictError

logger = logging.getLogger("rlvr_trainer")


def main() -> int:
    """Run the learner of the job in the environment; returns an `ExitCode`, or 1 for a failure that another attempt may not meet."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        context = read_context()
        if context.node > 0:
            return follow_lead(context, stop)
        exported = telemetry.start(context.job.spec.observability.tracing, context.job.metadata.name, context.attempt)
        try:
            _run(context, stop)
        finally:
            exported.shutdown()
    except UntrustworthyRewardError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ExitCode.UNTRUSTWORTHY
    except StopRequestedError:
        logger.info("stopped on request; the next attempt goes on from the last committed checkpoint")
        return ExitCode.SUSPENDED
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return ExitCode.BAD_INPUT
    except RecordConflictError as error:
        # An older attempt committed this step just before it was fenced off: the next attempt trains what it recorded.
        return _fail(error) if error.other.attempt < context.attempt else _superseded(error)
    except SupersededError as error:
        return _superseded(error)
    except Exception as error:  # the border of the process
        logger.exception("the attempt failed")
        return _fail(error)
    return ExitCode.DONE


def _fail(error: Exception) -> int:
    print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return 1


def _superseded(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return ExitCode.SUPERSEDED


def _run(context: RunContext, stop: threading.Event) -> None:
    spec = context.job.spec
    store = open_store(context)
    claim = take_over(context, store)
    keys = [StageKeys(index, stage.name) for index, stage in enumerate(spec.stages)]
    checkpoint = load_latest(store, keys, fall_back=True)
    with (
        open_ranks(spec, context.model_dir, context.advertised_host, context.rendezvous_port, stop) as ranks,
        assemble(context, stop, store, claim, _lineage_of(checkpoint), ranks) as run,
    ):
        try:
            _run_stages(run, keys, checkpoint)
        except StopRequestedError:
            _leave_progress(run)
            raise
        _leave_progress(run)


def _run_stages(run: Run, keys: list[StageKeys], checkpoint: LoadedCheckpoint | None) -> None:
    stages = run.context.job.spec.stages
    first, resumed = _where_to_start(run, checkpoint)
    steps = [_finished_steps(run, stage) for stage in keys[:first]]
    if first:  # an attempt that ended at the gate has left a finished stage behind
        check_promotion(stages[first - 1], run.results, run.store)
    for index, stage in enumerate(stages[first:], first):
        if stage.trains:
            run.provenance.begin(stage)
        steps.append(STAGES[stage.kind](run, index, stage, resumed, sum(steps)).execute())
        if stage.trains:
            run.provenance.end(steps[-1])
        check_promotion(stage, run.results, run.store)
        resumed = None
    export_final_model(run, keys[-1], steps[-1])


def _lineage_of(checkpoint: LoadedCheckpoint | None) -> Lineage | None:
    if checkpoint is None:
        return None
    if checkpoint.manifest.lineage is None:
        raise BadInputError(
            f"the checkpoint of step {checkpoint.manifest.step} of stage {checkpoint.manifest.stage} does not say what its weights come "
            f"from: it was written by version {checkpoint.manifest.code_version}; go on with that one, or start a job of another name"
        )
    return checkpoint.manifest.lineage


def _finished_steps(run: Run, stage: StageKeys) -> int:
    """Optimizer steps of a stage that is done; one that trains nothing has no checkpoint."""
    manifest = latest_manifest(run.store, stage)
    return manifest.step if manifest is not None else 0


def _leave_progress(run: Run) -> None:
    """Leave the last numbers for whoever supervises this process: its status endpoint goes with it."""
    file = run.context.last_progress_file
    if file is None:
        return
    progress = run.board.snapshot().model_copy(update={"engines": {}, "message": ""})
    data = progress.model_dump_json(by_alias=True, exclude_none=True).encode()
    if len(data) <= MAX_LAST_PROGRESS_BYTES:
        file.write_bytes(data)


def _where_to_start(run: Run, checkpoint: LoadedCheckpoint | None) -> tuple[int, LoadedCheckpoint | None]:
    """Index of the first stage to run, and the checkpoint that it resumes from; a finished stage leaves its weights to the next."""
    if checkpoint is None:
        return 0, None
    manifest = checkpoint.manifest
    for condemned in checkpoint.condemned:
        logger.warning("%s", condemned)
    run.versions.restore(manifest.state.scalars.get("versions"))
    run.versions.reserve(manifest.state.weight_version + 1)
    if not manifest.state.final:
        logger.info("resuming stage %s at step %d", manifest.stage, manifest.step)
        return manifest.stage_index, checkpoint
    run.policy.load_tensors(checkpoint.tensors)
    return manifest.stage_index + 1, None


if __name__ == "__main__":
    sys.exit(main())
