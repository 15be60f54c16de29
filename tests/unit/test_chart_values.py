"""The chart's generated files agree with their model, and its queries with the metrics that there are."""

import itertools
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY, generate_latest
from pydantic import ValidationError
from ruamel.yaml import YAML

from rlvr_api.chart import crd_template, values_schema, values_yaml
from rlvr_api.chart_values import ChartValues
from rlvr_api.crd import custom_resource_definition
from rlvr_operator import metrics
from rlvr_trainer.fleet import EngineFleet
from rlvr_trainer.progress import ProgressBoard, build_app
from rlvr_verifier.instruments import Instruments
from rlvr_verifier.sandbox import seccomp

CHART = Path(__file__).parents[2] / "charts" / "rlvr-operator"


def read(text):
    return YAML(typ="safe").load(text)


def test_the_values_are_the_models_defaults():
    assert read(values_yaml()) == ChartValues().model_dump(mode="json", by_alias=True)


def test_every_value_has_a_comment():
    lines = values_yaml().splitlines()
    assert [line for before, line in itertools.pairwise(lines) if re.match(r" *\w+:", line) and "#" not in before] == []


def open_objects(node, path=""):
    """Objects that take fields of any name."""
    if isinstance(node, dict):
        if node.get("type") == "object" and node.get("additionalProperties") is not False:
            yield path
        for name, below in node.items():
            yield from open_objects(below, f"{path}/{name}")


def test_only_what_kubernetes_alone_can_judge_is_open():
    assert set(open_objects(json.loads(values_schema()))) == {
        "/$defs/NetworkPolicy/properties/metricsFrom/items",
        "/$defs/PodMonitor/properties/metricsFrom/items",
        "/properties/affinity",
        "/properties/global",
    }


@pytest.mark.parametrize("wrong", [{"replica": 2}, {"images": {"operator": {"tags": "1"}}}, {"watchNamespaces": ["A"]}, {"replicas": 0}])
def test_the_model_refuses(wrong):
    with pytest.raises(ValidationError):
        ChartValues.model_validate(wrong)


def test_the_definition_is_the_same_behind_its_switches():
    plain = "\n".join(line for line in crd_template().splitlines() if "{{" not in line and "resource-policy" not in line)
    definition = read(plain)
    assert definition["metadata"].pop("labels", None) is None
    assert definition["metadata"].pop("annotations", None) is None
    assert definition == custom_resource_definition()


def test_versions_of_chart_and_distribution_agree():
    chart = read((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version("rlvr-operator"),) * 2
    images = {item["image"] for item in read(chart["annotations"]["artifacthub.io/images"])}
    assert images == {f"rlvr/{role}:{chart['appVersion']}" for role in ("operator", "rollout", "learner", "verifier")}


def test_every_alert_says_what_to_do():
    page = (CHART.parents[1] / ChartValues().prometheus_rule.runbook).read_text()
    alerts = read((CHART / "files" / "alerts.yaml").read_text())
    assert [alert["alert"] for alert in alerts] == re.findall(r"^### (RLVR\w+)$", page, re.MULTILINE)


@pytest.fixture(scope="module")
def known_metrics():
    """Names of all metrics that operator, learner and verifiers expose."""
    board = ProgressBoard("climb", stages=1, steps=9, fleet=EngineFleet({}))
    board.update(reward=0.5, pass_rate=0.5, held_out_pass_rate=0.5, staleness=1.0, weight_version=1)
    board.update(
        reward_trust={"status": "True", "reason": "BoundsHeld", "environment": "sums", "hackRate": 0.01, "falsePositiveRate": 0.02}
    )
    board.note_step(dict.fromkeys(("generate", "train"), 1.0), tokens=10)
    with TestClient(build_app(board)) as client:
        learner = client.get("/metrics").text
    phases = metrics.JobPhases()
    phases.note(("default", "tiny"), "Running")
    instruments = Instruments()
    instruments.queue_wait.labels(environment="sums")
    try:
        exposed = [generate_latest(registry).decode() for registry in (REGISTRY, instruments.registry)]
    finally:
        REGISTRY.unregister(phases)
    text = "\n".join([learner, *exposed])
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    return {name for name, kind in families} | {f"{name}_bucket" for name, kind in families if kind == "histogram"}


def expressions():
    alerts, rows = (read((CHART / "files" / name).read_text()) for name in ("alerts.yaml", "dashboard.yaml"))
    yield from (alert["expr"] for alert in alerts)
    yield from (expression for row in rows for panel in row["panels"] for expression, _ in panel["queries"])


@pytest.mark.parametrize("expression", list(expressions()))
def test_queries_name_metrics_that_exist(expression, known_metrics):
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\d+[smh]|by \([^)]*\)", "", expression)
    named = set(re.findall(r"\b[a-z_]{2,}\b(?!\s*\()", bare)) - {"or", "offset"}
    assert named
    assert named <= known_metrics


def test_the_chart_s_seccomp_profile_lets_slots_do_what_their_own_filters_let_them():
    profile = json.loads((CHART / "files" / "seccomp-sandbox.json").read_text())
    (allowed,) = (set(rule["names"]) for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW")
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {
        *seccomp.ALLOWED,
        *seccomp.COMMAND_ALLOWED,
        *seccomp.THREADS_ALLOWED,
        "fcntl",
        "ioctl",
        "prlimit64",
        "clone",
        "prctl",
    } <= allowed
    assert {"unshare", "mount", "umount2", "pivot_root", "landlock_restrict_self", "seccomp", "pidfd_send_signal", "setgroups"} <= allowed
    assert not allowed & {"ptrace", "process_vm_readv", "bpf", "keyctl", "perf_event_open", "init_module", "kexec_load", "reboot", "setns"}
