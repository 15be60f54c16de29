"""Datasets whose rows have a prompt: split by a hash of it, drawn by seed, found again by the id that is sealed into a task's key."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pydantic import JsonValue

from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, SampledTask
from rlvr_verifier.environments.datasets import refuse_faults


class Prompted(Protocol):
    """A row with a prompt."""

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        ...


Row = TypeVar("Row", bound=Prompted)


def prompt_id(kind: str, prompt: str) -> str:
    """Hash of a normalised prompt."""
    return hashlib.sha256(f"{kind}/{' '.join(prompt.split())}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PromptDataset(Generic[Row]):
    """Rows by the id of their prompt, and which of them are kept for evaluation."""

    rows: dict[str, Row]
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def pick(self, name: str, split: Split, seed: int) -> str:
        """The id of a seed's row; held-out ones by number, training ones by seed modulo their count.

        Raises:
            NoSuchTaskError: there is no held-out row of that number.
        """
        if split == "train":
            return self.train[seed % len(self.train)]
        if seed >= len(self.held_out):
            raise NoSuchTaskError(f"environment {name} has {len(self.held_out)} held-out tasks, so none with seed {seed}")
        return self.held_out[seed]


def split_rows(kind: str, uri: str, share: float, numbered: Sequence[tuple[int, Row]], faults: list[str]) -> PromptDataset[Row]:
    """The dataset of rows with their line numbers.

    Args:
        faults: what else is wrong, by line.

    Raises:
        EnvironmentSetupError: lists all faults, repeated prompts among them, or says that no training row is left.
    """
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    for number, row in numbered:
        key = prompt_id(kind, row.prompt)
        if key in rows:
            faults.append(f"line {number} repeats the prompt of line {lines[key]}")
        rows[key], lines[key] = row, number
    refuse_faults(faults, uri, bool(rows))
    held_out = {key: None for key in rows if int(key[:8], 16) / 2**32 < share}
    train = tuple(key for key in rows if key not in held_out)
    if not train:
        raise EnvironmentSetupError(f"dataset {uri} leaves no training row beside heldOut {share}; add rows or lower it")
    return PromptDataset(rows, train, tuple(held_out))


class PromptEnvironment(Generic[Row]):
    """What the environments of such a dataset share; each judges in its own way.

    Args:
        version: of the code that judges.
        instruction: follows each prompt; empty: nothing does.
        data: the dataset as it was read, for the version.
    """

    deterministic = True
    levels = (0, 0)

    def __init__(self, name: str, version: str, instruction: str, data: bytes, dataset: PromptDataset[Row]) -> None:
        self.name = name
        self.scorer_version, self.data_sha256 = version, hashlib.sha256(data).hexdigest()
        self.version = f"{version}+{self.data_sha256[:12]}"
        self._instruction = instruction
        self._dataset = dataset

    def held_out_tasks(self, level: int) -> int:
        """Prompts kept for evaluation."""
        return len(self._dataset.held_out)

    def sample(self, split: Split, seed: int, level: int) -> SampledTask:
        """A prompt.

        Raises:
            NoSuchTaskError: there is no held-out prompt of that number.
        """
        key = self._dataset.pick(self.name, split, seed)
        prompt = self._dataset.rows[key].prompt
        text = f"{prompt}\n{self._instruction}" if self._instruction else prompt
        return SampledTask(key, (Message(role="user", content=text),), {"row": key})

    def row(self, payload: Mapping[str, JsonValue]) -> Row:
        """The row of a task."""
        return self._dataset.rows[str(payload["row"])]
