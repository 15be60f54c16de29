"""Stages of a job, in order, each of exactly one kind."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from rlvr_api.algorithms import Algorithm, Grpo, ReferenceKl
from rlvr_api.model import ApiModel, Fraction, Name, PositiveSeconds, Uri, one_member
from rlvr_api.pods import SecretReference


class Optimizer(ApiModel):
    """AdamW (arXiv 1711.05101), with linear warm-up and a constant or cosine schedule."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-6
    """Peak learning rate; 1e-6 suits full fine-tuning of models of 1B parameters and more."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.95
    """Decay of the second moment; 0.95 forgets the noise of a policy that moves."""
    epsilon: Annotated[float, Field(gt=0.0, le=1e-3)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Decoupled decay; 0, since RLVR moves weights so little that decay would dominate."""
    max_gradient_norm: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    """Global L2 norm to which gradients are clipped."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Steps over which the learning rate rises linearly."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or a cosine down to 10 % at the stage's last step."""


class SupervisedOptimizer(Optimizer):
    """The optimizer of supervised stages."""

    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1e-5
    """Peak learning rate; ten times that of `rlvr`, since every token of a trace says what to do."""


class Revisit(ApiModel):
    """Leaves problems alone on which all samples agreed: they carry no gradient. What is left alone is counted as discarded."""

    solved_after: Annotated[int, Field(ge=0, le=4096)] = 0
    """Admissions until a problem is sampled again of which all samples passed; 0: at once."""
    hopeless_after: Annotated[int, Field(ge=0, le=4096)] = 0
    """Admissions until a problem is sampled again of which none passed; 0: at once. Keep it shorter: the policy moves on."""


class Rlvr(ApiModel):
    """Reinforcement learning from verifiable rewards, on the model's own rollouts."""

    algorithm: Algorithm = Algorithm(grpo=Grpo())
    """How advantages and loss are computed."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    """Optimizer steps of the stage."""
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Groups in a step's batch."""
    group_size: Annotated[int, Field(ge=2, le=1024)] = 16
    """Samples of each prompt. At least 2: an advantage is relative to the group's mean, so a group of one teaches nothing."""
    minibatches: Annotated[int, Field(ge=1, le=64)] = 1
    """Optimizer updates a step, each on its share of the step's groups. With 1 the ratio to the policy at the start of the step is 1, so
    only `offPolicy` and `dppoTv` bound how far a token is pushed; from 2 on the algorithms' own clipping does, too."""
    reference_kl: ReferenceKl | None = None
    """Penalty on the distance from a frozen policy; unset: none, and no memory for it."""
    entropy_bonus: Annotated[float, Field(ge=0.0, le=0.1)] = 0.0
    """Taken off the loss for a nat of entropy, the mean over the tokens of all judged completions. From 0.01 on it often takes over: the
    vocabulary is large, and most of it is nonsense."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and schedule; new at each stage."""
    zero_variance: Literal["skip", "resample"] = "skip"
    """Groups whose rewards are all equal carry no gradient: `skip` trains on the others, `resample` draws more groups."""
    max_resample_rounds: Annotated[int, Field(ge=1, le=100)] = 10
    """With `resample`: batches' worth of groups collected at most for one step; after that the step takes what it has."""
    revisit: Revisit = Revisit()
    """When problems are sampled again on which all samples agreed; for datasets, and for levels with few problems."""
    ordered: bool = False
    """Consume groups, and let levels and mixing see them, in the order of their index: the run can be repeated, and is slower. No group
    that was sampled is discarded; one that cannot be judged ends the attempt."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ordered and self.zero_variance == "resample":
            raise ValueError("ordered allows no discards, so zeroVariance must be skip, not resample")
        if self.minibatches > self.prompts_per_step:
            raise ValueError(f"minibatches {self.minibatches} is above promptsPerStep {self.prompts_per_step}: some would have no group")
        if self.minibatches > 1 and self.algorithm.rloo is not None:
            raise ValueError(
                f"algorithm.rloo has no ratio, so with minibatches {self.minibatches} it would learn from stale samples as if they were "
                "fresh: set minibatches to 1, or take reinforcePlusPlus"
            )
        plus_plus = self.algorithm.reinforce_plus_plus
        if plus_plus is not None and not plus_plus.group_baseline and self.zero_variance == "resample":
            raise ValueError(
                "groups of equal rewards carry a gradient where algorithm.reinforcePlusPlus.groupBaseline is false, and zeroVariance "
                "resample would throw them away: set it to skip"
            )
        if self.algorithm.ppo is not None and self.zero_variance == "resample":
            raise ValueError(
                "groups of equal rewards teach the critic of algorithm.ppo, and zeroVariance resample would throw them away: set it to skip"
            )
        return self


TraceUri = Annotated[Uri, Field(pattern=r"^(file://|s3://).+")]


class Sft(ApiModel):
    """Supervised fine-tuning on given traces: the mean negative log-likelihood of what the assistant says.

    Every turn of the assistant is an example of its own, whose prompt is rendered as an engine would be given it.
    """

    traces: TraceUri
    """JSONL of `{"messages": [{"role": ..., "content": ...}, ...]}` or `{"prompt": ..., "completion": ...}`, or Parquet with columns of
    these names, as `s3://bucket/key` or `file:///path`. A prompt is the user's message, a completion the assistant's; other fields are
    left alone."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over the examples, each in an order of its own."""
    examples_per_step: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Examples of an optimizer step."""
    too_long: Literal["skip", "refuse"] = "skip"
    """What becomes of an example longer than `model.maxModelLen`. It is never cut: a model would learn to stop in mid-sentence."""
    optimizer: SupervisedOptimizer = SupervisedOptimizer()
    """Optimizer and schedule."""


class TeacherEndpoint(ApiModel):
    """A model behind an OpenAI-compatible endpoint."""

    endpoint: Annotated[Uri, Field(pattern=r"^https?://[^?#]+$")]
    """Base URL with the version, for example `https://teacher.example/v1`."""
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """Name of the model there."""
    credentials_secret: SecretReference | None = None
    """In clusters: Secret with the key `TEACHER_API_KEY`, sent as a bearer token. Unset: none is sent. A local run takes the variable from
    its environment."""
    timeout_seconds: PositiveSeconds = 300.0
    """Longest wait for one answer; then it is asked for again."""
    requests_in_flight: Annotated[int, Field(ge=1, le=4096)] = 8
    """Requests at once."""
    requests_per_minute: Annotated[float, Field(gt=0.0, le=1e6)] | None = None
    """Rate limit. Unset: none but the teacher's own, which is learned from its 429 answers and their Retry-After."""


