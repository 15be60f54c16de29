"""What the API server last said of jobs and their children: filled by watches, put right by lists.

A watch that breaks off can miss deletions, so every now and then a list takes their place (`retain`). Versions order what comes from both.

Objects are kept as compressed text and read anew at each look, which costs a millisecond: as Python data, a job's fifteen take 300 kB.
"""

import json
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from rlvr_api import names
from rlvr_operator.render import Object
from rlvr_operator.work_queue import Key

Name = tuple[str, str, str]
"""Kind, namespace and name."""


UNREAD: dict[str, Object] = {"Pod": {}, "Job": {"spec": {}}}
"""What takes the place of a spec that nobody here reads."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One object."""

    uid: str
    version: int
    data: bytes

    @classmethod
    def of(cls, item: Object) -> Self:
        """Without what nobody here reads."""
        meta = {name: value for name, value in item["metadata"].items() if name != "managedFields"}
        slim = {**item, "metadata": meta}
        if item["kind"] in UNREAD:
            slim.pop("spec", None)
            slim |= UNREAD[item["kind"]]
        return cls(meta["uid"], _version(item), zlib.compress(json.dumps(slim, separators=(",", ":")).encode(), 1))

    def item(self) -> Object:
        """The object."""
        found: Object = json.loads(zlib.decompress(self.data))
        return found


class Cache:
    """Slim copies of objects, by the job that they concern."""

    def __init__(self) -> None:
        self._families: dict[Key, dict[Name, Packed]] = {}
        self._unserved: set[str] = set()

    def job(self, key: Key) -> Object | None:
        """The RLVRJob."""
        found = self._families.get(key, {}).get((names.KIND, *key))
        return None if found is None else found.item()

    def children(self, key: Key) -> tuple[Object, ...]:
        """Everything that carries the job's label."""
        return tuple(packed.item() for (kind, _, _), packed in self._families.get(key, {}).items() if kind != names.KIND)

    def jobs(self) -> tuple[Key, ...]:
        """All jobs."""
        return tuple(key for key, family in self._families.items() if (names.KIND, *key) in family)

    def put(self, item: Object) -> Key | None:
        """Take an object in; returns the job that it concerns, None if it is old news or nobody's."""
        key = _key(item)
        if key is None:
            return None
        family, name = self._families.setdefault(key, {}), name_of(item)
        known = family.get(name)
        if known is not None and known.version >= _version(item):
            return None
        family[name] = Packed.of(item)
        return key

    def remove(self, item: Object) -> Key | None:
        """Forget an object, unless another one of its name is known; returns the job that it concerns."""
        key = _key(item)
        if key is not None:
            known = self._families.get(key, {}).get(name_of(item))
            if known is not None and known.uid == item["metadata"]["uid"]:
                self._forget(key, name_of(item))
        return key

    def forget(self, key: Key, name: Name) -> None:
        """An object of a job was asked for, and is not there."""
        if name in self._families.get(key, {}):
            self._forget(key, name)

    def retain(self, kind: str, listed: Collection[Name], version: int | None, namespace: str | None = None) -> set[Key]:
        """Forget what a list of one kind does not show; returns the jobs of which something went.

        Args:
            version: of the list; what is newer may be missing from it. None: nothing is.
            namespace: that was listed; None: all.
        """
        gone = [
            (key, name)
            for key, family in self._families.items()
            if namespace in (None, key[0])
            for name, packed in family.items()
            if name[0] == kind and name not in listed and (version is None or packed.version <= version)
        ]
        for key, name in gone:
            self._forget(key, name)
        return {key for key, _ in gone}

    def note_served(self, kind: str, is_served: bool) -> None:
        """Whether the API server knows a kind."""
        self._unserved.discard(kind) if is_served else self._unserved.add(kind)

    def is_served(self, kind: str) -> bool:
        """Whether the API server is thought to know a kind."""
        return kind not in self._unserved

    def _forget(self, key: Key, name: Name) -> None:
        del self._families[key][name]
        if not self._families[key]:
            del self._families[key]


def name_of(item: Object) -> Name:
    """Kind, namespace and name of an object."""
    return item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]


def _key(item: Object) -> Key | None:
    meta = item["metadata"]
    name = meta["name"] if item["kind"] == names.KIND else meta.get("labels", {}).get(names.LABEL_JOB)
    return None if name is None else (meta["namespace"], name)


def _version(item: Object) -> int:
    return int(item["metadata"]["resourceVersion"])
