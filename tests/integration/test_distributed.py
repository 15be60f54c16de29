"""A learner of several processes gives what one gives: gradients, weights, norms, metrics, and checkpoints of each other.

The processes are real ones, over gloo on the CPU. With three, rows do not divide evenly, and some rounds have nothing for a process.
"""

import json
import math
import signal
import subprocess
import sys

import psutil
import pytest
import rank_trials
import torch
from commands import wait_for
from safetensors.torch import load_file

from rlvr_trainer.distributed.lead import without_credentials
from rlvr_trainer.pretrained import write_tiny_model

pytestmark = pytest.mark.timeout(600)
SECONDS = 300
SEVERAL = [("plain", 3), ("large", 2), ("adapters", 2), ("nodes", 2)]
"""Modes and numbers of processes, each compared with one process of its mode."""
TRIALS = [(several, name) for several in SEVERAL for name in rank_trials.trials_of(several[0])]
GRADIENT = [(several, name) for several, name in TRIALS if rank_trials.TRIALS[name].get("optimizer") is rank_trials.GRADIENT]


def run_trials(*arguments):
    command = [sys.executable, "-W", "error", rank_trials.__file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory, model, one_thread):
    """Folders of results by mode and number of processes."""
    place = tmp_path_factory.mktemp("distributed")
    found = {}
    for mode, size in SEVERAL:
        one, several = found[mode, 1], found[mode, size] = place / f"{mode}-1", place / f"{mode}-{size}"
        one.mkdir()
        several.mkdir()
        rank_trials.choose(mode)
        rank_trials.main(model, 1, one)
        run_trials(mode, model, size, several, one)
    return found


@pytest.fixture(scope="module")
def back(tmp_path_factory, model, results):
    """What one process makes of the checkpoints of three."""
    folder = tmp_path_factory.mktemp("back")
    rank_trials.choose("plain")
    rank_trials.main(model, 1, folder, results["plain", 3])
    return folder


def relative_gap(found, wanted, prefix=""):
    assert found.keys() == wanted.keys()
    names = [name for name in wanted if name.startswith(prefix)]
    difference = math.sqrt(sum(float((found[name].double() - wanted[name]).square().sum()) for name in names))
    return difference / math.sqrt(sum(float(wanted[name].double().square().sum()) for name in names))


def first_moments(folder, name):
    state = load_file(folder / f"{name}.first.safetensors")
    return {key: tensor for key, tensor in state.items() if key.endswith("/exp_avg")}


@pytest.mark.parametrize(("several", "name"), GRADIENT)
def test_the_gradient_is_that_of_one_process(results, name, several):
    one = results[several[0], 1]
    assert relative_gap(first_moments(results[several], name), first_moments(one, name)) <= 1e-5


@pytest.mark.parametrize(("several", "name"), TRIALS)
def test_weights_after_some_steps_and_the_optimizer_are_those_of_one_process(results, name, several):
    one = results[several[0], 1]
    found, wanted = (load_file(folder / f"{name}.safetensors") for folder in (results[several], one))
    start = load_file(one / f"{name}.first.safetensors")
    assert relative_gap(found, wanted, "optimizer/") <= 1e-3
    moved = {key: tensor - start[key] for key, tensor in wanted.items() if key.startswith("model/")}
    again = {key: found[key] - start[key] for key in moved}
    assert relative_gap(again, moved) <= 1e-3


@pytest.mark.parametrize(("several", "name"), TRIALS)
def test_reports_are_those_of_one_process(results, name, several):
    one = results[several[0], 1]
    found, wanted = (json.loads((folder / f"{name}.json").read_text()) for folder in (results[several], one))
    assert len(found) == rank_trials.STEPS
    for number, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        # Later steps start from weights that have rounding in them, which AdamW has made larger.
        assert flat(ours) == pytest.approx(flat(theirs), rel=1e-3 if number else 2e-5, abs=1e-6), number


