"""What the API server last said of jobs and their children: filled by watches, put right by lists.

A watch that breaks off can miss deletions, so every now and then a list takes their place (`replace`). Versions order what comes from both.
"""

from collections.abc import Iterable

from rlvr_api import names
from rlvr_operator.render import Object
from rlvr_operator.work_queue import Key

Name = tuple[str, str, str]
"""Kind, namespace and name."""


class Cache:
    """Slim copies of objects, by the job that they concern."""

    def __init__(self) -> None:
        self._families: dict[Key, dict[Name, Object]] = {}

    def job(self, key: Key) -> Object | None:
        """The RLVRJob."""
        return self._families.get(key, {}).get((names.KIND, *key))

    def children(self, key: Key) -> tuple[Object, ...]:
        """Everything that carries the job's label."""
        return tuple(item for (kind, _, _), item in self._families.get(key, {}).items() if kind != names.KIND)

    def jobs(self) -> tuple[Key, ...]:
        """All jobs."""
        return tuple(key for key in self._families if self.job(key) is not None)

    def put(self, item: Object) -> Key | None:
        """Take an object in; returns the job that it concerns, None if it is old news or nobody's."""
        key = _key(item)
        if key is None:
            return None
        family, name = self._families.setdefault(key, {}), _name(item)
        known = family.get(name)
        if known is not None and _version(known) >= _version(item):
            return None
        family[name] = _slim(item)
        return key

    def remove(self, item: Object) -> Key | None:
        """Forget an object, unless another one of its name is known; returns the job that it concerns."""
        key = _key(item)
        if key is None:
            return None
        family, name = self._families.get(key, {}), _name(item)
        if (known := family.get(name)) is not None and known["metadata"]["uid"] == item["metadata"]["uid"]:
            del family[name]
        if not family:
            self._families.pop(key, None)
        return key

    def replace(self, kind: str, items: Iterable[Object], newest: int) -> set[Key]:
        """Put one kind right by a list; returns the jobs of which something changed.

        Args:
            newest: highest version seen before the list was asked for; what is newer than that may be missing from it.
        """
        listed = {_name(item): item for item in items}
        changed = {key for item in listed.values() if (key := self.put(item)) is not None}
        known = [(name, item) for family in self._families.values() for name, item in family.items() if name[0] == kind]
        for name, item in known:
            if name not in listed and _version(item) <= newest and (key := self.remove(item)) is not None:
                changed.add(key)
        return changed

    def newest(self) -> int:
        """The highest version of any object that is known."""
        return max((_version(item) for family in self._families.values() for item in family.values()), default=0)


def _name(item: Object) -> Name:
    return item["kind"], item["metadata"]["namespace"], item["metadata"]["name"]


def _key(item: Object) -> Key | None:
    meta = item["metadata"]
    name = meta["name"] if item["kind"] == names.KIND else meta.get("labels", {}).get(names.LABEL_JOB)
    return None if name is None else (meta["namespace"], name)


def _version(item: Object) -> int:
    return int(item["metadata"]["resourceVersion"])


def _slim(item: Object) -> Object:
    """Without what nobody here reads: the larger half of an object."""
    meta = {name: value for name, value in item["metadata"].items() if name != "managedFields"}
    return {**item, "metadata": meta}
