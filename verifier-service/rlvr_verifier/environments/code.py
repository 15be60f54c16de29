"""What the environments whose answers are code have in common: the code in a completion, and that it runs in the sandbox."""

import sys
from typing import Generic

from rlvr_verifier.environments.answers import after_thinking, fenced_blocks
from rlvr_verifier.environments.base import Place, Score, invalid
from rlvr_verifier.environments.prompts import PromptDataset, PromptEnvironment, Row

TITLES = {"python": "Python", "c": "C", "cpp": "C++", "go": "Go", "javascript": "JavaScript"}
"""Languages as people write them."""
_FENCES = {
    "python": ("", "python", "python3", "py"), "c": ("", "c"), "cpp": ("", "cpp", "c++", "cc", "cxx"), "go": ("", "go", "golang"),
    "javascript": ("", "javascript", "js", "node", "nodejs"),
}  # fmt: skip


def extract_code(completion: str, language: str = "python") -> str | Score:
    """The last code block of a language after the thinking; a `Score` says why there is none."""
    text = after_thinking(completion)
    blocks = text if isinstance(text, Score) else fenced_blocks(text)
    if isinstance(blocks, Score):
        return blocks
    code = [block.content for block in blocks if block.language in _FENCES[language]]
    if not code:
        return invalid(f"there is no {TITLES[language]} code block")
    return code[-1] if code[-1].strip() else invalid("the code block is empty")


_PYTHON = f"python-{sys.version_info.major}.{sys.version_info.minor}"


class CodeEnvironment(PromptEnvironment[Row], Generic[Row]):
    """A dataset of code to write, judged in the sandbox."""

    place = Place.SANDBOX
    _SCORER = "1"

    def __init__(self, name: str, instruction: str, data: bytes, dataset: PromptDataset[Row], runtime: str = _PYTHON) -> None:
        super().__init__(name, f"{self._SCORER}+{runtime}", instruction, data, dataset)
        self.scorer_version = self._SCORER
