"""The plan of each example is written down; both runtimes start exactly that.

After a wanted change: `RLVR_WRITE_GOLDEN=1 pytest tests/unit/test_plan.py`, and read the diff.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from rlvr_api.loading import load_job
from rlvr_api.process import Role, Variable
from rlvr_operator.plan import Address, Addresses, Places, plan

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
JOBS = [*sorted((ROOT / "examples").glob("*.yaml")), *sorted(GOLDEN.glob("*.yaml"))]
PLACES = Places("python", "/run/job.json", "/model", "/run/seal.key", "/run/work", openmp_library="/lib/libiomp5.so")


def addresses(job, s3_endpoint="http://127.0.0.1:8333"):
    engines = tuple(Address("127.0.0.1", 8000 + n) for n in range(job.spec.rollouts.replicas))
    endpoint = None if job.spec.storage.endpoint else s3_endpoint
    return Addresses("127.0.0.1", engines, Address("127.0.0.1", 8081), Address("127.0.0.1", 8082), endpoint)


def load(file):
    return load_job(file.read_bytes())


@pytest.mark.parametrize("file", JOBS, ids=lambda file: file.stem)
def test_plan_is_as_written_down(file):
    job = load(file)
    text = json.dumps([dataclasses.asdict(work) for work in plan(job, addresses(job), PLACES, attempt=1).workloads], indent=1) + "\n"
    golden = GOLDEN / f"{file.stem}.plan.json"
    if os.environ.get("RLVR_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.fixture
def job():
    return load(GOLDEN / "gpu-and-tracing.yaml")


def test_attempts_differ_in_the_learner_alone(job):
    first, second = (plan(job, addresses(job), PLACES, attempt) for attempt in (1, 2))
    changed = [old.name for old, new in zip(first.workloads, second.workloads, strict=True) if old != new]
    assert changed == ["learner"]
    assert second.of(Role.LEARNER)[0].env[Variable.ATTEMPT] == "2"


def test_no_workload_carries_a_secret_and_only_storage_users_ask_for_one(job):
    workloads = plan(job, addresses(job), PLACES, 1).workloads
    assert not [name for work in workloads for name in work.env if "SECRET" in name or "ACCESS_KEY" in name]
    assert {work.role for work in workloads if work.needs_storage} == {Role.VERIFIER, Role.LEARNER}


def test_the_plan_sets_what_the_spec_reserves(job):
    """`engineArgs` may not repeat a flag of the plan, or one of the two would be ignored."""
    from rlvr_api.spec import RESERVED_ENGINE_ARGS

    cpu_job = load(ROOT / "examples" / "02-tiny.yaml")
    for some in (job, cpu_job):
        own = {part.removeprefix("--") for part in plan(some, addresses(some), PLACES, 1).workloads[0].command if part.startswith("--")}
        asked = {name for key in some.spec.rollouts.engine_args for name in (key, f"no-{key}")}
        assert own - asked - {"block-size"} <= RESERVED_ENGINE_ARGS


def test_an_engine_argument_replaces_the_default_block_size():
    job = load(ROOT / "examples" / "02-tiny.yaml")
    rollouts = job.spec.rollouts.model_copy(update={"engine_args": {"block-size": 64}})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"rollouts": rollouts})})
    command = plan(job, addresses(job), PLACES, 1).workloads[0].command
    assert command.count("--block-size") == 1
    assert command[command.index("--block-size") + 1] == "64"


def test_refuses_addresses_that_are_not_one_for_each_engine(job):
    wrong = dataclasses.replace(addresses(job), engines=())
    with pytest.raises(ValueError, match=r"0 engine addresses for rollouts.replicas 2"):
        plan(job, wrong, PLACES, 1)


def test_a_learner_of_several_processes_is_one_workload_with_all_their_gpus(job):
    learner = job.spec.learner.model_copy(update={"processes_per_node": 8, "gpus": 8})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"learner": learner})})
    (workload,) = plan(job, addresses(job), PLACES, 1).of(Role.LEARNER)
    assert workload.gpus == 8
