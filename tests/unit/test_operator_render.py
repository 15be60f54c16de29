"""The objects of two jobs are written down; what every object must hold is checked on both.

After a wanted change: `RLVR_WRITE_GOLDEN=1 pytest tests/unit/test_operator_render.py`, and read the diff.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_jobs import OWNER, SITE, make_job

from rlvr_api import names
from rlvr_api.loading import load_job
from rlvr_api.process import Role, Variable
from rlvr_api.spec import RLVRJob, RLVRJobSpec, Rollouts
from rlvr_operator import render
from rlvr_operator.autoscale import Scale
from rlvr_operator.render import Owner
from rlvr_operator.render.site import spec_hash

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = make_job()
FULL = make_job(
    model={"uri": "s3://models/base", "maxModelLen": 8192},
    precision={"learnerCompute": "bfloat16", "engine": "bfloat16"},
    rollouts={
        "replicas": 3, "minAvailable": 2, "gpusPerReplica": 2, "tensorParallel": 2, "engineArgs": {"max-num-seqs": 128},
        "env": {"NCCL_IB_HCA": "mlx5", "NCCL_DEBUG": "WARN"},
        "pod": {
            "resources": {"requests": {"cpu": "8", "memory": "64Gi", "rdma/hca": "1"}, "limits": {"memory": "64Gi", "rdma/hca": "1"}},
            "nodeSelector": {"gpu": "h100"}, "sharedMemory": "16Gi", "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    },
    learner={"gpus": 1, "nodes": 4, "env": {"NCCL_SOCKET_IFNAME": "eth0"}}, weightSync={"objectStore": {}},
    verifiers={"replicas": 2, "maxReplicas": 6, "pod": {"resources": {"requests": {"cpu": "500m"}}}},
    scheduling={"priorityClassName": "batch", "topologyKey": "topology.kubernetes.io/zone", "disruptionBudget": True},
    observability={"tracing": {"endpoint": "http://otel:4318"}},
    deadlines={"graceSeconds": 45.5},
)  # fmt: skip
CODE = make_job(
    environments=[
        {"name": "functions", "pythonFunctions": {"dataset": "s3://data/functions.jsonl", "memoryMegabytes": 1024}},
        {"name": "programs", "stdio": {"dataset": "s3://data/programs.jsonl"}},
    ],
    verifiers={"workers": 4, "sandboxResources": {"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}},
)  # fmt: skip
JOBS = {"cpu": CPU, "full": FULL, "code": CODE}
WORKLOADS = ("StatefulSet", "Deployment", "Job")


def render_all(job, owner=OWNER, attempt=3):
    image = SITE.images
    return [
        *render.standing(job, owner, SITE),
        render.verifiers(job, owner, SITE, image[Role.VERIFIER], Scale(job.spec.verifiers.replicas, None)),
        render.rollouts(job, owner, SITE, image[Role.ROLLOUT]),
        render.learner(job, owner, SITE, image[Role.LEARNER], attempt),
    ]


def edited(job, path, value):
    data = job.model_dump(mode="json", by_alias=True)
    *parents, last = path.split(".")
    place = data["spec"]
    for name in parents:
        place = place[name]
    place[last] = value
    return RLVRJob.model_validate(data)


@pytest.fixture(params=JOBS)
def job(request):
    return JOBS[request.param]


@pytest.fixture
def objects(job):
    return render_all(job)


@pytest.fixture
def templates(objects):
    return {item["metadata"]["labels"][names.LABEL_ROLE]: item["spec"]["template"] for item in objects if item["kind"] in WORKLOADS}


def containers_of(template):
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


@pytest.mark.parametrize("name", JOBS)
def test_objects_are_as_written_down(name):
    objects = [{**item, "data": "(the job)"} if item["kind"] == "ConfigMap" else item for item in render_all(JOBS[name])]
    text = json.dumps(objects, indent=1) + "\n"
    golden = GOLDEN / f"{name}.objects.json"
    if os.environ.get("RLVR_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_processes_find_the_whole_job_in_a_file(job, objects):
    (item,) = [item for item in objects if item["kind"] == "ConfigMap"]
    assert RLVRJob.model_validate_json(item["data"]["job.json"]) == job


def test_every_pod_passes_the_restricted_standard(templates):
    assert set(templates) == set(Role)
    for template in templates.values():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {"configMap", "emptyDir", "secret"}
        for container in containers_of(template):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not [port for port in container.get("ports", ()) if "hostPort" in port]


def test_the_root_is_read_only_unless_a_gpu_is_given(templates, job):
    gpus = {Role.ROLLOUT: job.spec.rollouts.gpus_per_replica, Role.LEARNER: job.spec.learner.gpus, Role.VERIFIER: 0}
    for role, template in templates.items():
        (container,) = template["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is not bool(gpus[role])
        for kind in ("requests", "limits"):
            asked = container["resources"].get(kind, {}).get("nvidia.com/gpu")
            assert asked == (str(gpus[role]) if gpus[role] else None)


def test_another_name_of_gpus_is_asked_for_by_that_name():
    job = edited(FULL, "scheduling.gpuResource", "amd.com/gpu")
    limits = render.rollouts(job, OWNER, SITE, "i")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"amd.com/gpu": "2", "memory": "64Gi", "rdma/hca": "1"}


def test_lists_whose_order_is_part_of_an_object_are_in_order(templates):
    for template in templates.values():
        for container in containers_of(template):
            plain = [entry["name"] for entry in container["env"] if "value" in entry]
            drawn = [entry["name"] for entry in container["env"] if "valueFrom" in entry]
            assert [entry["name"] for entry in container["env"]] == [*sorted(plain), *sorted(drawn)]
            assert len(set(plain) | set(drawn)) == len(container["env"])
            expected = ["sandbox"] if container["name"] == "sandbox" else ["job", "shm", "tmp", "work"]
            assert [mount["name"] for mount in container["volumeMounts"]][:4] == expected


def test_rendering_does_not_depend_on_the_order_in_which_a_person_wrote_maps():
    data = FULL.model_dump(mode="json", by_alias=True)
    for name in ("env", "engineArgs"):
        data["spec"]["rollouts"][name] = dict(reversed(data["spec"]["rollouts"][name].items()))
    turned = RLVRJob.model_validate(data)
    for one, other in zip(render_all(FULL)[-3:], render_all(turned)[-3:], strict=True):
        assert json.dumps(one) == json.dumps(other)


def test_no_object_holds_a_secret_value(objects, templates):
    assert "Secret" not in {item["kind"] for item in objects}
    for role, template in templates.items():
        for container in containers_of(template):
            secrets = {entry["name"]: entry for entry in container["env"] if re.search(r"SECRET|ACCESS_KEY|TOKEN$", entry["name"])}
            for entry in secrets.values():
                assert set(entry) == {"name", "valueFrom"}
            needs_store = container["name"] == "model" if role == Role.ROLLOUT else container["name"] != "sandbox"
            assert bool(secrets) is needs_store


def test_code_runs_in_a_container_that_shares_nothing_with_the_service_but_a_socket():
    template = render.verifiers(CODE, OWNER, SITE, "i", Scale(1, None))["spec"]["template"]["spec"]
    (sandbox,), (service,) = template["initContainers"], template["containers"]
    assert sandbox["restartPolicy"] == "Always"
    assert sandbox["securityContext"]["runAsUser"] not in (0, template["securityContext"]["runAsUser"])
    assert [entry for entry in sandbox["env"] if "valueFrom" in entry or "RLVR" in entry["name"]] == []
    shared = {mount["name"] for mount in sandbox["volumeMounts"]} & {mount["name"] for mount in service["volumeMounts"]}
    assert shared == {"sandbox"}
    socket = {entry["name"]: entry.get("value") for entry in service["env"]}[Variable.SANDBOX_SOCKET]
    assert sandbox["command"][-2:] == ["--socket", socket]
    assert [Path(mount["mountPath"]) for mount in sandbox["volumeMounts"]] == [Path(socket).parent]
    assert sandbox["resources"] == {"requests": {"cpu": "2", "memory": "4448Mi"}, "limits": {"cpu": "4", "memory": "4448Mi"}}


def test_only_pods_that_run_code_have_a_user_namespace_and_only_where_nodes_offer_it():
    site = replace(SITE, sandbox_user_namespaces=True)
    pods = [render.verifiers(job, OWNER, site, "i", Scale(1, None))["spec"]["template"]["spec"] for job in (CODE, CPU)]
    assert [pod.get("hostUsers") for pod in pods] == [False, None]
    assert "hostUsers" not in render.verifiers(CODE, OWNER, SITE, "i", Scale(1, None))["spec"]["template"]["spec"]


def test_the_sandbox_finds_the_tools_of_the_languages_and_has_memory_to_compile():
    languages = ("javascript", "cpp", "cpp", "python")
    programs = [{"name": f"p{n}", "stdio": {"dataset": "s3://d/p.jsonl", "language": name}} for n, name in enumerate(languages)]
    job = make_job(environments=programs, verifiers={"workers": 2})
    (sandbox,) = render.verifiers(job, OWNER, SITE, "i", Scale(1, None))["spec"]["template"]["spec"]["initContainers"]
    assert sandbox["command"][-4:] == ["--language", "cpp", "--language", "javascript"]
    assert sandbox["resources"]["limits"] == {"memory": f"{96 + 2 * (64 + 512 + 1536)}Mi"}
    compiling = make_job(environments=[programs[1]], verifiers={"workers": 1})
    (sandbox,) = render.verifiers(compiling, OWNER, SITE, "i", Scale(1, None))["spec"]["template"]["spec"]["initContainers"]
    assert sandbox["resources"]["limits"] == {"memory": f"{96 + 64 + 1152}Mi"}


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["L1"], {"runAsUser": 10002}),
        (["L2", "L1"], {"runAsUser": 10002, "seccompProfile": {"type": "Localhost", "localhostProfile": "own.json"}}),
        (["L1u"], {"runAsUser": 0, "runAsNonRoot": False, "add": ["SETGID", "SETUID"]}),
        (["L1u", "L2"], {"runAsUser": 0, "runAsNonRoot": False, "add": ["SETGID", "SETUID"],
                         "seccompProfile": {"type": "Localhost", "localhostProfile": "own.json"}}),
    ],
)  # fmt: skip
def test_the_sandbox_is_given_what_the_levels_of_environments_need_and_no_more(levels, expected):
    code = [{"name": f"c{n}", "stdio": {"dataset": "s3://d/p.jsonl", "minSandboxLevel": level}} for n, level in enumerate(levels)]
    deployment = render.verifiers(make_job(environments=code), OWNER, replace(SITE, sandbox_profile="own.json"), "i", Scale(1, None))
    (sandbox,) = deployment["spec"]["template"]["spec"]["initContainers"]
    context = sandbox["securityContext"]
    always = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "runAsGroup": 10002}
    capabilities = {"drop": ["ALL"], **({"add": expected.pop("add")} if "add" in expected else {})}
    assert context == {**always, **expected, "capabilities": capabilities}
    asked = [word for level in sorted(set(levels) - {"L1"}) for word in ("--level", level)]
    assert sandbox["command"][5:] == asked


def test_a_memory_limit_of_the_job_s_own_goes_before_what_the_slots_may_use():
    job = edited(CODE, "verifiers.sandboxResources", {"limits": {"memory": "1Gi"}})
    (sandbox,) = render.verifiers(job, OWNER, SITE, "i", Scale(1, None))["spec"]["template"]["spec"]["initContainers"]
    assert sandbox["resources"] == {"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}}


def test_without_a_credentials_secret_pods_use_their_own_identity():
    job = edited(CPU, "storage.credentialsSecret", None)
    for item in render_all(job)[-3:]:
        for container in containers_of(item["spec"]["template"]):
            assert not [entry for entry in container["env"] if "valueFrom" in entry]


def test_everything_belongs_to_the_job_and_says_so(objects):
    for item in objects:
        meta = item["metadata"]
        assert meta["namespace"] == OWNER.namespace
        assert meta["ownerReferences"] == [OWNER.reference()]
        assert meta["labels"].items() >= {**names.MANAGED_BY, names.LABEL_JOB: OWNER.name}.items()
        if item["kind"] in WORKLOADS:
            labels = item["spec"]["template"]["metadata"]["labels"]
            assert labels.items() >= {**names.MANAGED_BY, **meta["labels"]}.items()
            if "selector" in item["spec"]:
                assert labels.items() >= item["spec"]["selector"]["matchLabels"].items()


def test_what_an_object_names_is_there(objects, templates):
    there = {(item["kind"], item["metadata"]["name"]) for item in objects}
    assert len(there) == len(objects)
    for template in templates.values():
        assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in there
        for volume in template["spec"]["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in there
        mounted = {mount["name"] for container in containers_of(template) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
    assert ("Service", templates[Role.LEARNER]["spec"]["subdomain"]) in there
    assert {item["spec"]["serviceName"] for item in objects if item["kind"] == "StatefulSet"} <= {name for kind, name in there}


def test_nobody_but_the_job_and_the_operator_reaches_engines_and_learner(objects, job):
    policies = {item["spec"]["podSelector"]["matchLabels"][names.LABEL_ROLE]: item for item in objects if item["kind"] == "NetworkPolicy"}
    assert set(policies) == set(Role)
    for role, policy in policies.items():
        assert "Ingress" in policy["spec"]["policyTypes"]
        for rule in policy["spec"]["ingress"]:
            for peer in rule["from"]:
                own = peer["podSelector"]["matchLabels"].get(names.LABEL_JOB) == OWNER.name
                operator = peer.get("namespaceSelector", {}).get("matchLabels") == {"kubernetes.io/metadata.name": SITE.operator_namespace}
                assert own or (operator and rule["ports"])
        if role == Role.VERIFIER:
            assert "Egress" in policy["spec"]["policyTypes"]
            ports = {entry["port"] for rule in policy["spec"]["egress"] for entry in rule["ports"]}
            assert ports == {53, 8333} | ({4318} if job.spec.observability.tracing else set())


def test_who_reads_metrics_reaches_learner_and_verifiers_and_no_engine():
    prometheus = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    objects = render.standing(CPU, OWNER, replace(SITE, metrics_from=(prometheus,)))
    rules = {
        item["spec"]["podSelector"]["matchLabels"][names.LABEL_ROLE]: [
            rule for rule in item["spec"]["ingress"] if prometheus in rule["from"]
        ]
        for item in objects
        if item["kind"] == "NetworkPolicy"
    }
    ports = {role: [entry["port"] for rule in found for entry in rule["ports"]] for role, found in rules.items()}
    assert ports == {Role.ROLLOUT: [], Role.LEARNER: [8082], Role.VERIFIER: [8081]}


@pytest.mark.parametrize("attempt", [1, 99_999])
def test_names_of_the_longest_job_name_are_dns_labels(job, attempt):
    owner = Owner("a" * 40, OWNER.namespace, OWNER.uid)
    for item in render_all(job, owner, attempt):
        name = item["metadata"]["name"]
        # the controllers of a Deployment and of an indexed Job add a hash, and an index, to the host names of their pods
        assert len(name) <= names.MAX_LABEL - (2 if item["kind"] in WORKLOADS else 0)
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        assert all(len(value) <= names.MAX_LABEL for value in item["metadata"]["labels"].values())


def test_pods_outlive_what_the_plan_needs_and_leave_lost_nodes(templates, job):
    assert templates[Role.LEARNER]["spec"]["terminationGracePeriodSeconds"] >= job.spec.deadlines.grace_seconds
    for template in templates.values():
        lost = [entry for entry in template["spec"]["tolerations"] if entry["key"].startswith("node.kubernetes.io/")]
        assert {entry["key"].rpartition("/")[2] for entry in lost} == {"not-ready", "unreachable"}
        assert all(entry["tolerationSeconds"] <= 30 for entry in lost)
        for container in template["spec"]["containers"]:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_attempts_differ_in_nothing_but_their_number():
    first, second = (json.dumps(render.learner(CPU, OWNER, SITE, "i", attempt)) for attempt in (7, 8))
    assert first != second
    assert re.sub(r"learner-7|\"7\"", "N", first) == re.sub(r"learner-8|\"8\"", "N", second)


def test_a_disruption_budget_asks_for_no_more_engines_than_there_are():
    job = edited(edited(FULL, "rollouts.minAvailable", 5), "rollouts.replicas", 1)
    budgets = [item for item in render_all(job) if item["kind"] == "PodDisruptionBudget"]
    assert {item["metadata"]["name"].rpartition("-")[2]: item["spec"]["minAvailable"] for item in budgets} == {"rollout": 1, "learner": 4}


CHANGES = [
    # what nothing is started with
    ("rollouts.replicas", 9, set()),
    ("rollouts.minAvailable", 9, set()),
    ("verifiers.replicas", 4, set()),
    ("verifiers.maxReplicas", 9, set()),
    ("suspend", True, set()),
    ("ttl.rolloutsAfterFinishedSeconds", 1, set()),
    ("ttl.podsAfterFinishedSeconds", 1, set()),
    ("failurePolicy.maxLearnerRestarts", 9, set()),
    ("failurePolicy.maxRoleRestarts", 9, set()),
    ("scheduling.disruptionBudget", False, set()),
    # what one role alone is started with
    ("rollouts.engineArgs", {"max-num-seqs": 64}, {Role.ROLLOUT}),
    ("rollouts.env", {"NCCL_DEBUG": "INFO"}, {Role.ROLLOUT}),
    ("rollouts.pod.sharedMemory", "32Gi", {Role.ROLLOUT}),
    ("verifiers.workers", 4, {Role.VERIFIER}),
    ("learner.env", {"NCCL_DEBUG": "INFO"}, {Role.LEARNER}),
    ("learner.checkpoint.everySteps", 7, {Role.LEARNER}),
    ("sampling.temperature", 0.5, {Role.LEARNER}),
    # what several are
    ("environments", [{"name": "sums", "arithmetic": {"operations": ["-"]}}], {Role.VERIFIER, Role.LEARNER}),
    ("model.uri", "s3://models/other", {Role.ROLLOUT, Role.LEARNER}),
    ("weightSync.timeoutSeconds", 60.0, {Role.ROLLOUT, Role.LEARNER}),
    ("scheduling.priorityClassName", "urgent", set(Role)),
    ("observability.tracing", None, set(Role)),
    ("storage.uri", "s3://elsewhere", set(Role)),
]


def hashes(job, image="i"):
    return {role: spec_hash(job, role, image) for role in Role}


@pytest.mark.parametrize(("path", "value", "roles"), CHANGES, ids=[path for path, _, _ in CHANGES])
def test_a_change_makes_those_pods_out_of_date_that_are_started_with_it(path, value, roles):
    before, after = hashes(FULL), hashes(edited(FULL, path, value))
    assert {role for role in Role if before[role] != after[role]} == roles


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(range(len(CHANGES))), max_size=4))
def test_changes_add_up(chosen):
    job, roles = FULL, set()
    for index in sorted(chosen):
        path, value, changed = CHANGES[index]
        job, roles = edited(job, path, value), roles | changed
    before, after = hashes(FULL), hashes(job)
    assert {role for role in Role if before[role] != after[role]} == roles


class NewerRollouts(Rollouts):
    novelty: int = 3


class NewerSpec(RLVRJobSpec):
    novelty: int = 3
    rollouts: NewerRollouts = NewerRollouts()


class NewerJob(RLVRJob):
    spec: NewerSpec


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_version_that_knows_more_fields_makes_no_running_pod_out_of_date(job):
    newer = NewerJob.model_validate(job.model_dump(mode="json", by_alias=True))
    assert newer.spec.rollouts.novelty == 3
    assert hashes(newer) == hashes(job)


def test_another_image_makes_a_pod_out_of_date():
    assert all(spec_hash(CPU, role, "a") != spec_hash(CPU, role, "b") for role in Role)


@pytest.mark.parametrize("role", Role)
def test_pods_that_are_started_otherwise_have_another_hash(role):
    """Else a change would never reach pods that run. Engines that come later are told to a learner by the operator."""
    for path, value, _ in CHANGES:
        after = edited(FULL, path, value)
        if template_of(FULL, role) != template_of(after, role):
            assert spec_hash(FULL, role, SITE.images[role]) != spec_hash(after, role, SITE.images[role]), path


def template_of(job, role):
    """The pod template, without the hash itself."""
    item = next(item for item in render_all(job) if item["kind"] in WORKLOADS and item["metadata"]["labels"][names.LABEL_ROLE] == role)
    template = json.loads(json.dumps(item["spec"]["template"]))
    del template["metadata"]["annotations"][names.ANNOTATION_SPEC_HASH]
    for container in template["spec"]["containers"]:
        container["env"] = [entry for entry in container["env"] if entry["name"] != Variable.ENGINE_URLS]
    return template


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_processes_read_the_job_as_it_was_asked_for_and_no_default_is_spelled_out(file):
    """Pods of an older image, which a running job keeps over an upgrade, refuse fields that they do not know."""
    job = load_job(file.read_bytes())
    (config,) = (item for item in render.standing(job, OWNER, SITE) if item["kind"] == "ConfigMap")
    text = config["data"]["job.json"]
    assert RLVRJob.model_validate_json(text) == job
    assert "ttl" not in json.loads(text)["spec"]


JUDGES = [
    {
        "name": name,
        "judge": {
            "dataset": "s3://d/e.jsonl",
            "endpoint": f"https://{name}.example:{port}/v1",
            "model": "m",
            "credentialsSecret": {"name": secret},
        },
    }
    for name, port, secret in (("essays", 8443, "sage"), ("short-essays", 9443, "owl"))
]


def test_only_the_verifier_gets_the_judges_keys_each_its_own():
    asked = [
        (item["kind"], entry["name"], entry["valueFrom"]["secretKeyRef"])
        for item in render_all(edited(CPU, "environments", JUDGES))[-3:]
        for container in containers_of(item["spec"]["template"])
        for entry in container["env"]
        if entry["name"].startswith("JUDGE_API_KEY")
    ]
    assert asked == [
        ("Deployment", "JUDGE_API_KEY_ESSAYS", {"name": "sage", "key": "JUDGE_API_KEY"}),
        ("Deployment", "JUDGE_API_KEY_SHORT_ESSAYS", {"name": "owl", "key": "JUDGE_API_KEY"}),
    ]


def test_the_verifier_may_reach_the_ports_of_its_judges():
    policies = [item for item in render.standing(edited(CPU, "environments", JUDGES), OWNER, SITE) if item["kind"] == "NetworkPolicy"]
    (egress,) = (policy["spec"]["egress"] for policy in policies if "egress" in policy["spec"])
    assert {8443, 9443} <= {port["port"] for rule in egress for port in rule["ports"]}


def test_only_the_learner_gets_the_teachers_key():
    teacher = {"endpoint": "https://t/v1", "model": "m", "credentialsSecret": {"name": "sage"}}
    job = edited(CPU, "stages", [{"name": name, "distill": {"teacher": teacher}} for name in ("a", "b")])
    asked = [
        (item["kind"], entry["valueFrom"])
        for item in render_all(job)[-3:]
        for container in containers_of(item["spec"]["template"])
        for entry in container["env"]
        if entry["name"] == "TEACHER_API_KEY"
    ]
    assert asked == [("Job", {"secretKeyRef": {"name": "sage", "key": "TEACHER_API_KEY"}})]
