"""Environments whose answers are code, in a real sandbox: datasets, verdicts, and a corpus of wrong programs of which none is paid."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from verifier_jobs import open_functions, write_rows

from rlvr_api.binomial import clopper_pearson
from rlvr_api.environments import EnvironmentSpec, Stdio
from rlvr_api.integrity import Integrity
from rlvr_api.spec import RLVRJob, Storage
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.app import build_app
from rlvr_verifier.drain import Drain
from rlvr_verifier.environments import open_sandboxed
from rlvr_verifier.environments.base import EnvironmentSetupError, Score, UnjudgedError
from rlvr_verifier.environments.code import extract_code
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.generated_inputs import BATCH_INPUTS, batch_number
from rlvr_verifier.environments.python_functions import PythonFunctionsEnvironment
from rlvr_verifier.environments.stdio import StdioEnvironment
from rlvr_verifier.exploits import SUM, Sample, read_code
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.pool import WorkerPool
from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.source import ChildSlots
from rlvr_verifier.sandboxed import SandboxedScorers
from rlvr_verifier.seal import Seal
from rlvr_verifier.service import VerifierService

ADD = {
    "prompt": "Print the sum.",
    "tests": [{"input": "1\n2\n3\n", "output": "6\n"}, {"input": "-4\n5", "output": "1"}, {"input": "", "output": "0"}],
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(1)
    yield made
    made.close()


def open_programs(folder: Path, sandbox: Sandbox, *rows: object, **settings: Any) -> StdioEnvironment:
    kind = Stdio(dataset=write_rows(folder, *rows), held_out=0.0001, **settings)
    return StdioEnvironment(EnvironmentSpec(name="programs", stdio=kind), DatasetReader(Storage(), {}), sandbox)


def fence(source: str) -> str:
    return f"```python\n{source}\n```"


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> PythonFunctionsEnvironment:
    return open_functions(tmp_path_factory.mktemp("sums"), sandbox, SUM, time_limit_seconds=2.0)


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> PythonFunctionsEnvironment:
    return open_functions(tmp_path_factory.mktemp("tested"), sandbox, TESTED, time_limit_seconds=2.0)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> StdioEnvironment:
    return open_programs(tmp_path_factory.mktemp("programs"), sandbox, ADD, time_limit_seconds=3.0)


@pytest.mark.parametrize("sample", list(read_code("functions")), ids=lambda sample: sample.name)
def test_no_wrong_function_is_paid_and_every_right_one_is(sums: PythonFunctionsEnvironment, sample: Sample) -> None:
    score = sums.score(sums.sample("train", 0, 0).payload, sample.completion, False)
    assert (score.status is VerdictStatus.PASS) is sample.is_right, score.reason


@pytest.mark.parametrize("sample", list(read_code("programs")), ids=lambda sample: sample.name)
def test_no_wrong_program_is_paid_and_every_right_one_is(programs: StdioEnvironment, sample: Sample) -> None:
    score = programs.score(programs.sample("train", 0, 0).payload, sample.completion, False)
    assert (score.status is VerdictStatus.PASS) is sample.is_right, score.reason


def test_after_the_corpus_the_sandbox_keeps_out_what_it_kept_out_before(sandbox: Sandbox, sums: PythonFunctionsEnvironment) -> None:
    payload = sums.sample("train", 0, 0).payload
    assert sums.score(payload, fence("def f(xs): return sum(xs)"), False).status is VerdictStatus.PASS


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nold\n```\n```Python3\nnew\n```", "new\n"),
        ("<think>```python\nx\n```</think>```python\ny\n```", "y\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\nx\n```\n```text\nout\n```", "x\n"),
        ("```python\r\nx = 1\r\n```", "x = 1\r\n"),
    ],
)
def test_the_last_python_block_is_the_code(completion: str, code: str) -> None:
    assert extract_code(completion) == code


@pytest.mark.parametrize(
    "completion", ["", "<think>```python\nx\n```", "def f(xs): return 1", "```python\ndef f", "```python\n \n```", "```json\n{}\n```"]
)
def test_what_is_no_single_closed_block_is_invalid(completion: str) -> None:
    code = extract_code(completion)
    assert isinstance(code, Score)
    assert code.status is VerdictStatus.INVALID


def test_types_and_tolerance(tmp_path: Path, sandbox: Sandbox) -> None:
    row = {"prompt": "Third of it.", "entryPoint": "f", "hidden": [[1.0], [2.0]], "reference": "def f(x): return (x / 3, [x])"}
    environment = open_functions(tmp_path, sandbox, row)
    payload = environment.sample("train", 0, 0).payload
    verdicts = {
        source: environment.score(payload, fence(f"def f(x): return {source}"), False).status
        for source in ("(x * (1 / 3), [x])", "[x / 3, [x]]", "(x / 3.001, [x])", "(x / 3, [int(x)])")
    }
    assert list(verdicts.values()) == [VerdictStatus.PASS, VerdictStatus.FAIL, VerdictStatus.FAIL, VerdictStatus.FAIL]


def test_faults_of_a_dataset_are_listed_by_line(tmp_path: Path, sandbox: Sandbox) -> None:
    def row(**changes: object) -> dict[str, object]:
        return {**SUM, **changes}

    rows = [
        SUM,
        SUM,
        row(prompt="a", reference="def f(xs): return 1 / 0"),
        row(prompt="b", reference="def f(xs): return float('nan')"),
        row(prompt="c", expected=[6, 0, 0, -6, 2**32, 2**53 + 1, 10, 4951]),
        row(prompt="d", reference="def f(xs): return object()"),
    ]
    with pytest.raises(EnvironmentSetupError) as caught:
        open_functions(tmp_path, sandbox, *rows)
    for words in (
        "line 2 repeats the prompt of line 1",
        "line 3: its reference fails: the code raised ZeroDivisionError",
        "line 4: the value of input 0 has NaN",
        "line 5: its reference and expected disagree on input 7",
        "line 6: its reference fails: the code raised NotCanonicalError",
    ):
        assert words in str(caught.value)
    with pytest.raises(
        EnvironmentSetupError,
        match=r"line 1: .*neither reference nor expected.*line 2: .*6 values for 8.*; line 3: .*neither hidden nor tests",
    ):
        open_functions(tmp_path, sandbox, row(reference=None), row(expected=[0] * 6), row(hidden=[]))
    with pytest.raises(EnvironmentSetupError, match="line 1: the output of a test is empty"):
        open_programs(tmp_path, sandbox, {"prompt": "x", "tests": [{"input": "1", "output": " \n"}]})


def test_the_bytes_that_go_into_the_sandbox_do_not_depend_on_the_answers(tmp_path: Path, sandbox: Sandbox) -> None:
    """Two worlds: the same inputs with different expected values. What is sent, and what comes back, is the same."""
    sent: list[list[bytes]] = []
    for name, expected in (("one", [1, 2]), ("two", [None, "x"])):
        (tmp_path / name).mkdir()
        row = {"prompt": "?", "entryPoint": "f", "hidden": [[1], [2]], "expected": expected}
        recorder = Recorder(sandbox)
        environment = open_functions(tmp_path / name, recorder, row)  # type: ignore[arg-type]
        source = (
            "import gc, sys\ndef f(x): return sorted(str(type(o)) for o in gc.get_objects() if isinstance(o, dict) and 'inputs' in o) + [x]"
        )
        for _ in range(20):
            environment.score({"row": environment.sample("train", 0, 0).payload["row"]}, fence(source), False)
        sent.append(sorted(set(recorder.messages)))
        sent.append(sorted(set(recorder.outputs)))
    assert sent[0] == sent[2]
    assert sent[1] == sent[3]
    assert len(sent[0]) == 2, "both orders of the two inputs were seen, so they are shuffled"


def test_a_twin_that_nothing_can_pass_is_never_paid(tmp_path: Path, sandbox: Sandbox) -> None:
    """Each input is asked twice, with two values: whatever passes has not been judged by what it returns."""
    inputs = [[[1, 2, 3]], [[]], [[5, -5]]]
    twin = {"prompt": "Write f.", "entryPoint": "f", "hidden": inputs * 2, "expected": [6, 0, 0, 7, 1, 1]}
    environment = open_functions(tmp_path, sandbox, twin, time_limit_seconds=1.0)
    payload = environment.sample("train", 0, 0).payload
    tried = [sample for sample in read_code("functions") if sample.kind not in ("bombs", "resources")]
    paid = [sample.name for sample in tried if environment.score(payload, sample.completion, False).status is VerdictStatus.PASS]
    assert not paid
    assert clopper_pearson(0, len(tried)).upper < 0.05


EQUAL_IN_PYTHON = "returns a float"
"""An assert pays it, since 6 == 6.0; values that are compared with their types do not."""
TESTED = {
    "prompt": "Write f(xs), the sum of a list of integers.",
    "entryPoint": "f",
    "tests": [
        "assert f([1, 2, 3]) == 6\nassert f([]) == 0",
        "def check(g):\n    assert g([-3, -4, 1]) == -6\n    assert g([2147483648, 2147483648]) == 4294967296",
        f"assert f([9007199254740992, 1]) == 9007199254740993\nassert f({[*range(100)]}) == 4950",
    ],
}


@pytest.mark.parametrize(
    "sample", [one for one in read_code("functions") if one.kind != "bombs" and one.name != EQUAL_IN_PYTHON], ids=lambda sample: sample.name
)
def test_asserts_pay_no_wrong_function_either(tested: PythonFunctionsEnvironment, sample: Sample) -> None:
    score = tested.score(tested.sample("train", 0, 0).payload, sample.completion, False)
    assert (score.status is VerdictStatus.PASS) is sample.is_right, score.reason


def test_tests_that_cannot_be_read_or_that_the_reference_fails_are_listed_by_line(tmp_path: Path, sandbox: Sandbox) -> None:
    rows = [
        {**TESTED, "prompt": "a", "tests": ["x = 1\nassert f([x]) == 1"]},
        {**TESTED, "prompt": "b", "reference": "def f(xs): return len(xs)"},
        {**TESTED, "prompt": "c", "hidden": [[[1]]]},
    ]
    with pytest.raises(EnvironmentSetupError, match=r"line 3: .*leave those out"):
        open_functions(tmp_path, sandbox, *rows)
    with pytest.raises(EnvironmentSetupError) as caught:
        open_functions(tmp_path, sandbox, *rows[:2])
    assert "line 1: a test cannot be read as a call: line 1 of a test, 'x = 1', is no call" in str(caught.value)
    assert "line 2: its reference fails assert 0 of its tests" in str(caught.value)


class Recorder:
    """A sandbox that remembers what went in and what came out."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self.messages: list[bytes] = []
        self.outputs: list[bytes] = []

    def run(self, item: Any) -> Any:
        self.messages.append(item.message())
        done = self._sandbox.run(item)
        self.outputs.append(done.output)
        return done


