"""`rlvr rollouts`: which rollouts, what is said of each, and that no completion can command the terminal."""

import io
import json

import pytest
from rich.console import Console

from rlvr_api.cli import UserError
from rlvr_trainer.report.records import read_step
from rlvr_trainer.report.source import RunSource
from rlvr_trainer.report.terminal import json_lines, print_rollouts, select
from rlvr_trainer.report.text import shortened, visible


@pytest.fixture
def source(memory_store, synthetic_run):
    return RunSource(synthetic_run(memory_store, steps=8, resumed_at=5), memory_store)


def printed(views, total, width=100):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    print_rollouts(views, total, console)
    return console.file.getvalue()


def test_a_step_has_all_rollouts_of_its_groups_in_their_order(source):
    step = read_step(source, 6)
    assert [group.admission.index for group in step.groups] == list(step.record.groups) == list(range(80, 96))
    assert [(view.group.admission.index, view.sample) for view in step.views] == [(index, s) for index in range(80, 96) for s in range(8)]


def test_age_counts_optimizer_steps_though_a_resume_skips_versions(source):
    # Step k ≤ 4 trains from version k − 1, later ones from version k + 1: versions 4 and 5 were never made.
    for number, fresh, older in ((4, 3, 2), (6, 7, 6)):
        views = read_step(source, number).views
        assert {(view.rollout.oldest_version, view.staleness) for view in views} == {(fresh, 0), (older, 1)}
    # Version 5 is what a group of the dead attempt may have been given; it lies between the weights of steps 4 and 5.
    assert {(view.rollout.oldest_version, view.staleness) for view in read_step(source, 5).views} == {(6, 0), (5, 1)}
    assert {(view.rollout.oldest_version, view.staleness) for view in read_step(source, 1).views} == {(0, 0)}


def test_selection_by_group_and_status(source):
    step = read_step(source, 2)
    chosen = select(step, 20, None, 3)
    assert [(view.group.admission.index, view.sample) for view in chosen] == [(20, 0), (20, 1), (20, 2)]
    failed = select(step, None, "fail", None)
    assert 0 < len(failed) < len(step.views)
    assert {view.rollout.verdict.status for view in failed} == {"fail"}


def test_errors_say_what_there_is(source, memory_store, synthetic_run):
    with pytest.raises(UserError, match="run arithmetic has no step 9; stage climb has steps 1 to 8"):
        read_step(source, 9)
    with pytest.raises(UserError, match="has no step 1000000000;"):
        read_step(source, 10**9)
    with pytest.raises(UserError, match="no stage 'clim'; it has climb"):
        read_step(source, 1, "clim")
    step = read_step(source, 1)
    with pytest.raises(UserError, match=r"consumed no group 99; its groups are 0, 1, 2.* and 4 more"):
        select(step, 99, None, None)
    with pytest.raises(UserError, match=r"no rollout with status timeout; it has \d+ pass, \d+ fail"):
        select(step, None, "timeout", None)
    memory_store.objects.clear()
    with pytest.raises(UserError, match="no step has been recorded yet"):
        read_step(source, 1)


def test_two_stages_with_the_same_step_need_a_choice(memory_store, synthetic_run):
    job = synthetic_run(memory_store, steps=2)
    stage = job.spec.stages[0]
    both = job.model_copy(update={"spec": job.spec.model_copy(update={"stages": (stage, stage.model_copy(update={"name": "second"}))})})
    for key in list(memory_store.objects):
        if key.startswith("00-climb/records/"):
            content = memory_store.objects[key].replace(b'"climb"', b'"second"')
            memory_store.put(key.replace("00-climb", "01-second"), content)
    source = RunSource(both, memory_store)
    with pytest.raises(UserError, match="stages climb, second each have a step 1; choose one with --stage"):
        read_step(source, 1)
    assert read_step(source, 1, "second").record.stage == "second"


def test_the_terminal_shows_prompt_completion_verdict_and_reason(source):
    views = select(read_step(source, 7), None, "pass", 2)
    text = printed(views, 50)
    assert views[0].group.prompt.split("?")[0] in text
    assert views[0].rollout.text in text
    for words in ("pass", "score 1", "the last integer is right", "mean log-prob", "weights v", "old", "--limit 50 shows all"):
        assert words in text


def test_no_completion_commands_the_terminal(source):
    views = select(read_step(source, 3), None, "invalid", None)
    text = printed(views, len(views), width=200)
    assert "⟨U+001B⟩[2J" in text
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "<script>" in text  # shown as it is: this is no HTML


def test_json_lines_are_ascii_and_complete(source):
    views = read_step(source, 3).views
    lines = list(json_lines(views))
    assert all(line.isascii() and "\n" not in line for line in lines)
    records = [json.loads(line) for line in lines]
    assert [record["completion"] for record in records] == [view.rollout.text for view in views]
    assert records[0]["versions"][0].keys() == {"version", "start", "end"}
    assert {"stage", "step", "group", "sample", "prompt", "status", "score", "reason", "logprob_mean", "staleness"} <= records[0].keys()


def test_visible_keeps_what_people_read():
    assert visible("héllo\n\t数学 שלום 🙂\u00a0x") == "héllo\n\t数学 שלום 🙂\u00a0x"
    assert visible("\x00\x1b\x7f\x9b\u2066\ud800\r") == "⟨U+0000⟩⟨U+001B⟩⟨U+007F⟩⟨U+009B⟩⟨U+2066⟩⟨U+D800⟩⟨U+000D⟩"


def test_shortened_keeps_both_ends():
    text = "a" * 500 + "b" * 500
    short = shortened(text, 100)
    assert short.startswith("a" * 75 + "\n")
    assert short.endswith("\n" + "b" * 25)
    assert "900 characters left out" in short
    assert shortened("x" * 100, 100) == "x" * 100
