"""Final weights as a Hugging Face folder, there and back."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.storage import folders, hf_export
from rlvr_trainer.storage.attempts import claim_attempt
from rlvr_trainer.storage.client import ObjectStore, S3Settings, connect
from rlvr_trainer.storage.errors import CorruptObjectError, ObjectMissingError, StorageError
from rlvr_trainer.storage.folders import download_folder, fetch_model
from rlvr_trainer.storage.hf_export import export_model, read_model_manifest
from rlvr_trainer.storage.layout import StageKeys

STAGE = StageKeys(0, "climb")


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.make_bucket("storage-model")


@pytest.fixture
def settings(s3, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    return S3Settings(s3.endpoint)


@pytest.fixture
def store(settings, bucket, request):
    client = connect(settings)
    yield ObjectStore(client, bucket, f"runs/{request.node.name.replace('[', '-').strip(']')}")
    client.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "tiny"
    write_tiny_model(folder)
    return folder


def trained(source):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def export(store, model, source, dtype, attempt=1):
    return export_model(store, STAGE, claim_attempt(store, attempt), dict(model.named_parameters()), source, dtype, 7, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_what_was_exported(store, settings, source, tmp_path, dtype):
    model = trained(source)
    manifest = export(store, model, source, dtype)
    assert (manifest.step, manifest.weight_version, manifest.dtype) == (7, 9, str(dtype).removeprefix("torch."))
    fetch_model(store.uri(STAGE.model), tmp_path / "fetched", settings)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "fetched", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.dtype is dtype
    for name, parameter in model.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], parameter.to(dtype)), name
    prompt = AutoTokenizer.from_pretrained(tmp_path / "fetched").apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False)
    assert prompt == AutoTokenizer.from_pretrained(source).apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False)
    assert read_model_manifest(store, STAGE) == manifest


def test_large_models_are_split_with_an_index(store, settings, source, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_export, "FILE_BYTES", 100_000)
    model = trained(source)
    export(store, model, source, torch.float32)
    fetch_model(store.uri(STAGE.model), tmp_path / "fetched", settings)
    index = json.loads((tmp_path / "fetched" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fetched")
    assert all(torch.equal(one, other) for one, other in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_stage_exports_once(store, source):
    model = trained(source)
    first = export(store, model, source, torch.float32)
    again = export(store, model, source, torch.bfloat16, attempt=2)
    assert again == first
    assert {key.split("/")[2] for key in store.list(f"{STAGE.model}/")} == {"000001", "MANIFEST.json"}


def test_a_copied_model_folder_still_works(store, settings, source, tmp_path):
    export(store, trained(source), source, torch.float32)
    for key in store.list(f"{STAGE.model}/"):
        store.put(key.replace(STAGE.model, "published/v1"), store.get(key))
    fetch_model(store.uri("published/v1"), tmp_path / "fetched", settings)
    fetch_model(store.uri("published/v1/000001"), tmp_path / "plain", settings)
    names = {path.name for path in (tmp_path / "fetched").iterdir()}
    assert names == {path.name for path in (tmp_path / "plain").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"} <= names


def test_a_folder_is_replaced_as_a_whole_and_only_when_needed(store, settings, tmp_path, monkeypatch):
    store.put("hf/config.json", b"{}")
    store.put("hf/sub/a.txt", b"one")
    folder = tmp_path / "copy"
    fetch_model(store.uri("hf"), folder, settings)
    (folder / "local").touch()
    fetch_model(store.uri("hf/"), folder, settings)
    assert (folder / "local").exists()
    store.put("hf/sub/a.txt", b"two")
    with monkeypatch.context() as broken:
        broken.setattr(ObjectStore, "_read_range", lambda *_: (_ for _ in ()).throw(StorageError("the store went away")))
        with pytest.raises(StorageError, match="the store went away"):
            fetch_model(store.uri("hf"), folder, settings)
    assert (folder / "sub" / "a.txt").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    fetch_model(store.uri("hf"), folder, settings)
    assert (folder / "sub" / "a.txt").read_bytes() == b"two"
    assert not (folder / "local").exists()


def test_places_without_a_model_are_refused(store, settings, tmp_path):
    with pytest.raises(ObjectMissingError, match=r"/nothing is empty: there is nothing to download"):
        fetch_model(store.uri("nothing"), tmp_path / "copy", settings)
    store.put("other/readme.txt", b"")
    with pytest.raises(ObjectMissingError, match=r"holds no model: it has no config.json"):
        fetch_model(store.uri("other"), tmp_path / "copy", settings)
    with pytest.raises(ValueError, match=r"has no readable config.json"):
        export_model(store, STAGE, claim_attempt(store, 1), {}, tmp_path, torch.float32, 0, 0)


def test_a_full_disk_is_said_before_anything_is_downloaded(store, tmp_path, monkeypatch):
    store.put("hf/config.json", b"{}")
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1})())
    with pytest.raises(StorageError, match=r"needs 0 MB, and 0 MB are left on its disk; free space there"):
        download_folder(store, "hf", tmp_path / "copy")


def test_a_changed_file_is_refused_and_a_hostile_name_is_too(store, source, tmp_path):
    manifest = export(store, trained(source), source, torch.float32)
    place = store.below(STAGE.model)
    weights = next(blob for blob in manifest.files if blob.key.endswith(".safetensors"))
    content = bytearray(place.get(weights.key))
    content[-1] ^= 1
    place.put(weights.key, content)
    with pytest.raises(CorruptObjectError, match=r"model.safetensors is corrupt: its SHA-256"):
        download_folder(store, STAGE.model, tmp_path / "copy")
    outside = manifest.model_copy(update={"files": (weights.model_copy(update={"key": "000001/../../escape"}),)})
    store.put(STAGE.model_manifest, outside.to_bytes())
    with pytest.raises(CorruptObjectError, match="does not lie in"):
        download_folder(store, STAGE.model, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
