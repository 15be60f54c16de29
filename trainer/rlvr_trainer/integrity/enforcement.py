"""Watches the evidence of a stage as it grows, and does what `integrity.onViolation` says.

(records of earlier attempts) -> add each step's evidence -> assessment -> warn once for each finding, or pause the job
"""

import logging
from collections.abc import Sequence

from rlvr_api.spec import RLVRJobSpec
from rlvr_trainer.integrity.evidence import StepEvidence
from rlvr_trainer.integrity.monitor import Assessment, assess
from rlvr_trainer.run import UntrustworthyRewardError

logger = logging.getLogger(__name__)


class RewardMonitor:
    """The reward of one stage."""

    def __init__(self, spec: RLVRJobSpec) -> None:
        self._integrity = spec.integrity
        self._audited = [environment.name for environment in spec.environments if environment.audit is not None]
        self._evidence: list[StepEvidence] = []
        self._warned = ""
        self.assessment = self._assess()

    @property
    def latest(self) -> StepEvidence:
        """Of the last step."""
        return self._evidence[-1]

    @property
    def steps(self) -> int:
        """Steps that the assessment is about: the window, or as many as there are."""
        return len(self._evidence)

    @property
    def rolls_back(self) -> bool:
        """Whether the steps of a violation are to be taken back."""
        return self._integrity.on_violation == "Rollback"

    def restore(self, evidence: Sequence[StepEvidence]) -> None:
        """Begin with the steps that earlier attempts recorded, oldest first."""
        self._evidence = list(evidence)[-self._integrity.window_steps :]
        self.assessment = self._assess()

    def add(self, evidence: StepEvidence) -> None:
        """Take in the next step."""
        self._evidence = [*self._evidence, evidence][-self._integrity.window_steps :]
        self.assessment = self._assess()
        if self.assessment.is_violated and self.assessment.reason != self._warned:
            self._warned = self.assessment.reason
            logger.warning("the reward cannot be believed: %s", self.assessment.message)

    def enforce(self) -> None:
        """Stop the run if the job asks for that and a bound is broken.

        Raises:
            UntrustworthyRewardError: it is.
        """
        if self.assessment.is_violated and self._integrity.on_violation != "Warn":
            raise UntrustworthyRewardError(
                f"paused by integrity.onViolation, since the reward cannot be believed: {self.assessment.message}. Look at the report and "
                "at `rlvr rollouts`; mend the environment in a new job, or set integrity.onViolation to Warn to go on from the checkpoint"
            )

    def _assess(self) -> Assessment:
        return assess(self._integrity, self._audited, self._evidence)
