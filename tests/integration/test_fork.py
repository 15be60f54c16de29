"""A job that begins with another run's checkpoint, and models that go from job to job with what they need."""

import itertools
import json
from types import SimpleNamespace

import lone_run
import pytest
import torch
from lone_run import KEYS, execute, make_job
from transformers import AutoTokenizer

from rlvr_api.loading import job_from
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.context import BadInputError, RunContext
from rlvr_trainer.final_model import export_final_model
from rlvr_trainer.fork import begin_with, open_fork
from rlvr_trainer.model_source import download_model
from rlvr_trainer.policy import Policy
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.provenance import begin_lineage
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.client import ObjectStore, S3Settings
from rlvr_trainer.storage.lineage import LINEAGE_FILE

SFT = {"epochs": 2, "examplesPerStep": 5, "optimizer": {"learningRate": 1e-3}}
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A base model: its tokenizer has no chat template."""
    folder = tmp_path_factory.mktemp("fork") / "tiny"
    write_tiny_model(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "chat_template"}))
    return folder


@pytest.fixture(scope="module")
def place(s3, tmp_path_factory):
    traces = tmp_path_factory.mktemp("traces") / "traces.jsonl"
    traces.write_text("\n".join(json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) for n in range(20)))
    return SimpleNamespace(uri=s3.folder("fork"), endpoint=s3.endpoint, traces=traces)


@pytest.fixture(autouse=True)
def credentials(s3, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)


@pytest.fixture
def trained(place, model, credentials):
    """A run of one stage, to its final model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = {"sft": {"traces": f"file://{place.traces}", **SFT}}
    job = make_job(place, model, spec, chat_template=TEMPLATE)
    runner = SimpleNamespace(chat=ChatFormat(model, TEMPLATE, 56))
    run = lone_run.make_run(job, place, model, next(ATTEMPTS), runner)
    weights = execute(run)
    run.provenance.end(8)
    export_final_model(run, KEYS, 8)
    torch.set_num_threads(threads)
    return SimpleNamespace(run=run, weights=weights)


ATTEMPTS = itertools.count(1)
NAMES = (f"fork-{number}" for number in itertools.count())


def fork_context(place, model, uri, name=None, **provenance):
    job = job_from({
        "apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": name or next(NAMES)},
        "spec": {
            "model": {"uri": f"file://{model}", "from": uri, "maxModelLen": 64}, "sampling": {"maxTokens": 8},
            "storage": {"uri": place.uri, "endpoint": place.endpoint}, "environments": [{"name": "sums", "arithmetic": {}}],
            "stages": [{"name": "climb", "rlvr": {"steps": 2}}], "provenance": provenance,
        },
    })  # fmt: skip
    context = RunContext(
        job=job, attempt=1, engine_urls={}, verifier_url="", advertised_host="127.0.0.1", status_port=0, model_dir=model,
        s3_endpoint=place.endpoint, work_dir=model,
    )  # fmt: skip
    return context, ObjectStore.open(place.uri, S3Settings(place.endpoint), job.metadata.name)


def opened(context, store, attempt=1):
    return open_fork(context, store, claim_attempt(store, attempt))


@pytest.mark.parametrize("below", ["", "/00-cold-start", "/00-cold-start/checkpoints/00000008"])
def test_a_fork_begins_with_the_very_weights_and_their_lineage(place, model, trained, below):
    context, store = fork_context(place, model, f"{place.uri}/job{below}")
    fork = opened(context, store)
    policy = Policy.load(model, context.job.spec)
    begin_with(fork, policy.load_tensors)
    assert all(torch.equal(tensor, trained.weights[name]) for name, tensor in policy.engine_named_tensors().items())
    lineage = begin_lineage(context.job, model, fork)
    assert lineage.base.uri == f"{place.uri}/job/00-cold-start/checkpoints/00000008"
    assert lineage.parent == load_latest(trained.run.store, KEYS).manifest.lineage
    assert lineage.external_stages == ("default/job/cold-start",)


def test_an_earlier_step_is_another_fork(place, model, trained):
    context, store = fork_context(place, model, f"{place.uri}/job/00-cold-start/checkpoints/00000006")
    policy = Policy.load(model, context.job.spec)
    begin_with(opened(context, store), policy.load_tensors)
    assert not all(torch.equal(tensor, trained.weights[name]) for name, tensor in policy.engine_named_tensors().items())


def test_what_the_first_attempt_found_is_what_all_begin_with(place, model, trained):
    context, store = fork_context(place, model, f"{place.uri}/job/00-cold-start/checkpoints/00000006")
    first = opened(context, store)
    moved, _ = fork_context(place, model, f"{place.uri}/job", name=context.job.metadata.name)
    assert opened(moved, store, 2).record == first.record


def test_a_fork_of_a_model_with_traces_is_refused_where_they_are_forbidden(place, model, trained):
    context, store = fork_context(place, model, f"{place.uri}/job", externalTraces="Forbidden")
    with pytest.raises(BadInputError, match=r"Forbidden, and .*00000008 has learned .* default/job/cold-start"):
        begin_lineage(context.job, model, opened(context, store))


@pytest.mark.parametrize("below", ["/nothing", "/job/01-climb", "/job/00-cold-start/checkpoints/00000007"])
def test_a_place_without_a_checkpoint_is_refused(place, model, trained, below):
    context, store = fork_context(place, model, f"{place.uri}{below}")
    with pytest.raises(BadInputError, match=r"spec\.model\.from: there is no committed checkpoint in s3://"):
        opened(context, store)


def test_a_checkpoint_that_went_or_changed_meanwhile_is_refused(place, model, trained):
    context, store = fork_context(place, model, f"{place.uri}/job")
    fork = opened(context, store)
    key = KEYS.manifest(8)
    content = trained.run.store.get(key)
    try:
        trained.run.store.put(key, content + b" ")
        with pytest.raises(BadInputError, match="is another checkpoint than the one that this job began with"):
            fork.load()
        trained.run.store.delete([key])
        with pytest.raises(BadInputError, match="is gone: restore it"):
            fork.load()
    finally:
        trained.run.store.put(key, content)


def test_another_models_checkpoint_is_refused(place, model, trained, tmp_path):
    context, store = fork_context(place, model, f"{place.uri}/job")

    def refuse(_):
        raise ValueError("other shapes")

    with pytest.raises(BadInputError, match=r"00000008: other shapes"):
        begin_with(opened(context, store), refuse)


def test_a_final_model_is_a_base_for_another_job_with_its_template_and_lineage(place, model, trained, tmp_path):
    storage = trained.run.context.job.spec.storage
    assert download_model(f"{place.uri}/job/00-cold-start/model", storage, tmp_path) > 0
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == TEMPLATE
    chat = ChatFormat(tmp_path, None, 56)
    assert chat.end_token_ids == ChatFormat(model, TEMPLATE, 56).end_token_ids
    policy = Policy.load(tmp_path, trained.run.context.job.spec)
    assert all(torch.equal(tensor, trained.weights[name]) for name, tensor in policy.engine_named_tensors().items())
    assert (tmp_path / LINEAGE_FILE).is_file()
    assert begin_lineage(trained.run.context.job, tmp_path).parent.stages[0].name == "cold-start"
    assert download_model(f"{place.uri}/job/00-cold-start/model", storage, tmp_path) == 0


def test_a_base_without_a_template_needs_one_in_the_job(model):
    with pytest.raises(ValueError, match=r"set spec\.model\.chatTemplate"):
        ChatFormat(model, None, 56)
