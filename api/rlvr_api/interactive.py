"""Environments of several turns, as a job names them; `rlvr_api.environments.EnvironmentSpec` has them among the others."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from rlvr_api.model import ApiModel, Uri


class Calculator(ApiModel):
    """Arithmetic in turns: the problems and levels of `arithmetic`, and a calculator that works out one operation a turn. A turn that ends
    with an equals sign, `12 + 34 =`, asks it, and is told `12 + 34 = 46`; the last integer of any other turn is the answer."""

    operations: Annotated[tuple[Literal["+", "-", "*"], ...], Field(min_length=1, max_length=3)] = ("+",)
    """Operations of the problems, each at most once; the calculator knows all three."""
    max_turns: Annotated[int, Field(ge=2, le=64)] = 3
    """Most turns of an episode. One that has no answer then is `invalid`."""
    instruction: Annotated[str, Field(min_length=1, max_length=500)] = (
        "What is {problem}? Write {problem} = to ask the calculator, or reply with only the number."
    )
    """The user's message; `{problem}` is replaced by for example `3 + 4`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{problem}" not in self.instruction:
            raise ValueError("instruction must contain {problem}, for example '{problem} = ?'")
        if len(set(self.operations)) != len(self.operations):
            raise ValueError(f"operations lists one twice: {list(self.operations)}")
        return self


class Gymnasium(ApiModel):
    """An environment of the Gymnasium interface whose observations and actions are texts or single integers (spaces `Text` and `Discrete`).
    Its package must be installed beside the verifier service, which trusts it with everything. An episode is played again from its seed at
    each turn, so all that happens must follow from seed and actions."""

    id: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_.]*:)?([A-Za-z0-9_.-]+/)?[A-Za-z0-9_.-]+$", max_length=256)]
    """What `gymnasium.make` takes: a registered name such as `FrozenLake-v1`, or `package.module:Name-v0`, which imports the module that
    registers it."""
    options: Annotated[dict[str, JsonValue], Field(max_length=64, default_factory=dict)]
    """Further arguments of `gymnasium.make`."""
    instruction: Annotated[str, Field(max_length=4000)] = ""
    """Put before the first observation, on lines of its own: the rules, and what an action looks like."""
    max_turns: Annotated[int, Field(ge=2, le=64)] = 16
    """Most turns of an episode; one that has not ended then is judged by its return so far."""
    held_out_seeds: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Seeds below it are held out, all others are for training. Whether two seeds are the same problem, the environment alone knows."""
    lowest_return: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.0
    """Sum of rewards that is worth a score of 0, as any lower one is."""
    highest_return: Annotated[float, Field(ge=-1e9, le=1e9)] = 1.0
    """Sum of rewards that is worth a score of 1, as any higher one is; between the two the score is linear."""
    certificate: Uri | None = None
    """As for `plugin`. To be certified, the environment needs a method `solve()`, which gives the right actions after a reset."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.highest_return <= self.lowest_return:
            raise ValueError(f"highestReturn {self.highest_return} is not above lowestReturn {self.lowest_return}")
        return self
