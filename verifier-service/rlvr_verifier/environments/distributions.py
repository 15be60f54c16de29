"""Which distribution code comes from, for the version of an environment that is made of it."""

from importlib.metadata import packages_distributions
from importlib.metadata import version as version_of


def describe_origin(owner: type) -> str:
    """Distribution of a class and its version, and the `version` that the class may have itself."""
    package = owner.__module__.partition(".")[0]
    names = sorted(set(packages_distributions().get(package, ())))
    parts = [f"{name}-{version_of(name)}" for name in names] or [package]
    own = getattr(owner, "version", None)
    return "+".join([*parts, str(own)] if own is not None else parts)
