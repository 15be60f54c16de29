"""Makes the API server's objects what they should be, with as few requests as that takes.

    wanted objects -> nobody else's of the name? -> already as wanted: nothing; else server-side apply, pinned to the uid that was seen
    seal key       -> created once, never read
    deletions      -> pinned to the uid that was seen

Requests for one job go out together, in three waves: a look costs the time of its slowest ones, not of their sum. A write is remembered by
the version it left behind, so that an object which never looks as wanted is not written for ever.
"""

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from rlvr_api import names
from rlvr_operator.cache import Cache, Name, name_of
from rlvr_operator.cluster import Cluster, ConflictError
from rlvr_operator.difference import is_as_wanted
from rlvr_operator.observe import Children, controller_uid
from rlvr_operator.removals import Deletion
from rlvr_operator.render import Object, Owner
from rlvr_operator.render.site import metadata

SEAL_KEY_BYTES = 32
WAVES = {"ConfigMap": 0, "StatefulSet": 2, "Deployment": 2, "Job": 2}
"""Order of writes by kind, 1 for the others: a job that does not even fit into its ConfigMap leaves nothing half made, and pods start with
what they need."""
T = TypeVar("T")
Change = tuple[Object, Object | None]
"""What is wanted, and what is there."""


class NameConflictError(Exception):
    """An object of a child's name exists and is not this job's; the message names it."""


class Writer:
    """Writes the children of jobs."""

    def __init__(self, cluster: Cluster, cache: Cache) -> None:
        self._cluster, self._cache = cluster, cache
        self._left: dict[Name, tuple[str, str]] = {}

    async def compare(self, owner: Owner, wanted: Iterable[Object], seen: Children) -> tuple[Change, ...]:
        """Which objects must be written to be as wanted. Nothing is written yet.

        Raises:
            NameConflictError: an object is somebody else's.
            ClusterError: a request failed, or an object is on its way out.
        """
        wanted = tuple(wanted)
        found = await _together(self._find(owner, item, seen) for item in wanted)
        return tuple((item, one) for item, one in zip(wanted, found, strict=True) if one is None or self._differs(one, item))

    async def write(self, changes: Iterable[Change]) -> None:
        """Bring objects into being, or to what is wanted.

        Raises:
            ClusterError: a request failed; what came before it stays.
        """
        changes = tuple(changes)
        for wave in range(3):
            await _together(self._write(item, one) for item, one in changes if WAVES.get(item["kind"], 1) == wave)

    async def seal(self, owner: Owner) -> None:
        """Have the key of gold answers be there. The operator may create Secrets, not read them."""
        key = base64.b64encode(os.urandom(SEAL_KEY_BYTES)).decode()
        meta = metadata(owner, names.seal_secret_name(owner.name))
        await self._cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": {"key": key}, "type": "Opaque"})

    async def delete(self, owner: Owner, deletions: Iterable[Deletion], seen: Children) -> None:
        """Delete objects. A Workload that is gone admits nobody, whenever the watches show it."""
        for deletion in deletions:
            await self._cluster.delete(owner.namespace, deletion)
            if deletion.kind == "Workload":
                self._cache.remove(seen.objects[deletion.kind, deletion.name])

    def forget(self, namespace: str, job: str) -> None:
        """The job is gone."""
        mine = [name for name in self._left if name[1] == namespace and name[2].startswith(f"{job}-")]
        for name in mine:
            del self._left[name]

    async def _find(self, owner: Owner, item: Object, seen: Children) -> Object | None:
        """What is there; asked for where the watches show nothing: it is not there, too new for them, or somebody else's."""
        kind, name = item["kind"], item["metadata"]["name"]
        if (known := seen.objects.get((kind, name))) is not None:
            return known
        found = await self._cluster.get(kind, owner.namespace, name)
        if found is None:
            return None
        if controller_uid(found) != owner.uid:
            raise NameConflictError(_conflict(owner, found))
        if "deletionTimestamp" in found["metadata"]:
            raise ConflictError(f"{kind} {name} is being deleted", (kind, owner.namespace, name))
        return found

    def _differs(self, found: Object, item: Object) -> bool:
        if item["kind"] == "Job" or is_as_wanted(found, item):
            return False  # a Job's template cannot change; another one is another attempt
        return self._left.get(name_of(item)) != (_digest(item), found["metadata"]["resourceVersion"])

    async def _write(self, item: Object, found: Object | None) -> None:
        answer = await self._cluster.apply(item, None if found is None else found["metadata"]["uid"])
        if "deletionTimestamp" in answer["metadata"]:
            raise ConflictError(f"{item['kind']} {item['metadata']['name']} is being deleted", name_of(item))
        self._left[name_of(item)] = (_digest(item), answer["metadata"]["resourceVersion"])
        self._cache.put(answer)


async def _together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results. An error is raised once all calls have ended: nothing goes on behind the caller's back."""
    ended = await asyncio.gather(*calls, return_exceptions=True)
    for result in ended:
        if isinstance(result, BaseException):
            raise result
    return [result for result in ended if not isinstance(result, BaseException)]


def _conflict(owner: Owner, found: Object) -> str:
    kind, meta = found["kind"], found["metadata"]
    if meta.get("labels", {}).get(names.LABEL_JOB) == owner.name:
        return f"{kind} {meta['name']} belongs to an earlier job {owner.name} that is still being deleted; it is waited for"
    holder = next((f"{ref['kind']} {ref['name']}" for ref in meta.get("ownerReferences", ())), "nobody in particular")
    return f"{kind} {meta['name']} exists and belongs to {holder}: rename the job, or delete the {kind} if it is of no use"


def _digest(item: Object) -> str:
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
