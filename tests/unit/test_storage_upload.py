import hashlib
import io

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
)
from hypothesis import given
from hypothesis import strategies as st

from rlvr_trainer.storage import client as client_module
from rlvr_trainer.storage import patience as patience_module
from rlvr_trainer.storage import upload as upload_module
from rlvr_trainer.storage.client import ObjectStore, S3Settings, connect, split_uri
from rlvr_trainer.storage.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    BucketMissingError,
    CorruptObjectError,
    CredentialsError,
    ObjectMissingError,
    StorageError,
    StorageSetupError,
    StoreFailedError,
    UnreachableError,
    explained,
)
from rlvr_trainer.storage.patience import Patience
from rlvr_trainer.storage.upload import TransferSettings, Uploader, _regroup


def answer(code, status, message="m"):
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class ScriptedClient:
    """Answers each call by the next item of its script: an error to raise or a value to return."""

    def __init__(self, *script):
        self.script, self.calls = list(script), []
        self.meta = type("Meta", (), {"endpoint_url": "http://store"})()

    def __getattr__(self, operation):
        def call(**arguments):
            self.calls.append((operation, arguments))
            item = self.script.pop(0)
            if isinstance(item, Exception):
                raise item
            return item

        return call


@given(st.lists(st.binary(max_size=30)), st.integers(1, 20))
def test_parts_are_the_same_bytes_in_equal_pieces(chunks, part_bytes):
    parts = list(_regroup(chunks, part_bytes))
    assert b"".join(parts) == b"".join(chunks)
    assert all(len(part) == part_bytes for part in parts[:-1])
    assert all(0 < len(part) <= part_bytes for part in parts[-1:])


