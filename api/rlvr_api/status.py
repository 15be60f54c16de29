"""The status of an RLVRJob: what a run says about itself.

The learner serves `Progress` at `GET /status`; whoever supervises it (the operator, the local runtime) reads that and writes
`RLVRJobStatus`. A value that is not known yet is left out, never zero.
"""

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from rlvr_api.conditions import ConditionType, Phase, Reason
from rlvr_api.environments import SandboxLevel
from rlvr_api.model import ApiModel, Fraction, Name
from rlvr_api.process import Role

Count = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, Field(max_length=1024)]
Part = Literal["generate", "verify", "train", "sync", "idle"]
"""What the learner's time goes to: waiting for engines, waiting for verdicts, computing a step, publishing weights, anything else."""


class WaitShares(ApiModel):
    """Shares of the learner's recent time; they add up to 1."""

    generate: Fraction = 0.0
    """Waiting for groups while engines generate."""
    verify: Fraction = 0.0
    """Waiting for groups of which only the verdicts are missing."""
    train: Fraction = 0.0
    """Forward, backward and optimizer step."""
    sync: Fraction = 0.0
    """Publishing weights to the engines."""
    idle: Fraction = 0.0
    """Everything else: checkpoints that block, evaluation, start-up."""


class EngineProgress(ApiModel):
    """One engine, as the learner knows it."""

    status: Literal["dirty", "clean", "lost", "quarantined"]
    """`clean`: has the newest weights, and a probe said so. The others get no prompts."""
    version: Count | None = None
    """Version of its weights, as last installed."""
    reason: Annotated[str, Field(max_length=512, pattern=r"^[^\n]*$")] = ""
    """Why it is not clean, on one line."""
    needs_restart: bool = False
    """Only a new process helps; whoever supervises it should end this one."""


class GovernorProgress(ApiModel):
    """What `offPolicy.governor` has in force."""

    mode: Literal["open", "tightened", "paused"]
    """`open`: as the spec allows. `paused`: synchronous, and what older weights sampled is thrown away."""
    max_staleness: Count
    """Optimizer steps that admission allows now."""
    cap: Annotated[float, Field(ge=1.0)] | None = None
    """Bound of the correction's weight now; unset where there is none."""
    step: Count | None = None
    """Optimizer step, over all stages, after which it last did something in this stage."""
    message: Text = ""
    """What it did then, and why, on one line."""


class RewardTrust(ApiModel):
    """Whether the reward can be believed, as the learner judges by audits and canaries of the last `integrity.windowSteps` steps."""

    status: Literal["True", "False", "Unknown"]
    """`False`: a bound is broken for certain."""
    reason: Reason
    """The worst that was found, for programs."""
    message: Text = ""
    """All that was found, for people, on one line."""
    audited: Count = 0
    """Audits that it rests on."""
    environment: Name | None = None
    """The environment with the largest hack rate, which the rates are of."""
    hack_rate: Fraction | None = None
    """Estimated share of its rollouts that were paid for a wrong answer."""
    false_positive_rate: Fraction | None = None
    """Estimated P(paid | wrong)."""
    false_negative_rate: Fraction | None = None
    """Estimated P(refused | right)."""


class RollbackProgress(ApiModel):
    """The last time that `integrity.onViolation: Rollback` acted in the current stage; steps are over all stages."""

    number: Annotated[int, Field(ge=1, le=99)]
    """Which rollback of the stage it was."""
    from_step: Count
    """Last step that was taken back."""
    to_step: Count
    """Step that the run went on from."""


