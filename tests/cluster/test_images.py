"""The images, in the pods that the operator renders for them: Pod Security `restricted`, read-only root, no compiler, no more than needed.

Needs `kubectl`, KUBECONFIG of a cluster for tests, and the images on its nodes (`images/build --load COMMAND`). Here each image
runs alone; `training/` trains with all of them.
"""

import base64
import importlib.metadata
import json
import os
import secrets
import shutil
import time

import pytest
from commands import kubectl
from training_cluster import is_ready

from rlvr_api import names
from rlvr_api.loading import load_job
from rlvr_api.process import Role
from rlvr_operator import render
from rlvr_operator.autoscale import Scale
from rlvr_operator.render import Owner, Site
from rlvr_operator.render.site import PYTHON

pytestmark = [
    pytest.mark.skipif(
        shutil.which("kubectl") is None or not os.environ.get("KUBECONFIG"),
        reason="needs kubectl on PATH and KUBECONFIG of a cluster for tests",
    ),
    pytest.mark.timeout(360),
]
PATIENCE_SECONDS = 240
"""For one pod, on a machine that is busy with more than this."""
VERSION = importlib.metadata.version("rlvr-operator")
ROLES = ("operator", "verifier", "learner", "rollout")
JOB = load_job(b"""
apiVersion: rlvr.dev/v1alpha1
kind: RLVRJob
metadata: {name: images}
spec:
  model: {uri: "file:///var/lib/rlvr/model", maxModelLen: 64}
  storage: {uri: "s3://runs", endpoint: "http://store:8333"}
  sampling: {maxTokens: 8}
  environments: [{name: sums, arithmetic: {operations: ["+"]}}]
  stages: [{name: climb, rlvr: {steps: 1}}]
  rollouts: {pod: {resources: {requests: {cpu: 100m}}}}
""")
ENGINE = """
import json, os, torch
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
load_general_plugins()
current_platform.import_kernels()
print(json.dumps({
    "transports": sorted(name for name in WeightTransferEngineFactory._registry if name.startswith("rlvr_")),
    "kernels": hasattr(torch.ops._C, "init_cpu_memory_env"),
    "openmp": os.environ["LD_PRELOAD"] in open("/proc/self/maps").read(),
}))
"""
LIBRARIES = """
import importlib.util, json, os, shutil
print(json.dumps({
    "uid": os.getuid(),
    "compilers": [tool for tool in ("cc", "gcc", "g++", "c++", "clang") if shutil.which(tool)],
    "libraries": [name for name in ("torch", "vllm", "kubernetes", "fastapi", "boto3", "pytest") if importlib.util.find_spec(name)],
}))
"""


def image(role):
    return f"rlvr/{role}:{VERSION}"


SITE = Site(images={role: image(role) for role in Role})


@pytest.fixture(scope="module", autouse=True)
def loaded():
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    there = {name for node in nodes for found in node["status"].get("images") or () for name in found.get("names") or ()}
    missing = [image(role) for role in ROLES if f"docker.io/{image(role)}" not in there]
    if missing:
        pytest.skip(f"no node has {', '.join(missing)}: run images/build --load COMMAND")


@pytest.fixture(scope="module")
def namespace(loaded):
    name = f"images-{secrets.token_hex(3)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    owner = Owner("images", name, "00000000-0000-0000-0000-000000000000")
    for child in render.standing(JOB, owner, SITE):
        if child["kind"] in ("ConfigMap", "ServiceAccount"):
            apply(without_owner(child))
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    meta = {"name": names.seal_secret_name("images"), "namespace": name}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"key": key}})
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def apply(obj):
    kubectl("apply", "--server-side", "-f", "-", text=json.dumps(obj))


def without_owner(obj):
    return {**obj, "metadata": {key: value for key, value in obj["metadata"].items() if key != "ownerReferences"}}


