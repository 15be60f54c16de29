"""Test modules of this folder may import what several of them need from `tests/support`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))