def flat(value, path=""):
    """Numbers by where they are; None counts as -1."""
    if isinstance(value, dict):
        return {key: number for name, inner in value.items() for key, number in flat(inner, f"{path}/{name}").items()}
    return {path: -1.0 if value is None else float(value)}


@pytest.mark.parametrize(("several", "name"), TRIALS)
def test_a_checkpoint_of_one_process_goes_on_with_several(results, name, several):
    check_resumed(results[several], results[several[0], 1], name)


@pytest.mark.parametrize("name", rank_trials.TRIALS)
def test_a_checkpoint_of_several_processes_goes_on_with_one(results, back, name):
    check_resumed(back, results["plain", 1], name)


def check_resumed(resumed, undisturbed, name):
    found, wanted = load_file(resumed / f"{name}.resumed.safetensors"), load_file(undisturbed / f"{name}.safetensors")
    assert relative_gap(found, wanted, "optimizer/") <= 1e-3
    assert relative_gap(found, wanted, "model/") <= 1e-5
    assert all(torch.equal(found[key], wanted[key]) for key in wanted if key.endswith("/step"))


@pytest.mark.parametrize("several", SEVERAL)
def test_refusals_steps_without_a_signal_probes_and_weights_for_engines_are_those_of_one_process(results, several):
    one = several[0], 1
    found, wanted = (json.loads((results[key] / "others.json").read_text()) for key in (several, one))
    assert "not finite" in wanted["said"]
    assert found["said"] == wanted["said"]
    assert found["updated"] is wanted["updated"] is False
    assert found["logprobs"]["float32"] == pytest.approx(wanted["logprobs"]["float32"], abs=5e-5)
    assert found["logprobs"]["bfloat16"] == pytest.approx(wanted["logprobs"]["bfloat16"], abs=0.2)
    for file in ("engine.safetensors", "published.safetensors"):
        ours, theirs = (load_file(results[key] / file) for key in (several, one))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("moment", ["step", "waiting"])
def test_a_lost_process_ends_the_lead_at_once_and_with_it_the_others(model, moment):
    command = [sys.executable, rank_trials.__file__, "--lose", moment, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1, done.stderr[-4000:]
    assert "LostRankError" in done.stderr
    assert "rank 1 of the learner's 2 processes was ended by signal 9" in done.stderr
    wait_for_end_of(done.stdout)


def test_what_all_find_wrong_with_a_model_is_what_the_lead_says(tmp_path):
    command = [sys.executable, rank_trials.__file__, "plain", str(tmp_path / "nothing"), "2", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    assert "LostRankError" not in done.stderr  # rank 1 says the same where it comes to it before the lead ends it
    assert "OSError" in done.stderr.splitlines()[-1]


def test_a_process_that_another_node_loses_ends_that_node_and_the_next_step(model):
    command = [sys.executable, rank_trials.__file__, "--lose", "node", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1, done.stderr[-4000:]
    assert done.stdout.split() == ["1"]
    assert "error: LostRankError: node 1: rank 1 of the learner's 2 processes was ended by signal 9" in done.stderr


def test_a_node_that_is_asked_to_stop_asks_the_lead_and_is_there_until_it_is_done(model):
    command = [sys.executable, rank_trials.__file__, "--drain", "node", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_without_the_lead_the_others_end(model):
    command = [sys.executable, rank_trials.__file__, "--lose", "lead", str(model)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_for_end_of(done.stdout)


def wait_for_end_of(ids):
    assert len(ids.split()) == 1
    wait_for(lambda: not any(psutil.pid_exists(int(one)) for one in ids.split()), 20, "end of the follower")


def test_followers_get_no_credentials():
    environ = {"AWS_SECRET_ACCESS_KEY": "x", "TEACHER_API_KEY": "y", "PATH": "/bin", "NCCL_DEBUG": "INFO"}
    assert without_credentials(environ) == {"PATH": "/bin", "NCCL_DEBUG": "INFO"}
