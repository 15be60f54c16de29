"""Environments of other distributions: found by their entry point, judged in workers, checked in all they return, and refused clearly."""

import asyncio
import json
import sys

import pytest
from fastapi.testclient import TestClient
from plugin_package import write_plugin
from verifier_jobs import verifier_job

from rlvr_api.cli import main
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_environments
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.integrity.certificates import find_fault
from rlvr_verifier.integrity.source_scan import scan_sources
from rlvr_verifier.pool import WorkerLostError, WorkerPool
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(write_plugin(tmp_path))
    yield tmp_path
    for module in ("reversal_environments", "reversal_environments_careless"):
        sys.modules.pop(module, None)


def job_with(name, levels=None, **options):
    environment = {"name": "foreign", "plugin": {"name": name, "options": options}, **({"levels": levels} if levels else {})}
    return verifier_job([environment], {"canaryRate": 0.0}, workers=1)


def serve(job) -> TestClient:
    pool, instruments = WorkerPool(job.model_dump_json(), job.spec), Instruments()
    return TestClient(
        build_app(VerifierService(job.spec, open_environments(job, {}), Seal(b"k" * 32), pool, instruments), instruments, Drain())
    )


def ask(client, *completions, seed=0, level=0):
    request = {"environment": "foreign", "split": "train", "seed": seed, "level": level}
    (task,) = client.post("/v1/sample", json={"items": [request]}).json()["tasks"]
    items = [
        {"id": f"{seed}/{n}", "environment": "foreign", "taskKey": task["taskKey"], "completion": text}
        for n, text in enumerate([task["messages"][0]["content"].removeprefix("Reverse ")[::-1], *completions])
    ]
    return client.post("/v1/score", json={"items": items}).json()["verdicts"]


def test_a_plugin_makes_tasks_and_judges_them_in_a_worker(installed):
    words = installed / "words.txt"
    words.write_text("one two")
    with serve(job_with("reversal", {"start": 1, "maximum": 2}, salt="-", dataset=f"file://{words}")) as client:
        (info,) = client.get("/v1/environments").json()["environments"]
        assert (info["kind"], info["version"], info["levels"]) == ("plugin", "3+reversal-environments-1.2", [0, 4])
        right, wrong = ask(client, "no", seed=1, level=2)
        assert (right["status"], wrong["status"], wrong["reason"]) == ("pass", "fail", "it is not reversed")
        refused = client.post("/v1/sample", json={"items": [{"environment": "foreign", "split": "heldOut", "seed": 3, "level": 1}]})
        assert (refused.status_code, refused.json()["error"]) == (422, "there are three")


def test_what_no_environment_may_return_is_an_infra_error_without_the_plugins_words(installed):
    with serve(job_with("careless")) as client:
        verdicts = ask(client, "number", "much", "mute", "raise", "fine")
        assert [verdict["status"] for verdict in verdicts] == ["pass", *["infra_error"] * 4, "pass"]
        assert all("cba" not in json.dumps(verdict) and "not " not in verdict["reason"] for verdict in verdicts[1:5])
        for seed, part in ((1, "failed to make a task: RuntimeError at reversal_environments_careless.py"), (2, "made no SampledTask")):
            refused = client.post("/v1/sample", json={"items": [{"environment": "foreign", "split": "train", "seed": seed}]})
            assert refused.status_code == 422
            assert part in refused.json()["error"]
            assert "cba" not in refused.text


def test_a_plugin_is_certified_like_others_and_one_that_evaluates_text_is_not(installed, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(installed / "reversal_environments"))
    file = installed / "job.json"
    job = job_with("reversal")
    written = json.loads(job.model_dump_json(by_alias=True, exclude_none=True))
    written["spec"]["environments"][0]["plugin"]["certificate"] = "file://foreign.json"
    file.write_text(json.dumps(written))
    assert main(["environment", "certify", str(file), "--tasks", "6"]) == 0, capsys.readouterr().out
    # A relative place is one beside the job's file, and the certificate that is written there is found again.
    spec = job.spec.environments[0].model_copy(
        update={"plugin": job.spec.environments[0].plugin.model_copy(update={"certificate": f"file://{installed}/foreign.json"})}
    )
    assert find_fault(spec, open_environments(job, {})["foreign"], DatasetReader(job.spec.storage, {})) is None
    found = scan_sources(open_environments(job_with("careless"), {})["foreign"])
    assert [name.partition(" ")[2] for name in found] == ["eval"]


@pytest.mark.parametrize(
    ("name", "options", "levels", "fault"),
    [
        ("nowhere", {}, None, "no plug-in 'nowhere' is installed here (there is: broken, careless, gone, half, reversal); install the"),
        ("reversal", {"sallt": 1}, None, "refuses its options: unknown ['sallt']; there are salt and dataset"),
        ("reversal", {"dataset": "file:///no/words"}, None, "dataset file:///no/words cannot be read"),
        ("reversal", {}, {"maximum": 5}, "levels 0 to 5 are not within 0 to 4, those of plug-in reversal"),
        ("half", {}, None, "plug-in half has no proper held_out_tasks, sample, score, version, levels"),
        ("broken", {}, None, "cannot be opened: RuntimeError: no room"),
        ("gone", {}, None, "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_refused_with_the_way_out(installed, name, options, levels, fault):
    with pytest.raises(EnvironmentSetupError) as refused:
        open_environments(job_with(name, levels, **options), {})
    assert str(refused.value).startswith("environment foreign: ")
    assert fault in str(refused.value)


def test_the_same_name_in_two_distributions_is_refused(installed, monkeypatch):
    monkeypatch.syspath_prepend(write_plugin(installed, "other_environments"))
    with pytest.raises(EnvironmentSetupError, match=r"several distributions \(other-environments, reversal-environments\)"):
        open_environments(job_with("reversal"), {})


def test_nothing_is_installed_without_it():
    with pytest.raises(EnvironmentSetupError, match="there is: none"):
        open_environments(job_with("reversal"), {})


def test_a_plugin_whose_package_a_worker_lacks_is_no_verdict(installed, monkeypatch):
    job = job_with("reversal")
    environment = open_environments(job, {})["foreign"]
    payload = environment.sample("train", 0, 0).payload
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "reversal_environments" not in place])
    pool = WorkerPool(job.model_dump_json(), job.spec)

    async def scenario():
        try:
            await pool.run("foreign", payload, str(payload["answer"]), False)
        finally:
            pool.close()

    with pytest.raises(WorkerLostError):
        asyncio.run(scenario())
