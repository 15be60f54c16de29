from datetime import UTC, datetime

import pytest

from rlvr_api.stages import Stage
from rlvr_trainer.metrics import EvaluationCell, EvaluationResult
from rlvr_trainer.metrics_log import key_of
from rlvr_trainer.promotion import NotPromotedError, check_promotion, is_reached


def result(step=3, **rates):
    cells = tuple(
        EvaluationCell(environment=name, level=0, tasks=len(found), samples=len(found), pass_rate=sum(found) / len(found),
                       task_pass_rates={f"task-{number}": rate for number, rate in enumerate(found)}, pass_at={})
        for name, found in rates.items()
    )  # fmt: skip
    return EvaluationResult(stage="climb", step=step, weight_version=1, time=datetime(2026, 1, 1, tzinfo=UTC), cells=cells)


def stage(**gate):
    return Stage.model_validate({"name": "climb", "evaluate": {}, "promoteWhen": {"atLeast": 0.6, **gate}})


def test_the_lower_bound_counts_and_not_the_mean():
    mixed = result(sums=[1.0, 1.0, 0.5, 0.5])  # 0.75 ± 3.18 · 0.2887 / 2
    assert mixed.lower_bound() == pytest.approx(0.75 - 3.182446305284263 * 0.14433756729740646)
    assert not is_reached(stage().promote_when, mixed)
    assert is_reached(stage(atLeast=0.29).promote_when, mixed)
    assert is_reached(stage().promote_when, result(sums=[1.0, 0.9, 0.95, 1.0]))


def test_one_task_or_none_promotes_nobody():
    assert not is_reached(stage().promote_when, result(sums=[1.0]))
    assert not is_reached(stage().promote_when, result())
    with pytest.raises(NotPromotedError, match=r"is 1\.000, without an interval, as there is a single task: promoteWhen\.atLeast 0\.6"):
        check_promotion(stage(), {"climb": result(sums=[1.0])}, None)


def test_a_gate_may_look_at_one_environment():
    both = result(sums=[1.0, 1.0, 1.0], words=[0.0, 0.0, 0.0])
    assert not is_reached(stage().promote_when, both)
    assert is_reached(stage(environment="sums").promote_when, both)
    with pytest.raises(NotPromotedError, match=r"eval/pass_rate of words is 0\.000, at least 0\.000 with 95 % confidence"):
        check_promotion(stage(environment="words"), {"climb": both}, None)


def test_without_a_gate_nothing_is_looked_at():
    check_promotion(Stage.model_validate({"name": "climb", "evaluate": {}}), {}, None)


def test_a_stage_below_its_gate_may_go_on_with_a_warning(caplog):
    check_promotion(stage(otherwise="Continue"), {"climb": result(sums=[0.0, 0.0])}, None)
    assert "promoteWhen.atLeast 0.6 is not reached, and the job goes on" in caplog.text


def test_a_result_of_an_earlier_attempt_is_read_from_the_store(memory_store):
    with pytest.raises(NotPromotedError, match="there is no eval/pass_rate: no held-out task was judged"):
        check_promotion(stage(), {}, memory_store)
    for found in (result(1, sums=[0.0, 0.1]), result(9, sums=[1.0, 1.0])):
        memory_store.put(key_of(found), found.to_bytes())
    check_promotion(stage(), {}, memory_store)
