"""A cluster that trains, for tests and the recovery benchmark: the operator installed with Helm, an S3 server with the tiny model,
restricted namespaces for jobs.

Needs `kubectl` and `helm` on PATH, KUBECONFIG of a cluster of which this machine is the node, and the images on it (`make images`).
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import boto3
import httpx
import psutil
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from commands import kubectl, run, wait_for
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
CHART = os.fspath(ROOT / "charts" / "rlvr-operator")
ROLES = ("operator", "learner", "verifier", "rollout")
TAG = version("rlvr-operator")
S3_PORT = 8333
RELEASE, SYSTEM = "rlvr", "rlvr-system"
BUCKET = "runs"
OPERATOR_PODS = "app.kubernetes.io/name=rlvr-operator,app.kubernetes.io/component=operator"


def missing():
    """What keeps these tests from running here; empty if nothing does."""
    if shutil.which("kubectl") is None or shutil.which("helm") is None or not os.environ.get("KUBECONFIG"):
        return "needs kubectl and helm on PATH and KUBECONFIG of a cluster for tests, of which this machine is the node"
    absent = [role for role in ROLES if not has_image(role)]
    return f"needs the images {', '.join(absent)} on the node: `make images` builds them" if absent else ""


def has_image(name):
    """Whether a node has one of the project's images."""
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    names = {name for node in nodes for image in (node["status"].get("images") or ()) for name in image.get("names") or ()}
    return any(found.endswith(f"rlvr/{name}:{TAG}") for found in names)


def secret(namespace, name, **values):
    run(
        "kubectl", "-n", namespace, "create", "secret", "generic", name, *(f"--from-literal={key}={value}" for key, value in values.items())
    )


def new_namespace(name, level="restricted"):
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, f"pod-security.kubernetes.io/enforce={level}")


@dataclass
class Store:
    """SeaweedFS in the cluster."""

    namespace: str
    access_key: str
    """Of jobs, whose user may not make buckets: the server makes a missing one of itself for an administrator."""
    secret_key: str
    admin_key: str
    admin_secret: str

    @property
    def endpoint(self):
        """As pods see it."""
        return f"http://s3.{self.namespace}.svc:{S3_PORT}"

    def address(self):
        return kubectl("-n", self.namespace, "get", "service", "s3", "-o", "jsonpath={.spec.clusterIP}")

    def client(self):
        """An administrator's."""
        config = Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 5}, s3={"addressing_style": "path"})
        return boto3.client(
            "s3", endpoint_url=f"http://{self.address()}:{S3_PORT}", region_name="us-east-1", aws_access_key_id=self.admin_key,
            aws_secret_access_key=self.admin_secret, config=config,
        )  # fmt: skip

    def keys(self, prefix):
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def scale(self, replicas):
        kubectl("-n", self.namespace, "scale", "deployment", "s3", f"--replicas={replicas}")

    def is_up(self):
        try:
            socket.create_connection((self.address(), S3_PORT), 2).close()
            self.client().list_buckets()
        except (OSError, BotoCoreError, ClientError):
            return False
        return True


def store_objects(namespace, data):
    weed = Path(sys.executable).parent / "weed"
    flags = ["-dir=/data/s3", "-ip.bind=0.0.0.0", f"-s3.port={S3_PORT}", "-s3.config=/data/s3.json", "-webdav=false", "-admin.ui=false"]
    container = {
        "name": "s3", "image": f"rlvr/verifier:{TAG}", "imagePullPolicy": "IfNotPresent", "command": ["/weed", "mini", *flags],
        "securityContext": {"runAsUser": 0}, "ports": [{"containerPort": S3_PORT}],
        "volumeMounts": [{"name": "weed", "mountPath": "/weed", "readOnly": True}, {"name": "data", "mountPath": "/data"}],
    }  # fmt: skip
    volumes = [{"name": "weed", "hostPath": {"path": os.fspath(weed)}}, {"name": "data", "hostPath": {"path": os.fspath(data)}}]
    pod = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 5}
    labels = {"app": "s3"}
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "s3", "namespace": namespace},
        "spec": {"replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels},
                 "template": {"metadata": {"labels": labels}, "spec": pod}},
    }  # fmt: skip
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s3", "namespace": namespace},
        "spec": {"selector": labels, "ports": [{"port": S3_PORT}]},
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "List", "items": [deployment, service]}


