"""For tests of the operator against a real API server: namespaces, an identity with the chart's rights, and operators as processes.

Needs `kubectl` and `helm` on PATH and KUBECONFIG of a cluster for tests. Pods "run" on pretended nodes (kwok, label `type=fake`), which
RLVR_NODE, a command that takes `fake-nodes N`, can add.
"""

import json
import os
import secrets
import shutil
import subprocess
from functools import partial

import commands
import pytest
from cluster_operator import Api, Operators
from commands import wait_for
from operator_rights import IDENTITY, AuditLog, chart_objects

from rlvr_api.crd import crd_yaml

FAKE_NODES = 10
kubectl = partial(commands.kubectl, timeout=60)


@pytest.fixture(scope="session")
def api():
    """The API server, with today's CustomResourceDefinition."""
    if shutil.which("kubectl") is None or not os.environ.get("KUBECONFIG"):
        pytest.skip("needs kubectl on PATH and KUBECONFIG of a cluster for tests")
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=crd_yaml())
    kubectl("wait", "--for=condition=Established", "crd/rlvrjobs.rlvr.dev", "--timeout=30s")
    proxy = subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    server = Api(f"http://{proxy.stdout.readline().split()[-1]}")
    yield server
    server.client.close()
    proxy.terminate()
    proxy.wait(10)
    proxy.stdout.close()


@pytest.fixture(scope="session")
def fake_nodes(api):
    """Nodes on which pods run at once, without containers."""
    nodes = json.loads(kubectl("get", "nodes", "-l", "type=fake", "-o", "json"))["items"]
    if not nodes and not os.environ.get("RLVR_NODE"):
        pytest.skip(
            "needs nodes of kwok with the label type=fake: let RLVR_NODE name a command that adds some by `$RLVR_NODE fake-nodes 10`"
        )
    if not nodes:
        subprocess.run([os.environ["RLVR_NODE"], "fake-nodes", str(FAKE_NODES)], check=True, timeout=60)
    wait_for(lambda: "True" in kubectl("get", "nodes", "-l", "type=fake", "-o", "json"), 30, "a fake node is ready")


@pytest.fixture
def namespace(api):
    """A namespace of the test's own."""
    name = f"ct-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def chart_settings():
    """Values of the chart, as `name=value`, that the operators' rights come from."""
    return ()


@pytest.fixture
def operators(namespace, chart_settings, tmp_path):
    """Starts operators that act in the namespace, with the rights that the chart gives them."""
    if shutil.which("helm") is None:
        pytest.skip("needs helm on PATH: the operator runs with the rights of the chart")
    kubectl("apply", "-f", "-", text=json.dumps({"apiVersion": "v1", "kind": "List", "items": chart_objects(namespace, *chart_settings)}))
    token = kubectl("-n", namespace, "create", "token", "operator", "--duration=2h").strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": "operator", "user": {"token": token}}]
    config["contexts"] = [{"name": "test", "context": {"cluster": config["clusters"][0]["name"], "user": "operator"}}]
    config["current-context"] = "test"
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    (tmp_path / "logs").mkdir()
    starter = Operators(namespace, file, tmp_path / "logs")
    yield starter
    starter.kill_all()
    kubectl("delete", "clusterroles,clusterrolebindings", f"{namespace}:{IDENTITY}:queues", "--ignore-not-found")


@pytest.fixture
def audit(namespace):
    """What the API server noted of the namespace's operator."""
    file = AuditLog.path()
    if file is None:
        pytest.skip("needs the API server's audit log (level Metadata): as audit.log beside KUBECONFIG, or named by RLVR_AUDIT_LOG")
    return AuditLog(file, namespace, file.stat().st_size)
