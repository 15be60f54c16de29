"""The chart with the real Helm: what it renders and refuses, and its life on a real API server.

Rendering needs `helm` on PATH; the rest also `kubectl`, KUBECONFIG of a cluster for tests, and the operator's image on its nodes
(`make images`). After a wanted change of a template: `RLVR_WRITE_GOLDEN=1 pytest tests/cluster/test_chart.py`, and read the diff.
"""

import json
import os
import secrets
import shutil
from pathlib import Path

import pytest
from commands import kubectl, run, wait_for
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
CHART = os.fspath(ROOT / "charts" / "rlvr-operator")
GOLDEN = ROOT / "tests" / "golden"
CRD = "rlvrjobs.rlvr.dev"
VALUES = {
    "default": {},
    "namespaced": {"watchNamespaces": ["team-a", "team-b"], "rbac": {"aggregateToUserRoles": False}, "crds": {"enabled": False}},
    "full": {
        "fullnameOverride": "rlvr",
        "images": {"registry": "mirror.example.com/ml", "operator": {"digest": f"sha256:{'0' * 64}"}, "rollout": {"tag": "0.1.0-cu130"}},
        "imagePullSecrets": [{"name": "mirror"}],
        "replicas": 2, "workers": 16, "resyncSeconds": 600, "logLevel": "DEBUG", "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["system"]}]}]}}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
                          "apiServerPorts": [6443]},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "prometheusRule": {"enabled": True}, "grafanaDashboard": {"enabled": True, "annotations": {"grafana_folder": "ML"}},
        "tracing": {"endpoint": "http://otel.observability:4318"}, "kueue": {"enabled": True},
        "sandbox": {"installSeccompProfile": True, "seccompProfile": "rlvr/sandbox.json", "userNamespaces": True},
    },
}  # fmt: skip
MONITORING = ("PrometheusRule", "ServiceMonitor", "PodMonitor")
REFUSED = {
    "a name that the chart does not know": ({"replica": 2}, "replica"),
    "a name within an image": ({"images": {"operator": {"tags": "1"}}}, "tags"),
    "a name within a closed list": ({"tolerations": [{"keys": "a"}]}, "keys"),
    "a number as a list": ({"watchNamespaces": 3}, "watchNamespaces"),
    "a text as a number": ({"replicas": "two"}, "replicas"),
    "too few": ({"replicas": 0}, "replicas"),
    "a level that logging does not know": ({"logLevel": "TRACE"}, "logLevel"),
    "no name of a namespace": ({"watchNamespaces": ["Team_A"]}, "watchNamespaces"),
    "a collector without a scheme": ({"tracing": {"endpoint": "otel:4318"}}, "endpoint"),
    "an amount that is none": ({"resources": {"limits": {"memory": "lots"}}}, "memory"),
}
EVERY = ["get", "list", "watch", "create", "update", "patch", "delete"]
FORBIDDEN = [
    *((verb, "", "secrets") for verb in ("get", "list", "watch", "update", "patch", "delete")),
    *((verb, "rlvr.dev", "rlvrjobs") for verb in ("create", "update", "patch", "delete")),
    *((verb, "", "pods") for verb in ("create", "update", "patch")),
    *((verb, "apps", "daemonsets") for verb in EVERY),
    *((verb, "rbac.authorization.k8s.io", "rolebindings") for verb in EVERY),
    *((verb, "", "nodes") for verb in EVERY),
    ("create", "", "pods/exec"), ("create", "", "pods/attach"), ("get", "", "pods/log"), ("create", "", "serviceaccounts/token"),
    ("update", "apps", "statefulsets"), ("deletecollection", "batch", "jobs"), ("impersonate", "", "serviceaccounts"),
    ("delete", "coordination.k8s.io", "leases"), ("get", "coordination.k8s.io", "leases"), ("*", "*", "*"),
]  # fmt: skip

pytestmark = pytest.mark.skipif(shutil.which("helm") is None, reason="needs helm on PATH")
needs_cluster = pytest.mark.skipif(
    shutil.which("kubectl") is None or not os.environ.get("KUBECONFIG"),
    reason="needs kubectl on PATH, KUBECONFIG of a cluster for tests, and the operator's image there (`make images`)",
)


def render(tmp_path, values, namespace="rlvr-system", check=True):
    (tmp_path / "values.json").write_text(json.dumps(values))
    return run("helm", "template", "rlvr", CHART, "-n", namespace, "-f", os.fspath(tmp_path / "values.json"), check=check)


