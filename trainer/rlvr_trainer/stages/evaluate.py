"""The stage `evaluate`: publish the weights and measure pass@k on its own number of held-out tasks and samples.

It trains nothing, so it has no steps and no checkpoint: an attempt that finds its result in the store goes on to the next stage.
"""

from rlvr_api.stages import Stage
from rlvr_trainer.evaluation import plan_evaluation
from rlvr_trainer.metrics_log import evaluated_steps
from rlvr_trainer.run import Run
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint
from rlvr_trainer.storage.layout import StageKeys


class EvaluateStage:
    """Runs one stage; see `RlvrStage`. It never has a checkpoint of its own."""

    def __init__(self, run: Run, index: int, stage: Stage, checkpoint: LoadedCheckpoint | None, steps_before: int) -> None:
        assert stage.evaluate is not None
        self._run, self._spec, self._before = run, stage.evaluate, steps_before
        self._keys = StageKeys(index, stage.name)

    def execute(self) -> int:
        """Evaluate, unless it is done.

        Raises:
            StopRequestedError: asked to stop.
        """
        run = self._run
        run.board.update(stage=self._keys.name, stage_index=self._keys.index, step=self._before)
        if not evaluated_steps(run.store, self._keys):
            run.reserve_versions(0)
            run.publish(self._before)
            plan = plan_evaluation(self._spec, run.context.job.spec.environments, run.held_out)
            run.evaluate(self._keys, 0, self._before, plan, self._spec.k)
        return 0
