"""Verifier pods of a job that trains: what the model wrote runs in the sandbox beside them, and their number follows how long it waits."""

import itertools
import json
import threading

import httpx
import pytest
from commands import kubectl
from training_cluster import BUCKET, LONG_JOB, READY_SECONDS, give_verifiers, has_image, is_ready

from rlvr_api.names import child_name
from rlvr_api.process import VERIFIER_PORT, Role
from rlvr_verifier.exploits import CONTROL, SUM, read_code, read_compiled
from rlvr_verifier.integrity.program_texts import TEXTS
from rlvr_verifier.sandbox.probe import Level

pytestmark = pytest.mark.timeout(900)
SPIN = "def f(xs):\n    for _ in range(4_000_000):\n        pass\n    return {number}"
"""Wrong after a tenth of a second."""


NOWHERE = {"pod": {"nodeSelector": {"no": "node"}}}
"""For engines that are not looked at: they wait for such a node."""


def put_functions(store):
    store.client().put_object(Bucket=BUCKET, Key="data/functions.jsonl", Body=json.dumps(SUM).encode())
    return {"dataset": f"s3://{BUCKET}/data/functions.jsonl", "heldOut": 1e-4, "timeLimitSeconds": 2.0}


@pytest.fixture(scope="module")
def coder(train, store):
    """A job that trains on sums, and whose verifiers judge functions as well."""
    functions = put_functions(store)
    job = train(
        **{
            **LONG_JOB,
            "model": {"maxModelLen": 128},
            "rollouts": {"replicas": 1},
            "environments": [
                {"name": "sums", "arithmetic": {"operations": ["+"], "instruction": "{problem}="}},
                {"name": "functions", "pythonFunctions": functions},
            ],
            "integrity": {"allowUncertified": True},
            "evaluation": {"tasksPerEnvironment": 1, "samplesPerTask": 2},
            "verifiers": {"replicas": 1, "maxReplicas": 2, "itemTimeoutSeconds": 20},
        }
    )
    job.wait(lambda job: job.status.get("phase") == "Running", READY_SECONDS, "running")
    yield job
    kubectl("-n", job.namespace, "delete", "rlvr", job.name, "--wait=false")


def ready_verifier(job):
    """The job may be adding another, which does not answer yet."""
    return next(pod for pod in job.live_pods("verifier") if is_ready(pod))


def post(job, path, body):
    """Ask a verifier pod that is ready, from the node."""
    pod = ready_verifier(job)
    address = f"http://{pod['status']['podIP']}:{VERIFIER_PORT}"
    answer = httpx.post(f"{address}{path}", json=body, timeout=300, trust_env=False)
    answer.raise_for_status()
    return answer.json()


def score(job, completions, prefix, environment="functions"):
    (task,) = post(job, "/v1/sample", {"items": [{"environment": environment, "split": "train", "seed": 0}]})["tasks"]
    items = [
        {"id": f"{prefix}/{number}", "environment": environment, "taskKey": task["taskKey"], "completion": text}
        for number, text in enumerate(completions)
    ]
    return post(job, "/v1/score", {"items": items})["verdicts"]


def judge_exploits(job, level):
    """None of the corpus is paid but right functions, in a sandbox of this level."""
    samples = list(read_code("functions"))
    verdicts = score(job, [sample.completion for sample in samples], "exploits")
    paid = {sample.name for sample, verdict in zip(samples, verdicts, strict=True) if verdict["status"] == "pass"}
    assert paid == {sample.name for sample in samples if sample.kind == CONTROL}
    assert "infra_error" not in {verdict["status"] for verdict in verdicts}
    pod = ready_verifier(job)
    metrics = httpx.get(f"http://{pod['status']['podIP']}:{VERIFIER_PORT}/metrics", timeout=10, trust_env=False).text
    assert f"rlvr_verifier_sandbox_level {level.rank}" in metrics


def test_exploits_are_not_paid_in_a_restricted_pod_and_right_functions_are(coder):
    judge_exploits(coder, Level.L1)
    assert kubectl("get", "namespace", coder.namespace, "-o", "jsonpath={.metadata.labels}").count("restricted") == 1


