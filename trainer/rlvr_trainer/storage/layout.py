"""Names of all objects of a job. Pure: this module knows no store.

Below `<storage.uri>/<job>`:

    attempts/<attempt>.json
    fork.json
    weights/<attempt>/<number>/<bucket>,  weights/<attempt>/<number>/link.json       while a run sends weights through the store
    <stage index>-<stage>/rollouts/<step>/<attempt>-<part>.parquet
                          records/<step>.json
                          checkpoints/<step>/<attempt>/<blob>,  checkpoints/<step>/MANIFEST.json
                          evaluations/<step>.json,              evaluations/<step>/<attempt>-<part>.parquet
                          model/<attempt>/<file>,               model/MANIFEST.json
                          rollouts/<step>/<attempt>-teacher.json
                          answers/<index>.json                  dataset/<attempt>/traces.jsonl,        dataset/MANIFEST.json
    <stage index>-<stage>_<branch>/ROLLBACK.json, and all but the model of what follows a rollback (`rollback.py`)

Numbers are padded with zeros, so that the order of keys is the order of steps. Whatever only one attempt may write without asking
carries the attempt in its key: a process that was given up for dead can never overwrite its successor's blobs. The keys without an
attempt (claims, records, manifests) are written with `If-None-Match: *`.
"""

import re
from dataclasses import dataclass

STEP_DIGITS = 8
ATTEMPT_DIGITS = 6
PART_DIGITS = 5
BRANCH_DIGITS = 2
MANIFEST = "MANIFEST.json"
ATTEMPTS = "attempts/"
WEIGHTS = "weights/"

_STAGE = re.compile(r"(\d{2})-([a-z](?:[-a-z0-9]*[a-z0-9])?)(?:_(\d{2}))?")
_CHECKPOINT = re.compile(rf"checkpoints/(\d{{{STEP_DIGITS}}})/(?:(\d{{{ATTEMPT_DIGITS}}})/.+|{re.escape(MANIFEST)})")
_RECORD = re.compile(rf"records/(\d{{{STEP_DIGITS}}})\.json")
_WEIGHTS = re.compile(rf"{WEIGHTS}(\d{{{ATTEMPT_DIGITS}}})/.+")
_ATTEMPT = re.compile(rf"{ATTEMPTS}(\d{{{ATTEMPT_DIGITS}}})\.json")


def attempt_key(attempt: int) -> str:
    """Claim of an attempt."""
    return f"{ATTEMPTS}{_number(attempt, ATTEMPT_DIGITS)}.json"


def attempt_of(key: str) -> int | None:
    """The attempt whose claim `key` is; None for other keys."""
    found = _ATTEMPT.fullmatch(key)
    return int(found[1]) if found else None


def weights_key(attempt: int, number: int, name: str) -> str:
    """An object of the `number`-th version that an attempt wrote for engines."""
    return f"{WEIGHTS}{_number(attempt, ATTEMPT_DIGITS)}/{_number(number, STEP_DIGITS)}/{name}"


def weights_attempt_of(key: str) -> int | None:
    """The attempt that wrote an object for engines; None for other keys."""
    found = _WEIGHTS.fullmatch(key)
    return int(found[1]) if found else None


@dataclass(frozen=True, slots=True, order=True)
class CheckpointKey:
    """What the key of an object of a checkpoint says."""

    step: int
    attempt: int | None
    """None for the manifest."""