class Teacher(TeacherEndpoint):
    """A teacher that is asked for answers, at `/chat/completions`."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """Temperature of its samples."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Longest answer, in the teacher's tokens; one that is cut off is not kept."""
    budget_tokens: Annotated[int, Field(ge=1, le=2**53)] | None = None
    """Tokens, prompts and answers together as the teacher counts them, after which nothing more is asked. Answers under way are still
    taken, so it may be passed by those. Unset: no limit."""


class Distill(ApiModel):
    """Asks a teacher about the environments' tasks, keeps what the verifiers pass, and learns from it as `sft` does.

    What was kept stays in the store as a file of traces, with a manifest beside it, and can be the `traces` of other jobs.
    """

    teacher: Teacher
    """Who is asked."""
    prompts: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    """Tasks to ask about, drawn as those of `rlvr`, at each environment's first level."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=64)] = 1
    """Answers to each task."""
    keep_per_prompt: Annotated[int, Field(ge=1, le=64)] = 1
    """Different answers kept of each task at most, those that came first."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over what was kept."""
    examples_per_step: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Examples of an optimizer step."""
    too_long: Literal["skip", "refuse"] = "skip"
    """What becomes of an answer that is longer than `model.maxModelLen`."""
    optimizer: SupervisedOptimizer = SupervisedOptimizer()
    """Optimizer and schedule."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep_per_prompt > self.samples_per_prompt:
            raise ValueError(f"keepPerPrompt {self.keep_per_prompt} is above samplesPerPrompt {self.samples_per_prompt}: lower it")
        return self


class OnPolicyDistillation(ApiModel):
    """Learns from a teacher's log-probs of the model's own completions: the reverse KL to the teacher, token by token, on what the model
    would say (arXiv 2306.08543, 2306.13649). Dense where rewards are sparse; the verifiers judge the completions for the metrics alone.

    The teacher is served by vLLM and has the model's tokenizer. `sampling.temperature` is 1: it would sharpen one of the two distributions.
    """

    teacher: TeacherEndpoint
    """A vLLM server, at `/completions`; the plain OpenAI API does not give log-probs of a prompt."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)]
    """Optimizer steps."""
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Tasks of a step."""
    samples_per_prompt: Annotated[int, Field(ge=2, le=1024)] = 4
    """Completions of each task."""
    optimizer: SupervisedOptimizer = SupervisedOptimizer()
    """Optimizer and schedule."""


class RejectionSampling(ApiModel):
    """Best of N by the verifiers: fine-tunes the model on its own completions that passed, round after round. Needs no teacher.

    A round samples with the newest weights, keeps different completions that passed and ended by themselves, and learns from them as
    `sft` does. Levels rise between rounds.
    """

    rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    """Times that the model is sampled and then trained."""
    prompts_per_round: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Tasks of a round."""
    samples_per_prompt: Annotated[int, Field(ge=2, le=1024)] = 16
    """N: completions of each task."""
    keep_per_prompt: Annotated[int, Field(ge=1, le=1024)] = 4
    """Completions kept of each task at most, so that easy tasks do not crowd out hard ones."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over what a round kept."""
    examples_per_step: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Examples of an optimizer step."""
    optimizer: SupervisedOptimizer = SupervisedOptimizer()
    """Optimizer and schedule, over all rounds. How many steps there will be depends on what passes, so the schedule is constant."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep_per_prompt > self.samples_per_prompt:
            raise ValueError(f"keepPerPrompt {self.keep_per_prompt} is above samplesPerPrompt {self.samples_per_prompt}: lower it")
        if self.optimizer.schedule != "constant":
            raise ValueError(f"optimizer.schedule {self.optimizer.schedule} needs a last step, and what passes decides it: write constant")
        return self


