"""Which weights a stage's `referenceKl` is about, also when an attempt begins in the middle of the stage.

base:        what the job began with: the model's folder, or a fork's checkpoint
stageStart:  what the last stage before left in its final checkpoint, else the base
"""

from collections.abc import Mapping

from torch import Tensor

from rlvr_api.stages import Rlvr
from rlvr_trainer.policy import weights_of
from rlvr_trainer.run import Run
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.layout import StageKeys


def reference_weights(run: Run, stage: Rlvr, index: int) -> Mapping[str, Tensor] | None:
    """The reference's weights by the names of `Policy.parameters`, on the CPU; None where the stage has none.

    Args:
        index: place of the stage in the job.

    Raises:
        CorruptObjectError: the checkpoint of the stage before cannot be read.
    """
    if stage.reference_kl is None:
        return None
    if stage.reference_kl.reference == "stageStart":
        earlier = [StageKeys(number, other.name) for number, other in enumerate(run.context.job.spec.stages[:index])]
        checkpoint = load_latest(run.store, earlier) if earlier else None
        if checkpoint is not None:
            return weights_of(checkpoint.tensors)
    return run.first_weights()
