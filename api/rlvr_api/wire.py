"""Messages between a job's processes: tasks and verdicts of the verifier service, and the engines that a learner is told of.

A gold answer is in none of them: a task travels as a prompt and an opaque key that only the verifier service can open.
A verdict has five statuses. `infra_error` means "not judged": it has no score, is retried, and in the end masked, never a zero.
"""

import hashlib
import json
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from rlvr_api.environments import SandboxLevel
from rlvr_api.model import ApiModel, Fraction, Name

MAX_BATCH_ITEMS = 1024
"""Items in one request."""
MAX_COMPLETION_BYTES = 65_536
"""UTF-8 bytes of a completion that a verifier looks at; a longer one is `invalid`, unread."""
MAX_COMPLETION_CHARACTERS = 2_000_000
"""Characters that a request may carry at all; beyond it the whole request is malformed (422)."""

MAX_TURNS = 64
"""Turns of an episode: each step plays all before it again."""

Split = Literal["train", "heldOut"]


class VerdictStatus(StrEnum):
    """What a verifier found."""

    PASS = "pass"  # noqa: S105 - a status, not a password
    """Right; `score` says how right, in (0, 1]."""
    FAIL = "fail"
    """Wrong answer."""
    INVALID = "invalid"
    """No single answer in the expected form."""
    TIMEOUT = "timeout"
    """The candidate's answer could not be judged in time, and that is the candidate's doing."""
    INFRA_ERROR = "infra_error"
    """Not judged. Never a reward."""


class Message(ApiModel):
    """One chat message of a prompt."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: Annotated[str, Field(max_length=1_000_000)]
    """Text."""


class TaskRequest(ApiModel):
    """Asks for one task; the same request always gives the same task."""

    environment: Name
    """Name of the environment in the job."""
    split: Split
    """Training tasks and held-out tasks are disjoint by canonical problem."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Picks the task. In split `heldOut`, seeds 0, 1, 2, ... below `EnvironmentInfo.held_out_tasks` give different problems."""
    level: Annotated[int, Field(ge=0, le=100)] = 0
    """Difficulty."""


class Task(ApiModel):
    """A prompt, and the key with which its completions are scored."""

    environment: Name
    """Name of the environment in the job."""
    environment_version: str
    """Version of the code or dataset that made it."""
    level: int
    """Difficulty."""
    problem_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    """Hash of the canonical problem: equal problems have equal ids."""
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=64)]
    """The prompt."""
    task_key: Annotated[str, Field(max_length=16_384)]
    """Sealed: holds or finds the gold answer, opaque outside the verifier service."""
    max_turns: Annotated[int, Field(ge=1, le=MAX_TURNS)] = 1
    """Most turns of the model. Above 1 the environment is interactive: turns go to `/v1/step`, and the `Transcript` is the completion."""


class SampleRequest(ApiModel):
    """POST /v1/sample."""

    items: Annotated[tuple[TaskRequest, ...], Field(min_length=1, max_length=MAX_BATCH_ITEMS)]
    """Tasks wanted."""


class SampleResponse(ApiModel):
    """Tasks in the order of the request."""

    tasks: tuple[Task, ...]
    """One for each item."""


class Transcript(ApiModel):
    """An episode of several turns: with the task, all that is needed to play it again. Its JSON is the completion that is scored."""

    actions: Annotated[tuple[Annotated[str, Field(max_length=MAX_COMPLETION_BYTES)], ...], Field(min_length=1, max_length=MAX_TURNS)]
    """What the model said, turn by turn, without special tokens."""
    observed: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """`digest_observations` of what the model was told between them. Empty: not compared."""

    @property
    def completion(self) -> str:
        """As it is scored and stored."""
        return self.model_dump_json()

    @classmethod
    def of(cls, completion: str) -> "Transcript":
        """The transcript of a completion. One that is none is the only action of its episode: a JSON text counts as a transcript if it
        has this form, whole. Give completions of at most `MAX_COMPLETION_BYTES`."""
        try:
            return cls.model_validate_json(completion)
        except ValidationError:
            return cls(actions=(completion,))


def digest_observations(observations: Sequence[str]) -> str:
    """SHA-256 of observations in their order."""
    return hashlib.sha256(json.dumps(list(observations)).encode()).hexdigest()


class StepItem(ApiModel):
    """One turn of one episode."""

    environment: Name
    """Name of the environment in the job."""
    task_key: Annotated[str, Field(max_length=16_384)]
    """From the task."""
    transcript: Transcript
    """All turns so far, the newest last. The service keeps nothing: it plays them from the task, and compares what was observed."""


class StepRequest(ApiModel):
    """POST /v1/step. A request that comes again gets the same answer from any replica."""

    items: Annotated[tuple[StepItem, ...], Field(min_length=1, max_length=MAX_BATCH_ITEMS)]
    """Turns of different episodes."""


class StepResult(ApiModel):
    """What follows the newest turn: an observation, the end, or neither where it could not be played."""

    observation: Annotated[str, Field(max_length=MAX_COMPLETION_CHARACTERS)] | None = None
    """What the model is told; unset where the episode has ended."""
    done: bool
    """The episode has ended: score its transcript."""
    fault: Annotated[str, Field(max_length=500)] = ""
    """Why it could not be played. A failure of infrastructure: the episode is masked, and never a reward."""


class StepResponse(ApiModel):
    """Results in the order of the request."""

    results: tuple[StepResult, ...]
    """One for each item."""


