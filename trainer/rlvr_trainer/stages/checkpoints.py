"""Commits the checkpoints of a stage, whatever it trains on.

save: copy the state -> upload in the background -> note_uploads: the newest are kept, older ones pruned
                                                 -> finish, at the end of the stage or of the process: wait for it
"""

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor

from rlvr_trainer.metrics import Phase
from rlvr_trainer.rollout import RolloutGroup
from rlvr_trainer.run import Run
from rlvr_trainer.storage.checkpoint import CheckpointOutcome, CheckpointWriter
from rlvr_trainer.storage.checkpoint_reader import prune
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.manifest import CheckpointState
from rlvr_trainer.telemetry import SpanName, tracer
from rlvr_trainer.training import timed

logger = logging.getLogger(__name__)

WAIT_SECONDS = 600.0
"""Longest wait for an upload at the end of a stage or of the process."""


class StageCheckpoints:
    """The checkpoints of one stage.

    Args:
        before: optimizer steps of the stages before.
    """

    def __init__(self, run: Run, keys: StageKeys, before: int) -> None:
        self._run, self._keys, self._before = run, keys, before
        self._writer = CheckpointWriter(run.store, keys, run.claim, lineage=run.provenance.at)

    def save(
        self, tensors: Mapping[str, Tensor], state: CheckpointState, phases: dict[str, float], groups: Sequence[RolloutGroup] = ()
    ) -> None:
        """Copy the state; its upload goes on in the background unless the stage or the process ends here.

        Args:
            phases: gets the time of the copy added.
            groups: finished and not consumed yet.
        """
        with timed(phases, Phase.CHECKPOINT), tracer().start_as_current_span(SpanName.CHECKPOINT):
            self._writer.snapshot(tensors, state, groups, WAIT_SECONDS)
        if state.final or self._run.stop.is_set():
            self.finish()

    def finish(self) -> None:
        """Wait for uploads."""
        self._run.board.update(message="committing the checkpoint")
        self._writer.wait(WAIT_SECONDS)
        self.note_uploads()
        self._run.board.update(message="")

    def note_uploads(self) -> None:
        """Tell of uploads that have ended, and prune what is kept no longer."""
        for outcome in self._writer.take_outcomes():
            self._note(outcome)

    def _note(self, outcome: CheckpointOutcome) -> None:
        if outcome.manifest is None:
            logger.error("the checkpoint of step %d was not committed: %s; the one before stays", outcome.step, outcome.error)
            return
        logger.info("checkpoint of step %d committed in %.1f s", outcome.step, outcome.seconds)
        self._run.board.update(checkpoint_step=self._before + outcome.step)
        spec = self._run.context.job.spec
        window = spec.integrity.window_steps if spec.integrity.on_violation == "Rollback" else None
        prune(self._run.store, self._keys, spec.learner.checkpoint.keep_last, self._run.context.attempt, window)
