"""What the lead tells the other processes of a learner to do with it: JSON, and bytes where there is data. No pickle.

lead:      learner.step(...) -> Command(TakeStep(...), groups as Parquet) -> key in the store
followers: the same method of their own learner, with the same arguments (`follower`)
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from rlvr_api.model import ApiModel
from rlvr_api.off_policy import OffPolicy
from rlvr_api.spec import Dtype
from rlvr_api.stages import Optimizer, Rlvr


class OpenRlvr(ApiModel):
    """Make the learner of a stage `rlvr`; the one before is of no use any more."""

    kind: Literal["openRlvr"] = "openRlvr"
    """Which command this is."""
    stage: Rlvr
    """Its settings."""


class OpenSupervised(ApiModel):
    """Make the learner of a supervised stage."""

    kind: Literal["openSupervised"] = "openSupervised"
    """Which command this is."""
    optimizer: Optimizer
    """Its settings."""
    total_steps: int
    """Of the schedule."""
    towards_teacher: bool
    """Whether it learns the reverse KL, or the likelihood."""


class TakeRlvrStep(ApiModel):
    """`Learner.step`; the payload has the groups, as Parquet."""

    kind: Literal["rlvrStep"] = "rlvrStep"
    """Which command this is."""
    current_step: int
    """As for `Learner.step`."""
    version_steps: dict[int, int]
    """What `step_of` says of the groups' versions."""
    off_policy: OffPolicy
    """In force."""


class TakeSupervisedStep(ApiModel):
    """`SupervisedLearner.step`; the payload has the examples, as JSON."""

    kind: Literal["supervisedStep"] = "supervisedStep"
    """Which command this is."""
    place: str
    """As for `SupervisedLearner.step`."""


class Gather(ApiModel):
    """Send the own rows of a tensor to the lead."""

    kind: Literal["gather"] = "gather"
    """Which command this is."""
    name: str
    """As a checkpoint names it."""


class Load(ApiModel):
    """Take the own rows of a checkpoint's tensors from the lead."""

    kind: Literal["load"] = "load"
    """Which command this is."""
    step: int | None = None
    """Of the learner that they are of; None: the policy's weights alone."""
    optimizer: dict[str, list[int]] = Field(default_factory=dict)
    """Names and shapes of the optimizer's, in the order in which they come after the weights."""


class Score(ApiModel):
    """`Policy.sequence_logprobs`."""

    kind: Literal["score"] = "score"
    """Which command this is."""
    prompt_ids: list[int]
    """Tokens."""
    completion_ids: list[int]
    """Tokens."""
    cast_dtype: Dtype
    """Of the engines."""


class Close(ApiModel):
    """There is nothing more to do."""

    kind: Literal["close"] = "close"
    """Which command this is."""


Order = OpenRlvr | OpenSupervised | TakeRlvrStep | TakeSupervisedStep | Gather | Load | Score | Close
ORDERS: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="kind")])


@dataclass(frozen=True, slots=True)
class Command:
    """One message."""

    order: Order
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """The JSON, which has no line break, a line break, and the payload."""
        return self.order.model_dump_json().encode() + b"\n" + self.payload

    @classmethod
    def parse(cls, message: bytes) -> "Command":
        """The inverse of `to_bytes`. Raises pydantic's ValidationError, which is a ValueError."""
        order, _, payload = message.partition(b"\n")
        return cls(ORDERS.validate_json(order), payload)