def make_job(functions: str, programs: str) -> RLVRJob:
    return RLVRJob.model_validate({
        "apiVersion": "rlvr.dev/v1alpha1",
        "kind": "RLVRJob",
        "metadata": {"name": "code"},
        "spec": {
            "model": {"uri": "file:///none"},
            "environments": [
                {"name": "code", "pythonFunctions": {"dataset": functions}},
                {"name": "programs", "stdio": {"dataset": programs}},
            ],
            "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
        },
    })  # fmt: skip


def test_code_is_judged_over_http_and_the_level_is_published(tmp_path: Path) -> None:
    (tmp_path / "programs").mkdir()
    more = [{**SUM, "prompt": f"Sum {n}."} for n in range(9)]
    job = make_job(write_rows(tmp_path, *more), write_rows(tmp_path / "programs", *[{**ADD, "prompt": f"Add {n}."} for n in range(9)]))
    sandbox, instruments = Sandbox(1), Instruments()
    pool = WorkerPool(job.model_dump_json(), job.spec)
    scorers = SandboxedScorers(sandbox, 1)
    service = VerifierService(job.spec, open_sandboxed(job, {}, sandbox), Seal(b"k" * 32), pool, instruments, scorers)
    right = {"code": fence("def f(xs): return sum(xs)"), "programs": fence("import sys\nprint(sum(map(int, sys.stdin)))")}
    with TestClient(build_app(service, instruments, Drain())) as client:
        status = client.get("/status").json()["sandbox"]
        assert (status["level"], status["open"], status["separate"]) == ("L1", ["look", "share_user"], False)
        assert client.get("/v1/environments").json()["sandboxLevel"] == "L1"
        for name, completion in right.items():
            task = client.post("/v1/sample", json={"items": [{"environment": name, "split": "train", "seed": 1}]}).json()["tasks"][0]
            items = [
                {"id": f"{name}{n}", "environment": name, "taskKey": task["taskKey"], "completion": text}
                for n, text in enumerate([completion, fence("def f(xs): return 0"), "no code"])
            ]
            verdicts = client.post("/v1/score", json={"items": items}).json()["verdicts"]
            assert [verdict["status"] for verdict in verdicts] == ["pass", "fail", "invalid"]
        text = client.get("/metrics").text
    assert "rlvr_verifier_sandbox_level 1.0" in text
    assert 'rlvr_verifier_sandbox_blocked{attack="network"} 1.0' in text
    assert 'rlvr_verifier_queue_wait_seconds_count{environment="code"} 3.0' in text


