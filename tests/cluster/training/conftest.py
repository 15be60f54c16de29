"""Fixtures of a cluster that trains; what they open is in tests/support/training_cluster.py."""

import os
from pathlib import Path

import pytest
from commands import run
from training_cluster import missing, open_namespaces, open_operator, open_store, start_job, start_long_job

HERE = Path(__file__).parent
MAX_JOBS = 8


def pytest_collection_modifyitems(items):
    """The long job trains from its first test on, beside all that come after: they are those that disturb it."""
    places = [place for place, item in enumerate(items) if HERE in item.path.parents]
    ordered = sorted((items[place] for place in places), key=lambda item: "job" in item.fixturenames)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def cluster():
    """A cluster with all images; on the test node, NetworkPolicies are enforced from here on."""
    if reason := missing():
        pytest.skip(reason)
    if node := os.environ.get("RLVR_NODE"):
        run(node, "policies")


@pytest.fixture(scope="session")
def store(cluster, tmp_path_factory):
    with open_store(tmp_path_factory.mktemp("store")) as found:
        yield found


@pytest.fixture(scope="session")
def namespaces(cluster):
    with open_namespaces(MAX_JOBS) as names:
        yield names


@pytest.fixture(scope="session")
def operator(namespaces):
    with open_operator(namespaces) as found:
        yield found


@pytest.fixture(scope="session")
def train(operator, store, namespaces):
    """Starts a job like the cluster example, with changes, in a namespace of its own."""
    free = list(namespaces[1:])
    return lambda **changes: start_job(free.pop(), store, **changes)


@pytest.fixture(scope="session")
def job(operator, store, namespaces):
    """One long job with two engines, which tests disturb in turn."""
    return start_long_job(namespaces[0], store)
