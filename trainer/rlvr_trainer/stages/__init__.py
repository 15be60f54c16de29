"""One file a kind of stage; `STAGES` finds it by the member of `rlvr_api.stages.Stage` that is set."""

from collections.abc import Mapping
from typing import Protocol

from rlvr_api.stages import Stage
from rlvr_trainer.run import Run
from rlvr_trainer.stages.distill import DistillStage
from rlvr_trainer.stages.evaluate import EvaluateStage
from rlvr_trainer.stages.on_policy_distillation import OnPolicyDistillationStage
from rlvr_trainer.stages.rejection_sampling import RejectionSamplingStage
from rlvr_trainer.stages.rlvr import RlvrStage
from rlvr_trainer.stages.sft import SftStage
from rlvr_trainer.storage.checkpoint_reader import LoadedCheckpoint


class StageRunner(Protocol):
    """What the process does with a stage."""

    def execute(self) -> int:
        """Run to the end from where the store says it stands; returns the stage's optimizer steps."""
        ...


class StageFactory(Protocol):
    """Makes the runner of one stage."""

    def __call__(self, run: Run, index: int, stage: Stage, checkpoint: LoadedCheckpoint | None, steps_before: int) -> StageRunner:
        """See `RlvrStage`."""
        ...


STAGES: Mapping[str, StageFactory] = {
    "sft": SftStage,
    "distill": DistillStage,
    "on_policy_distillation": OnPolicyDistillationStage,
    "rejection_sampling": RejectionSamplingStage,
    "rlvr": RlvrStage,
    "evaluate": EvaluateStage,
}
