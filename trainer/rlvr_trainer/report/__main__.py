"""`python -m rlvr_trainer.report`: writes the page of a job whose object store is up, for the runtime at the end of a run.

Reads what the learner reads: RLVR_JOB_FILE, RLVR_S3_ENDPOINT and the AWS_ credentials. Exit codes are those of `rlvr`.
"""

import argparse
import os
import sys
from pathlib import Path

from rlvr_api.cli import BAD_INPUT, UserError
from rlvr_api.process import Variable
from rlvr_trainer.report.source import RunSource, open_store, read_job
from rlvr_trainer.report.write import write_report


def main() -> int:
    """Parse the arguments and write the page."""
    parser = argparse.ArgumentParser(prog="python -m rlvr_trainer.report", description="Write the HTML report of a run.")
    parser.add_argument(
        "--job", type=Path, default=os.environ.get(Variable.JOB_FILE), help=f"the resolved job; default ${Variable.JOB_FILE}"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    if arguments.job is None:
        parser.error(f"give --job, or set {Variable.JOB_FILE}")
    try:
        job = read_job(Path(arguments.job))
        store = open_store(job, job.spec.storage.endpoint or os.environ.get(Variable.S3_ENDPOINT))
        print(write_report(RunSource(job, store), arguments.output))
    except UserError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
