"""pass@k on the page, and a run whose stages do not all end where they were planned to."""

from datetime import UTC, datetime

import pytest

from rlvr_api.conditions import Phase
from rlvr_api.spec import RLVRJob
from rlvr_api.status import RLVRJobStatus
from rlvr_trainer.metrics import EvaluationCell, EvaluationResult, StepMetrics
from rlvr_trainer.pass_at import estimate_pass_at
from rlvr_trainer.report.charts import Line, Mark, line_chart
from rlvr_trainer.report.page import render, run_state
from rlvr_trainer.report.pass_at_rows import pass_at_table
from rlvr_trainer.report.run_data import RunData
from rlvr_trainer.storage.lineage import Contamination, Dataset, Lineage, SourceModel, StageLineage

TIME = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def job(synthetic_run):
    made = synthetic_run.make_job(steps=30)
    climb = made.spec.stages[0].model_dump(by_alias=True, exclude_none=True)
    stages = [climb, {"name": "measure", "evaluate": {"k": [1, 4]}}]
    return RLVRJob.model_validate({**made.model_dump(by_alias=True), "spec": {**made.spec.model_dump(by_alias=True), "stages": stages}})


def cell(environment, level, passed, k=(1, 4)):
    tasks = [(8, count) for count in passed]
    return EvaluationCell(
        environment=environment, level=level, tasks=len(tasks), samples=8 * len(tasks), pass_rate=sum(passed) / (8 * len(tasks)),
        task_pass_rates={str(number): count / 8 for number, count in enumerate(passed)},
        pass_at={n: estimate_pass_at(n, tasks) for n in k},
    )  # fmt: skip


def result(stage, index, step, *cells):
    return EvaluationResult(stage=stage, stage_index=index, step=step, weight_version=3, time=TIME, cells=cells)


def step(number):
    return StepMetrics(
        stage="climb", step=number, attempt=1, time=TIME, weight_version=number, groups=1, live_groups=1, rollouts=8, tokens_trained=8
    )


def test_a_row_for_each_environment_and_level_with_intervals(job):
    evaluations = [
        result("climb", 0, 5, cell("sums", 0, [1], ())),
        result("measure", 1, 0, cell("products", 0, [4, 4]), cell("sums", 0, [8, 0, 4]), cell("sums", 1, [0, 0])),
    ]
    table = pass_at_table(evaluations)
    assert table.ks == [1, 4]
    assert [(row.stage, row.name, row.tasks) for row in table.rows] == [
        ("measure", "products", 2), ("measure", "sums, level 0", 3), ("measure", "sums, level 1", 2),
    ]  # fmt: skip
    page = render(RunData(job, [step(1)], evaluations, ()), TIME)
    assert "pass@4" in page
    mean = (1 + 0 + (1 - 1 / 70)) / 3  # C(4, 4) / C(8, 4) = 1 / 70 draws of four have none that passed
    assert f"{mean * 100:.1f}" in page


def test_a_cell_without_enough_samples_says_so(job):
    table = [result("measure", 1, 0, cell("sums", 0, [4, 4]), cell("products", 0, [4, 4], (1,)))]
    assert "too few samples" in render(RunData(job, [], table, ()), TIME)


def test_without_an_evaluate_stage_there_is_no_table(job):
    assert "pass@" not in render(RunData(job, [step(1)], [result("climb", 0, 0, cell("sums", 0, [1], ()))], ()), TIME)


def test_a_stage_that_its_gate_ended_counts_the_steps_it_took(job):
    steps = [step(number) for number in range(1, 6)]
    during = RunData(job, steps, [result("climb", 0, 5, cell("sums", 0, [1]))], ())
    assert (during.planned_steps, run_state(during)[0]) == (30, "5 of 30 steps")
    after = RunData(job, steps, [*during.evaluations, result("measure", 1, 0, cell("sums", 0, [1]))], ())
    assert (after.planned_steps, run_state(after)[0]) == (5, "complete")
    assert after.position(after.evaluations[-1]) == 5


def test_a_run_that_succeeded_is_complete_whatever_was_planned(job):
    data = RunData(job, [step(1)], (), (), RLVRJobStatus(phase=Phase.SUCCEEDED))
    assert run_state(data) == ("complete", "up")


def test_words_of_near_marks_do_not_run_into_one_another():
    marks = [Mark(50, "self-sft"), Mark(52, "climb"), Mark(99, "last")]
    chart = line_chart([Line("rate", [(0, 0.1), (100, 0.2)], 1)], label="", marks=marks)
    rows = {word: chart.split(f">{word}<")[0].rsplit(' y="', 1)[1].split('"')[0] for word in ("self-sft", "climb", "last")}
    assert rows["self-sft"] != rows["climb"]
    assert rows["last"] == rows["self-sft"]


def test_the_page_says_what_the_weights_come_from_and_warns_of_a_test_that_was_learned(job):
    found = Contamination(references=23, found={"ngram": 2}, shown=("line 1 holds a held-out task of sums (ngram)",))
    dataset = Dataset(uri="s3://data/<t>.jsonl", sha256="0" * 64, examples=9, made_by="given", contamination=found)
    stage = StageLineage(name="cold", kind="sft", steps=3, external_traces=True, datasets=(dataset,))
    lineage = Lineage(job="default/j", base=SourceModel(uri="file:///m", sha256="1" * 64), stages=(stage,))
    evaluations = [result("climb", 0, number, cell("sums", 0, [1, 2])) for number in (0, 1)]
    page = render(RunData(job, [step(1)], evaluations, (), None, lineage), TIME)
    assert "2 examples of s3://data/&lt;t&gt;.jsonl hold held-out tasks" in page
    assert "external traces  default/j/cold\ntrained by default/j" in page
    assert "what was learned" not in render(RunData(job, [step(1)], evaluations, ()), TIME)


def test_shares_of_several_environments_are_drawn_and_of_one_are_not(job):
    def mixed(number, **shares):
        return step(number).model_copy(update={"shares": shares, "effective_environments": 1.72})

    page = render(RunData(job, [mixed(1, sums=0.5, products=0.5), mixed(2, sums=0.25, products=0.75)], (), ()), TIME)
    assert "Prompts by environment" in page
    assert "1.72 of 2" in page
    assert "Prompts by environment" not in render(RunData(job, [mixed(1, sums=1.0), mixed(2, sums=1.0)], (), ()), TIME)