def template(role, namespace):
    owner = Owner("images", namespace, "00000000-0000-0000-0000-000000000000")
    child = {
        "verifier": lambda: render.verifiers(JOB, owner, SITE, image(role), Scale(1, None)),
        "learner": lambda: render.learner(JOB, owner, SITE, image(role), 1),
        "rollout": lambda: render.rollouts(JOB, owner, SITE, image(role)),
    }[role]()
    return child["spec"]["template"]


def start(role, namespace, name, spec):
    """Start a pod; a spec of the operator's own children passes the namespace's Pod Security or `kubectl` fails here."""
    meta = {"name": name, "namespace": namespace}
    apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {**spec, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0},
        }
    )


def wait_until_ready(namespace, name):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        pod = json.loads(kubectl("get", "pod", "-n", namespace, name, "-o", "json"))
        if is_ready(pod):
            return
        status = pod["status"]
        logs = kubectl("logs", "-n", namespace, name, "--all-containers", "--prefix", "--tail=40", "--ignore-errors")
        told = f"{json.dumps(status.get('containerStatuses'))}\n{logs}"
        assert status["phase"] != "Failed", told
        assert time.monotonic() < deadline, told
        time.sleep(0.5)


def with_command(spec, command, env):
    container = {key: value for key, value in spec["containers"][0].items() if not key.endswith("Probe")}
    return {**spec, "containers": [{**container, "command": command, "env": env}]}


def ended(namespace, name):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        status = json.loads(kubectl("get", "pod", "-n", namespace, name, "-o", "json"))["status"]
        if status["phase"] in ("Succeeded", "Failed"):
            return status["containerStatuses"][0]["state"]["terminated"]["exitCode"], kubectl("logs", "-n", namespace, name)
        time.sleep(0.5)
    raise AssertionError(f"{name} did not end in {PATIENCE_SECONDS} s: {json.dumps(status)}")


def operator_spec(namespace):
    """The verifier's pod with the operator's image; the operator's own pod is the chart's."""
    spec = template("verifier", namespace)["spec"]
    return {**spec, "containers": [{**spec["containers"][0], "image": image("operator")}]}


@pytest.mark.parametrize(
    ("role", "libraries"),
    [
        ("operator", ["kubernetes"]),
        ("verifier", ["fastapi", "boto3"]),
        ("learner", ["torch", "fastapi", "boto3"]),
        ("rollout", ["torch", "vllm", "fastapi", "boto3"]),
    ],
)
def test_holds_what_the_role_needs_and_no_compiler(namespace, role, libraries):
    spec = operator_spec(namespace) if role == "operator" else template(role, namespace)["spec"]
    start(role, namespace, f"holds-{role}", with_command(spec, [PYTHON, "-c", LIBRARIES], []))
    code, log = ended(namespace, f"holds-{role}")
    assert (code, json.loads(log)) == (0, {"uid": 10001, "compilers": [], "libraries": libraries})


@pytest.mark.parametrize(
    ("role", "module", "message"), [("learner", "rlvr_trainer", "RLVR_JOB_FILE"), ("operator", "rlvr_operator", "RLVR_VERIFIER_IMAGE")]
)
def test_says_what_is_missing_when_started_by_hand(namespace, role, module, message):
    spec = operator_spec(namespace) if role == "operator" else template(role, namespace)["spec"]
    start(role, namespace, f"bare-{role}", with_command(spec, [PYTHON, "-m", module], []))
    code, log = ended(namespace, f"bare-{role}")
    assert code == 2
    assert message in log.splitlines()[-1]


def test_the_verifier_gets_ready(namespace):
    start("verifier", namespace, "verifier", template("verifier", namespace)["spec"])
    wait_until_ready(namespace, "verifier")


def test_an_engine_finds_its_kernels_and_our_weight_transports(namespace):
    spec = template("rollout", namespace)["spec"]
    start("rollout", namespace, "rollout", with_command(spec, [PYTHON, "-c", ENGINE], spec["containers"][0]["env"]))
    code, log = ended(namespace, "rollout")
    assert code == 0, log
    assert json.loads(log.splitlines()[-1]) == {
        "transports": ["rlvr_object_store", "rlvr_torch_distributed"],
        "kernels": True,
        "openmp": True,
    }
