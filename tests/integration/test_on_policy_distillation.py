"""A student that samples, a teacher that is asked over real HTTP what it thinks of it, and a process that dies between."""

import itertools
import json
from types import SimpleNamespace

import lone_run
import pytest
import torch
from lone_run import KEYS, KilledError, execute, make_job
from teacher_server import TeacherServer, garbage, status
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM

from rlvr_api.wire import Verdict, VerdictStatus
from rlvr_trainer.chat import ChatFormat
from rlvr_trainer.context import BadInputError
from rlvr_trainer.metrics_log import read_steps
from rlvr_trainer.pretrained import write_tiny_model
from rlvr_trainer.rollout import Rollout, RolloutGroup, VersionSpan
from rlvr_trainer.stages.on_policy_distillation import NobodyTaughtError
from rlvr_trainer.storage.checkpoint_reader import load_latest
from rlvr_trainer.storage.records import read_records

pytestmark = pytest.mark.usefixtures("one_thread")

STAGE = {"steps": 7, "promptsPerStep": 6, "samplesPerPrompt": 4, "optimizer": {"learningRate": 3e-3}}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opd")
    for seed in (0, 1):
        write_tiny_model(folder / str(seed), seed)
    return folder / "0", folder / "1"


@pytest.fixture(scope="module")
def make_place(s3):
    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
        yield lambda: SimpleNamespace(uri=s3.folder(f"opd-{next(numbers)}"), endpoint=s3.endpoint)


class Student:
    """Samples two tokens a completion from the policy's weights; the same for a task in every attempt."""

    def __init__(self, folder):
        self.chat, self.model, self.run_ = ChatFormat(folder, None, 56), AutoModelForCausalLM.from_pretrained(folder), None

    async def run(self, episode):
        self.model.load_state_dict(self.run_.policy.engine_named_tensors(), strict=False)
        generator = torch.Generator().manual_seed(episode.admission.index)
        prompt = (4, 9 + episode.admission.index % 9, 3)
        rollouts = tuple(self._rollout(prompt, generator, f"{episode.id}/{number}") for number in range(episode.samples))
        return RolloutGroup(episode.admission, "0" * 16, prompt, "1 + 1", rollouts, "rollout-0", "", 1.0, 0.1)

    def _rollout(self, prompt, generator, name):
        tokens, logprobs = [], []
        for _ in range(2):
            with torch.no_grad():
                scores = log_softmax(self.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1], -1)
            tokens.append(int(torch.multinomial(scores.exp(), 1, generator=generator)))
            logprobs.append(float(scores[tokens[-1]]))
        verdict = Verdict(id=name, status=VerdictStatus.FAIL, score=0.0, verifier="arithmetic", verifier_version="1")
        return Rollout(tuple(tokens), tuple(logprobs), (VersionSpan(0, 0, 2),), "length", "", verdict)


@pytest.fixture
def teacher(models):
    model = AutoModelForCausalLM.from_pretrained(models[1])

    def score(ids):
        with torch.no_grad():
            scores = log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
        return [(ids[0], None), *((token, float(scores[place, token])) for place, token in enumerate(ids[1:]))]

    with TeacherServer() as server:
        server.score = score
        yield server


@pytest.fixture
def make_run(models, teacher):
    def make(place, attempt=1):
        stage = {**STAGE, "teacher": {"endpoint": teacher.endpoint, "model": "sage", "requestsInFlight": 4}}
        job = make_job(place, models[0], {"onPolicyDistillation": stage}, deadlines={"stallSeconds": 20})
        runner = Student(models[0])
        run = lone_run.make_run(job, place, models[0], attempt, runner)
        runner.run_ = run
        return run

    return make


def test_the_student_moves_towards_its_teacher_and_the_run_says_so(make_place, make_run, teacher):
    run = make_run(make_place())
    execute(run)
    steps = read_steps(run.store)
    assert [step.step for step in steps] == list(range(1, 8))
    assert all(step.groups == 6 and step.rollouts == 24 and step.tokens_trained == 48 for step in steps)
    assert steps[-1].loss < 0.75 * steps[0].loss, "reverse KL, nats a token"
    assert len(teacher.requests) == 7 * 24
    assert [item.record.groups for item in read_records(run.store, KEYS)][:2] == [tuple(range(6)), tuple(range(6, 12))]
    (stage,) = load_latest(run.store, KEYS).manifest.lineage.stages
    assert (stage.kind, stage.external_traces, stage.steps) == ("on_policy_distillation", True, 7)
    asked = teacher.requests[0][3]
    assert (asked["prompt_logprobs"], asked["max_tokens"], len(asked["prompt"])) == (0, 1, 5)


def dying(run, last_step):
    """The run, whose process dies right after a step."""

    def record(metrics):
        if metrics.step == last_step:
            raise KilledError

    run.instruments.record = record
    return run


def test_a_killed_run_ends_with_the_same_weights_and_asks_nothing_twice(make_place, make_run, teacher):
    place, other = make_place(), make_place()
    wanted = execute(make_run(place))
    undisturbed = len(teacher.requests)
    for attempt, last_step in enumerate((2, 5), 1):
        with pytest.raises(KilledError):
            execute(dying(make_run(other, attempt), last_step))
    run = make_run(other, 3)
    found = execute(run)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    records = [item.record for item in read_records(run.store, KEYS)]
    assert [index for record in records for index in record.groups] == list(range(42))
    assert len(teacher.requests) == 2 * undisturbed


def test_completions_that_the_teacher_cannot_score_are_masked(make_place, make_run, teacher):
    other_tokenizer = json.dumps({"choices": [{"prompt_logprobs": [None, {"7": {"logprob": -1.0}}]}]}).encode()
    teacher.faults.extend([status(400), lambda handler: handler.send(200, other_tokenizer, "application/json"), garbage, None, status(429)])
    run = make_run(make_place())
    execute(run)
    assert read_steps(run.store)[0].masked == 2
    assert read_steps(run.store)[0].tokens_trained == 44


def test_a_server_that_gives_no_log_probs_is_named(make_place, make_run, teacher):
    teacher.score = lambda ids: [(token, None) for token in ids]
    with pytest.raises(NobodyTaughtError, match=r"scored no completion of step 1 \(\{'teacher_silent': 6\}\)"):
        execute(make_run(make_place()))


def test_a_wrong_key_ends_the_job(make_place, make_run, teacher):
    teacher.always = status(401)
    with pytest.raises(BadInputError, match="set TEACHER_API_KEY"):
        execute(make_run(make_place()))
