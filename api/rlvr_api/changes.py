"""What may change in the spec of a run that has begun. Pure.

Fields that say *how* a run is carried out may change between attempts; those that say *what* is trained may not: committed records,
held-out problems and the curriculum would silently mean something else.
"""

from collections.abc import Iterator
from typing import Any

from rlvr_api.loading import path_text
from rlvr_api.spec import RLVRJobSpec

CHANGEABLE = (
    ("storage", "endpoint"), ("storage", "region"), ("storage", "credentialsSecret"), ("rollouts",), ("learner",), ("verifiers",),
    ("weightSync",), ("integrity", "allowUncertified"), ("integrity", "canaryRate"), ("integrity", "maxHackRate"),
    ("integrity", "minYouden"), ("integrity", "windowSteps"), ("integrity", "onViolation"),
    ("failurePolicy",), ("deadlines",), ("observability",), ("scheduling",), ("ttl",), ("suspend",),
)  # fmt: skip
"""Paths below `spec` that may change. `rlvr_api.rules` says the same to the API server."""

Path = tuple[str | int, ...]


def fixed_changes(before: RLVRJobSpec, after: RLVRJobSpec) -> tuple[str, ...]:
    """Changes that a begun run cannot take, each as one line with the path and both values."""
    return tuple(
        f"{path_text(('spec', *path))} was {old!r} and is now {new!r}"
        for path, old, new in _differences(_data(before), _data(after), ())
        if not any(path[: len(prefix)] == prefix for prefix in CHANGEABLE)
    )


def _data(spec: RLVRJobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True)


def _differences(before: Any, after: Any, path: Path) -> Iterator[tuple[Path, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _differences(before.get(key), after.get(key), (*path, key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(old, new, (*path, index))
    elif before != after:
        yield path, before, after
