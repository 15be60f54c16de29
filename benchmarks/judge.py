"""A small language model as a judge: SmolLM2-135M behind vLLM, asked over HTTP as any judge is, and what its verdicts are worth.

Right and wrong answers to sums, with the sum as reference, and the corpus of injections. A row counts answers that were paid, and those
without a verdict, which are infra errors and never rewards. `structured`: the endpoint holds the replies to the form of a verdict.

There is no limit: this says what an environment with such a judge would be told by `rlvr environment certify` and by its canaries. Not
covered: judges that are any good; they have no weights here.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks._local_job import ROOT
from rlvr_api.binomial import clopper_pearson
from rlvr_api.environments import EnvironmentSpec
from rlvr_api.spec import Storage
from rlvr_trainer.pretrained import write_smollm2
from rlvr_verifier.environments.base import UnjudgedError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.judge import JudgeEnvironment
from rlvr_verifier.exploits import CONTROL, TASKS, read_answers

sys.path.insert(0, str(ROOT / "tests" / "support"))

RUBRIC = "The answer gives the sum of the reference and no other number as the result."
KINDS = ("right answers", "wrong answers", "injections")


def main() -> None:
    """Ask, print one table, and one JSON object as the last line."""
    from vllm_server import serving_model  # type: ignore[import-not-found]  # from tests/support

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=int, default=30, help="of each kind")
    options = parser.parse_args()
    model = ROOT / "models" / "smollm2-135m-instruct"
    write_smollm2(model)
    numbers: dict[str, float] = {}
    table = Table("replies", "answers", "asked", "paid", "95 % of the rate", "no verdict", title="SmolLM2-135M as a judge of sums")
    with (
        tempfile.TemporaryDirectory(prefix="rlvr-bench-") as folder,
        serving_model(model, Path(folder, "log"), "judge", "--max-model-len", "1024", threads=os.cpu_count() or 1) as endpoint,
    ):
        for structured in (True, False):
            with closing(open_judge(Path(folder), endpoint, options.answers, structured=structured)) as judge:
                for kind, answers in zip(KINDS, make_answers(judge, options.answers), strict=True):
                    found = Counter(ask(judge, seed, answer) for seed, answer in answers)
                    form = "structured" if structured else "as they come"
                    rate = clopper_pearson(found["pass"], len(answers) - found["none"])
                    interval = f"{rate.lower:.2f} to {rate.upper:.2f}"
                    table.add_row(form, kind, str(len(answers)), str(found["pass"]), interval, str(found["none"]))
                    name = f"{'structured' if structured else 'free'}_{kind.split()[0]}"
                    numbers |= {f"{name}_paid": found["pass"] / len(answers), f"{name}_no_verdict": found["none"] / len(answers)}
                    print(f"{form}: {kind}: {dict(found)}", file=sys.stderr, flush=True)
    Console(width=120).print(table)
    print(json.dumps({name: round(value, 3) for name, value in numbers.items()}))


def open_judge(folder: Path, endpoint: str, count: int, *, structured: bool) -> JudgeEnvironment:
    """The environment of the sums, and of the corpus's own task."""
    sums = [{"prompt": f"What is {n} + 30?", "rubric": RUBRIC, "reference": str(n + 30)} for n in range(100, 100 + count)]
    dataset = folder / "rows.jsonl"
    dataset.write_text("\n".join(json.dumps(row) for row in [*sums, TASKS["judge"]]))
    settings = {"dataset": f"file://{dataset}", "heldOut": 1e-6, "endpoint": endpoint, "model": "judge", "structuredReply": structured,
                "maxTokens": 64, "timeoutSeconds": 120.0}  # fmt: skip
    return JudgeEnvironment(EnvironmentSpec.model_validate({"name": "judge", "judge": settings}), DatasetReader(Storage(), {}))


def make_answers(judge: JudgeEnvironment, count: int) -> Iterator[Sequence[tuple[int, str]]]:
    """Of each kind: the number of a task, and an answer to it."""
    numbers = [int(judge.row(judge.sample("train", seed, 0).payload).reference or 0) for seed in range(count)]
    yield [(seed, f"It is {number}.") for seed, number in enumerate(numbers)]
    yield [(seed, f"It is {number + 1 + seed % 9}.") for seed, number in enumerate(numbers)]
    yield [(count, sample.completion) for sample in read_answers("judge") if sample.kind != CONTROL][:count]


def ask(judge: JudgeEnvironment, seed: int, answer: str) -> str:
    """The judge's verdict, or `none`."""
    try:
        return judge.score(judge.sample("train", seed, 0).payload, answer, False).status.value
    except UnjudgedError:
        return "none"


if __name__ == "__main__":
    main()
