"""The container of a verifier's pod that runs what the model wrote: another user than the service, without answers, credentials or files of
the job, and with a memory limit of its own, so that a bomb takes down itself and not the service.

A sidecar in Kubernetes' sense: it starts before the service and ends after it. What the two share is a folder in memory with one socket.
"""

from rlvr_api.environments import EnvironmentSpec
from rlvr_api.pods import Resources
from rlvr_api.spec import RLVRJob
from rlvr_operator.plan import Sidecar
from rlvr_operator.render.site import SANDBOX_DIR, Object, Site

USER_ID = 10002
"""Another one than the service's: it may neither read nor signal what is the service's, whatever else fails."""
HOST_MEBIBYTES = 96
"""Of the process that starts slots."""
SLOT_MEBIBYTES = 64
"""Of a slot that runs nothing."""
RUNTIME_MEBIBYTES = {"go": 1024, "javascript": 1536}
"""Address space that the sandbox gives the runtimes of these languages beside the program's."""
COMPILE_MEBIBYTES = 1024 + 128
"""Of one step of a compiler, and the files that it reads and makes, which are in memory."""
VOLUME: Object = {"name": "sandbox", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}


def sandbox_mount(read_only: bool) -> Object:
    """The socket's folder; connecting needs no writing."""
    return {"name": "sandbox", "mountPath": SANDBOX_DIR, **({"readOnly": True} if read_only else {})}


def sandbox_container(job: RLVRJob, site: Site, sidecar: Sidecar, image: str) -> Object:
    """The sidecar; its image is the service's."""
    return {
        "name": sidecar.name,
        "image": image,
        "imagePullPolicy": site.pull_policy,
        "command": list(sidecar.command),
        "env": [{"name": name, "value": sidecar.env[name]} for name in sorted(sidecar.env)],
        "restartPolicy": "Always",
        "resources": sandbox_resources(job),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _security_context(job.spec.sandbox_levels, site),
        "volumeMounts": [sandbox_mount(read_only=False)],
    }


def _security_context(levels: tuple[str, ...], site: Site) -> Object:
    """What slots need to be what environments ask for; root only where each is to be a user of its own, and then with no other power."""
    users = {"runAsUser": 0, "runAsNonRoot": False} if "L1u" in levels else {"runAsUser": USER_ID}
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **({"add": ["SETGID", "SETUID"]} if "L1u" in levels else {})},
        **users,
        "runAsGroup": USER_ID,
        **({"seccompProfile": {"type": "Localhost", "localhostProfile": site.sandbox_profile}} if "L2" in levels else {}),
    }


def sandbox_resources(job: RLVRJob) -> Object:
    """What the job says, and a memory limit in any case; memory is set aside as a whole, since every slot may use its share at once."""
    settings = job.spec.verifiers.sandbox_resources or Resources()
    largest = max(map(_slot_mebibytes, job.spec.environments))
    default = f"{HOST_MEBIBYTES + job.spec.verifiers.workers * (SLOT_MEBIBYTES + largest)}Mi"
    limits = {"memory": default, **settings.limits}
    requests = {"memory": limits["memory"], **settings.requests}
    return {"requests": dict(sorted(requests.items())), "limits": dict(sorted(limits.items()))}


def _slot_mebibytes(environment: EnvironmentSpec) -> int:
    """What the code of an environment may use at once; 0 where it runs none."""
    if environment.stdio is None:
        return 0 if environment.python_functions is None else environment.python_functions.memory_megabytes
    language = environment.stdio.language
    runtime = RUNTIME_MEBIBYTES.get(language, 0)
    compiling = COMPILE_MEBIBYTES + runtime if language in ("c", "cpp", "go") else 0
    return max(environment.stdio.memory_megabytes + runtime, compiling)