def a_list(items):
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def objects(text):
    return [item for item in YAML(typ="safe").load_all(text) if item]


@pytest.mark.parametrize("case", VALUES)
def test_lint(case, tmp_path):
    (tmp_path / "values.json").write_text(json.dumps(VALUES[case]))
    run("helm", "lint", "--strict", CHART, "-f", os.fspath(tmp_path / "values.json"))


@pytest.mark.parametrize("case", VALUES)
def test_rendering_is_as_written_down(case, tmp_path):
    found = {}
    for item in objects(render(tmp_path, VALUES[case]).stdout):
        if item["kind"] == "CustomResourceDefinition":  # its schema is tested elsewhere
            item = {key: item[key] for key in ("apiVersion", "kind", "metadata")}
        elif item["kind"] == "ConfigMap":
            item["data"] = {name: json.loads(text) for name, text in item["data"].items()}
        where = item["metadata"].get("namespace", "")
        found[f"{item['kind']} {where}{'/' if where else ''}{item['metadata']['name']}"] = item
    text = json.dumps(found, indent=2, sort_keys=True) + "\n"
    file = GOLDEN / f"chart-{case}.objects.json"
    if os.environ.get("RLVR_WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_would_be_ignored_or_wrong_are_refused(case, tmp_path):
    values, named = REFUSED[case]
    ended = render(tmp_path, values, check=False)
    assert ended.returncode != 0
    assert named in ended.stderr


def test_an_older_kubernetes_is_refused(tmp_path):
    ended = run("helm", "template", "rlvr", CHART, "--kube-version", "1.31.9", check=False)
    assert ended.returncode != 0
    assert "1.32" in ended.stderr


@pytest.fixture
def namespace():
    name = f"chart-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, *(f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")))
    yield name
    run("helm", "uninstall", "rlvr", "-n", name, "--ignore-not-found", "--wait", "--timeout", "60s", check=False)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def definition():
    """Arguments with which a release takes the CustomResourceDefinition over from whoever has it; who had it gets it back."""
    before = run("kubectl", "get", "crd", CRD, "-o", "json", check=False)
    yield ("--take-ownership", "--force-conflicts")
    now = json.loads(kubectl("get", "crd", CRD, "-o", "json"))["metadata"]
    old = json.loads(before.stdout)["metadata"] if before.returncode == 0 else {}
    patch = {}
    for field in ("annotations", "labels"):
        patch[field] = {**dict.fromkeys(now.get(field, {})), **old.get(field, {})}
    kubectl("patch", "crd", CRD, "--type=merge", "-p", json.dumps({"metadata": patch}))


def install(namespace, *arguments, verb="install", definition=()):
    """Install or upgrade into a namespace of its own; an operator for the whole cluster would take jobs away from other tests."""
    values = f"watchNamespaces={{{namespace}}},crds.enabled={'true' if definition else 'false'}"
    return run(
        "helm", verb, "rlvr", CHART, "-n", namespace, "--set", values, "--wait", "--timeout", "90s", *definition, *arguments
    ).stdout  # fmt: skip


@pytest.fixture
def alone():
    """No other operator looks after the jobs of a test."""
    found = json.loads(kubectl("get", "deployments", "-A", "-l", "app.kubernetes.io/name=rlvr-operator", "-o", "json"))["items"]
    for item in found:
        env = {entry["name"]: entry.get("value") for entry in item["spec"]["template"]["spec"]["containers"][0]["env"]}
        if not env.get("RLVR_WATCH_NAMESPACES"):
            pytest.skip(f"needs a cluster without an operator for all namespaces; there is one in {item['metadata']['namespace']}")


@needs_cluster
@pytest.mark.parametrize("case", VALUES)
def test_the_api_server_takes_every_object(case, tmp_path, namespace):
    values = {**VALUES[case], **({"watchNamespaces": [namespace]} if VALUES[case].get("watchNamespaces") else {})}
    found = [item for item in objects(render(tmp_path, values, namespace).stdout) if item["kind"] not in MONITORING]
    accounts = [item for item in found if item["kind"] == "ServiceAccount"]
    writers = [item for item in found if item["kind"] == "DaemonSet"]  # to nodes
    others = [item for item in found if item not in writers]
    kubectl("apply", "--server-side", "-f", "-", text=a_list(accounts))  # pods are refused without theirs
    for items, passes_restricted in ((others, True), *([(writers, False)] if writers else [])):
        taken = run("kubectl", "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", text=a_list(items))
        assert len(taken.stdout.splitlines()) == len(items)
        assert ("Warning" not in taken.stderr) is passes_restricted, "Pod Security says so of a Deployment"


