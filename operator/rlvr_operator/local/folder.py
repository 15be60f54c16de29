"""The folder of a run, `runs/<job>/`: everything the local runtime keeps on disk, and the lock that makes it one runtime's.

job.json        the job with every default filled in and absolute paths; what all processes read
state.json      attempt number and marker, written and synced before an attempt starts
status.json     the job's status, rewritten as it changes
logs/NAME.log   output of each process, over all its starts
work/NAME/      scratch of each process
progress.json   what the learner said last, when it ended in order
s3/, s3.json    data and credentials of the embedded S3 server
model/          the model, when it comes from S3
seal.key        key that seals gold answers (mode 0600)
lock            held while a runtime is at work
"""

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from pydantic import ValidationError

from rlvr_api.cli import UserError
from rlvr_api.spec import RLVRJob
from rlvr_api.status import Progress, RLVRJobStatus

SEAL_KEY_BYTES = 32

Stored = TypeVar("Stored", RLVRJob, RLVRJobStatus)


@dataclass(frozen=True)
class State:
    """What must outlive a runtime."""

    attempt: int = 0
    """Last attempt that was begun."""
    marker: str = ""
    """Marker of the runtime that wrote this; a later one sweeps what it may have left."""


class RunFolder:
    """One run's folder, locked until `close`.

    Raises:
        UserError: another runtime holds it, or it cannot be written.
    """

    def __init__(self, runs_dir: Path, job_name: str) -> None:
        self.path = (runs_dir / job_name).absolute()
        try:
            for folder in (self.logs_dir, self.work_dir):
                folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be written ({error.strerror}): choose another folder with --runs-dir") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"{self.path} is in use by another `rlvr run` of this job: stop that one first, or rename the job") from None

    @property
    def job_file(self) -> Path:
        """The resolved job."""
        return self.path / "job.json"

    @property
    def last_progress_file(self) -> Path:
        """What the learner said last."""
        return self.path / "progress.json"

    def read_last_progress(self) -> Progress | None:
        """What the learner said last, when it ended in order; None if it did not."""
        try:
            return Progress.model_validate_json(self.last_progress_file.read_bytes())
        except (OSError, ValueError):
            return None

    @property
    def logs_dir(self) -> Path:
        """One file for each process."""
        return self.path / "logs"

    @property
    def work_dir(self) -> Path:
        """One folder for each process."""
        return self.path / "work"

    @property
    def model_dir(self) -> Path:
        """Where a model from S3 is put."""
        return self.path / "model"

    @property
    def s3_dir(self) -> Path:
        """Data of the embedded S3 server."""
        return self.path / "s3"

    @property
    def s3_config(self) -> Path:
        """Identities of the embedded S3 server."""
        return self.path / "s3.json"

    @property
    def report_file(self) -> Path:
        """The report that is written at the end."""
        return self.path / "report.html"

    def read_job(self) -> RLVRJob | None:
        """The job as it was last run; None for a new run."""
        return None if (text := self._read("job.json")) is None else self._parse(RLVRJob, "job.json", text)

    def write_job(self, job: RLVRJob) -> None:
        """Keeps the job for the processes and for the next run."""
        self._write("job.json", job.model_dump_json(by_alias=True, indent=2))

    def read_state(self) -> State:
        """What the last runtime wrote; the beginning for a new run."""
        if (text := self._read("state.json")) is None:
            return State()
        try:
            data = json.loads(text)
            return State(attempt=int(data["attempt"]), marker=str(data["marker"]))
        except (ValueError, KeyError, TypeError):
            raise self._damaged("state.json") from None

    def write_state(self, state: State) -> None:
        """On disk when this returns."""
        self._write("state.json", json.dumps({"attempt": state.attempt, "marker": state.marker}))

    def read_status(self) -> RLVRJobStatus | None:
        """The last status; None for a new run."""
        return None if (text := self._read("status.json")) is None else self._parse(RLVRJobStatus, "status.json", text)

    def write_status(self, status: RLVRJobStatus) -> None:
        """Replaces the status."""
        self._write("status.json", status.model_dump_json(by_alias=True, exclude_none=True, indent=2))

    def seal_key_file(self) -> Path:
        """The file with the key that seals gold answers; made at first use, so that task keys outlive restarts."""
        path = self.path / "seal.key"
        if not path.exists():
            self._write(path.name, secrets.token_bytes(SEAL_KEY_BYTES), mode=0o600)
        return path

    def close(self) -> None:
        """Lets another runtime have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def _parse(self, kind: type[Stored], name: str, text: bytes) -> Stored:
        try:
            return kind.model_validate_json(text)
        except ValidationError:
            raise self._damaged(name) from None

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.path / name} is not what `rlvr run` writes: restore it, or move {self.path} away to begin anew")

    def _write(self, name: str, content: str | bytes, mode: int = 0o644) -> None:
        """Atomic and durable: a crash at any moment leaves the old content or the new."""
        draft = self.path / f".{name}.draft"
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / name)
        folder = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