class Evaluate(ApiModel):
    """Measures pass@k on held-out tasks, by environment and level, with 95 % intervals. Changes no weights."""

    k: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1, max_length=16)] = (1, 4, 8)
    """Numbers of tries; pass@k is the probability that one of k samples passes (unbiased estimator, arXiv 2107.03374)."""
    tasks_per_environment: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Held-out tasks of each environment and level, at most what it has."""
    samples_per_task: Annotated[int, Field(ge=2, le=1024)] = 16
    """Completions of each task; at least the largest `k`, and more make its estimate sharper."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.k)) != len(self.k):
            raise ValueError(f"k lists a number twice: {list(self.k)}")
        if max(self.k) > self.samples_per_task:
            raise ValueError(f"k has {max(self.k)}, and samplesPerTask is {self.samples_per_task}: pass@k needs k samples; raise it")
        return self


class Promotion(ApiModel):
    """A gate: what a stage must have reached before the next one begins."""

    metric: Literal["eval/pass_rate"] = "eval/pass_rate"
    """Mean of the held-out tasks' pass rates, of the stage's last evaluation."""
    environment: Name | None = None
    """Environment that is looked at; unset: all together."""
    at_least: Annotated[Fraction, Field(gt=0.0)]
    """What the lower bound of the metric's 95 % interval, which counts tasks, must reach: luck does not promote."""
    otherwise: Literal["Fail", "Continue"] = "Fail"
    """What happens when the stage has ended without: the job fails, or goes on with a warning."""


STAGE_KINDS = ("sft", "distill", "on_policy_distillation", "rejection_sampling", "rlvr", "evaluate")
ONE_TURN_KINDS = ("distill", "on_policy_distillation", "rejection_sampling")
"""Kinds that learn from completions as a whole: an environment may write no part of them."""
EXTERNAL_KINDS = ("sft", "distill", "on_policy_distillation")
"""Those that learn from words, or from a judgement of words, that are not the model's own."""


class Stage(ApiModel):
    """One stage; exactly one kind is set."""

    name: Name
    """Names the stage in storage, status and metrics."""
    sft: Sft | None = None
    """Supervised fine-tuning on given traces."""
    distill: Distill | None = None
    """Supervised fine-tuning on a teacher's answers that passed."""
    on_policy_distillation: OnPolicyDistillation | None = None
    """The reverse KL to a teacher on the model's own completions."""
    rejection_sampling: RejectionSampling | None = None
    """Supervised fine-tuning on the model's own completions that passed."""
    rlvr: Rlvr | None = None
    """Reinforcement learning from verifiable rewards."""
    evaluate: Evaluate | None = None
    """Measuring pass@k."""
    promote_when: Promotion | None = None
    """Gate at the stage's end. An `rlvr` stage ends at the first evaluation after a step that reaches it. Unset: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        one_member(self, STAGE_KINDS)
        return self

    @property
    def kind(self) -> str:
        """Which of `STAGE_KINDS` is set."""
        return one_member(self, STAGE_KINDS)

    @property
    def uses_external_traces(self) -> bool:
        """Whether it learns from words that are not the model's own."""
        return self.kind in EXTERNAL_KINDS

    @property
    def trains(self) -> bool:
        """Whether it changes the weights."""
        return self.evaluate is None

    @property
    def planned_steps(self) -> int:
        """Optimizer steps that the spec fixes; 0 where they depend on data."""
        fixed = self.rlvr or self.on_policy_distillation
        return fixed.steps if fixed is not None else 0

    @property
    def teacher(self) -> TeacherEndpoint | None:
        """Whom it asks."""
        asking = self.distill or self.on_policy_distillation
        return asking.teacher if asking is not None else None


def check_turns(stages: Sequence[Stage], interactive: Sequence[str]) -> None:
    """Refuses stages that learn from completions as a whole in a job with environments of several turns.

    Args:
        interactive: names of these environments.

    Raises:
        ValueError: a stage would learn what an environment wrote.
    """
    for index, stage in enumerate(stages):
        if interactive and stage.kind in ONE_TURN_KINDS:
            raise ValueError(
                f"stages[{index}].{to_camel(stage.kind)} learns from completions of one turn, and the episodes of {', '.join(interactive)} "
                "have several: train on them with rlvr, in a job of their own"
            )