class Progress(ApiModel):
    """Body of the learner's `GET /status`, and `status.progress` of the job."""

    stage: Name
    """Name of the current stage."""
    stage_index: Count
    """Its index in the spec, from 0."""
    stages: Count
    """Stages of the job."""
    step: Count
    """Optimizer steps finished, over all stages."""
    steps: Count
    """Optimizer steps of all stages together."""
    reward: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Mean score of the last step's rollouts, infrastructure errors left out."""
    pass_rate: Fraction | None = None
    """Share of the last step's rollouts with verdict `pass`."""
    held_out_pass_rate: Fraction | None = None
    """Pass rate of the latest held-out evaluation."""
    level: Annotated[dict[Name, Count], Field(max_length=64)] = Field(default_factory=dict)
    """Current level of each environment."""
    tokens_per_second: Annotated[float, Field(ge=0.0)] | None = None
    """Completion tokens generated, over the last steps' wall time."""
    staleness: Annotated[float, Field(ge=0.0)] | None = None
    """Mean age of the last batch's tokens, in optimizer steps."""
    governor: GovernorProgress | None = None
    """Unset without `offPolicy.governor`."""
    weight_version: Count | None = None
    """Newest version that engines sample from."""
    engines: Annotated[dict[Name, EngineProgress], Field(max_length=4096)] = Field(default_factory=dict)
    """Engines by name, for example `rollout-0`."""
    wait_shares: WaitShares | None = None
    """Where the learner's time went over the last steps."""
    bottleneck: Part | None = None
    """The part that would have to get faster first."""
    checkpoint_step: Count | None = None
    """Step of the last committed checkpoint."""
    eta_seconds: Annotated[float, Field(ge=0.0)] | None = None
    """Estimated seconds until all steps are finished, at the pace of the last steps."""
    reward_trust: RewardTrust | None = None
    """Whether the reward can be believed; unset before the first step."""
    rollback: RollbackProgress | None = None
    """Unset where no step of the stage was taken back."""
    sandbox_level: SandboxLevel | None = None
    """Level of the sandbox that runs what the model wrote, as the verifier service measured it; unset without environments of code."""
    uncertified: Annotated[tuple[Name, ...], Field(max_length=64)] = ()
    """Environments that judge without a valid certificate, as `integrity.allowUncertified` lets them."""
    message: Text = ""
    """What the learner is doing now, in a few words, on one line."""
    last_updated: AwareDatetime
    """When these numbers were written."""


class Condition(ApiModel):
    """One thing that is true, false or unknown of the job; the shape of `metav1.Condition`."""

    type: ConditionType
    """What it is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Reason
    """Why, for programs."""
    message: Annotated[str, Field(max_length=32_768, pattern=r"^[^\n]*$")] = ""
    """Why, for people, on one line: the object and the next step."""
    last_transition_time: AwareDatetime
    """When `status` last changed."""
    observed_generation: Count | None = None
    """Generation of the spec that it speaks of; unset in local runs."""


class Termination(ApiModel):
    """How a process ended."""

    exit_code: int
    """Exit code; negative: the signal that killed it."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """The kubelet's word for it, for example `OOMKilled`; empty in local runs."""
    process: Annotated[str, Field(max_length=253)] = ""
    """The pod; empty in local runs."""
    message: Text = ""
    """Its last line on stderr."""
    time: AwareDatetime
    """When."""


class RoleStatus(ApiModel):
    """The processes of one role."""

    name: Role
    """Role."""
    desired: Count
    """Processes wanted."""
    ready: Count = 0
    """Processes that answer."""
    restarts: Count = 0
    """Restarts so far, of all its processes."""
    last_termination: Termination | None = None
    """The latest end of one of them that was not asked for."""


class CheckpointStatus(ApiModel):
    """The last committed checkpoint."""

    step: Count
    """Optimizer step, over all stages."""


class RLVRJobStatus(ApiModel):
    """What is observed of a run."""

    phase: Phase = Phase.PENDING
    """Summary for people."""
    reason: Reason | None = None
    """Why it is in this phase."""
    message: Text = ""
    """What it waits for, or why it ended, in the words of whoever said so; on one line."""
    observed_generation: Count | None = None
    """Generation of the spec that was last acted upon; unset in local runs."""
    execution_attempt: Count = 0
    """Number of the learner's attempt, from 1; it never goes back."""
    restarts: Count = 0
    """Attempts of the learner in a row that ended by failure; starts anew after a committed step."""
    attempt_first_step: Count | None = None
    """Step that the current attempt began with: an attempt that got beyond it does not count against the restart budget."""
    start_time: AwareDatetime | None = None
    """When it was first started, or started anew after a suspension; provisioning deadlines count from here."""
    running_since: AwareDatetime | None = None
    """When engines, verifiers and learner were first ready since `startTime`."""
    completion_time: AwareDatetime | None = None
    """When it was finished, or failed."""
    images: Annotated[dict[Role, Annotated[str, Field(max_length=512)]], Field(max_length=8)] = Field(default_factory=dict)
    """Images of this run, pinned when an attempt begins: an upgrade of the operator changes no running pod."""
    stage: Name | None = None
    """Current stage."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=32)] = ()
    """Keyed by type."""
    roles: Annotated[tuple[RoleStatus, ...], Field(max_length=8)] = ()
    """Keyed by name."""
    rollout_replicas: Count = 0
    """Engines that exist; read by the scale subresource."""
    rollout_selector: Text | None = None
    """Label selector of the engines; read by the scale subresource. Unset in local runs."""
    rollouts_summary: Annotated[str, Field(max_length=32)] = ""
    """Engines ready and wanted, for example `3/4`."""
    progress: Progress | None = None
    """What the learner last said."""
    checkpoint: CheckpointStatus | None = None
    """The last committed checkpoint."""
