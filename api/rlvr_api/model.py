"""The base of every model that a person or another process writes: camelCase outside, frozen, and no unknown field."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

Name = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
"""A DNS label short enough that `<job>-<role>-<ordinal>` stays one (63 characters)."""

Uri = Annotated[str, StringConstraints(max_length=1024)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=86_400.0)]


class ApiModel(BaseModel):
    """A frozen model with camelCase names on the wire; a field it does not know is an error, never ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


def one_member(model: BaseModel, names: tuple[str, ...]) -> str:
    """The name of the one member of `names` that is set.

    Raises:
        ValueError: none or several are set; the message lists them.
    """
    present = [name for name in names if getattr(model, name) is not None]
    if len(present) != 1:
        written = ", ".join(to_camel(name) for name in present) or "none"
        raise ValueError(f"exactly one of {', '.join(map(to_camel, names))} must be set, not {written}")
    return present[0]