@needs_cluster
def test_a_release_from_install_to_uninstall(namespace, definition):
    notes = install(namespace, definition=definition)
    assert "helm test rlvr" in notes
    first = environment(namespace)
    assert first["RLVR_LOG_LEVEL"] == "INFO"
    install(namespace, "--set", "logLevel=DEBUG,replicas=2", verb="upgrade", definition=definition)
    assert environment(namespace)["RLVR_LOG_LEVEL"] == "DEBUG"
    assert len(pods(namespace)) == 2
    wait_for(lambda: leader(namespace) in pods(namespace), 30, "a new pod has the Lease")
    run("helm", "rollback", "rlvr", "1", "-n", namespace, "--wait", "--timeout", "90s")
    assert environment(namespace) == first
    history = json.loads(run("helm", "history", "rlvr", "-n", namespace, "-o", "json").stdout)
    assert [entry["status"] for entry in history] == ["superseded", "superseded", "deployed"]
    run("helm", "uninstall", "rlvr", "-n", namespace, "--wait", "--timeout", "60s")
    kubectl("get", "crd", CRD)
    left = kubectl("-n", namespace, "get", "deploy,sts,svc,sa,role,rolebinding,networkpolicy,pdb,cm,secret", "-o", "name").split()
    assert set(left) == {"serviceaccount/default", "configmap/kube-root-ca.crt"}
    assert f"{namespace}:" not in kubectl("get", "clusterrole,clusterrolebinding", "-o", "name")


@needs_cluster
def test_helm_test_finds_a_working_installation_and_a_broken_one(namespace, definition):
    install(namespace, definition=definition)
    told = run("helm", "test", "rlvr", "-n", namespace, "--logs", "--timeout", "120s").stdout
    assert "rights are there, and no more" in told
    assert "a job is taken, a wrong one refused" in told
    kubectl("-n", namespace, "delete", "rolebinding", f"{namespace}:rlvr-rlvr-operator")
    broken = run("helm", "test", "rlvr", "-n", namespace, "--logs", "--timeout", "120s", check=False)
    assert broken.returncode != 0
    assert "may not patch statefulsets.apps" in broken.stdout


@needs_cluster
def test_rights_in_one_namespace_end_at_its_border(namespace, tmp_path):
    install(namespace)
    rules = rules_of(tmp_path, namespace, {"watchNamespaces": [namespace]})
    wanted = [(verb, group, kind, namespace) for verb, group, kind in rules]
    refused = [(*right, namespace) for right in FORBIDDEN] + [(*right, "kube-system") for right in (*rules, *FORBIDDEN)]
    compare(namespace, wanted, refused)


@needs_cluster
def test_rights_in_all_namespaces(namespace, tmp_path):
    # Without a pod: an operator for the whole cluster would take jobs away from other tests.
    absent = ("--set", "crds.enabled=false,images.operator.tag=absent,images.pullPolicy=Never")
    run("helm", "install", "rlvr", CHART, "-n", namespace, *absent)
    rules = rules_of(tmp_path, namespace, {})
    wanted = [(*right, where) for where in (namespace, "kube-system", "") for right in rules]
    compare(namespace, wanted, [(*right, where) for where in ("kube-system", "") for right in FORBIDDEN])


@needs_cluster
def test_the_lease_is_the_operators_own_and_no_other(namespace):
    install(namespace)
    account = f"system:serviceaccount:{namespace}:rlvr-rlvr-operator"
    for verb in ("get", "update"):
        for name, allowed in (("rlvr-rlvr-operator", "yes"), ("another", "no")):
            told = run("kubectl", "auth", "can-i", verb, f"leases/{name}", "-n", namespace, f"--as={account}", check=False).stdout
            assert told.strip() == allowed, (verb, name)


@needs_cluster
def test_whoever_may_edit_a_namespace_may_write_jobs_there(namespace):
    install(namespace)
    kubectl("-n", namespace, "create", "rolebinding", "ann", "--clusterrole=edit", "--user=ann")
    kubectl("-n", namespace, "create", "rolebinding", "bob", "--clusterrole=view", "--user=bob")

    def may(user, verb, *more):
        told = run("kubectl", "auth", "can-i", verb, "rlvrjobs", *more, "-n", namespace, f"--as={user}", check=False).stdout
        return told.strip() == "yes"

    wait_for(lambda: may("ann", "create"), 20, "the cluster's role edit holds RLVRJobs")
    assert may("bob", "list")
    assert not may("bob", "create")
    assert not may("ann", "patch", "--subresource=status")


