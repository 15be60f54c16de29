"""Says what failed without an exception's own words, in which a gold answer may be quoted."""

import traceback
from pathlib import Path


def fault(error: BaseException) -> str:
    """Type and origin of an exception, for example `ValueError at math_problems.py:88 in judge`."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno} in {last.name}"
