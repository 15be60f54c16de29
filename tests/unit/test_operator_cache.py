"""The cache: versions order what comes from watches and lists, and what is gone goes."""

from hypothesis import given, settings
from hypothesis import strategies as st
from operator_jobs import manifest

from rlvr_api import names
from rlvr_operator.cache import Cache, name_of

KEY = ("research", "arithmetic")


def child(name="a", version=1, uid="u", kind="ConfigMap", **meta):
    labels = {names.LABEL_JOB: KEY[1]}
    metadata = {"name": name, "namespace": KEY[0], "uid": uid, "resourceVersion": str(version), "labels": labels, **meta}
    return {"kind": kind, "metadata": metadata, "data": {"version": str(version)}}


def job(version=1):
    item = manifest()
    return {**item, "metadata": {**item["metadata"], "uid": "j", "resourceVersion": str(version)}}


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(8)))
def test_the_newest_version_stays_whatever_the_order_of_events(order):
    cache = Cache()
    for version in order:
        cache.put(child(version=version))
    assert cache.children(KEY) == (child(version=7),)
    assert cache.jobs() == ()


def test_versions_are_numbers():
    cache = Cache()
    cache.put(child(version=9))
    assert cache.put(child(version=10)) == KEY
    assert cache.put(child(version=10)) is None


def test_jobs_and_children_are_kept_apart_and_told_by_their_job():
    cache = Cache()
    assert cache.put(child()) == KEY
    assert cache.jobs() == ()
    assert cache.put(job()) == KEY
    assert (cache.jobs(), cache.job(KEY)["metadata"]["uid"]) == ((KEY,), "j")
    assert [item["kind"] for item in cache.children(KEY)] == ["ConfigMap"]
    stranger = child()
    del stranger["metadata"]["labels"]
    assert cache.put(stranger) is None
    assert cache.remove(stranger) is None


def test_the_end_of_an_earlier_object_of_a_name_removes_no_later_one():
    cache = Cache()
    cache.put(child(version=5, uid="second"))
    assert cache.remove(child(version=4, uid="first")) == KEY
    assert len(cache.children(KEY)) == 1
    cache.remove(child(version=6, uid="second"))
    assert cache.children(KEY) == ()


def test_a_list_removes_what_it_does_not_show_unless_that_is_newer_than_the_question():
    cache = Cache()
    for item in (child("old", 3), child("kept", 4), child("new", 9), child("pod", 3, kind="Pod")):
        cache.put(item)
    assert cache.retain("ConfigMap", {name_of(child("kept"))}, version=5) == {KEY}
    assert {item["metadata"]["name"] for item in cache.children(KEY)} == {"kept", "new", "pod"}
    assert cache.retain("ConfigMap", {name_of(child("kept"))}, version=5) == set()


def test_what_nobody_reads_is_not_kept():
    cache = Cache()
    cache.put(child(managedFields=[{"manager": "kubectl"}]))
    cache.put({**child("pod", kind="Pod"), "spec": {"containers": []}})
    assert not [item for item in cache.children(KEY) if "managedFields" in item["metadata"] or "spec" in item]
