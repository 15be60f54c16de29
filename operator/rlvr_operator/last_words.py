"""Why a process ended, in the words that its log ends with. Pure."""

import re
from itertools import pairwise

WARNING = re.compile(r"\S+:\d+: \w*Warning: ")
"""As Python prints one; the line of source that follows it is indented."""


def last_words(log: str, max_characters: int) -> str:
    """The line of a log's tail that says why: the last one that begins with `error:`, else the last that is neither empty nor a warning.

    A learner that ends in order leaves numbers there (`last_progress`), no words. Control characters are left out.
    """
    lines = [
        "".join(character for character in line.strip() if character.isprintable())
        for before, line in pairwise(["", *log.splitlines()])
        if not line.startswith("{") and not WARNING.match(line) and not (WARNING.match(before) and line.startswith(" "))
    ]
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or [line for line in lines if line] or [""])[-1].removeprefix("error:").strip()[:max_characters]
