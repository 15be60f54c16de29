"""An API server on a bad day, replicas that take over from each other, names that are taken, namespaces that go away."""

import json
import subprocess
import time

import pytest
from cluster_operator import manifest
from commands import wait_for
from weather import Proxy, Weather
from whole_jobs import assert_whole, is_running, nothing_left, settled

pytestmark = [pytest.mark.usefixtures("fake_nodes"), pytest.mark.timeout(300)]
LEASE_SECONDS = 15.0
"""For so long a Lease is its holder's after the last renewal."""


@pytest.fixture
def proxy(api):
    with Proxy(str(api.client.base_url).rstrip("/")) as proxy:
        yield proxy


@pytest.fixture
def through(proxy, operators, tmp_path):
    """KUBECONFIG of an operator behind the proxy."""
    config = json.loads(operators.kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": proxy.url}
    file = tmp_path / "proxied"
    file.write_text(json.dumps(config))
    return file


@pytest.mark.parametrize(
    "weather",
    [
        Weather("conflict", requests=6, writes_only=True),
        Weather("busy", requests=6),
        Weather("error", requests=6),
        Weather("reset", requests=6),
    ],
    ids=lambda weather: weather.kind,
)
def test_converges_after_requests_that_fail(api, namespace, operators, proxy, through, weather):
    operator = operators.leader(kubeconfig=through)
    proxy.weather = weather
    api.create(manifest("job", namespace))
    assert_whole(api, namespace, "job", settled(api, namespace, "job"))
    assert weather.hit == weather.requests, operator.words()


def test_lists_make_up_for_watches_that_are_mute(api, namespace, operators, proxy, through):
    operators.leader(kubeconfig=through, RLVR_RESYNC_SECONDS="3")
    proxy.weather = Weather("mute")
    api.create(manifest("job", namespace))
    assert_whole(api, namespace, "job", settled(api, namespace, "job"))
    api.delete("RLVRJob", namespace, "job")
    nothing_left(api, namespace)


def test_one_replica_acts_and_the_next_one_takes_over(api, namespace, operators):
    first = operators.leader(identity="one")
    second = operators.start(identity="two")
    wait_for(lambda: "held by one" in second.words(), 20, second.words)
    api.create(manifest("before", namespace))
    assert_whole(api, namespace, "before", settled(api, namespace, "before"))
    assert second.metric("controller_runtime_reconcile_total") == 0
    assert second.metric("leader_election_master_status") == 0
    took = stop_and_see_taken_over(first.kill, second)
    assert LEASE_SECONDS - 5 < took < LEASE_SECONDS + 10, "not before the Lease has run out, and soon after"
    api.create(manifest("after", namespace))
    assert_whole(api, namespace, "after", settled(api, namespace, "after"))
    third = operators.start(identity="three")
    wait_for(lambda: "held by two" in third.words(), 20, third.words)
    assert stop_and_see_taken_over(second.stop, third) < LEASE_SECONDS - 5, "a leader that stops in order gives the Lease back"


def stop_and_see_taken_over(stop, successor):
    """Seconds until the successor leads."""
    began = time.monotonic()
    stop()
    wait_for(lambda: "leads with lease" in successor.words(), 40, successor.words)
    return time.monotonic() - began


def test_a_leader_whose_connection_freezes_ends_before_another_leads(namespace, operators, proxy, through):
    first = operators.leader(identity="one", kubeconfig=through)
    second = operators.start(identity="two")
    wait_for(lambda: "held by one" in second.words(), 20, second.words)
    proxy.weather = Weather("freeze")
    assert first.wait(20) == 1
    assert "not renewed for" in first.words()
    assert "leads with lease" not in second.words()
    wait_for(lambda: "leads with lease" in second.words(), 30, second.words)


def test_a_name_that_is_taken_is_said_and_mended_when_it_is_free(api, namespace, operators):
    operators.leader()
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "job-spec", "namespace": namespace}, "data": {"mine": "yes"}}
    version = api.create(foreign)["metadata"]["resourceVersion"]
    api.create(manifest("job", namespace))
    accepted = wait_for(lambda: refused(api, namespace, "job"), 30, lambda: api.status(namespace, "job"))
    assert accepted["reason"] == "NameConflict"
    assert accepted["message"] == (
        "ConfigMap job-spec exists and belongs to nobody in particular: rename the job, or delete the ConfigMap if it is of no use"
    )
    assert api.children(namespace) == {}
    assert api.get("ConfigMap", namespace, "job-spec")["metadata"]["resourceVersion"] == version
    api.delete("ConfigMap", namespace, "job-spec")
    assert_whole(api, namespace, "job", settled(api, namespace, "job"))
    assert api.condition(namespace, "job", "Accepted")["status"] == "True"


def refused(api, namespace, job):
    accepted = api.condition(namespace, job, "Accepted")
    return accepted if accepted.get("status") == "False" else None


def test_a_namespace_that_is_deleted_takes_its_jobs_along_and_no_other(api, namespace, operators, tmp_path):
    """The operator watches two namespaces, of which one goes away."""
    other = f"{namespace}-gone"
    subprocess.run(["kubectl", "create", "namespace", other], check=True, capture_output=True, timeout=30)
    administrator = tmp_path / "administrator"
    config = json.loads(operators.kubeconfig.read_text())
    config["clusters"][0]["cluster"] = {"server": str(api.client.base_url)}
    administrator.write_text(json.dumps(config))
    operator = operators.leader(kubeconfig=administrator, RLVR_WATCH_NAMESPACES=f"{namespace},{other}")
    api.create(manifest("doomed", other))
    wait_for(lambda: is_running(api, other, "doomed"), 40, lambda: api.status(other, "doomed"))
    subprocess.run(["kubectl", "delete", "namespace", other, "--timeout=60s"], check=True, capture_output=True, timeout=70)
    api.create(manifest("kept", namespace))
    assert_whole(api, namespace, "kept", settled(api, namespace, "kept"))
    assert operator.process.is_alive()
    assert "Traceback" not in operator.log.read_text()
