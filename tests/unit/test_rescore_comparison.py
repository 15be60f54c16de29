"""What changed between the verdicts of then and of today, from pairs alone."""

import io
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.rescore.comparison import Comparer, Rescored
from rlvr_trainer.rescore.terminal import print_comparison

STATUSES = st.sampled_from(VerdictStatus)
PASS, INFRA = VerdictStatus.PASS, VerdictStatus.INFRA_ERROR


def verdict(status, version="1"):
    score = None if status is INFRA else float(status is PASS)
    return Verdict(id="x", status=status, score=score, verifier="math", verifier_version=version, reason=f"it is {status}")


def pair(before, now, problem="0", sample=0, version="2", completion="7"):
    return Rescored("climb", 1, 4, sample, "sums", problem, "3 + 4?", completion, verdict(before), verdict(now, version))


@given(st.lists(st.tuples(STATUSES, STATUSES, st.sampled_from("abc")), max_size=40))
def test_every_completion_is_counted_once_and_rates_follow_from_the_counts(pairs):
    comparer = Comparer("run", 2)
    comparer.add(pair(before, now, problem) for before, now, problem in pairs)
    found = comparer.result()
    if not pairs:
        assert found.environments == ()
        return
    (one,) = found.environments
    judged = [(before, now, problem) for before, now, problem in pairs if INFRA not in (before, now)]
    flips = [problem for before, now, problem in judged if (before is PASS) is not (now is PASS)]
    assert {(t.before, t.now): t.completions for t in one.transitions} == Counter((before, now) for before, now, _ in pairs)
    assert (one.completions, one.unjudged) == (len(judged), len(pairs) - len(judged))
    assert one.newly_paid + one.no_longer_paid == len(flips)
    assert one.paid_now - one.paid_before == one.newly_paid - one.no_longer_paid
    assert (one.tasks_with_flips, one.tasks) == (len(set(flips)), len({problem for _, _, problem in judged}))
    assert one.flip_rate == (len(flips) / len(judged) if judged else None)
    assert one.task_flip_lower <= (one.task_flip_rate or 0.0) <= one.task_flip_upper
    assert all(example.before is not example.now for example in found.examples)
    assert max(Counter((example.before, example.now) for example in found.examples).values(), default=0) <= 2


def test_the_interval_is_over_tasks_not_over_completions():
    comparer = Comparer("run", 0)
    comparer.add(pair(PASS, VerdictStatus.FAIL, problem="a", sample=sample) for sample in range(8))
    comparer.add(pair(PASS, PASS, problem=str(number)) for number in range(9))
    (one,) = comparer.result().environments
    assert (one.task_flip_rate, one.flip_rate) == (0.1, 8 / 17)
    assert one.task_flip_lower < 0.01 < 0.4 < one.task_flip_upper  # of 10 trials, not of 17


def shown(comparison):
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    print_comparison(comparison, console)
    return console.file.getvalue()


def test_what_is_shown_names_versions_changes_and_examples_and_obeys_no_completion():
    comparer = Comparer("arithmetic", 1)
    comparer.add([pair(PASS, VerdictStatus.INVALID, completion="\x1b[2J7"), pair(PASS, PASS, problem="1"), pair(INFRA, PASS, problem="2")])
    comparer.skip("the environment makes another problem of this seed today", 8)
    text = shown(comparer.result())
    for words in (
        "judged by math 1 then, by math 2 now", "0 completions newly paid, 1 no longer (50.00% flipped, mean score -0.5000)",
        "1 completion without a verdict", "left out: 8 completions, for the environment makes another problem", "pass → invalid",
        "now: it is invalid", "⟨U+001B⟩[2J7",
    ):  # fmt: skip
        assert words in text
    assert "\x1b[2J" not in text


def test_flips_of_one_and_the_same_verifier_are_called_what_they_are():
    comparer = Comparer("run", 0)
    comparer.add([pair(PASS, VerdictStatus.TIMEOUT, version="1")])
    assert "its verdicts are not repeatable" in shown(comparer.result())
    comparer.add([pair(PASS, VerdictStatus.TIMEOUT, version="3")])
    assert "not repeatable" not in shown(comparer.result())
