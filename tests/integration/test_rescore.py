"""`rlvr rescore` on a run in a real store, by a real verifier service: what an older one got wrong is found, and nothing is changed."""

import json
from datetime import UTC, datetime

import pytest

from rlvr_api.cli import main
from rlvr_api.embedded_s3 import EmbeddedS3
from rlvr_api.environments import EnvironmentSpec
from rlvr_api.spec import RLVRJob
from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.layout import StageKeys
from rlvr_trainer.storage.records import StepRecord
from rlvr_trainer.storage.rollouts import write_groups
from rlvr_verifier.environments.arithmetic import ArithmeticEnvironment

STAGE = StageKeys(0, "climb")
GROUPS = 6


def make_job():
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": "old"},
        "spec": {
            "model": {"uri": "file:///none"},
            "environments": [{"name": "sums", "arithmetic": {}, "audit": {"finalAnswer": {}}}],
            "stages": [{"name": "climb", "rlvr": {"steps": 2, "promptsPerStep": GROUPS // 2, "groupSize": 3,
                                                  "optimizer": {"maxGradientNorm": 10.0}}}],
            "integrity": {"audit": {}},
        },
    })  # fmt: skip


def group(sums, index):
    """A right answer that was paid, a wrong one that was too, and a right one that was not judged; task 0 is another one today."""
    task = sums.sample("train", index, 0)
    answer = int(task.payload["answer"])
    rollouts = []
    for sample, (text, status) in enumerate(
        [(f"{answer}", VerdictStatus.PASS), (f"{answer + 1}", VerdictStatus.PASS), (f"{answer}", VerdictStatus.INFRA_ERROR)]
    ):
        score = None if status is VerdictStatus.INFRA_ERROR else 1.0
        verdict = Verdict(id=f"{index}/{sample}", status=status, score=score, verifier="arithmetic", verifier_version="0-lenient")
        rollouts.append(Rollout((1, 2), (-1.0, -1.0), (VersionSpan(0, 0, 2),), "stop", text, verdict))
    problem_id = task.problem_id if index else "0" * 16
    return RolloutGroup(
        Admission(index, "sums", 0, index), problem_id, (1,), task.messages[0].content, tuple(rollouts), "rollout-0", "", 1.0, 0.1
    )


def write_run(store):
    sums = ArithmeticEnvironment(EnvironmentSpec.model_validate({"name": "sums", "arithmetic": {}}))
    for step in (1, 2):
        indices = range((step - 1) * GROUPS // 2, step * GROUPS // 2)
        blob = write_groups(store, STAGE.rollouts(step, 1), [group(sums, index) for index in indices])
        record = StepRecord(
            stage="climb", step=step, attempt=1, groups=tuple(indices), rollouts=(blob,), cursor=indices.stop, accepted=indices.stop,
            weight_version=step - 1, time=datetime.now(UTC),
        )  # fmt: skip
        store.put(STAGE.record(step), record.to_bytes())


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    folder, job = runs / "old", make_job()
    folder.mkdir()
    (folder / "job.json").write_text(job.model_dump_json(by_alias=True))
    with EmbeddedS3(folder / "s3", folder / "s3.json") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        store = ObjectStore.open(job.spec.storage.uri, S3Settings(server.endpoint), "old")
        write_run(store)
        yield runs, store


def rescore(capsys, runs, *arguments):
    code = main(["rescore", "old", "--runs-dir", str(runs), *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_what_the_verifier_of_today_judges_otherwise_is_found_and_nothing_is_written(old_run, capsys):
    runs, store = old_run
    before = store.entries()
    code, out, err = rescore(capsys, runs, "--json", "--examples", "2")
    assert code == 0, err
    found = json.loads(out)
    (sums,) = found["environments"]
    assert found["steps"] == 2
    assert found["skipped"] == {"the environment makes another problem of this seed today": 3}
    counts = {(one["before"], one["now"]): one["completions"] for one in sums["transitions"]}
    assert counts == {("pass", "pass"): 5, ("pass", "fail"): 5, ("infra_error", "pass"): 5}
    assert (sums["completions"], sums["unjudged"], sums["newly_paid"], sums["no_longer_paid"]) == (10, 5, 0, 5)
    assert sums["verifiers_before"] == ["arithmetic 0-lenient"]
    assert sums["verifiers_now"] != sums["verifiers_before"]
    assert sums["task_flip_rate"] == 1.0
    assert sums["task_flip_lower"] == pytest.approx(0.025 ** (1 / sums["tasks"]))
    assert [example["now"] for example in found["examples"] if example["before"] == "pass"] == ["fail", "fail"]
    assert store.entries() == before


def test_one_step_and_some_groups_can_be_chosen_and_errors_say_what_there_is(old_run, capsys):
    runs, _ = old_run
    code, out, err = rescore(capsys, runs, "--step", "2", "--groups", "2")
    assert code == 0, err
    assert "old: 1 step judged again" in out
    assert "0 completions newly paid, 2 no longer" in " ".join(out.split())
    for arguments, message in (
        (("--step", "7"), "run old has no stored rollouts of step 7; its records are of climb 1 to climb 2"),
        (("--stage", "walk"), "job old has no stage 'walk'; it has climb"),
        (("--environment", "maths"), "job old has no environment 'maths'; it has sums"),
    ):
        code, _, err = rescore(capsys, runs, *arguments)
        assert (code, message in err) == (2, True), err
