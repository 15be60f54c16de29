"""Goes back to before the reward could not be believed: `integrity.onViolation: Rollback`.

    steps of the violating window -> newest committed checkpoint before the first of them, else the stage's start -> one committed record

The process does not load anything: it commits the rollback and ends, and the next attempt goes on from there (`storage/rollback.py`).
Checkpoints, records and rollouts of the steps that are taken back stay in the store.
"""

import logging
from datetime import UTC, datetime

from rlvr_trainer.integrity.monitor import Assessment
from rlvr_trainer.run import Run, UntrustworthyRewardError
from rlvr_trainer.storage.checkpoint_reader import committed_places
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import RecordLog, read_history
from rlvr_trainer.storage.resume import plan_rollback
from rlvr_trainer.storage.rollback import RollbackRecord

logger = logging.getLogger(__name__)


def roll_back(run: Run, keys: StageKeys, records: RecordLog, found: Assessment, window_steps: int) -> RollbackRecord:
    """Take back the steps of a violation.

    Args:
        records: of the stage, all read; takes no record afterwards.
        window_steps: how many of the last steps the violation was found in.

    Raises:
        SupersededError, RolledBackError: as `RecordLog.roll_back`.
    """
    last = records.head.step
    before = [place for place in committed_places(run.store, keys) if place[1] <= last - window_steps]
    to_keys, to_step = before[-1] if before else (keys.trunk, 0)
    plan = plan_rollback(read_history(run.store, keys), to_keys.branch, to_step)
    record = records.roll_back(
        RollbackRecord(
            stage=keys.name,
            branch=keys.branch + 1,
            attempt=run.context.attempt,
            from_step=last,
            to_step=to_step,
            to_branch=to_keys.branch,
            kept=plan.kept.sha256,
            previous=records.head.sha256,
            discarded=plan.discarded,
            cursor=plan.cursor,
            accepted=plan.accepted,
            curriculum=plan.curriculum,
            next_weight_version=max(plan.next_weight_version, run.versions.current + 1),
            reason=found.reason,
            message=found.message,
            time=datetime.now(UTC),
        )
    )
    logger.warning("stage %s was rolled back from step %d to step %d: %s", keys.name, last, to_step, found.message)
    return record


def as_error(record: RollbackRecord, steps_before: int) -> UntrustworthyRewardError:
    """What the process ends with.

    Args:
        steps_before: optimizer steps of the stages before.
    """
    return UntrustworthyRewardError(
        f"rolled back from step {steps_before + record.from_step} to step {steps_before + record.to_step} by integrity.onViolation, since "
        f"the reward cannot be believed: {record.message}. `rlvr rollouts --branch {record.branch - 1}` shows what was taken back; mend "
        "the environment in a new job, or run this one again to go on from that step"
    )