def test_canaries_among_code_are_programs_for_the_very_task(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "programs").mkdir()
    job = make_job(write_rows(tmp_path, SUM), write_rows(tmp_path / "programs", ADD))
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"integrity": Integrity(canary_rate=1.0)})})
    instruments = Instruments()
    pool = WorkerPool(job.model_dump_json(), job.spec)
    service = VerifierService(job.spec, open_sandboxed(job, {}, sandbox), Seal(b"k" * 32), pool, instruments, SandboxedScorers(sandbox, 1))
    app = build_app(service, instruments, Drain())  # without its lifespan, which would close the sandbox of the other tests
    client = TestClient(app)
    for name in ("code", "programs"):
        task = client.post("/v1/sample", json={"items": [{"environment": name, "split": "train", "seed": 1}]}).json()["tasks"][0]
        items = [{"id": f"{name}{n}", "environment": name, "taskKey": task["taskKey"], "completion": "none"} for n in range(24)]
        canaries = client.post("/v1/score", json={"items": items}).json()["canaries"]
        assert [(canary["environment"], canary["kept"]) for canary in canaries] == [(name, True)] * 24
        assert {canary["tag"] for canary in canaries} == {"right", "wrong", "exploit"}


def test_an_environment_is_refused_below_the_level_it_needs(tmp_path: Path) -> None:
    sandbox = Sandbox(1, ChildSlots(protected=False))
    try:
        uri = write_rows(tmp_path, SUM)
        with pytest.raises(EnvironmentSetupError, match=r"code runs .* needs sandbox level L1; .* L0, .*: .*network.*Linux 6.12"):
            open_sandboxed(make_job(uri, uri), {}, sandbox)
    finally:
        sandbox.close()


