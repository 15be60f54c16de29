"""The folder of a run: what it keeps, from whom, and what it does when it is damaged."""

import stat
from pathlib import Path

import pytest

from rlvr_api.cli import UserError
from rlvr_api.loading import load_job
from rlvr_api.names import workload_name
from rlvr_api.process import Role
from rlvr_operator.local.children import allot_gpus, child_spec
from rlvr_operator.local.folder import RunFolder, State
from rlvr_operator.plan import HttpReadiness, Workload

EXAMPLE = Path(__file__).parents[2] / "examples" / "02-tiny.yaml"


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path / "runs", "job") as made:
        yield made


def test_keeps_job_and_state(folder):
    job = load_job(EXAMPLE.read_bytes())
    assert (folder.read_job(), folder.read_state(), folder.read_status()) == (None, State(), None)
    folder.write_job(job)
    folder.write_state(State(3, "marker"))
    assert (folder.read_job(), folder.read_state()) == (job, State(3, "marker"))


def test_is_one_runtime_s_at_a_time(folder):
    with pytest.raises(UserError, match="is in use by another"):
        RunFolder(folder.path.parent, "job")
    folder.close()
    with RunFolder(folder.path.parent, "job") as again:
        assert again.path == folder.path


def test_the_seal_key_stays_and_is_the_owner_s_alone(folder):
    key = folder.seal_key_file().read_bytes()
    assert len(key) == 32
    assert folder.seal_key_file().read_bytes() == key
    assert stat.S_IMODE(folder.seal_key_file().stat().st_mode) == 0o600


@pytest.mark.parametrize(("name", "read"), [("state.json", "read_state"), ("job.json", "read_job"), ("status.json", "read_status")])
@pytest.mark.parametrize("content", ["", "[]", '{"attempt": "x"}'])
def test_says_which_file_is_damaged(folder, name, read, content):
    (folder.path / name).write_text(content)
    with pytest.raises(UserError, match=name):
        getattr(folder, read)()


def test_says_that_it_cannot_be_made(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match="--runs-dir"):
        RunFolder(tmp_path / "runs", "job")


def workload(role, gpus=0, needs_storage=False):
    return Workload(role, workload_name(role, 0), 0, ("x",), {"SET": "plan"}, 80, HttpReadiness("/ready"), gpus, needs_storage)


def test_credentials_reach_those_who_use_the_store_alone(folder):
    environ = {"AWS_ACCESS_KEY_ID": "person", "HOME": "/root", "SET": "person", "NO_PROXY": "corp"}
    engine = child_spec(workload(Role.ROLLOUT), folder, environ, {}, range(0)).env
    proxies = {"NO_PROXY": "corp,127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    assert engine == {"HOME": "/root", "SET": "plan", "CUDA_VISIBLE_DEVICES": "", **proxies}
    learner = child_spec(workload(Role.LEARNER, needs_storage=True), folder, environ, {"AWS_ACCESS_KEY_ID": "own"}, range(1)).env
    assert (learner["AWS_ACCESS_KEY_ID"], learner["CUDA_VISIBLE_DEVICES"]) == ("own", "0")


def test_keys_reach_the_one_process_that_uses_them(folder):
    keys = {"TEACHER_API_KEY": Role.LEARNER, "JUDGE_API_KEY": Role.VERIFIER, "JUDGE_API_KEY_ESSAYS": Role.VERIFIER}
    for role in Role:
        env = child_spec(workload(role, needs_storage=True), folder, dict.fromkeys(keys, "k"), {}, ()).env
        assert {key for key in keys if key in env} == {key for key, owner in keys.items() if owner is role}


def test_no_gpu_is_given_twice():
    allotted = allot_gpus([workload(Role.ROLLOUT, 2), workload(Role.VERIFIER), workload(Role.LEARNER, 1)])
    assert {name: list(gpus) for name, gpus in allotted.items()} == {"rollout-0": [0, 1], "verifier-0": [], "learner": [2]}


def test_gpus_are_counted_among_those_that_the_person_allows(folder):
    spec = child_spec(workload(Role.ROLLOUT, 2), folder, {"CUDA_VISIBLE_DEVICES": "4,GPU-abc,6"}, {}, range(1, 3))
    assert spec.env["CUDA_VISIBLE_DEVICES"] == "GPU-abc,6"
