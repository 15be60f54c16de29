"""What the environments whose answers are code have in common: the code in a completion, a dataset split by prompt, and its prompts."""

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rlvr_api.wire import Message, Split
from rlvr_verifier.environments.answers import after_thinking
from rlvr_verifier.environments.base import EnvironmentSetupError, NoSuchTaskError, Place, SampledTask, Score, invalid
from rlvr_verifier.environments.datasets import refuse_faults
from rlvr_verifier.sandbox.probe import Level

_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([A-Za-z0-9_+.-]*)[^\n`]*$", re.MULTILINE)
_LANGUAGES = ("", "python", "python3", "py")


class Prompted(Protocol):
    """A row with a prompt."""

    @property
    def prompt(self) -> str:
        """What the model is asked."""
        ...


Row = TypeVar("Row", bound=Prompted)


def extract_code(completion: str) -> str | Score:
    """The last Python code block after the thinking; a `Score` says why there is none."""
    text = after_thinking(completion)
    if isinstance(text, Score):
        return text
    code: str | None = None
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2]:
            if opening[2].lower() in _LANGUAGES:
                code = text[opening.end() + 1 : fence.start()]
            opening = None
    if opening is not None:
        return invalid("the last code block is not closed")
    if code is None:
        return invalid("there is no Python code block")
    return code if code.strip() else invalid("the code block is empty")


def prompt_id(kind: str, prompt: str) -> str:
    """Hash of a normalised prompt."""
    return hashlib.sha256(f"{kind}/{' '.join(prompt.split())}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CodeDataset(Generic[Row]):
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


def split_rows(kind: str, uri: str, share: float, numbered: Sequence[tuple[int, Row]], faults: list[str]) -> CodeDataset[Row]:
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
    held_out = tuple(key for key in rows if int(key[:8], 16) / 2**32 < share)
    train = tuple(key for key in rows if key not in set(held_out))
    if not train:
        raise EnvironmentSetupError(f"dataset {uri} leaves no training row beside heldOut {share}; add rows or lower it")
    return CodeDataset(rows, train, held_out)


class CodeEnvironment(Generic[Row]):
    """A dataset of code to write, judged in the sandbox.

    Args:
        instruction: follows each prompt; empty: nothing does.
        data: the dataset as it was read, for the version.
    """

    deterministic = True
    place = Place.SANDBOX
    levels = (0, 0)
    needs = Level.L1

    def __init__(self, name: str, instruction: str, data: bytes, dataset: CodeDataset[Row]) -> None:
        self.name = name
        self.version = f"1+python-{sys.version_info.major}.{sys.version_info.minor}+{hashlib.sha256(data).hexdigest()[:12]}"
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