@needs_cluster
def test_an_upgrade_touches_nothing_of_a_job_that_runs(namespace, alone):
    absent = ",".join(f"images.{role}.tag=absent" for role in ("rollout", "learner", "verifier"))
    install(namespace, "--set", absent)
    job = {"apiVersion": "rlvr.dev/v1alpha1", "kind": "RLVRJob", "metadata": {"name": "job", "namespace": namespace}, "spec": {
        "model": {"uri": "s3://runs/models/base"}, "storage": {"uri": "s3://runs"},
        "environments": [{"name": "sums", "arithmetic": {"operations": ["+"]}}], "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
    }}  # fmt: skip
    kubectl("apply", "-f", "-", text=json.dumps(job))
    wait_for(lambda: any(kind == "Job" for kind, *_ in children(namespace)), 30, "the learner's Job is there")
    wait_for(lambda: status(namespace).get("images"), 30, "the job's images are pinned")
    before = children(namespace)
    newer = absent.replace("absent", "newer")
    install(namespace, "--set", newer, "--set", "logLevel=DEBUG,resyncSeconds=10", verb="upgrade")
    wait_for(lambda: leader(namespace) in pods(namespace) and looks(namespace, leader(namespace)) >= 2, 60, "the new pod has looked twice")
    assert children(namespace) == before
    kubectl("-n", namespace, "delete", "rlvr", "job")
    wait_for(lambda: not children(namespace), 60, "its children are gone")


def rules_of(tmp_path, namespace, values):
    """Rights in the namespaces of jobs, as the chart grants them."""
    (rules,) = [
        item["rules"]
        for item in objects(render(tmp_path, values, namespace).stdout)
        if item["kind"] in ("Role", "ClusterRole") and item["metadata"]["name"] == f"{namespace}:rlvr-rlvr-operator"
    ]
    return [(v, g, k) for rule in rules for g in rule["apiGroups"] for k in rule["resources"] for v in rule["verbs"]]


def compare(namespace, wanted, refused):
    """Asks the API server what the release's account may do, all at once."""
    reviews = []
    for verb, group, kind, where in (*wanted, *refused):
        resource, _, subresource = kind.partition("/")
        asked = {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": where}
        spec = {"user": f"system:serviceaccount:{namespace}:rlvr-rlvr-operator", "resourceAttributes": asked}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
    text = "\n---\n".join(map(json.dumps, reviews))
    told = kubectl("create", "-f", "-", "-o", 'jsonpath={.status.allowed}{"\\n"}', text=text).split()
    assert len(told) == len(reviews)
    allowed = [right for right, word in zip((*wanted, *refused), told, strict=True) if word == "true"]
    assert set(allowed) == set(wanted)


def pods(namespace):
    found = json.loads(kubectl("-n", namespace, "get", "pods", "-l", "app.kubernetes.io/component=operator", "-o", "json"))["items"]
    return {pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"]}


def leader(namespace):
    return kubectl("-n", namespace, "get", "lease", "rlvr-rlvr-operator", "-o", "jsonpath={.spec.holderIdentity}", check=False)


def looks(namespace, pod):
    """Looks at jobs that a pod has finished, by its own metrics."""
    text = kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/{pod}:8080/proxy/metrics", check=False)
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("controller_runtime_reconcile_total"))


def environment(namespace):
    found = json.loads(kubectl("-n", namespace, "get", "deployment", "rlvr-rlvr-operator", "-o", "json"))
    return {entry["name"]: entry.get("value") for entry in found["spec"]["template"]["spec"]["containers"][0]["env"]}


def status(namespace):
    return json.loads(kubectl("-n", namespace, "get", "rlvr", "job", "-o", "json")).get("status", {})


def children(namespace):
    """What the operator made for a job: kind, name, uid, and the generation or version that a write would change."""
    kinds = "pods,sts,deploy,jobs,cm,sa,svc,networkpolicies,secrets"
    found = json.loads(kubectl("-n", namespace, "get", kinds, "-l", "app.kubernetes.io/managed-by=rlvr-operator", "-o", "json"))["items"]
    return {(item["kind"], meta["name"], meta["uid"], meta.get("generation")) for item in found if (meta := item["metadata"])}