def identity(access_key, secret_key, *actions):
    return {"name": access_key, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": actions}


class Operator:
    """The installed operator."""

    def pod(self):
        (pod,) = json.loads(kubectl("-n", SYSTEM, "get", "pods", "-l", OPERATOR_PODS, "-o", "json"))["items"]
        return pod

    def leads(self):
        return "leads with lease" in kubectl("-n", SYSTEM, "logs", self.pod()["metadata"]["name"], check=False)

    def kill(self):
        kill(self.pod())

    def replace(self):
        """Another pod of it leads."""
        kubectl("-n", SYSTEM, "delete", "pod", "-l", OPERATOR_PODS, "--wait")
        wait_for(self.leads, 60, "another pod of the operator leads")


def kill(pod, signal=9):
    """Send a signal to every process of a pod, from the node."""
    for pid in pids_of(pod["metadata"]["uid"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal)


@dataclass
class Training:
    """One job on the cluster."""

    namespace: str
    name: str

    def get(self):
        return json.loads(kubectl("-n", self.namespace, "get", "rlvr", self.name, "-o", "json"))

    @property
    def status(self):
        return self.get().get("status", {})

    def shown(self):
        """The row of `kubectl get rlvr`, by column."""
        head, row = kubectl("-n", self.namespace, "get", "rlvr", self.name).splitlines()
        return dict(zip(head.split(), row.split(), strict=False))

    def condition(self, kind):
        return next((entry for entry in self.status.get("conditions", ()) if entry["type"] == kind), {})

    def step(self):
        return self.status.get("progress", {}).get("step", 0)

    def pods(self, role=None):
        selector = f"rlvr.dev/job={self.name}" + (f",rlvr.dev/role={role}" if role else "")
        return json.loads(kubectl("-n", self.namespace, "get", "pods", "-l", selector, "-o", "json"))["items"]

    def live_pods(self, role):
        return [pod for pod in self.pods(role) if "deletionTimestamp" not in pod["metadata"]]

    def uids(self, role):
        return {pod["metadata"]["uid"] for pod in self.pods(role)}

    def progress(self):
        """What the learner says now: the status on the API server is half a minute old."""
        pods = [pod for pod in self.live_pods("learner") if pod["status"].get("podIP")]
        if not pods:
            return {}
        try:
            answer = httpx.get(f"http://{pods[0]['status']['podIP']}:8082/status", timeout=5, trust_env=False)
            return answer.json() if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError):
            return {}

    def engines(self):
        """What the learner thinks of its engines."""
        return {name: engine["status"] for name, engine in self.progress().get("engines", {}).items()}

    def steps_go_on(self, seconds):
        """Seconds until two more steps are finished."""
        started, first = time.monotonic(), None
        while True:
            now = self.progress().get("step")
            if now is not None and first is not None and now >= first + 2:
                return time.monotonic() - started
            first = now if first is None or (now is not None and now < first) else first
            assert time.monotonic() - started < seconds, f"no two steps within {seconds} s\n{self.describe()}"
            time.sleep(0.3)

    def untouched(self, *roles):
        """What may not change while something else is mended."""
        return {role: {(pod["metadata"]["uid"], restarts(pod)) for pod in self.live_pods(role)} for role in roles}

    def kill(self, role, name=""):
        """SIGKILL for the processes of a role's pods whose names end with `name`."""
        for pod in self.live_pods(role):
            if pod["metadata"]["name"].endswith(name):
                kill(pod)

    def delete_pods(self, role):
        for pod in self.live_pods(role):
            self.delete_pod(pod)

    def delete_pod(self, pod):
        kubectl("-n", self.namespace, "delete", "pod", pod["metadata"]["name"], "--wait=false")

    def replace(self, role, name=""):
        """Other pods are ready in the place of those of a role whose names end with `name`."""
        before = self.live_pods(role)
        replaced = [pod for pod in before if pod["metadata"]["name"].endswith(name)]
        for pod in replaced:
            self.delete_pod(pod)
        gone = {pod["metadata"]["uid"] for pod in replaced}

        def are_ready(job):
            pods = job.live_pods(role)
            return len(pods) == len(before) and all(pod["metadata"]["uid"] not in gone and is_ready(pod) for pod in pods)

        self.wait(are_ready, READY_SECONDS, f"other pods in the place of {role}{name} are ready")

    def scale(self, replicas):
        kubectl("-n", self.namespace, "scale", "rlvr", self.name, f"--replicas={replicas}")

    def patch(self, spec):
        kubectl("-n", self.namespace, "patch", "rlvr", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def describe(self):
        """What a person would look at when it is stuck."""
        logs = "\n".join(
            f"--- {pod['metadata']['name']}\n" + kubectl("-n", self.namespace, "logs", pod["metadata"]["name"], "--tail=25", check=False)
            for pod in self.pods()
        )
        listed = kubectl("-n", self.namespace, "get", "rlvr,pods", "-o", "wide", check=False)
        return f"{json.dumps(self.status, indent=1)}\n{listed}\n{logs}"

    def wait(self, condition, seconds, what):
        return wait_for(lambda: condition(self), seconds, lambda: f"{what}\n{self.describe()}", every=0.5)


def is_ready(pod):
    return any(found["type"] == "Ready" and found["status"] == "True" for found in pod["status"].get("conditions", ()))


def restarts(pod):
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", ()))


def pids_of(pod_uid):
    """Processes of a pod on this machine, but the one that holds its namespaces open."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            ours = pod_uid in (folder / "cgroup").read_text().replace("_", "-") and (folder / "comm").read_text().strip() != "pause"
        except OSError:
            continue
        if ours:
            yield int(folder.name)


def merged(base, changes):
    """`base` with `changes`, mapping by mapping."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return result


@contextlib.contextmanager
def open_store(folder):
    """An S3 server with the tiny model in its bucket, and its data in `folder`."""
    found = Store(f"store-{secrets.token_hex(3)}", "tester", secrets.token_hex(12), "admin", secrets.token_hex(12))
    identities = [
        identity(found.access_key, found.secret_key, "Read", "Write", "List", "Tagging"),
        identity(found.admin_key, found.admin_secret, "Admin", "Read", "Write", "List", "Tagging"),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    new_namespace(found.namespace, "privileged")
    try:
        kubectl("apply", "-f", "-", text=json.dumps(store_objects(found.namespace, folder)))
        wait_for(found.is_up, 90, lambda: kubectl("-n", found.namespace, "get", "pods", "-o", "wide"))
        client = found.client()
        client.create_bucket(Bucket=BUCKET)
        run(os.fspath(Path(sys.executable).parent / "rlvr"), "model", "tiny", os.fspath(folder / "tiny"))
        for file in sorted((folder / "tiny").iterdir()):
            client.upload_file(os.fspath(file), BUCKET, f"models/tiny/{file.name}")
        yield found
    finally:
        kubectl("delete", "namespace", found.namespace, "--wait=false")


@contextlib.contextmanager
def open_namespaces(count):
    """Restricted namespaces, one for each job; the operator watches these alone, so that nothing else on the cluster is its business."""
    run_id = secrets.token_hex(3)
    names = [f"train-{run_id}-{number}" for number in range(count)]
    for name in names:
        new_namespace(name)
    try:
        yield names
    finally:
        kubectl("delete", "namespace", *names, "--wait=false")


MONITORING = {"app": "prometheus"}
"""Labels of pods in a job's namespace that may read its metrics."""


@contextlib.contextmanager
def open_operator(namespaces):
    """The chart, installed as the documentation says."""
    where = ("--namespace", SYSTEM, "--create-namespace", "--set", f"watchNamespaces={{{','.join(namespaces)}}}")
    where += ("--set-json", f"podMonitor.metricsFrom={json.dumps([{'podSelector': {'matchLabels': MONITORING}}])}")
    where += ("--set", f"sandbox.installSeccompProfile=true,sandbox.seccompDirectory={kubelet_folder() / 'seccomp'}")
    where += ("--set", "sandbox.userNamespaces=true")
    # The CRD outlives releases; one that an earlier one left is taken over.
    over = ("--take-ownership", "--force-conflicts")
    run("helm", "upgrade", "--install", RELEASE, CHART, *where, *over, "--wait", "--timeout", "120s", timeout=180)
    try:
        yield Operator()
    finally:
        print(kubectl("-n", SYSTEM, "logs", "-l", OPERATOR_PODS, "--tail=200", check=False), file=sys.stderr)
        run("helm", "uninstall", RELEASE, "--namespace", SYSTEM, "--wait", timeout=120)


def give_verifiers(image):
    """The image that verifiers of new jobs have."""
    values = ("--reuse-values", "--set", f"images.verifier.repository=rlvr/{image}")
    run("helm", "upgrade", RELEASE, CHART, "--namespace", SYSTEM, *values, "--wait", "--timeout", "120s", timeout=180)


def kubelet_folder():
    """Where the node's kubelet, which runs on this machine, keeps its files."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "kubelet":
            words = [word for argument in process.info["cmdline"] for word in argument.split("=", 1)]
            return Path(words[words.index("--root-dir") + 1] if "--root-dir" in words else "/var/lib/kubelet")
    raise AssertionError("no kubelet runs on this machine")


def start_job(namespace, store, **changes):
    """Apply a job like the cluster example, with changes."""
    secret(namespace, "s3", AWS_ACCESS_KEY_ID=store.access_key, AWS_SECRET_ACCESS_KEY=store.secret_key)
    job = YAML(typ="safe").load((ROOT / "examples" / "03-cluster.yaml").read_text())
    job["metadata"]["namespace"] = namespace
    job["spec"]["storage"] |= {"endpoint": store.endpoint, "uri": f"s3://{BUCKET}/{namespace}"}
    job["spec"] = merged(job["spec"], changes)
    kubectl("apply", "-f", "-", text=json.dumps(job))
    return Training(namespace, job["metadata"]["name"])


LONG_JOB = {
    "stages": [{"name": "climb", "rlvr": {"steps": 100_000, "promptsPerStep": 8, "groupSize": 4, "optimizer": {"learningRate": 1e-3}}}],
    "rollouts": {"replicas": 2, "minAvailable": 1},
    "learner": {"checkpoint": {"everySteps": 10, "keepLast": 2}},
}
"""Changes that make the example a job with two engines that trains until it is deleted."""
READY_SECONDS = 420


def start_long_job(namespace, store):
    """A long job whose two engines both have weights."""
    job = start_job(namespace, store, **LONG_JOB)
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running")
    job.wait(lambda job: job.engines() == {"rollout-0": "clean", "rollout-1": "clean"}, READY_SECONDS, "both engines have weights")
    return job
