"""The supervised stages against a real store, killed and stopped anywhere: they end with the weights of a run that nothing disturbed."""

import hashlib
import itertools
import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import lone_run
import pytest
import torch
from lone_run import KEYS, KilledError, execute, make_job

from rlvr_api.integrity import Audit
from rlvr_api.wire import AuditVerdict, Verdict, VerdictStatus
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.collector.episode import UnjudgedError
from rlvr_trainer.context import BadInputError
from rlvr_trainer.lineage_view import find_lineage
from rlvr_trainer.metrics_log import read_steps
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.run import StopRequestedError
from rlvr_trainer.stages.rejection_sampling import NothingPassedError, keep_passed
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.records import read_records
from rlvr_trainer.storage.rollouts import read_groups

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 8
"""20 examples, 2 epochs, 5 at a time."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / "tiny"
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def make_place(s3, tmp_path_factory):
    """A folder of jobs, and a file of traces."""
    numbers = itertools.count()

    def make():
        traces = tmp_path_factory.mktemp("traces") / "traces.jsonl"
        traces.write_text("\n".join(json.dumps({"prompt": f"{n}+1=", "completion": str(n + 1)}) for n in range(20)))
        return SimpleNamespace(uri=s3.folder(f"sft-{next(numbers)}"), endpoint=s3.endpoint, traces=traces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
        yield make


@pytest.fixture
def place(make_place):
    return make_place()


@pytest.fixture(scope="module")
def undisturbed(make_place, model):
    """A whole run of one attempt, and the weights it ended with."""
    run = make_run(make_place(), model, 1)
    return run, execute(run)


SFT = {"epochs": 2, "examplesPerStep": 5, "optimizer": {"learningRate": 1e-3, "schedule": "cosine"}}
SAMPLING = {"rounds": 2, "promptsPerRound": 6, "samplesPerPrompt": 8, "keepPerPrompt": 2, "epochs": 2, "examplesPerStep": 5}


@dataclass
class Engines:
    """Samples that depend on the task alone, so that attempts can be compared: even tokens pass, and some are cut off."""

    chat: ChatFormat
    hopeless: bool = False
    asked: list[str] = field(default_factory=list)

    async def run(self, episode):
        self.asked.append(episode.id)
        rng = random.Random(episode.admission.task_seed)
        if episode.admission.index == 3:
            raise UnjudgedError("the verifier said nothing")
        rollouts = tuple(self._rollout(rng, f"{episode.id}/{number}") for number in range(episode.samples))
        prompt_ids = (4, 9 + episode.admission.index % 9, 3)
        return RolloutGroup(episode.admission, "0" * 16, prompt_ids, "1 + 1", rollouts, "rollout-0", "", 1.0, 0.1)

    def _rollout(self, rng, name):
        token, cut = rng.randrange(20, 30), rng.random() < 0.2
        passed = token % 2 == 0 and not self.hopeless
        status = VerdictStatus.PASS if passed else VerdictStatus.FAIL
        verdict = Verdict(id=name, status=status, score=float(passed), verifier="arithmetic", verifier_version="1")
        return Rollout((token, 1), (-1.0, -1.0), (VersionSpan(0, 0, 2),), "length" if cut else "stop", "", verdict)


def make_run(place, model, attempt, fuse=None, stage=None):
    job = make_job(place, model, stage or {"sft": {"traces": f"file://{place.traces}", **SFT}})
    return lone_run.make_run(job, place, model, attempt, Engines(ChatFormat(model, None, 56)), fuse)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_an_undisturbed_stage_learns_its_traces_and_takes_each_position_once(undisturbed):
    run, _ = undisturbed
    records = [committed.record for committed in read_records(run.store, KEYS)]
    assert [index for record in records for index in record.groups] == list(range(40))
    steps = read_steps(run.store)
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert steps[-1].loss < steps[0].loss - 0.5
    assert steps[0].loss == pytest.approx(4.3, abs=0.3)  # about log of the vocabulary
    assert run.evaluated == [0, STEPS]
    assert load_latest(run.store, KEYS).manifest.state.final
    assert (run.board.snapshot().step, run.board.snapshot().steps) == (STEPS, STEPS)


@pytest.mark.parametrize("fuses", [(0, None), (4, None), (7, 1, None), (5, 0, 2, None)], ids=str)
def test_a_killed_stage_ends_with_the_same_weights(place, model, undisturbed, fuses):
    for attempt, fuse in enumerate(fuses, 1):
        run = make_run(place, model, attempt, fuse)
        if fuse is None:
            found = execute(run)
        else:
            with pytest.raises(KilledError):
                execute(run)
    assert same(found, undisturbed[1])
    assert [index for committed in read_records(run.store, KEYS) for index in committed.record.groups] == list(range(40))
    assert [step.step for step in read_steps(run.store)] == list(range(1, STEPS + 1))


def test_the_manifest_says_what_the_weights_come_from(place, model, undisturbed):
    run, _ = undisturbed
    lineage = load_latest(run.store, KEYS).manifest.lineage
    assert (lineage.job, lineage.base.uri, lineage.parent) == ("default/job", f"file://{model}", None)
    (stage,) = lineage.stages
    assert (stage.name, stage.kind, stage.steps, stage.external_traces) == ("cold-start", "sft", STEPS, True)
    (dataset,) = stage.datasets
    traces = run.context.job.spec.stages[0].sft.traces
    digest = hashlib.sha256(Path(traces.removeprefix("file://")).read_bytes()).hexdigest()
    assert (dataset.uri, dataset.sha256, dataset.examples, dataset.made_by) == (traces, digest, 20, "given")
    assert [(one.environment, one.kind, one.version) for one in stage.verifiers] == [("sums", "arithmetic", "2")]
    assert find_lineage(run.store) == (run.store.uri(KEYS.manifest(STEPS)), lineage)
    assert find_lineage(run.store.below(KEYS.folder))[1] == lineage
    assert find_lineage(run.store.below(KEYS.checkpoint(6).rstrip("/")))[1].stages[0].steps == 6


def test_a_stop_commits_what_was_trained(place, model):
    run = make_run(place, model, 1)
    run.instruments.record = lambda metrics: run.stop.set() if metrics.step == 4 else None
    with pytest.raises(StopRequestedError):
        execute(run)
    manifest = load_latest(run.store, KEYS).manifest
    assert (manifest.step, manifest.state.final) == (4, False)


def test_other_traces_than_those_it_began_with_are_refused(place, model):
    with pytest.raises(KilledError):
        execute(make_run(place, model, 1, fuse=2))
    place.traces.write_text(place.traces.read_text() + '\n{"prompt": "1", "completion": "1"}')
    with pytest.raises(BadInputError, match="put the old file back"):
        execute(make_run(place, model, 2))


@pytest.fixture(scope="module")
def two_rounds(make_place, model):
    """A whole run of two rounds of rejection sampling, and the weights it ended with."""
    run = make_run(make_place(), model, 1, stage={"rejectionSampling": SAMPLING})
    return run, execute(run)


def test_rounds_of_rejection_sampling_learn_what_passed_and_account_for_every_task(two_rounds):
    run, _ = two_rounds
    records = [committed.record for committed in read_records(run.store, KEYS)]
    sampled = [record for record in records if record.rollouts]
    assert [record.groups for record in sampled] == [(0, 1, 2, 4, 5), (6, 7, 8, 9, 10, 11)]
    assert [discard.index for record in records for discard in record.discarded] == [3]
    assert len(records) == 4 + 5  # 5 and 6 tasks with 2 examples each, twice over, 5 at a time
    steps = {step.step: step for step in read_steps(run.store)}
    assert set(steps) == set(range(1, len(records) + 1))
    assert steps[1].rollouts == 40
    assert 0.2 < steps[1].pass_rate < 0.8
    assert steps[1].discarded == {"infra_error": 1}
    assert steps[2].rollouts == 0
    assert run.evaluated == [0, len(records)]
    assert run.versions.current == 2  # begin, second round, end
    assert load_latest(run.store, KEYS).manifest.state.final


@pytest.mark.parametrize(("fuses", "asked"), [((0, None), 12), ((2, None), 6), ((6, 1, None), 0)], ids=str)
def test_killed_rounds_end_with_the_same_weights_and_are_not_sampled_again_once_recorded(place, model, two_rounds, fuses, asked):
    for attempt, fuse in enumerate(fuses, 1):
        run = make_run(place, model, attempt, fuse, {"rejectionSampling": SAMPLING})
        if fuse is None:
            found = execute(run)
        else:
            with pytest.raises(KilledError):
                execute(run)
    assert same(found, two_rounds[1])
    assert [committed.record.groups for committed in read_records(run.store, KEYS)] == [
        committed.record.groups for committed in read_records(two_rounds[0].store, KEYS)
    ]
    assert len(run.runner.asked) == asked


def test_what_is_kept_passed_ended_differs_and_is_bounded(two_rounds):
    run, _ = two_rounds
    groups = read_groups(run.store, read_records(run.store, KEYS)[0].record.rollouts[0])
    kept = keep_passed(groups, 2, "0/a")
    assert len({(one.prompt_ids, one.completion_ids) for one in kept}) == len(kept)
    good = {
        (group.prompt_ids, one.token_ids)
        for group in groups
        for one in group.rollouts
        if one.verdict.status is VerdictStatus.PASS and one.finish_reason == "stop"
    }
    assert {(one.prompt_ids, one.completion_ids) for one in kept} <= good
    for group in groups:
        mine = [one for one in kept if one.prompt_ids == group.prompt_ids]
        assert len(mine) == min(2, len({ids for prompt, ids in good if prompt == group.prompt_ids}))
    assert len(keep_passed(groups, 100, "0/a")) == len(good)
    assert keep_passed(groups, 2, "0/a") == kept


def test_what_an_audit_refutes_is_not_imitated_unless_audits_only_measure(two_rounds):
    run, _ = two_rounds
    groups = read_groups(run.store, read_records(run.store, KEYS)[0].record.rollouts[0])
    audit = AuditVerdict(probability=1.0, score=0.0, verifier="final-answer", verifier_version="1")

    def refuted(one):
        return replace(one, verdict=one.verdict.model_copy(update={"audit": audit})) if one.verdict.score else one

    doubted = [replace(group, rollouts=tuple(map(refuted, group.rollouts))) for group in groups]
    assert keep_passed(doubted, 2, "0/a", Audit()) == []
    assert keep_passed(doubted, 2, "0/a", Audit(rewards="paid")) == keep_passed(groups, 2, "0/a")


def test_a_round_in_which_nothing_passes_says_what_to_do(place, model):
    run = make_run(place, model, 1, stage={"rejectionSampling": SAMPLING})
    run.runner.hopeless = True
    with pytest.raises(NothingPassedError, match="round 1 of stage cold-start keeps none of 40 completions"):
        execute(run)
    assert read_records(run.store, KEYS) == ()
