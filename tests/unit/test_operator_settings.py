"""The operator's settings: what the chart sets is read, and what would be ignored is refused with its name."""

import pytest

from rlvr_api.process import Role
from rlvr_operator.settings import SettingsError, read_settings

IMAGES = {f"RLVR_{role.upper()}_IMAGE": f"example.test/{role}:1" for role in Role}


def test_the_images_are_all_that_must_be_named():
    settings = read_settings(IMAGES)
    assert settings.site.images == {role: f"example.test/{role}:1" for role in Role}
    assert (settings.namespace, settings.watch_namespaces, settings.workers, settings.log_level) == ("rlvr-system", (), 8, "INFO")
    assert settings.pod_name


def test_what_is_set_is_read():
    more = {
        "RLVR_POD_NAMESPACE": "ml", "RLVR_POD_NAME": "operator-0", "RLVR_WATCH_NAMESPACES": "a, b,", "RLVR_IMAGE_PULL_SECRETS": "one,two",
        "RLVR_OPERATOR_SELECTOR": '{"app": "x"}', "RLVR_WORKERS": "3", "RLVR_RESYNC_SECONDS": "0.5", "RLVR_LOG_LEVEL": "debug",
        "RLVR_METRICS_FROM": '[{"podSelector": {}}]', "RLVR_SANDBOX_SECCOMP_PROFILE": "own/slots.json",
        "RLVR_SANDBOX_USER_NAMESPACES": "true",
    }  # fmt: skip
    settings = read_settings({**IMAGES, **more})
    assert (settings.namespace, settings.pod_name, settings.watch_namespaces) == ("ml", "operator-0", ("a", "b"))
    assert (settings.site.pull_secrets, settings.site.operator_labels) == (("one", "two"), {"app": "x"})
    assert settings.site.metrics_from == ({"podSelector": {}},)
    assert (settings.site.sandbox_profile, settings.site.sandbox_user_namespaces) == ("own/slots.json", True)
    assert (settings.workers, settings.resync_seconds, settings.log_level) == (3, 0.5, "DEBUG")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RLVR_LEARNER_IMAGE", ""), ("RLVR_WORKERS", "many"), ("RLVR_WORKERS", "0"), ("RLVR_WORKERS", "0.5"), ("RLVR_WORKERS", "nan"),
        ("RLVR_RESYNC_SECONDS", "inf"), ("RLVR_RESYNC_SECONDS", "-1"), ("RLVR_HTTP_PORT", "80.5"), ("RLVR_OPERATOR_SELECTOR", "app=x"),
        ("RLVR_OPERATOR_SELECTOR", "{}"), ("RLVR_OPERATOR_SELECTOR", '{"a": 1}'), ("RLVR_OPERATOR_SELECTOR", "[1]"),
        ("RLVR_KUEUE", "yes"), ("RLVR_SANDBOX_USER_NAMESPACES", "1"),
        ("RLVR_METRICS_FROM", "monitoring"), ("RLVR_METRICS_FROM", "{}"), ("RLVR_METRICS_FROM", "[{}]"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=name):
        read_settings({**IMAGES, name: value})
