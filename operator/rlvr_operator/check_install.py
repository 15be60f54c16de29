"""What `helm test` runs in the cluster: whether an installation can work, before the first job says so.

    rights   as the operator:     every right that the chart grants is there, and none that it must not have
    sample   as whoever may make jobs:  the API server would take a job, and refuses a wrong one

    python -m rlvr_operator.check_install rights|sample

One line a finding; exit code 1 when one is bad. Not covered: images, storage and GPUs, which a job's conditions tell of.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rlvr_api import names
from rlvr_operator.cluster import Cluster, ClusterError, RefusedError
from rlvr_operator.kinds import KINDS
from rlvr_operator.render import Object

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES = "RLVR_RULES"
"""Environment variable with the chart's rules for the namespaces of jobs, as JSON."""
SAMPLE: Object = {
    "model": {"uri": "s3://runs/models/base"},
    "storage": {"uri": "s3://runs"},
    "environments": [{"name": "sums", "arithmetic": {"operations": ["+"]}}],
    "stages": [{"name": "climb", "rlvr": {"steps": 1}}],
}
WRONG: Object = {**SAMPLE, "stages": []}


@dataclass(frozen=True)
class Right:
    """One thing to do with one kind of object."""

    verb: str
    group: str
    resource: str
    namespace: str
    """Empty: in all."""
    name: str = ""

    def __str__(self) -> str:
        kind = f"{self.resource}{f'.{self.group}' if self.group else ''}"
        return f"{self.verb} {kind}{f' {self.name}' if self.name else ''} in {self.namespace or 'all namespaces'}"

    def review(self) -> Object:
        """The question to the API server."""
        resource, _, subresource = self.resource.partition("/")
        attributes = {
            "verb": self.verb, "group": self.group, "resource": resource, "subresource": subresource, "namespace": self.namespace,
            "name": self.name,
        }  # fmt: skip
        return {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}


def needed(rules: list[Object], namespaces: list[str], lease_namespace: str, lease: str) -> Iterator[Right]:
    """What the operator cannot do without."""
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for namespace in namespaces:
                    yield from (Right(verb, group, resource, namespace) for verb in rule["verbs"])
    for verb in ("create", "get", "update"):
        yield Right(verb, "coordination.k8s.io", "leases", lease_namespace, "" if verb == "create" else lease)


def unwanted(namespaces: list[str]) -> Iterator[Right]:
    """What would make a stolen token of the operator worth more than its work."""
    for namespace in namespaces:
        yield from (Right(verb, "", "secrets", namespace) for verb in ("get", "list", "watch", "patch", "delete"))
        yield Right("create", "", "pods/exec", namespace)
        yield Right("create", "", "pods", namespace)
        yield Right("create", "rbac.authorization.k8s.io", "rolebindings", namespace)


async def check_rights(cluster: Cluster) -> list[str]:
    """What is wrong with this process's rights."""
    namespaces = os.environ["RLVR_WATCH_NAMESPACES"].split(",")
    own, lease = os.environ["RLVR_POD_NAMESPACE"], os.environ["RLVR_LEASE_NAME"]
    wanted = list(needed(json.loads(os.environ[RULES]), namespaces, own, lease))
    problems = []
    for right in (*wanted, *unwanted(namespaces)):
        allowed = (await cluster.post(REVIEWS, right.review()))["status"]["allowed"]
        if allowed is not (right in wanted):
            problems.append(f"may {right}, and must not" if allowed else f"may not {right}: see the roles of the release")
    if not problems:
        print(f"{len(wanted)} rights are there, and no more")
    return problems


async def check_sample(cluster: Cluster) -> list[str]:
    """What is wrong with the definition of RLVRJob, as the API server has it."""
    namespace = os.environ["RLVR_WATCH_NAMESPACES"].split(",")[0] or os.environ["RLVR_POD_NAMESPACE"]
    path, query = KINDS[names.KIND].path(namespace), [("dryRun", "All"), ("fieldValidation", "Strict")]
    job: Object = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "sample"}}
    try:
        await cluster.post(path, {**job, "spec": SAMPLE}, query)
    except ClusterError as error:
        return [f"a job is refused: {error}"]
    try:
        await cluster.post(path, {**job, "spec": WRONG}, query)
    except RefusedError as error:
        print(f"a job is taken, a wrong one refused: {error}")
        return []
    return ["a job without stages is taken: the definition of RLVRJob is not this version's; set crds.enabled"]


CHECKS = {"rights": check_rights, "sample": check_sample}


def main(arguments: list[str]) -> int:
    """Run one check; returns an exit code."""
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        print(f"usage: python -m rlvr_operator.check_install {'|'.join(CHECKS)}", file=sys.stderr)
        return 2
    try:
        problems = asyncio.run(_run(arguments[0]))
    except ClusterError as error:
        problems = [f"the API server cannot be asked: {error}"]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


async def _run(check: str) -> list[str]:
    async with await Cluster.connect() as cluster:
        return await CHECKS[check](cluster)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
