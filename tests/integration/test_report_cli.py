"""`rlvr report` and `rlvr rollouts` on a run whose embedded S3 server is down, and on one whose server is up: real server, real command.

Nothing may be left running, and bad input is one line and exit code 2.
"""

import json
import os

import pytest

from rlvr_api.cli import main
from rlvr_api.embedded_s3 import EmbeddedS3, find_running
from rlvr_trainer.storage.client import ObjectStore, S3Settings


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, synthetic_run):
    """A folder with two finished runs, as a runtime that has stopped leaves them."""
    runs = tmp_path_factory.mktemp("runs")
    for run_name, steps in (("arithmetic", 3), ("longer", 6)):
        folder = runs / run_name
        folder.mkdir()
        job = synthetic_run.make_job(run_name, steps=steps)
        (folder / "job.json").write_text(job.model_dump_json(by_alias=True))
        with EmbeddedS3(folder / "s3", folder / "s3.json") as server, pytest.MonkeyPatch.context() as patch:
            for name, value in server.environment().items():
                patch.setenv(name, value)
            store = ObjectStore.open(job.spec.storage.uri, S3Settings(server.endpoint), run_name)
            synthetic_run(store, job=job, steps=steps)
    return runs


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_report_starts_the_store_again_and_stops_it(runs_dir, capsys, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    code, out, err = run(capsys, "report", "arithmetic", "--runs-dir", runs_dir)
    assert (code, err) == (0, "")
    page = runs_dir / "arithmetic" / "report.html"
    assert out.strip() == str(page)
    assert "3 of 3 optimizer steps" in page.read_text()
    assert find_running(runs_dir / "arithmetic" / "s3") is None
    assert "AWS_ACCESS_KEY_ID" not in os.environ


def test_runs_with_stores_of_their_own_are_compared_on_one_page(runs_dir, capsys, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    code, out, err = run(capsys, "compare", "arithmetic", "longer", "--runs-dir", runs_dir)
    assert (code, err) == (0, "")
    page = runs_dir / "comparison.html"
    assert out.strip() == str(page)
    assert "last evaluation beside that of arithmetic" in page.read_text()
    assert [find_running(runs_dir / name / "s3") for name in ("arithmetic", "longer")] == [None, None]
    for arguments, said in (
        (("arithmetic",), "1 run cannot be compared: name 2 to 6"),
        (("arithmetic", "arithmetic"), "arithmetic is named twice; name different runs"),
        (("arithmetic", "shorter"), "runs there: arithmetic, longer"),
        (("arithmetic", "longer", "--endpoint", "http://x"), "--endpoint is for jobs of a cluster"),
    ):
        code, out, err = run(capsys, "compare", *arguments, "--runs-dir", runs_dir)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err


def test_a_job_of_a_cluster_is_read_from_a_file_and_its_store_from_here(runs_dir, capsys, tmp_path, monkeypatch):
    folder = runs_dir / "arithmetic"
    job = json.loads((folder / "job.json").read_text())
    job["spec"]["storage"]["endpoint"] = "http://s3.storage.svc:8333"
    job["metadata"] |= {"uid": "4711", "resourceVersion": "1"}
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job | {"status": {"phase": "Succeeded"}}))
    monkeypatch.chdir(tmp_path)
    with EmbeddedS3(folder / "s3", folder / "s3.json") as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        code, out, err = run(capsys, "report", file, "--endpoint", server.endpoint)
    assert (code, err, out.strip()) == (0, "", str(tmp_path / "arithmetic.html"))
    assert "3 of 3 optimizer steps" in (tmp_path / "arithmetic.html").read_text()
    code, _, err = run(capsys, "report", "arithmetic", "--runs-dir", runs_dir, "--endpoint", "http://x")
    assert code == 2
    assert "kubectl get rlvr arithmetic -o yaml" in err