@dataclass(frozen=True, slots=True, order=True)
class StageKeys:
    """Keys of one stage; sorts by the stage's place in the job, then by branch."""

    index: int
    """Position in the job, from 0."""
    name: str
    branch: int = 0
    """Rollbacks of the stage before these objects."""

    @classmethod
    def parse(cls, key: str) -> "StageKeys | None":
        """The stage and branch that an object belongs to; None for objects of the job itself."""
        found = _STAGE.fullmatch(key.partition("/")[0])
        return cls(int(found[1]), found[2], int(found[3] or 0)) if found else None

    @property
    def trunk(self) -> "StageKeys":
        """The stage before any rollback."""
        return StageKeys(self.index, self.name)

    @property
    def folder(self) -> str:
        """For example `00-climb`, and `00-climb_01` after a rollback: an underscore sorts after the slash."""
        return f"{self.index:02d}-{self.name}" + (f"_{_number(self.branch, BRANCH_DIGITS)}" if self.branch else "")

    @property
    def rollback(self) -> str:
        """What begins a branch."""
        return f"{self.folder}/ROLLBACK.json"

    @property
    def records(self) -> str:
        """Prefix of all step records."""
        return f"{self.folder}/records/"

    @property
    def checkpoints(self) -> str:
        """Prefix of all checkpoints."""
        return f"{self.folder}/checkpoints/"

    @property
    def evaluations(self) -> str:
        """Prefix of all evaluations."""
        return f"{self.folder}/evaluations/"

    @property
    def model(self) -> str:
        """Folder of the final weights, without a slash at its end; it is the same after rollbacks."""
        return f"{self.trunk.folder}/model"

    @property
    def model_manifest(self) -> str:
        """Names the files of the final weights."""
        return f"{self.model}/{MANIFEST}"

    @property
    def answers(self) -> str:
        """Prefix of what a teacher said."""
        return f"{self.folder}/answers/"

    def answer(self, index: int) -> str:
        """What a teacher said about one task."""
        return f"{self.answers}{_step(index)}.json"

    def teacher_logprobs(self, step: int, attempt: int) -> str:
        """What a teacher thinks of the rollouts of a step."""
        return f"{self.folder}/rollouts/{_step(step)}/{_number(attempt, ATTEMPT_DIGITS)}-teacher.json"

    def dataset(self, attempt: int) -> str:
        """What was kept of it, as a file of traces."""
        return f"{self.folder}/dataset/{_number(attempt, ATTEMPT_DIGITS)}/traces.jsonl"

    @property
    def dataset_manifest(self) -> str:
        """Where that comes from; makes it final."""
        return f"{self.folder}/dataset/{MANIFEST}"

    def rollouts(self, step: int, attempt: int, part: int = 0) -> str:
        """Rollouts that a step consumed."""
        return f"{self.folder}/rollouts/{_step(step)}/{_number(attempt, ATTEMPT_DIGITS)}-{_number(part, PART_DIGITS)}.parquet"

    def record(self, step: int) -> str:
        """Record of a step."""
        return f"{self.records}{_step(step)}.json"

    def record_step(self, key: str) -> int | None:
        """The step whose record `key` is; None for other keys."""
        found = _RECORD.fullmatch(self._inside(key))
        return int(found[1]) if found else None

    def checkpoint(self, step: int) -> str:
        """Prefix of one checkpoint."""
        return f"{self.checkpoints}{_step(step)}/"

    def checkpoint_blob(self, step: int, attempt: int, blob: str) -> str:
        """A blob of a checkpoint."""
        return f"{self.checkpoint(step)}{_number(attempt, ATTEMPT_DIGITS)}/{blob}"

    def manifest(self, step: int) -> str:
        """What makes a checkpoint committed."""
        return f"{self.checkpoint(step)}{MANIFEST}"

    def checkpoint_key(self, key: str) -> CheckpointKey | None:
        """Step and attempt of an object of a checkpoint; None for other keys."""
        found = _CHECKPOINT.fullmatch(self._inside(key))
        return CheckpointKey(int(found[1]), int(found[2]) if found[2] else None) if found else None

    def evaluation(self, step: int) -> str:
        """Result of a held-out evaluation, after `step` optimizer steps."""
        return f"{self.evaluations}{_step(step)}.json"

    def evaluation_rollouts(self, step: int, attempt: int, part: int = 0) -> str:
        """Rollouts of a held-out evaluation."""
        return f"{self.evaluations}{_step(step)}/{_number(attempt, ATTEMPT_DIGITS)}-{_number(part, PART_DIGITS)}.parquet"

    def _inside(self, key: str) -> str:
        return key.removeprefix(f"{self.folder}/") if key.startswith(f"{self.folder}/") else ""


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """What an address in a store says of a checkpoint."""

    job: str
    """Address of the job's folder."""
    stage: StageKeys | None = None
    """None: any."""
    step: int | None = None
    """None: the newest."""

    @classmethod
    def parse(cls, uri: str) -> "CheckpointPlace":
        """A job's, stage's or checkpoint's folder; what is none of the latter two is the first."""
        parts = uri.rstrip("/").split("/")
        if len(parts) > 5 and parts[-2] == "checkpoints" and re.fullmatch(rf"\d{{{STEP_DIGITS}}}", parts[-1]):
            stage = StageKeys.parse(parts[-3])
            if stage is not None:
                return cls("/".join(parts[:-3]), stage, int(parts[-1]))
        stage = StageKeys.parse(parts[-1])
        return cls("/".join(parts[:-1]), stage) if stage is not None else cls("/".join(parts))


FORK = "fork.json"
"""What a job that began with another run's checkpoint began with."""


def model_folder(attempt: int) -> str:
    """Folder of an attempt's final weights, below `StageKeys.model`."""
    return _number(attempt, ATTEMPT_DIGITS)


def _step(step: int) -> str:
    return _number(step, STEP_DIGITS)


def _number(value: int, digits: int) -> str:
    # A longer number would sort before shorter ones and break "newest by key".
    if not 0 <= value < 10**digits:
        raise ValueError(f"{value} is not between 0 and {10**digits - 1}, so it has no key")
    return f"{value:0{digits}d}"