@pytest.mark.parametrize(
    ("error", "kind", "permanent", "words"),
    [
        (
            answer("NoSuchBucket", 404),
            BucketMissingError,
            True,
            "bucket 'runs' does not exist at http://store; create it or change storage.uri",
        ),
        (answer("InvalidAccessKeyId", 403), CredentialsError, True, "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (answer("SignatureDoesNotMatch", 403), CredentialsError, True, "answered 403 SignatureDoesNotMatch"),
        (answer("AccessDenied", 403), AccessDeniedError, True, "give these credentials the right to read, write, list and delete"),
        (answer("403", 403), AccessDeniedError, True, "answered 403;"),
        (answer("NoSuchKey", 404), ObjectMissingError, False, "there is no such object"),
        (answer("InvalidBucketName", 400), StorageSetupError, True, "change storage.uri"),
        (answer("InternalError", 500), StoreFailedError, False, "look whether the store's disk is full"),
        (
            answer("InsufficientStorage", 507),
            StoreFailedError,
            False,
            "answered 507 InsufficientStorage; look whether the store's disk is full",
        ),
        (answer("BadDigest", 400), StoreFailedError, False, "the bytes changed on their way"),
        (answer("EntityTooLarge", 400, "too big"), StorageError, False, "answered 400 EntityTooLarge (too big)"),
        (NoCredentialsError(), CredentialsError, True, "set AWS_ACCESS_KEY_ID"),
        (EndpointConnectionError(endpoint_url="http://store"), UnreachableError, False, "no answer from http://store"),
        (ConnectTimeoutError(endpoint_url="http://store"), UnreachableError, False, "check storage.endpoint"),
        (ReadTimeoutError(endpoint_url="http://store"), UnreachableError, False, "that the store is up"),
        (FlexibleChecksumError(error_msg="crc"), CorruptObjectError, True, "its checksum is wrong"),
    ],
)
def test_every_failure_says_place_answer_and_next_step(error, kind, permanent, words):
    with pytest.raises(StorageError) as caught, explained("write", "s3://runs/job/a", "http://store"):
        raise error
    assert type(caught.value) is kind
    assert caught.value.permanent is permanent
    assert words in str(caught.value)
    assert str(caught.value).startswith("cannot write s3://runs/job/a")
    assert "\n" not in str(caught.value)


def test_a_conditional_write_under_way_is_repeated(monkeypatch):
    monkeypatch.setattr(client_module.time, "sleep", lambda _: None)
    busy, missing = answer("ConditionalRequestConflict", 409), answer("NoSuchKey", 404)
    store = ObjectStore(ScriptedClient(busy, missing, busy, missing, {}), "runs")
    assert store.put_if_absent("a", b"x").bytes == 1
    store = ObjectStore(ScriptedClient(busy, {"Body": io.BytesIO(b"theirs")}), "runs")
    with pytest.raises(AlreadyExistsError, match=r"cannot write s3://runs/a: it is there already") as caught:
        store.put_if_absent("a", b"mine")
    assert caught.value.content == b"theirs"
    store = ObjectStore(ScriptedClient(*(busy, missing) * client_module.CONFLICT_ATTEMPTS), "runs")
    with pytest.raises(StoreFailedError, match="5 tries in a row"):
        store.put_if_absent("a", b"x")


def test_an_outage_is_waited_out_and_no_longer_than_allowed(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(patience_module, "time", clock)

    class Broken(io.BytesIO):
        def read(self, *_):
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)

    down = EndpointConnectionError(endpoint_url="http://store")
    store = ObjectStore(ScriptedClient(down, {"Body": Broken()}, answer("InternalError", 500), {"Body": io.BytesIO(b"all")}), "runs")
    assert store.get("a") == b"all"
    assert 0 < clock.now < 2
    client = ScriptedClient(*[down] * 1000)
    store, clock.now = ObjectStore(client, "runs", patience=Patience(30.0)), 0.0
    with pytest.raises(UnreachableError, match="cannot read s3://runs/a"):
        store.get("a")
    assert 20 < clock.now <= 30
    assert 6 < len(client.calls) < 30


@pytest.mark.parametrize("error", [answer("AccessDenied", 403), answer("InsufficientStorage", 507), answer("NotImplemented", 501)])
def test_what_does_not_pass_by_itself_is_not_repeated(error):
    client = ScriptedClient(error)
    with pytest.raises(StorageError, match="cannot write s3://runs/a"):
        ObjectStore(client, "runs").put("a", b"x")
    assert len(client.calls) == 1


def test_a_failed_part_aborts_the_upload(caplog):
    client = ScriptedClient({"UploadId": "u"}, answer("InternalError", 500), answer("InternalError", 500), answer("AccessDenied", 403))
    with pytest.raises(ClientError, match="InternalError"):
        Uploader(client, "runs", TransferSettings(part_bytes=2, concurrency=1), Patience(0.0)).send("a", [b"abc"])
    assert client.calls[-1][0] == "abort_multipart_upload"
    assert "could not abort the upload of a" in caplog.text


def test_parts_carry_their_digests_and_the_whole_has_one():
    client = ScriptedClient({"UploadId": "u"}, {"ETag": "1"}, {"ETag": "2"}, {})
    size, digest = Uploader(client, "runs", TransferSettings(part_bytes=2, concurrency=1), Patience(0.0)).send("a", [b"a", b"bc"])
    assert (size, digest) == (3, hashlib.sha256(b"abc").hexdigest())
    assert [part["PartNumber"] for part in client.calls[-1][1]["MultipartUpload"]["Parts"]] == [1, 2]


def test_a_completion_whose_answer_was_lost_counts_when_the_object_is_there():
    def send(*answers):
        client = ScriptedClient({"UploadId": "u"}, {"ETag": "1"}, {"ETag": "2"}, answer("NoSuchUpload", 404), *answers)
        return Uploader(client, "runs", TransferSettings(part_bytes=2, concurrency=1), Patience(0.0)).send("a", [b"abc"])

    assert send({"ContentLength": 3})[0] == 3
    with pytest.raises(ClientError, match="NoSuchUpload"):
        send({"ContentLength": 2}, {})
    with pytest.raises(ClientError, match="404"):
        send(answer("404", 404), {})


def test_a_stream_beyond_the_limit_of_parts_is_refused(monkeypatch):
    monkeypatch.setattr(upload_module, "MAX_PARTS", 2)
    client = ScriptedClient({"UploadId": "u"}, {"ETag": "1"}, {"ETag": "2"}, {})
    with pytest.raises(ValueError, match="a is longer than 2 parts of 1 bytes"):
        Uploader(client, "runs", TransferSettings(part_bytes=1, concurrency=1), Patience(0.0)).send("a", [b"abc"])
    assert client.calls[-1][0] == "abort_multipart_upload"


def test_addresses_that_are_none_are_refused():
    assert split_uri("s3://runs/a/b/") == ("runs", "a/b")
    assert split_uri("s3://runs") == ("runs", "")
    for uri in ("runs/a", "s3://", "http://runs/a"):
        with pytest.raises(StorageSetupError, match="write s3://bucket/prefix"):
            split_uri(uri)
    with pytest.raises(StorageSetupError, match=r"storage.endpoint 'somewhere' is not an address"):
        connect(S3Settings(endpoint="somewhere"))