def test_an_environment_may_ask_for_more_than_code_needs(tmp_path: Path, sandbox: Sandbox) -> None:
    uri = write_rows(tmp_path, SUM)
    job = make_job(uri, uri)
    code = job.spec.environments[0]
    assert code.python_functions is not None
    wants = code.model_copy(update={"python_functions": code.python_functions.model_copy(update={"min_sandbox_level": "L2"})})
    asking = job.model_copy(update={"spec": job.spec.model_copy(update={"environments": (wants,)})})
    refusal = r"code .* needs sandbox level L2; this one is L1, .*: look, share_user; set pythonFunctions.minSandboxLevel to L1"
    with pytest.raises(EnvironmentSetupError, match=refusal):
        open_sandboxed(asking, {}, sandbox)


GENERATED = {
    **SUM,
    "generator": """
import random
def generate(seed):
    r = random.Random(seed)
    return [[r.randint(-999, 999) for _ in range(seed % 7)]]
""",
}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> PythonFunctionsEnvironment:
    return open_functions(tmp_path_factory.mktemp("generated"), sandbox, GENERATED, time_limit_seconds=2.0)


@pytest.mark.parametrize("sample", list(read_code("functions")), ids=lambda sample: sample.name)
def test_generated_inputs_pay_no_wrong_function_either(generated: PythonFunctionsEnvironment, sample: Sample) -> None:
    score = generated.score(generated.sample("train", 0, 0).payload, sample.completion, False)
    assert (score.status is VerdictStatus.PASS) is sample.is_right, score.reason


