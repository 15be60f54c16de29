"""The command line: dispatch, messages, exit codes."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from rlvr_api import cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "02-tiny.yaml"


@pytest.fixture
def commands(monkeypatch):
    """Two commands of which one lacks a package."""
    entries = [
        EntryPoint("crd", "rlvr_operator.commands:crd", cli.GROUP),
        EntryPoint("fly", "rlvr_trainer_absent:command", cli.GROUP),
        EntryPoint("swim", "tests_absent_package:command", cli.GROUP),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: entries if group == cli.GROUP else [])


def test_help_lists_commands_also_those_that_lack_a_package(commands, capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "crd   print the CustomResourceDefinition" in out
    assert "swim  (needs the Python package tests_absent_package: pip install 'rlvr-operator[" in out


def test_a_command_that_lacks_a_package_says_what_to_install(commands, capsys):
    assert cli.main(["swim"]) == 2
    assert capsys.readouterr().err.startswith("rlvr swim: needs the Python package tests_absent_package")


def test_an_unknown_command_suggests_the_nearest(commands, capsys):
    assert cli.main(["crt"]) == 2
    assert capsys.readouterr().err == "rlvr: there is no command 'crt'; did you mean crd?\n"


def test_every_declared_command_of_the_operator_loads(capsys):
    for name in ("validate", "crd", "run"):
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0
    assert "JOB.yaml" in capsys.readouterr().out


def test_validate_reports_each_file_and_problem(tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text(EXAMPLE.read_text().replace("groupSize: 8", "groupSize: 1").replace("steps: 20", "step: 20"))
    assert cli.main(["validate", str(EXAMPLE), str(broken), str(tmp_path / "none.yaml")]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{EXAMPLE}: job tiny is valid (stages: climb; environments: sums)\n"
    lines = shown.err.splitlines()
    assert len(lines) == 4
    assert lines[-1] == f"{tmp_path / 'none.yaml'}: cannot be read: No such file or directory"


def test_run_refuses_a_bad_job_without_leaving_anything(tmp_path, capsys):
    job = tmp_path / "job.yaml"
    job.write_text(EXAMPLE.read_text().replace("file://../models/tiny", "file://nowhere"))
    assert cli.main(["run", str(job), "--runs-dir", str(tmp_path / "runs")]) == 2
    assert f"spec.model.uri: there is no folder {tmp_path}/nowhere" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_crd_prints_the_definition(capsys):
    from rlvr_api.crd import crd_yaml

    assert cli.main(["crd"]) == 0
    assert capsys.readouterr().out == crd_yaml()