@pytest.mark.parametrize(("level", "admitted_by"), [(Level.L2, "restricted"), (Level.L1U, "baseline")])
def test_exploits_are_not_paid_at_a_higher_level_and_what_that_needs_is_said(train, store, level, admitted_by):
    functions = {**put_functions(store), "minSandboxLevel": level}
    job = train(
        environments=[{"name": "functions", "pythonFunctions": functions}],
        integrity={"allowUncertified": True},
        rollouts=NOWHERE,
        verifiers={"replicas": 1, "itemTimeoutSeconds": 20},
    )
    if admitted_by != "restricted":
        job.wait(lambda job: "violates PodSecurity" in json.dumps(job.status), 60, "the job says what its namespace does not admit")
        kubectl("label", "namespace", job.namespace, f"pod-security.kubernetes.io/enforce={admitted_by}", "--overwrite")
    job.wait(lambda job: any(map(is_ready, job.live_pods("verifier"))), READY_SECONDS, "a verifier")
    judge_exploits(job, level)
    kubectl("-n", job.namespace, "delete", "rlvr", job.name, "--wait=false")


def test_programs_in_other_languages_are_judged_by_the_image_with_their_tools(train, store):
    if not has_image("verifier-toolchains"):
        pytest.skip('needs the image verifier-toolchains on the node: `make images ROLE=verifier-toolchains LOAD="COMMAND"` builds it')
    row = {"prompt": "Print the sum.", "tests": [{"input": "1\n2\n3\n", "output": "6\n"}, {"input": "-4\n5", "output": "1"}]}
    store.client().put_object(Bucket=BUCKET, Key="data/programs.jsonl", Body=json.dumps(row).encode())
    programs = {"dataset": f"s3://{BUCKET}/data/programs.jsonl", "heldOut": 1e-4, "timeLimitSeconds": 3.0}
    give_verifiers("verifier-toolchains")
    try:
        job = train(
            environments=[{"name": language, "stdio": {**programs, "language": language}} for language in TEXTS],
            integrity={"allowUncertified": True},
            rollouts=NOWHERE,
            verifiers={"replicas": 1, "itemTimeoutSeconds": 60},
        )
        job.wait(lambda job: any(map(is_ready, job.live_pods("verifier"))), READY_SECONDS, "a verifier")
    finally:
        give_verifiers("verifier")
    for language in TEXTS:
        samples = [sample for its, sample in read_compiled() if its == language]
        verdicts = score(job, [sample.completion for sample in samples], language, language)
        paid = {sample.name for sample, verdict in zip(samples, verdicts, strict=True) if verdict["status"] == "pass"}
        assert paid == {sample.name for sample in samples if sample.is_right}
        assert "infra_error" not in {verdict["status"] for verdict in verdicts}
    kubectl("-n", job.namespace, "delete", "rlvr", job.name, "--wait=false")


def test_verifiers_are_added_while_completions_wait(coder):
    before = coder.untouched("learner", "rollout")
    enough, paid, refused = threading.Event(), [], []

    def flood():
        for number in itertools.count():
            if enough.is_set():
                return
            wrong = [f"```python\n{SPIN.format(number=f'{number}{one}')}\n```" for one in range(32)]
            try:
                verdicts = score(coder, wrong, f"flood/{number}")
            except httpx.HTTPError as error:  # more than the service takes: it says so, and the learner would try again
                refused.append(str(error))
            else:
                paid.extend(verdict for verdict in verdicts if verdict["status"] == "pass")

    def replicas(job):
        deployment = child_name(job.name, Role.VERIFIER)
        return json.loads(kubectl("-n", job.namespace, "get", "deployment", deployment, "-o", "json"))["status"].get("readyReplicas")

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        coder.wait(lambda job: replicas(job) == 2, 180, f"a second verifier is ready; refused so far: {refused}")
    finally:
        enough.set()
        thread.join(150)
    assert not paid
    coder.steps_go_on(90)
    assert coder.untouched("learner", "rollout") == before
