"""Why something does not run, in the words of whoever knows: scheduler, kubelet, API server or the process itself. Pure."""

from collections.abc import Iterator, Mapping

from rlvr_api.conditions import Reason
from rlvr_api.process import ExitCode, Role
from rlvr_operator.observation import Problem
from rlvr_operator.observe import Children, PodView, role_object

IMAGE_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable"}
)
CRASH_REASONS = frozenset({"CrashLoopBackOff"})
PLACEMENT_REASONS = frozenset({Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.CONTAINER_CONFIG_FAILED, Reason.CREATION_REFUSED})
"""What a `Scheduled` condition tells; the rest is told by the role's own condition."""


def role_problems(seen: Children, owner_name: str, attempt: int) -> Mapping[Role, Problem]:
    """The first problem of each role that has one."""
    found: dict[Role, Problem] = {}
    for role in Role:
        pods = seen.of(role, attempt)
        if role is Role.LEARNER:
            pods = tuple(sorted(pods, key=lambda pod: (not pod.is_lost, pod.end_order)))
        problem = next(_problems(pods, seen), None) or _creation_problem(seen, owner_name, role, attempt)
        if problem is None and role is Role.LEARNER:
            problem = _missing_node(seen, owner_name, attempt)
        if problem is not None:
            found[role] = problem
    return found


def unplaced(problems: Mapping[Role, Problem]) -> Problem | None:
    """The problem that keeps a pod from running at all, if there is one."""
    return next((problem for _, problem in sorted(problems.items()) if problem.reason in PLACEMENT_REASONS), None)


def _problems(pods: tuple[PodView, ...], seen: Children) -> Iterator[Problem]:
    for pod in pods:
        if pod.is_fine or pod.deleting:
            continue
        problem = pod_problem(pod, seen.warnings.get(pod.name))
        if problem is not None:
            yield problem


def pod_problem(pod: PodView, warning: str | None) -> Problem | None:
    """Why a pod is not ready; None when it is just starting.

    Args:
        warning: its latest warning event, the only place where volumes that cannot be mounted are told.
    """
    name = f"pod {pod.name}"
    if pod.evicted is not None:
        return Problem(Reason.EVICTED, f"{name}: {pod.evicted}")
    if pod.unschedulable is not None:
        return Problem(Reason.UNSCHEDULABLE, f"{name}: {pod.unschedulable}")
    if pod.waiting is not None and pod.waiting[0] not in CRASH_REASONS:
        reason = Reason.IMAGE_PULL_FAILED if pod.waiting[0] in IMAGE_REASONS else Reason.CONTAINER_CONFIG_FAILED
        return Problem(reason, f"{name}: {pod.waiting[0]}: {pod.waiting[1]}")
    if pod.termination is not None:
        end = pod.termination
        if end.exit_code == ExitCode.BAD_INPUT and pod.role is Role.LEARNER:
            return Problem(Reason.PREFLIGHT_REFUSED, f"{name}: {end.message}")
        kind = Reason.OUT_OF_MEMORY if end.reason == "OOMKilled" else Reason.CRASH_LOOPING if pod.waiting else Reason.RESTARTING
        return Problem(kind, f"{name}: {end.reason or 'ended'}, exit code {end.exit_code}: {end.message}")
    if warning is not None:
        return Problem(Reason.CONTAINER_CONFIG_FAILED, f"{name}: {warning}")
    return None


def _missing_node(seen: Children, owner_name: str, attempt: int) -> Problem | None:
    """Which pods of a learner of several are not there, or not ready."""
    kind, name = role_object(owner_name, Role.LEARNER, attempt)
    nodes = int(seen.objects.get((kind, name), {}).get("spec", {}).get("completions", 1))
    pods = {pod.node: pod for pod in seen.of(Role.LEARNER, attempt)}
    missing = [node for node in range(nodes) if node not in pods or not pods[node].is_fine]
    if nodes == 1 or not missing:
        return None
    words = [f"{name}-{node} {'has no pod' if node not in pods else 'is not ready'}" for node in missing[:3]]
    return Problem(Reason.SOME_NOT_READY, f"{len(missing)} of {nodes} pods are missing: {', '.join(words)}")


def _creation_problem(seen: Children, owner_name: str, role: Role, attempt: int) -> Problem | None:
    """Why a role's object could not make its pods."""
    kind, name = role_object(owner_name, role, attempt)
    item = seen.objects.get((kind, name))
    if item is None:
        return None
    for condition in item.get("status", {}).get("conditions", ()):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return Problem(Reason.CREATION_REFUSED, f"{kind} {name}: {condition.get('message', '')}")
    if name in seen.warnings and not seen.of(role, attempt):
        return Problem(Reason.CREATION_REFUSED, f"{kind} {name}: {seen.warnings[name]}")
    return None
