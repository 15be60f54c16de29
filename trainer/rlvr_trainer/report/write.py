"""Reads runs and writes their page: the file is complete or not there."""

import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rlvr_api.cli import UserError
from rlvr_trainer.metrics_log import MetricsUnreadableError
from rlvr_trainer.report.comparison import render_comparison
from rlvr_trainer.report.page import render
from rlvr_trainer.report.run_data import RunData, load_run_data
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.storage.errors import StorageError


def write_report(source: RunSource, output: Path) -> Path:
    """Write the page of a run to `output` and return its absolute path.

    Raises:
        UserError: the run cannot be read, or the file not written.
    """
    return _write(render(load_run(source), datetime.now(UTC)), output)


def write_comparison(runs: Sequence[RunData], output: Path) -> Path:
    """Write the page that compares runs to `output` and return its absolute path.

    Raises:
        UserError: the runs cannot be compared, or the file not written.
    """
    return _write(render_comparison(runs, datetime.now(UTC)), output)


def load_run(source: RunSource) -> RunData:
    """Read a run; raises UserError when it cannot be."""
    try:
        return load_run_data(source)
    except (StorageError, MetricsUnreadableError) as error:
        raise UserError(str(error)) from error


def _write(page: str, output: Path) -> Path:
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(page)
            Path(draft).chmod(0o644)
            Path(draft).replace(output)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}; choose another file with --output") from error
    return output
