"""What the environments whose answers are code have in common: the code in a completion, and that it runs in the sandbox."""

import sys
from typing import Generic

from rlvr_verifier.environments.answers import after_thinking, fenced_blocks
from rlvr_verifier.environments.base import Place, Score, invalid
from rlvr_verifier.environments.prompts import PromptDataset, PromptEnvironment, Row

_LANGUAGES = ("", "python", "python3", "py")


def extract_code(completion: str) -> str | Score:
    """The last Python code block after the thinking; a `Score` says why there is none."""
    text = after_thinking(completion)
    blocks = text if isinstance(text, Score) else fenced_blocks(text)
    if isinstance(blocks, Score):
        return blocks
    python = [block.content for block in blocks if block.language in _LANGUAGES]
    if not python:
        return invalid("there is no Python code block")
    return python[-1] if python[-1].strip() else invalid("the code block is empty")


class CodeEnvironment(PromptEnvironment[Row], Generic[Row]):
    """A dataset of code to write, judged in the sandbox."""

    place = Place.SANDBOX

    def __init__(self, name: str, instruction: str, data: bytes, dataset: PromptDataset[Row]) -> None:
        super().__init__(name, f"1+python-{sys.version_info.major}.{sys.version_info.minor}", instruction, data, dataset)
        self.scorer_version = "1"