def test_a_running_store_is_used_and_left_running(runs_dir, capsys, tmp_path):
    folder = runs_dir / "arithmetic"
    with EmbeddedS3(folder / "s3", folder / "s3.json") as server:
        code, out, _ = run(capsys, "rollouts", folder, "--step", 2, "--json", "--status", "pass")
        assert code == 0
        records = [json.loads(line) for line in out.splitlines()]
        assert records
        assert {(record["step"], record["status"], record["stage"]) for record in records} == {(2, "pass", "climb")}
        code, out, _ = run(capsys, "rollouts", folder, "--step", 2, "--group", 17, "--limit", 2)
        assert code == 0
        assert "group 17" in out
        assert "2 of 8 rollouts" in out
        code, _, _ = run(capsys, "report", folder, "--output", tmp_path / "page.html")
        assert code == 0
        assert (tmp_path / "page.html").stat().st_size > 10_000
        assert find_running(folder / "s3") == server.endpoint
        # Input that only the store can refuse.
        for arguments, said in (
            (("--step", 9), "has no step 9; stage climb has steps 1 to 3"),
            (("--step", 1, "--stage", "clim"), "no stage 'clim'; it has climb"),
            (("--step", 1, "--group", 99), "consumed no group 99"),
            (("--step", 1, "--status", "timeout"), "no rollout with status timeout; it has"),
        ):
            code, out, err = run(capsys, "rollouts", folder, *arguments)
            assert (code, out) == (2, "")
            assert said in err
            assert err.count("\n") == 1


def test_what_is_no_run_is_refused(tmp_path, capsys, synthetic_run):
    code, _, err = run(capsys, "report", "nothing", "--runs-dir", tmp_path)
    assert (code, err) == (2, f"rlvr report: no run 'nothing' in {tmp_path}/: there is none there yet; `rlvr run JOB.yaml` makes one\n")
    for name, content in (("broken", "{}"), ("bare", synthetic_run.make_job().model_dump_json(by_alias=True))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(content)
    code, _, err = run(capsys, "rollouts", "nothing", "--step", 1, "--runs-dir", tmp_path)
    assert code == 2
    assert "runs there: bare, broken" in err
    code, _, err = run(capsys, "report", "broken", "--runs-dir", tmp_path)
    assert code == 2
    assert "broken/job.json is not a job that this version knows" in err
    code, _, err = run(capsys, "report", "bare", "--runs-dir", tmp_path)
    assert code == 2
    assert "has no s3.json, so the run never started its store" in err
    assert err.count("\n") == 1


def test_a_store_that_cannot_be_started_is_one_line(tmp_path, capsys, synthetic_run):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "job.json").write_text(synthetic_run.make_job("broken").model_dump_json(by_alias=True))
    (folder / "s3.json").write_text("not json")
    code, _, err = run(capsys, "report", "broken", "--runs-dir", tmp_path)
    assert code == 2
    assert "delete it to get a new one" in err
    assert err.count("\n") == 1


def test_a_store_elsewhere_that_nobody_serves_is_one_line(tmp_path, capsys, synthetic_run, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    job = synthetic_run.make_job("away")
    spec = job.spec.model_copy(update={"storage": job.spec.storage.model_copy(update={"endpoint": "http://127.0.0.1:9"})})
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "job.json").write_text(job.model_copy(update={"spec": spec}).model_dump_json(by_alias=True))
    for command in (("report", "away"), ("rollouts", "away", "--step", 1)):
        code, _, err = run(capsys, *command, "--runs-dir", tmp_path)
        assert code == 2
        assert "127.0.0.1:9" in err
        assert err.count("\n") == 1


def test_model_writes_once_and_never_over_something_else(tmp_path, capsys):
    code, out, _ = run(capsys, "model", "tiny", tmp_path / "tiny")
    assert (code, out) == (0, f"{tmp_path / 'tiny'}\n")
    written = (tmp_path / "tiny" / "model.safetensors").stat().st_mtime_ns
    code, out, _ = run(capsys, "model", "tiny", tmp_path / "tiny")
    assert (code, out) == (0, f"{tmp_path / 'tiny'} is complete\n")
    assert (tmp_path / "tiny" / "model.safetensors").stat().st_mtime_ns == written
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    code, _, err = run(capsys, "model", "tiny", tmp_path / "mine")
    assert code == 2
    assert "holds something else" in err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"
