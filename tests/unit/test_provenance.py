"""What is kept of where weights come from, and what a job refuses to begin with."""

import hashlib
import subprocess

import pytest

from rlvr_api.provenance import Contamination
from rlvr_api.spec import RLVRJob
from rlvr_api.wire import EnvironmentInfo, Message
from rlvr_trainer.contamination import Reference
from rlvr_trainer.context import BadInputError
from rlvr_trainer.lineage_view import describe, read_lineage
from rlvr_trainer.provenance import Provenance, begin_lineage, scan
from rlvr_trainer.storage.lineage import LINEAGE_FILE, Dataset, Lineage, digest_folder, running_code


def make_job(*stages, forbidden=False, name="job"):
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": name},
        "spec": {
            "model": {"uri": "file:///m", "maxModelLen": 64}, "environments": [{"name": "sums", "arithmetic": {}}],
            "sampling": {"maxTokens": 8}, "stages": stages or [{"name": "climb", "rlvr": {"steps": 2}}],
            "provenance": {"externalTraces": "Forbidden" if forbidden else "Allowed"},
        },
    })  # fmt: skip


def known(version="2"):
    return [EnvironmentInfo(name="sums", kind="arithmetic", version=version, levels=(0, 1), held_out_tasks={0: 3}, deterministic=True)]


SFT = {"name": "cold", "sft": {"traces": "file:///t.jsonl"}}
DATASET = Dataset(uri="file:///t.jsonl", sha256="0" * 64, examples=3, made_by="given")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub" / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / ".source.json").write_text("not a part of the model")
    return tmp_path


def test_a_folders_digest_is_what_sha256sum_prints(folder):
    listing = subprocess.run(["sha256sum", "config.json", "sub/weights.safetensors"], cwd=folder, capture_output=True, check=True).stdout
    assert digest_folder(folder) == hashlib.sha256(listing).hexdigest()
    before = digest_folder(folder)
    (folder / "config.json").write_text("{ }")
    assert digest_folder(folder) != before


def test_stages_are_listed_in_order_with_the_steps_of_the_moment(folder):
    job = make_job(SFT, {"name": "climb", "rlvr": {"steps": 2}})
    provenance = Provenance(begin_lineage(job, folder), known())
    provenance.begin(job.spec.stages[0])
    provenance.add(DATASET)
    provenance.add(DATASET)
    provenance.end(7)
    provenance.begin(job.spec.stages[1])
    found = provenance.at(1)
    assert [(stage.name, stage.steps, stage.datasets) for stage in found.stages] == [("cold", 7, (DATASET,)), ("climb", 1, ())]
    assert found.external_stages == ("default/job/cold",)
    assert Lineage.model_validate_json(found.to_bytes()) == found


def test_another_attempt_adds_its_verifiers_and_code_once(folder):
    job = make_job()
    first = Provenance(begin_lineage(job, folder), known("2"))
    first.begin(job.spec.stages[0])
    second = Provenance(first.at(1), known("3"))
    second.begin(job.spec.stages[0])
    third = Provenance(second.at(2), known("3"))
    third.begin(job.spec.stages[0])
    (stage,) = third.at(2).stages
    assert [verifier.version for verifier in stage.verifiers] == ["2", "3"]
    assert stage.code == (running_code(),)


def test_a_base_that_was_trained_here_brings_its_lineage(folder):
    job = make_job(SFT, name="first")
    provenance = Provenance(begin_lineage(job, folder), known())
    provenance.begin(job.spec.stages[0])
    (folder / LINEAGE_FILE).write_bytes(provenance.at(4).to_bytes())
    later = begin_lineage(make_job(name="second"), folder)
    assert later.parent == provenance.at(4)
    assert later.external_stages == ("default/first/cold",)
    place, found = read_lineage(str(folder), folder, None, "us-east-1")
    text = "\n".join(describe(place, found))
    assert "external traces  default/first/cold" in text
    with pytest.raises(BadInputError, match=r"externalTraces is Forbidden, and file:///m has learned .* default/first/cold"):
        begin_lineage(make_job(forbidden=True), folder)


def test_a_lineage_that_cannot_be_read_is_refused(folder):
    (folder / LINEAGE_FILE).write_text('{"job": 1}')
    with pytest.raises(BadInputError, match=r"rlvr_lineage.json is not a model's lineage"):
        begin_lineage(make_job(), folder)


REFERENCES = [Reference(f"sum {n}", f"What is {n} + 1?") for n in range(3)]


def conversation(text, answer="2"):
    return (Message(role="user", content=text), Message(role="assistant", content=answer))


def test_traces_that_hold_the_test_are_counted_and_shown(caplog):
    traces = [("line 1", conversation("What is 1 + 1?")), ("line 2", conversation("What is 7 + 1?"))]
    found = scan(traces, REFERENCES, Contamination(), "traces t")
    assert (found.references, found.found, found.examples) == (3, {"ngram": 1}, 1)
    assert found.shown == ("line 1 holds sum 1 (ngram)",)
    assert "traces t: 1 examples hold what the model is measured on" in caplog.text


def test_a_job_may_fail_over_them():
    with pytest.raises(BadInputError, match="onFound to Warn"):
        scan([("line 1", conversation("What is 1 + 1?"))], REFERENCES, Contamination(on_found="Fail"), "traces t")
    assert scan([("line 1", conversation("Hello"))], REFERENCES, Contamination(on_found="Fail"), "traces t").examples == 0


def test_what_the_assistant_says_is_looked_at_as_well():
    assert scan([("line 1", conversation("Tell me", "You ask: what is 2 + 1? 3"))], REFERENCES, Contamination(), "t").examples == 1
