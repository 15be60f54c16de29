"""Condition types, reasons and phases: the one vocabulary in which a run says how it is, in the cluster and locally.

Each condition carries a status, a reason from `Reason`, and a message of one line that names the object and the next step. The phase is
a summary of the conditions for people; programs read conditions.
"""

from enum import StrEnum


class ConditionType(StrEnum):
    """What a condition is about; all but `Suspended` and `Failed` are good news when true."""

    ACCEPTED = "Accepted"
    """The spec is valid, and the model, data and store that it names were found."""
    ADMITTED = "Admitted"
    """A queue has given the job its quota, or the job asks for none."""
    SCHEDULED = "Scheduled"
    """Every process of the job has a place to run."""
    ROLLOUTS_READY = "RolloutsReady"
    """All rollout engines answer; the message says how many do."""
    VERIFIERS_READY = "VerifiersReady"
    """The verifier service answers."""
    LEARNER_READY = "LearnerReady"
    """The learner of the current attempt answers."""
    WEIGHTS_IN_SYNC = "WeightsInSync"
    """Every ready engine samples from the newest published weights, and a probe said so."""
    CHECKPOINT_FRESH = "CheckpointFresh"
    """The last committed checkpoint is no older than twice its interval."""
    PROGRESSING = "Progressing"
    """A step or a group was finished within `deadlines.stallSeconds`."""
    REWARD_TRUSTWORTHY = "RewardTrustworthy"
    """The verifiers' measured error rates are within their bounds."""
    SUSPENDED = "Suspended"
    """No process of the job exists, and it goes on from its last checkpoint when asked."""
    COMPLETE = "Complete"
    """All stages are finished. Final."""
    FAILED = "Failed"
    """The job has ended without finishing. Final."""


class Reason(StrEnum):
    """Why a condition has its status."""

    VALID = "Valid"
    """Accepted: nothing to object to."""
    INVALID_SPEC = "InvalidSpec"
    """Accepted is false, or Failed: the job cannot run as written; the message quotes the check that said so."""
    STARTING = "Starting"
    """A role has not been ready yet."""
    ALL_READY = "AllReady"
    """Every replica of a role answers."""
    SOME_NOT_READY = "SomeNotReady"
    """Replicas of a role are missing, and the run goes on with the others."""
    RESTARTING = "Restarting"
    """A process ended and is started again after a back-off; the message has its exit code and last line."""
    RUN_ENDED = "RunEnded"
    """A role's processes are gone because the run has ended."""
    SUSPEND_REQUESTED = "SuspendRequested"
    """Suspended on request, after a checkpoint."""
    ALL_STAGES_FINISHED = "AllStagesFinished"
    """Complete."""
    PROVISIONING_DEADLINE_EXCEEDED = "ProvisioningDeadlineExceeded"
    """Failed: engines or verifiers were not ready within `deadlines.provisioningSeconds`."""
    RESTART_BUDGET_EXHAUSTED = "RestartBudgetExhausted"
    """Failed: a role failed more often than `failurePolicy` allows."""
    SUPERSEDED = "Superseded"
    """Failed: a newer attempt has committed, so this one may not."""
    RUNTIME_FAILED = "RuntimeFailed"
    """Failed: the supervisor could not go on, for example because its disk is full."""


class Phase(StrEnum):
    """One word for people."""

    PENDING = "Pending"
    """Not looked at yet."""
    QUEUED = "Queued"
    """Waits for quota."""
    PROVISIONING = "Provisioning"
    """Processes are being started."""
    RUNNING = "Running"
    """The learner is at work."""
    RECOVERING = "Recovering"
    """A part that training cannot do without is being restarted."""
    COMPLETING = "Completing"
    """All stages are finished; processes are being drained."""
    SUCCEEDED = "Succeeded"
    """All stages are finished and nothing runs."""
    SUSPENDING = "Suspending"
    """Asked to stop: commits a checkpoint and drains."""
    SUSPENDED = "Suspended"
    """Stopped on request; goes on when asked."""
    FAILED = "Failed"
    """Ended without finishing."""