class ScoreItem(ApiModel):
    """One completion to judge."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    """Idempotency key: the same id is the same completion, and gets the same verdict."""
    environment: Name
    """Name of the environment in the job."""
    task_key: Annotated[str, Field(max_length=16_384)]
    """From the task."""
    completion: Annotated[str, Field(max_length=MAX_COMPLETION_CHARACTERS)]
    """The model's text, without special tokens; undecodable bytes are U+FFFD."""
    truncated: bool = False
    """The completion ended at the length limit, not at a stop token."""
    audited: bool = False
    """Audit it for certain, as held-out evaluations are, where the environment has a second verifier."""


class AuditVerdict(ApiModel):
    """What the environment's second verifier says of a completion that was drawn for an audit."""

    probability: Annotated[float, Field(gt=0.0, le=1.0)]
    """Probability with which it was drawn, given its verdict."""
    score: Fraction
    """Above 0 where the second verifier finds the answer right."""
    verifier: str
    """Name of the second verifier."""
    verifier_version: str
    """Its version."""
    flaky: bool = False
    """The first verifier, asked once more, gave another status."""
    reason: Annotated[str, Field(max_length=500)] = ""
    """Why, in words, without the gold answer."""


class Verdict(ApiModel):
    """What one verifier says of one completion."""

    id: str
    """From the item."""
    status: VerdictStatus
    """What was found."""
    score: Fraction | None
    """In (0, 1] for `pass`, 0 for `fail`, `invalid` and `timeout`, unset for `infra_error`."""
    verifier: str
    """Name of the verifier."""
    verifier_version: str
    """Version of the verifier, its library included."""
    false_positive_rate: Fraction | None = None
    """P(pass | wrong), as `environments[].noise` has it; unset where that is."""
    false_negative_rate: Fraction | None = None
    """P(not pass | right), likewise."""
    reason: Annotated[str, Field(max_length=500)] = ""
    """Why, in words, without the gold answer: for example `answer 12 is wrong` or `no integer in the completion`."""
    seconds: Annotated[float, Field(ge=0.0)] = 0.0
    """Time the verifier took, without queueing."""
    audit: AuditVerdict | None = None
    """Set where the item was drawn for an audit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.status is VerdictStatus.INFRA_ERROR:
            if self.score is not None:
                raise ValueError("an infra_error has no score")
        elif self.score is None:
            raise ValueError(f"a verdict with status {self.status} needs a score")
        elif (self.score > 0) is not (self.status is VerdictStatus.PASS):
            raise ValueError(f"status {self.status} does not go with score {self.score}: only a pass is above 0")
        return self


class ScoreRequest(ApiModel):
    """POST /v1/score."""

    items: Annotated[tuple[ScoreItem, ...], Field(min_length=1, max_length=MAX_BATCH_ITEMS)]
    """Completions; ids are unique within a request."""


class CanaryTag(StrEnum):
    """What a canary is known to be."""

    RIGHT = "right"
    """A right answer in some notation: it must be paid."""
    WRONG = "wrong"
    """A wrong answer, or none: it must not be paid."""
    EXPLOIT = "exploit"
    """A wrong answer of a kind that graders have paid before: it must not be paid."""


class CanaryVerdict(ApiModel):
    """How one canary was judged: a completion with a known verdict, sent through the same scorer as the others."""

    environment: Name
    """Name of the environment."""
    tag: CanaryTag
    """What it is known to be."""
    probe: Annotated[str, Field(max_length=64)]
    """Which canary, for example `question-echo`; never its text, which may hold the answer."""
    kept: bool
    """The verdict was the known one."""


class ScoreResponse(ApiModel):
    """Verdicts in the order of the request."""

    verdicts: tuple[Verdict, ...]
    """One for each item."""
    canaries: tuple[CanaryVerdict, ...] = ()
    """Canaries that were judged among them. They are about the verifier, and never rewards."""


class EnvironmentInfo(ApiModel):
    """What the verifier service says of one environment."""

    name: Name
    """Name in the job."""
    kind: str
    """Kind in the spec."""
    version: str
    """Version of code and data."""
    levels: tuple[int, int]
    """Lowest and highest level."""
    held_out_tasks: dict[int, int]
    """Held-out problems that exist at each level of the job's curriculum."""
    deterministic: bool
    """The same completion always gets the same verdict."""


class EnvironmentsResponse(ApiModel):
    """GET /v1/environments."""

    environments: tuple[EnvironmentInfo, ...]
    """All environments of the job."""
    sandbox_level: SandboxLevel | None = None
    """Of the sandbox in which code runs that the model wrote, as measured at the start; unset where no environment has any."""
    uncertified: tuple[Name, ...] = ()
    """Environments without a valid certificate, as `integrity.allowUncertified` lets them judge."""


BaseUrl = Annotated[str, Field(max_length=512, pattern=r"^http://[A-Za-z0-9.:\[\]-]+$")]
"""Scheme, host and port, without a path."""
MAX_ENGINES = 4096
"""Engines of one learner."""
MAX_ENGINE_SET_BYTES = 4 * 2**20
"""Body of `PUT /engines`: beyond it no part is read."""


class EngineSet(ApiModel):
    """PUT /engines of the learner: the engines that it should use, and no others."""

    urls: Annotated[dict[Name, BaseUrl], Field(max_length=MAX_ENGINES)]
    """Base URL of each engine by its name, for example `rollout-0`. Another address under the same name is another engine."""


class ErrorResponse(ApiModel):
    """Body of every 4xx and 5xx answer."""

    error: str
    """Value, place and next step, on one line."""