def test_a_table_of_every_input_that_is_written_down_is_not_paid(
    sums: PythonFunctionsEnvironment, generated: PythonFunctionsEnvironment
) -> None:
    table = f"T = {{repr(x): sum(x) for x in {[inputs for (inputs,) in [*SUM['visible'], *SUM['hidden']]]}}}\ndef f(xs): return T[repr(xs)]"
    found = [one.score(one.sample("train", 0, 0).payload, fence(table), False).status for one in (sums, generated)]
    assert found == [VerdictStatus.PASS, VerdictStatus.FAIL]
    tables = [next(probe.paid for probe in one.probes({"row": one.sample("train", 0, 0).payload["row"]}) if probe.name == "table")
              for one in (sums, generated)]  # fmt: skip
    assert tables == [True, False]


def test_a_code_always_meets_the_same_inputs_and_another_code_others(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[tuple[str, ...]] = []
    run = Sandbox.run
    monkeypatch.setattr(Sandbox, "run", lambda self, item: (met.append(tuple(sorted(item.inputs or ()))), run(self, item))[1])
    own, found = len(SUM["visible"]) + len(SUM["hidden"]), {}
    for _ in range(2):
        environment = open_functions(tmp_path, sandbox, GENERATED)
        payload = environment.sample("train", 0, 0).payload
        for name in "abcabc":
            score = environment.score(payload, fence(f"# {name}\ndef f(xs): return sum(xs)"), False)
            assert score.status is VerdictStatus.PASS
            assert found.setdefault(name, met[-1]) == met[-1]
    assert all(own < len(inputs) <= own + BATCH_INPUTS for inputs in found.values())
    assert len(set(found.values())) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator": "def generate(seed): return [[1]]"}, "gives 1 inputs for 16 seeds"),
        ({"generator": "def generate(seed): return 3"}, "something else than a list of arguments"),
        ({"generator": "def generate(): return [[1]]"}, "its generator fails: the code raised TypeError"),
        ({"generator": "def make(seed): return [[seed]]"}, "its generator fails"),
        ({"generator": "def generate(seed): return [[object()]]"}, "its generator fails"),
        ({"generator": "def generate(seed): return [seed, seed]"}, "its reference on generated inputs fails"),
        ({"reference": None, "expected": [0] * 99}, "a generator needs a reference"),
    ],
)
def test_a_generator_that_gives_nothing_to_ask_is_refused_with_its_line(
    tmp_path: Path, sandbox: Sandbox, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(EnvironmentSetupError, match=words) as error:
        open_functions(tmp_path, sandbox, SUM | {"prompt": "another"}, {**GENERATED, **changes})
    assert "line 2" in str(error.value)


def test_a_generator_that_fails_later_is_an_infrastructure_error(tmp_path: Path, sandbox: Sandbox) -> None:
    late = "def generate(seed):\n    if seed > 15: raise ValueError('late')\n    return [[seed, seed]]"
    environment = open_functions(tmp_path, sandbox, {**GENERATED, "generator": late})
    payload, key = environment.sample("train", 0, 0).payload, environment.row(environment.sample("train", 0, 0).payload).key
    code = next(code for code in (f"x = {number}\ndef f(xs): return sum(xs)" for number in range(99)) if batch_number(key, f"{code}\n"))
    with pytest.raises(UnjudgedError, match="no inputs were generated: its generator fails: the code raised ValueError"):
        environment.score(payload, fence(code), False)
