"""Where an answer may stand in a completion: after the thinking, if there is any, and in a code block, if there is one."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from rlvr_verifier.environments.base import Score, invalid

_FENCE = re.compile(r"^[ \t]*+(```++|~~~++)[ \t]*+([A-Za-z0-9_+.-]*+)[^\n`]*+$", re.MULTILINE)
"""Nothing is given back: a line of 64 KB that is almost a fence would take seconds, in threads of the service."""


@dataclass(frozen=True, slots=True)
class Block:
    """One closed code block."""

    language: str
    """In lower case; empty where the fence names none."""
    content: str
    span: tuple[int, int]
    """From the first character of its opening fence to behind its closing one."""


def after_thinking(completion: str) -> str | Score:
    """What follows the last `</think>`; all of a completion without one. A `Score` says that the thinking never ended."""
    _, _, answer = completion.rpartition("</think>")
    if "<think>" in answer:
        return invalid("the thinking does not end: no </think> after the last <think>")
    return answer


def fenced_blocks(text: str) -> list[Block] | Score:
    """All code blocks; a `Score` says that the last one is not closed."""
    blocks: list[Block] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2]:
            blocks.append(Block(opening[2].lower(), text[opening.end() + 1 : fence.start()], (opening.start(), fence.end())))
            opening = None
    return blocks if opening is None else invalid("the last code block is not closed")


def only_answer(completion: str, languages: Collection[str], *, alone: bool = False) -> str | Score:
    """The content of the one code block after the thinking, or all that follows the thinking where there is no block.

    Args:
        languages: what the fence may name besides nothing.
        alone: no text may stand around the block.
    """
    text = after_thinking(completion)
    blocks = text if isinstance(text, Score) else fenced_blocks(text)
    if isinstance(text, Score) or isinstance(blocks, Score):
        return text if isinstance(text, Score) else invalid("the code block is not closed")
    if len(blocks) > 1:
        return invalid(f"there are {len(blocks)} code blocks, and one answer is wanted")
    if blocks and blocks[0].language not in ("", *languages):
        return invalid("the code block is in another language")
    if blocks and alone and (text[: blocks[0].span[0]] + text[blocks[0].span[1] :]).strip():
        return invalid("there is text around the code block")
    answer = (blocks[0].content if blocks else text).strip()
    return answer or invalid("there is no answer")
