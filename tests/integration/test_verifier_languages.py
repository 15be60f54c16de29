"""Programs in C, C++, Go and JavaScript in a real sandbox: a corpus of wrong ones of which none is paid, and what keeps them in."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from rlvr_api.environments import EnvironmentSpec, Stdio
from rlvr_api.spec import Storage
from rlvr_api.wire import VerdictStatus
from rlvr_verifier.environments.base import EnvironmentSetupError
from rlvr_verifier.environments.datasets import DatasetReader
from rlvr_verifier.environments.stdio import StdioEnvironment
from rlvr_verifier.exploits import Sample, read_compiled
from rlvr_verifier.integrity.code_probes import hanging_program
from rlvr_verifier.integrity.program_texts import TEXTS
from rlvr_verifier.sandbox import toolchains
from rlvr_verifier.sandbox.pool import Sandbox
from rlvr_verifier.sandbox.programs import CompileError, compiled
from rlvr_verifier.sandbox.slot import Ending
from rlvr_verifier.sandbox.source import ChildSlots

LANGUAGES = tuple(TEXTS)
TOOLS = {"c": "gcc", "cpp": "g++", "go": "go", "javascript": "node"}
ADD = {
    "prompt": "Print the sum.",
    "tests": [{"input": "1\n2\n3\n", "output": "6\n"}, {"input": "-4\n5", "output": "1"}, {"input": "", "output": "0"}],
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(1, ChildSlots(languages=LANGUAGES))
    yield made
    made.close()


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Mapping[str, StdioEnvironment]:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(json.dumps(ADD))
    return {language: open_programs(path, language, sandbox) for language in sandbox.languages}


def open_programs(path: Path, language: str, sandbox: Sandbox) -> StdioEnvironment:
    kind = Stdio.model_validate({"dataset": f"file://{path}", "heldOut": 0.0001, "language": language, "timeLimitSeconds": 3.0})
    return StdioEnvironment(EnvironmentSpec(name="programs", stdio=kind), DatasetReader(Storage(), {}), sandbox)


def need(language: str, sandbox: Sandbox) -> None:
    """Skips only where the tool itself is not installed."""
    if shutil.which(TOOLS[language]) is None:
        pytest.skip(f"{TOOLS[language]} is not installed")
    assert language in sandbox.languages, sandbox.missing


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_whose_tools_are_here_is_offered_and_keeps_out_what_python_does(sandbox: Sandbox, language: str) -> None:
    need(language, sandbox)
    assert sandbox.report.weak == {}


@pytest.mark.parametrize(("language", "sample"), list(read_compiled()), ids=lambda value: getattr(value, "name", value))
def test_no_wrong_program_is_paid_and_every_right_one_is(
    sandbox: Sandbox, environments: Mapping[str, StdioEnvironment], language: str, sample: Sample
) -> None:
    need(language, sandbox)
    environment = environments[language]
    score = environment.score(environment.sample("train", 0, 0).payload, sample.completion, False)
    assert (score.status is VerdictStatus.PASS) is sample.is_right, score.reason
    assert "took down two slots" not in score.reason


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_certification_sends_is_judged_as_it_says(
    sandbox: Sandbox, environments: Mapping[str, StdioEnvironment], language: str
) -> None:
    need(language, sandbox)
    environment = environments[language]
    task = environment.sample("train", 0, 0)
    assert f"one {'C++' if language == 'cpp' else ''}" in task.messages[0].content
    probes = list(environment.probes(task.payload))
    assert sum(probe.paid for probe in probes) == 1
    for probe in probes:
        assert (environment.score(task.payload, probe.completion, False).status is VerdictStatus.PASS) is probe.paid, probe.name
    for name in TEXTS[language].hanging:
        status = environment.score(task.payload, hanging_program(name, language), False).status
        assert status in (VerdictStatus.FAIL, VerdictStatus.TIMEOUT), name


def test_a_program_runs_again_and_again_and_cannot_change_itself(sandbox: Sandbox) -> None:
    need("javascript", sandbox)
    with compiled(sandbox, "javascript", "console.log(require('fs').readFileSync(0, 'utf8').length)") as program:
        assert [program.run("x" * n, 5.0, 20.0, 256 << 20).output for n in (3, 0, 7)] == [b"3\n", b"0\n", b"7\n"]


def test_an_array_larger_than_the_memory_is_the_program_s_own_failure(sandbox: Sandbox) -> None:
    need("c", sandbox)
    with compiled(sandbox, "c", "volatile char a[1ul << 30]; int main(void) { return a[5]; }") as program:
        assert program.run("", 5.0, 20.0, 256 << 20).ending is Ending.SIGNALLED
    with pytest.raises(CompileError, match="does not compile: exit code 1"), compiled(sandbox, "c", "int main("):
        pass


def test_a_language_without_tools_is_refused_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(toolchains.ToolchainMissingError, match=r"there is no g\+\+; install gcc, g\+\+ and libc6-dev, or"):
        toolchains.find("cpp")
    made = Sandbox(1)  # asked for no language
    try:
        made.missing["go"] = "there is no go"
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(ADD))
        with pytest.raises(EnvironmentSetupError, match="environment programs judges Go, which the sandbox cannot run: there is no go"):
            open_programs(path, "go", made)
    finally:
        made.close()


def test_an_unprotected_slot_offers_no_language() -> None:
    made = Sandbox(1, ChildSlots(protected=False, languages=("c",)))
    try:
        assert made.languages == {}
        assert "needs Landlock" in made.missing["c"]
    finally:
        made.close()
