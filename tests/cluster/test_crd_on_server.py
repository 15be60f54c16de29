"""The CustomResourceDefinition on a real API server: it is taken, fills in the models' defaults, and refuses what the models refuse.

Needs `kubectl` and KUBECONFIG of a cluster that may be written to.
"""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rlvr_api.crd import crd_yaml
from rlvr_api.loading import load_job

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None or not os.environ.get("KUBECONFIG"),
    reason="needs kubectl on PATH and KUBECONFIG of a cluster for tests",
)
SPEC_CASES = Path(__file__).parents[1] / "contract" / "test_spec.py"


def load_cases():
    module = importlib.util.module_from_spec(found := importlib.util.spec_from_file_location("spec_cases", SPEC_CASES))
    found.loader.exec_module(module)
    return module


CASES = load_cases()


def kubectl(*arguments, text=""):
    return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module", autouse=True)
def definition():
    applied = kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=crd_yaml())
    assert applied.returncode == 0, applied.stderr
    established = kubectl("wait", "--for=condition=Established", "crd/rlvrjobs.rlvr.dev", "--timeout=30s")
    assert established.returncode == 0, established.stderr


@pytest.mark.parametrize("case", CASES.REFUSED)
def test_refuses_what_the_models_refuse(case):
    path, value, _ = CASES.REFUSED[case]
    answer = kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", text=json.dumps(CASES.changed(path, value)))
    assert answer.returncode != 0, answer.stdout


@pytest.mark.parametrize("case", CASES.ACCEPTED)
def test_fills_in_the_defaults_of_the_models(case):
    job = CASES.changed(*CASES.ACCEPTED[case])
    answer = kubectl("apply", "--server-side", "--dry-run=server", "-o", "json", "-f", "-", text=json.dumps(job))
    assert answer.returncode == 0, answer.stderr
    stored = json.loads(answer.stdout)["spec"]
    local = json.loads(load_job(json.dumps(job).encode()).spec.model_dump_json(by_alias=True, exclude_none=True))
    assert stored == local
