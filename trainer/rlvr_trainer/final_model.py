"""The trained weights as a Hugging Face folder in the object store, once all stages are done."""

import logging

import torch

from rlvr_trainer.run import Run
from rlvr_trainer.storage.hf_export import export_model
from rlvr_trainer.storage.layout import StageKeys

logger = logging.getLogger(__name__)


def export_final_model(run: Run, keys: StageKeys, step: int) -> None:
    """Write the policy, in the engines' dtype, as the model of the job's last stage; does nothing when it is there.

    Args:
        step: optimizer steps of that stage.
    """
    run.board.update(message="writing the final model")
    dtype = getattr(torch, run.context.job.spec.precision.engine)
    tensors = run.policy.engine_named_tensors()
    manifest = export_model(
        run.store, keys, run.claim, tensors, run.context.model_dir, dtype, step, run.versions.current,
        lineage=run.provenance.lineage, chat_template=run.context.job.spec.model.chat_template,
    )  # fmt: skip
    logger.info("the final model is in %s/%s", run.store.uri(keys.model), manifest.folder)
    run.board.update(message="done")
