"""Environments whose code comes from other distributions, as a job names them; `rlvr_api.environments.EnvironmentSpec` has them among the
others, and `Gymnasium`, which has turns, is in `interactive`."""

from typing import Annotated, Self

from pydantic import Field, JsonValue, model_validator

from rlvr_api.model import ApiModel, Fraction, Uri


class Plugin(ApiModel):
    """An environment of another distribution, which must be installed beside the verifier service; it is found by its entry point of the
    group `rlvr.environments`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]
    """Name of the entry point."""
    options: Annotated[dict[str, JsonValue], Field(max_length=64, default_factory=dict)]
    """What it is opened with. The plug-in says which there are, and refuses others."""
    certificate: Uri | None = None
    """Where its certificate is, as `s3://bucket/key` or `file:///path` in the verifier's image, for example among the package's files.
    `rlvr environment certify` writes it there. Unset: it has none."""


class Taskset(ApiModel):
    """A taskset of the library `verifiers`: questions that are answered in one turn, and rewards that need nothing but the conversation.
    Library and taskset must be installed beside the verifier service, which trusts them with everything."""

    id: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*/)?[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_.+-]+)?$", max_length=256)]
    """Name of the taskset's package, as in `owner/name@version`, of which `name` is imported."""
    config: Annotated[dict[str, JsonValue], Field(max_length=64, default_factory=dict)]
    """Further fields of the taskset's own config, for example `task`, where rewards are weighted. The taskset refuses what it does not
    know."""
    max_tasks: Annotated[int, Field(ge=2, le=1_000_000)] = 10_000
    """Tasks that are taken of it, from the first; of a taskset without end these are all there are."""
    held_out: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the tasks kept for evaluation, chosen by a hash of the normalised prompt."""
    lowest_reward: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    """Weighted sum of rewards that is worth a score of 0, as any lower one is."""
    highest_reward: Annotated[float, Field(ge=-1e9, le=1e9)] = 1.0
    """Weighted sum of rewards that is worth a score of 1, as any higher one is; between the two the score is linear."""
    certificate: Uri | None = None
    """As for `plugin`. To be certified, the taskset's `Task` needs a method `solution()`, which gives a right completion."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.highest_reward <= self.lowest_reward:
            raise ValueError(f"highestReward {self.highest_reward} is not above lowestReward {self.lowest_reward}")
        return self
