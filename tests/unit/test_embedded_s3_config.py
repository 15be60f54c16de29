"""Credentials and command line of the embedded S3 server."""

import json

import pytest

from rlvr_api.embedded_s3 import EmbeddedS3, EmbeddedS3Error


def test_credentials_are_made_once_and_read_back(tmp_path):
    first = EmbeddedS3(tmp_path / "s3", tmp_path / "s3.json")
    second = EmbeddedS3(tmp_path / "s3", tmp_path / "s3.json")
    other = EmbeddedS3(tmp_path / "t3", tmp_path / "t3.json")
    assert (first.access_key, first.secret_key) == (second.access_key, second.secret_key)
    assert first.secret_key != other.secret_key
    assert first.environment() == {"AWS_ACCESS_KEY_ID": first.access_key, "AWS_SECRET_ACCESS_KEY": first.secret_key}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s3.json", "t3.json"]


def test_the_command_line_has_no_secret_and_no_stale_options(tmp_path):
    server = EmbeddedS3(tmp_path / "s3", tmp_path / "s3.json", port=18_999)
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "mini.options").write_text("s3.port=1")
    command = server.command()
    assert "-s3.port=18999" in command
    assert server.endpoint == "http://127.0.0.1:18999"
    assert not any(server.secret_key in word for word in command)
    assert not (tmp_path / "s3" / "mini.options").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"identities": []}), json.dumps({"identities": [{"credentials": [3]}]})])
def test_a_broken_configuration_is_named(tmp_path, text):
    (tmp_path / "s3.json").write_text(text)
    with pytest.raises(EmbeddedS3Error, match=r"s3\.json"):
        EmbeddedS3(tmp_path / "s3", tmp_path / "s3.json")


def test_ports_are_all_different(tmp_path):
    server = EmbeddedS3(tmp_path / "s3", tmp_path / "s3.json")
    assert len(set(server._ports.values())) == len(server._ports)
    before = server.port
    server.choose_ports()
    assert server.port != before
