"""Sound datasets of every kind that brings its own probes pass the battery of `rlvr environment certify`."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic.alias_generators import to_camel
from verifier_jobs import verifier_job, write_rows

from rlvr_api.cli import main


def documents(number: int) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    return {"prompt": f"Write {number} as n.", "schema": schema, "expected": {"/n": number}, "example": {"n": number}}


def patterns(number: int) -> dict[str, Any]:
    right, wrong = ["ab" * number, "cab" * number], ["ab" * (number + 1), "ab" * (number - 1), "abc" * number, "ba" * number]
    reference = f"(?:ab){{{number}}}|(?:cab){{{number}}}"
    return {"prompt": f"Either {number} of ab or of cab.", "mustMatch": right, "mustNotMatch": wrong, "reference": reference}


def texts(number: int) -> dict[str, Any]:
    word = f"{'ab' * number}c"
    constraints = [
        {"kind": "includes", "phrase": word},
        {"kind": "lineCount", "minimum": 2, "maximum": 2},
        {"kind": "excludes", "phrases": [","]},
    ]
    example = f"The word that was asked for stands here: {word}.\nNothing more is said about it."
    return {"prompt": f"Two lines with the word {word}.", "constraints": constraints, "example": example}


def queries(number: int) -> dict[str, Any]:
    rows = "".join(f"INSERT INTO t VALUES ({n}, {n * n % 31}.5);" for n in range(30))
    schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, x REAL);"
    reference = f"SELECT id, x FROM t WHERE id % {number} = 1"
    return {"prompt": f"Rows whose id is 1 modulo {number}.", "schema": schema, "rows": rows, "reference": reference}


ROWS = {"json_schema": documents, "regex": patterns, "instructions": texts, "sql": queries}


def certify(folder: Path, kind: str, rows: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    write_rows(folder, *rows)
    job = verifier_job([{"name": "rows", to_camel(kind): {"dataset": "file://rows.jsonl"}}], workers=1)
    file, output = folder / "job.json", folder / "certificate.json"
    file.write_text(job.model_dump_json(by_alias=True, exclude_none=True))
    code = main(["environment", "certify", str(file), "--tasks", "6", "--output", str(output)])
    return code, json.loads(output.read_text())


@pytest.mark.parametrize("kind", list(ROWS))
def test_a_sound_dataset_is_certified(tmp_path: Path, kind: str) -> None:
    code, found = certify(tmp_path, kind, [ROWS[kind](number) for number in range(2, 20)])
    assert [check for check in found["checks"] if not check["passed"]] == []
    assert (code, found["baseRate"] <= 0.2, found["falsePositiveRate"]) == (0, True, 0.0)


def test_a_dataset_without_right_answers_is_not(tmp_path: Path) -> None:
    rows = [{key: value for key, value in documents(number).items() if key != "example"} for number in range(2, 20)]
    code, found = certify(tmp_path, "json_schema", rows)
    assert code == 1
    assert {check["name"] for check in found["checks"] if not check["passed"]} == {
        "right answers are paid", "answers of other tasks are refused",
    }  # fmt: skip
