"""The object store against a real server: conditional writes, multipart uploads, verification, and every way to be refused."""

import hashlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError

from rlvr_trainer.storage.attempts import claim_attempt, newest_attempt
from rlvr_trainer.storage.client import ObjectStore, S3Settings, connect
from rlvr_trainer.storage.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    BucketMissingError,
    CorruptObjectError,
    CredentialsError,
    ObjectMissingError,
    SupersededError,
    UnreachableError,
    UnsupportedStoreError,
)
from rlvr_trainer.storage.upload import MIB, TransferSettings, base64_sha256

PART = 5 * MIB


@pytest.fixture(scope="module")
def bucket(s3):
    return s3.make_bucket("storage-s3")


@pytest.fixture
def as_owner(s3, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def store(s3, bucket, as_owner, request):
    client = connect(S3Settings(s3.endpoint))
    yield ObjectStore(client, bucket, f"runs/{request.node.name}", TransferSettings(part_bytes=PART))
    client.close()


def open_store(endpoint, bucket, **settings):
    return ObjectStore.open(f"s3://{bucket}/runs", S3Settings(endpoint, max_attempts=1, outage_seconds=0.0, **settings), "job")


def test_a_store_that_can_hold_a_run_passes_and_keeps_nothing(store):
    store.check()
    assert store.list() == ()


def test_wrong_credentials_and_missing_rights_are_told_apart(s3, bucket, as_owner, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(CredentialsError, match=f"cannot write s3://{bucket}/runs/job/.probe.*SignatureDoesNotMatch.*AWS_SECRET"):
        open_store(s3.endpoint, bucket).check()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    with pytest.raises(CredentialsError, match="InvalidAccessKeyId"):
        open_store(s3.endpoint, bucket).check()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.limited_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.limited_secret_key)
    with pytest.raises(AccessDeniedError, match="the right to read, write, list and delete"):
        open_store(s3.endpoint, bucket).check()


def test_no_credentials_at_all(s3, bucket, as_owner, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(CredentialsError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_store(s3.endpoint, bucket).check()


def test_a_missing_bucket(s3, as_owner):
    with pytest.raises(BucketMissingError, match=r"bucket 'not-there' does not exist at .*; create it or change storage.uri"):
        open_store(s3.endpoint, "not-there").check()


def test_an_endpoint_that_is_down_or_silent_is_given_up_in_time(bucket, as_owner):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(UnreachableError, match=f"no answer from http://127.0.0.1:{port}"):
            open_store(f"http://127.0.0.1:{port}", bucket).check()
        free.listen()
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"check storage.endpoint"):
            open_store(f"http://127.0.0.1:{port}", bucket, read_timeout_seconds=0.5).check()
        assert time.monotonic() - began < 10


def test_a_store_that_ignores_conditions_is_refused(store, monkeypatch):
    monkeypatch.setattr(ObjectStore, "_put_once", lambda self, key, data: bool(self.put(key, data)))
    with pytest.raises(UnsupportedStoreError, match="ignores If-None-Match"):
        store.check()
    assert store.list() == ()


def test_of_many_conditional_writers_one_wins(store):
    def write(number):
        try:
            store.put_if_absent("contested", b"%d" % number)
        except AlreadyExistsError as error:
            return error.content
        return None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(write, range(24)))
    assert results.count(None) == 1
    winner = store.get("contested")
    assert winner == b"%d" % results.index(None)
    assert {result for result in results if result is not None} == {winner}
    store.put_if_absent("contested", winner)  # the same content again is the same write


def test_large_objects_keep_every_byte(store, tmp_path):
    data = os.urandom(2 * PART + 12_345)
    view = memoryview(data)
    blob = store.upload("large", (view[at : at + 700_001] for at in range(0, len(data), 700_001)))
    assert (blob.bytes, blob.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.read(blob) == data
    with (tmp_path / "copy").open("wb") as file:
        store.download(blob, file)
    assert (tmp_path / "copy").read_bytes() == data
    assert store.read(store.put("empty", b"")) == b""


def test_a_part_that_changes_on_its_way_is_refused(store):
    upload = store.client.create_multipart_upload(Bucket=store.bucket, Key="part", ChecksumAlgorithm="SHA256")["UploadId"]
    sent = {}
    store.client.meta.events.register("before-send.s3.UploadPart", lambda request, **_: sent.update(request.headers.items()))
    part = {"Bucket": store.bucket, "Key": "part", "UploadId": upload, "PartNumber": 1, "Body": b"original"}
    with pytest.raises(ClientError, match="BadDigest"):
        store.client.upload_part(**part, ChecksumSHA256=base64_sha256(b"changed!"))
    assert "x-amz-checksum-sha256" in sent["Authorization"].decode()  # the checksum's header is signed, so nobody can change both
    assert sent["X-Amz-Content-SHA256"] == b"UNSIGNED-PAYLOAD"
    store.client.upload_part(**part, ChecksumSHA256=base64_sha256(b"original"))
    store.client.abort_multipart_upload(Bucket=store.bucket, Key="part", UploadId=upload)


def test_corruption_is_found_and_named(store):
    data = os.urandom(PART + 10)
    blob = store.put("blob", data)
    store.put("blob", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptObjectError, match=r"runs/.*/blob is corrupt: its SHA-256 is"):
        store.read(blob)
    store.put("blob", data[:-1])
    with pytest.raises(CorruptObjectError, match=f"it has {PART + 9} bytes, and {PART + 10} were committed"):
        store.read(blob)
    store.delete(["blob"])
    with pytest.raises(ObjectMissingError, match=r"cannot look at s3://storage-s3/runs/.*/blob: there is no such object"):
        store.read(blob)


def test_a_stream_that_breaks_leaves_nothing(store):
    def broken():
        yield bytes(PART)
        yield bytes(PART)
        yield bytes(PART)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        store.upload("broken", broken())
    assert store.list() == ()
    assert store.unfinished_uploads("") == {}


def test_listing_and_deleting_go_beyond_one_page(store):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"many/{number:05d}", b"x"), range(1005)))
    keys = store.list("many/")
    assert keys == tuple(f"many/{number:05d}" for number in range(1005))
    assert store.list("many/", after="many/01002") == ("many/01003", "many/01004")
    assert store.sizes("many/00007") == {"many/00007": 1}
    store.delete([*keys, "many/never-there"])
    assert store.list("many/") == ()


def test_an_attempt_is_claimed_once_and_newer_ones_end_it(store):
    first = claim_attempt(store, 1)
    first.check()
    with pytest.raises(SupersededError, match=r"attempt 1 of .* is claimed already by process \d+ on .*; start with attempt 2 or higher"):
        claim_attempt(store, 1)
    second = claim_attempt(store, 12)
    with pytest.raises(SupersededError, match="attempt 12 has taken over; stop this process"):
        first.check()
    with pytest.raises(SupersededError, match="attempt 12 has taken over"):
        claim_attempt(store, 2)
    second.check()
    assert newest_attempt(store) == 12
