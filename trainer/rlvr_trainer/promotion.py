"""Gates between stages: `promoteWhen` looks at the last evaluation of a stage, and decides whether the job goes on.

A gate that was not passed ends the job for good, since another attempt would find the same weights and the same tasks.
"""

import logging
from collections.abc import Mapping

from rlvr_api.stages import Promotion, Stage
from rlvr_trainer.context import BadInputError
from rlvr_trainer.metrics import EvaluationResult
from rlvr_trainer.metrics_log import read_evaluations
from rlvr_trainer.storage.rollback import Reader

logger = logging.getLogger(__name__)


class NotPromotedError(BadInputError):
    """A stage has ended below its gate."""


def is_reached(gate: Promotion, result: EvaluationResult) -> bool:
    """Whether the evaluation is above the gate beyond luck: the lower bound of its 95 % interval is."""
    lower = result.lower_bound(gate.environment)
    return lower is not None and lower >= gate.at_least


def check_promotion(stage: Stage, results: Mapping[str, EvaluationResult], store: Reader) -> None:
    """Let a finished stage pass its gate, if it has one.

    Args:
        results: this attempt's last evaluation by stage; one that an earlier attempt made is read from `store`.

    Raises:
        NotPromotedError: it has not reached what it must, and is not to go on without.
    """
    gate = stage.promote_when
    if gate is None:
        return
    result = results.get(stage.name) or next((one for one in reversed(read_evaluations(store)) if one.stage == stage.name), None)
    if result is not None and is_reached(gate, result):
        logger.info("stage %s is promoted: %s", stage.name, _describe(gate, result))
        return
    reason = f"stage {stage.name} has ended, and {_describe(gate, result)}"
    if gate.otherwise == "Fail":
        raise NotPromotedError(
            f"{reason}: promoteWhen.atLeast {gate.at_least} is not reached. Train longer or evaluate on more tasks in a new job, or set "
            "promoteWhen.otherwise to Continue"
        )
    logger.warning("%s: promoteWhen.atLeast %s is not reached, and the job goes on as promoteWhen.otherwise says", reason, gate.at_least)


def _describe(gate: Promotion, result: EvaluationResult | None) -> str:
    of = f" of {gate.environment}" if gate.environment is not None else ""
    rate = None if result is None else result.pass_rate(gate.environment)
    if result is None or rate is None:
        return f"there is no {gate.metric}{of}: no held-out task was judged"
    lower = result.lower_bound(gate.environment)
    bound = "without an interval, as there is a single task" if lower is None else f"at least {lower:.3f} with 95 % confidence"
    return f"its {gate.metric}{of} is {rate:.3f}, {bound}"
