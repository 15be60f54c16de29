"""What may be claimed from two evaluations: hand-computed means, errors and intervals."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.intervals import t_cdf, t_quantile
from rlvr_trainer.metrics import EvaluationResult, paired_difference, summarize_evaluation
from rlvr_trainer.rollout import Admission, Rollout, RolloutGroup, VersionSpan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
P, F, X = VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.INFRA_ERROR
SCORES = {P: 1.0, F: 0.0, X: None}


def group(task, statuses, environment="sums", level=0):
    rollouts = tuple(
        Rollout((1,), (-1.0,), (VersionSpan(3, 0, 1),), "length" if status is F else "stop", "t",
                Verdict(id=f"{task}/{index}", status=status, score=SCORES[status], verifier="v", verifier_version="1"))
        for index, status in enumerate(statuses)
    )  # fmt: skip
    return RolloutGroup(Admission(task, environment, level, task), f"{task:016d}", (1,), "p", rollouts, "e", "", 0.0, 0.0)


def evaluation(rates, step=0):
    """An evaluation whose tasks have these pass rates, in tenths."""
    return summarize_evaluation(
        (group(task, [P] * tenths + [F] * (10 - tenths)) for task, tenths in rates.items()),
        stage="climb", step=step, weight_version=3, time=NOW,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("degrees", "expected"),  # Student's table, two-sided 95 %
    [(1, 12.7062047), (2, 4.3026527), (3, 3.1824463), (7, 2.3646243), (29, 2.0452296), (100, 1.9839715), (1000, 1.9623391),
     (10_000, 1.9602012)],
)  # fmt: skip
def test_t_quantile_agrees_with_the_table(degrees, expected):
    assert t_quantile(0.975, degrees) == pytest.approx(expected, abs=1e-6)
    assert t_quantile(0.025, degrees) == pytest.approx(-expected, abs=1e-6)


@given(st.floats(0.501, 0.9995), st.integers(1, 1000))
def test_t_quantile_inverts_the_distribution_function(probability, degrees):
    assert t_cdf(t_quantile(probability, degrees), degrees) == pytest.approx(probability, abs=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_t_quantile_refuses_what_has_no_quantile(probability, degrees):
    with pytest.raises(ValueError, match="degree of freedom"):
        t_quantile(probability, degrees)


def test_a_cell_averages_tasks_and_its_error_is_clustered_by_task():
    result = summarize_evaluation(
        [group(0, [P, P, F, F]), group(1, [F, F, F, F]), group(2, [P, P, P, X])], stage="climb", step=0, weight_version=3, time=NOW
    )
    (cell,) = result.cells
    # Task rates 0.5, 0 and 3/3: the masked sample leaves its task's average.
    assert list(cell.task_pass_rates.values()) == [0.5, 0.0, 1.0]
    assert cell.pass_rate == pytest.approx(0.5)
    assert (cell.tasks, cell.samples, cell.masked, cell.truncated) == (3, 11, 1, 6)
    # s² = (0² + 0.5² + 0.5²) / 2 = 0.25, so the error is 0.5 / √3.
    assert cell.standard_error == pytest.approx(0.5 / math.sqrt(3))


def test_cells_are_split_by_environment_and_level_and_unjudged_tasks_are_left_out():
    groups = [group(0, [P, F]), group(1, [P, P], level=1), group(2, [X, X]), group(3, [F, F], environment="words")]
    result = summarize_evaluation(groups, stage="climb", step=4, weight_version=3, time=NOW)
    assert [(cell.environment, cell.level, cell.pass_rate) for cell in result.cells] == [
        ("sums", 0, 0.5),
        ("sums", 1, 1.0),
        ("words", 0, 0.0),
    ]
    assert result.pass_rate() == pytest.approx(0.5)
    assert result.pass_rate("sums") == pytest.approx(0.75)
    assert result.pass_rate("none") is None
    assert result.cells[0].standard_error is None


def test_paired_difference_by_hand():
    before, after = evaluation({0: 1, 1: 2, 2: 3, 3: 4}), evaluation({0: 5, 1: 8, 2: 7, 3: 8}, step=6)
    # Differences 0.4, 0.6, 0.4, 0.4: mean 0.45, s = √(0.03 / 3) = 0.1, error 0.05, t(0.975, 3) = 3.18245.
    mean, lower, upper = paired_difference(before, after)
    assert mean == pytest.approx(0.45)
    assert lower == pytest.approx(0.45 - 3.1824463 * 0.05, abs=1e-6)
    assert upper == pytest.approx(0.45 + 3.1824463 * 0.05, abs=1e-6)


def test_pairing_takes_out_what_tasks_differ_in():
    before, after = evaluation({0: 0, 1: 9}), evaluation({0: 1, 1: 10})
    mean, lower, upper = paired_difference(before, after)
    assert (mean, lower, upper) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))


def test_only_shared_tasks_count_and_one_is_too_few():
    before, after = evaluation({0: 1, 1: 2, 2: 9}), evaluation({0: 3, 1: 4, 3: 0})
    assert paired_difference(before, after).mean == pytest.approx(0.2)
    with pytest.raises(ValueError, match="share 1 held-out tasks"):
        paired_difference(evaluation({0: 1, 1: 2}), evaluation({1: 3, 5: 4}))


@given(st.dictionaries(st.integers(0, 20), st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=2))
def test_the_interval_holds_its_mean_and_turns_with_the_sign(pairs):
    before = evaluation({task: rates[0] for task, rates in pairs.items()})
    after = evaluation({task: rates[1] for task, rates in pairs.items()})
    there, back = paired_difference(before, after), paired_difference(after, before)
    assert there.lower <= there.mean <= there.upper
    assert (there.mean, there.lower, there.upper) == pytest.approx((-back.mean, -back.upper, -back.lower))


def test_an_evaluation_survives_json():
    result = evaluation({0: 3, 1: 4})
    assert EvaluationResult.model_validate_json(result.to_bytes()) == result
