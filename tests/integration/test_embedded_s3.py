"""The embedded S3 server, with the real binary: it keeps data over a kill and another start, and its credentials to itself."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from rlvr_api.embedded_s3 import EmbeddedS3, EmbeddedS3Error, find_running


def client(server: EmbeddedS3):
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 2}, connect_timeout=5, read_timeout=20),
    )


def has_ended(pid: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_data_survives_a_kill_and_a_start_on_other_ports(tmp_path):
    config = tmp_path / "s3.json"
    with EmbeddedS3(tmp_path / "s3", config) as server:
        client(server).put_object(Bucket="runs", Key="a/b", Body=b"kept")
        assert find_running(tmp_path / "s3") == server.endpoint
        with pytest.raises(ClientError, match="NoSuchBucket"):
            client(server).put_object(Bucket="misspelt", Key="a", Body=b"")
        os.kill(server._process.pid, signal.SIGKILL)
        server._process.wait(10)
    assert find_running(tmp_path / "s3") is None
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    first_port = server.port
    with EmbeddedS3(tmp_path / "s3", config) as server:
        assert server.port != first_port
        assert client(server).get_object(Bucket="runs", Key="a/b")["Body"].read() == b"kept"
        pid = server._process.pid
    assert has_ended(pid)


def test_the_server_does_not_outlive_a_killed_owner(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from rlvr_api.embedded_s3 import EmbeddedS3\n"
        "server = EmbeddedS3(Path(sys.argv[1]) / 's3', Path(sys.argv[1]) / 's3.json'); server.start()\n"
        "print(server._process.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as owner:
        pid = int(owner.stdout.readline())
        owner.kill()
    assert has_ended(pid)


def test_a_port_that_is_taken_is_an_error_with_the_servers_words(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EmbeddedS3(tmp_path / "s3", tmp_path / "s3.json", port=taken.getsockname()[1])
        with pytest.raises(EmbeddedS3Error, match=str(taken.getsockname()[1])):
            server.start(20)
    assert server._process is None
