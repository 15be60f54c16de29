"""The table of pass@k: one row for each `evaluate` stage, environment and level.

EvaluationResult -> pass_at_table -> PassAtTable
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlvr_trainer.metrics import EvaluationResult
from rlvr_trainer.pass_at import PassAt
from rlvr_trainer.report.figures import cell_name


@dataclass(frozen=True, slots=True)
class PassAtRow:
    """pass@k of one cell of an evaluation."""

    stage: str
    name: str
    tasks: int
    samples: int
    """Judged completions of all tasks."""
    values: Sequence[PassAt | None]
    """By the table's `ks`; None where no task has so many samples."""


@dataclass(frozen=True, slots=True)
class PassAtTable:
    """Of a run; has rows only where a stage `evaluate` has been."""

    ks: Sequence[int]
    rows: Sequence[PassAtRow]


def pass_at_table(evaluations: Sequence[EvaluationResult]) -> PassAtTable:
    """All evaluations that estimated pass@k, in their order."""
    cells = [(result, cell) for result in evaluations for cell in result.cells if cell.pass_at]
    ks = sorted({k for _, cell in cells for k in cell.pass_at})
    levels: dict[str, set[int]] = {}
    for _, cell in cells:
        levels.setdefault(cell.environment, set()).add(cell.level)
    rows = [
        PassAtRow(
            result.stage,
            cell_name(cell.environment, cell.level, len(levels[cell.environment])),
            cell.tasks,
            cell.samples,
            [cell.pass_at.get(k) for k in ks],
        )
        for result, cell in cells
    ]
    return PassAtTable(ks, rows)
