"""Distributions that environments are made of: imported where they are installed, and named in the environment's version."""

from importlib import import_module
from importlib.metadata import packages_distributions
from importlib.metadata import version as version_of
from typing import Any

from rlvr_verifier.environments.base import EnvironmentSetupError


def import_library(environment: str, module: str) -> Any:
    """A module of a library that an extra of the same name installs.

    Raises:
        EnvironmentSetupError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        raise EnvironmentSetupError(
            f"environment {environment} needs the library {library} beside the verifier service: install the extra `{library}`"
        ) from None


def describe_origin(owner: type) -> str:
    """Distribution of a class and its version, and the `version` that the class may have itself."""
    package = owner.__module__.partition(".")[0]
    names = sorted(set(packages_distributions().get(package, ())))
    parts = [f"{name}-{version_of(name)}" for name in names] or [package]
    own = getattr(owner, "version", None)
    return "+".join([*parts, str(own)] if own is not None else parts)
