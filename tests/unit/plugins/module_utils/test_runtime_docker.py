# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""daemon.json: what is planned for it, for any file an administrator may have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _runtime_docker as docker
from ansible_collections.gpuops.k8s.plugins.module_utils._daemon_flags import Flag
from ansible_collections.gpuops.k8s.plugins.module_utils._runtime import Plan, Refusal, Want
from hypothesis import given, settings
from hypothesis import strategies as st

PATH = "/etc/docker/daemon.json"
WANT = Want()
ENTRY = {"path": WANT.path}


class Daemon:
    """A dockerd that reads its file by reload as 20.10 does: it adds, it never takes away."""

    def __init__(self) -> None:
        self.default = "runc"
        self.runtimes: dict[str, str] = {"runc": "runc"}

    def reload(self, text: str | None) -> None:
        value = json.loads((text or "").lstrip("\ufeff").strip() or "{}")
        self.runtimes.update(
            {name: entry.get("path", "") for name, entry in value.get("runtimes", {}).items()}
        )
        self.default = value.get("default-runtime", self.default)

    @property
    def live(self) -> docker.Live:
        return docker.Live("20.10.24", self.default, dict(self.runtimes), None)


def present(text: str | None, daemon: Daemon, record: dict[str, Any], want: Want = WANT) -> Plan:
    return docker.plan_present(PATH, text, want, daemon.live, record)


def absent(text: str | None, daemon: Daemon, record: dict[str, Any]) -> Plan:
    return docker.plan_absent(PATH, text, WANT, daemon.live, record)


def text_of(plan: Plan) -> str | None:
    return plan.edits[0].new


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
OTHER_RUNTIMES = st.dictionaries(
    st.sampled_from(["kata", "gvisor", "x"]), st.fixed_dictionaries({"path": st.text(max_size=5)}), max_size=2
)
FILES = st.builds(
    lambda extra, known: {**extra, **known},
    st.dictionaries(
        st.text(max_size=6).filter(lambda k: k not in ("runtimes", "default-runtime", "features")),
        JSON,
        max_size=4,
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "runtimes": OTHER_RUNTIMES,
            "default-runtime": st.sampled_from(["runc", "kata"]),
            "features": st.dictionaries(
                st.sampled_from(["buildkit", "cdi", "unknown"]), st.booleans(), max_size=2
            ),
        },
    ),
)
TEXTS = st.builds(
    lambda value, indent, end, bom: bom + json.dumps(value, indent=indent) + end,
    FILES,
    st.sampled_from([None, 2, 4, "\t"]),
    st.sampled_from(["", "\n"]),
    st.sampled_from(["", "\ufeff"]),
) | st.sampled_from([None, "", " \n"])


def value_of(text: str | None) -> dict[str, Any]:
    return json.loads((text or "").lstrip("\ufeff").strip() or "{}")


@given(TEXTS, st.booleans(), st.booleans())
@settings(deadline=None)
def test_present_present_absent_gives_back_the_original(text: str | None, cdi: bool, running: bool) -> None:
    daemon = Daemon()
    daemon.reload(text)
    want = Want(cdi=cdi)
    live = (lambda: docker.Live("29.0.0", daemon.default, daemon.runtimes, cdi)) if running else docker.Live

    first = docker.plan_present(PATH, text, want, live(), {})
    expected = value_of(text)
    expected["default-runtime"] = "nvidia"
    expected["runtimes"] = {**expected.get("runtimes", {}), "nvidia": ENTRY}
    if cdi:
        expected["features"] = {**expected.get("features", {}), "cdi": True}
    assert value_of(text_of(first)) == expected
    assert first.changed
    ours = {"runtimes", "default-runtime", "features"}
    kept = [key for key in value_of(text_of(first)) if key in value_of(text) or key not in ours]
    assert kept == list(value_of(text)), "the order of the keys"
    daemon.reload(text_of(first))

    second = docker.plan_present(PATH, text_of(first), want, live(), first.record)
    assert not second.changed
    assert second.action == "none"

    current, record, rounds = text_of(first), second.record, 0
    while True:
        plan = docker.plan_absent(PATH, current, want, live(), record)
        current, record, rounds = text_of(plan), plan.record, rounds + 1
        daemon.reload(current)
        if not plan.run_again:
            break
        assert rounds < 3
    assert value_of(current) == value_of(text)
    assert (current is None) == (text is None)
    assert record == {}
    last = docker.plan_absent(PATH, current, want, live(), record)
    assert not last.changed
    assert last.action == "none"


GOLDEN = [
    (
        "no file",
        None,
        WANT,
        '{\n    "runtimes": {\n        "nvidia": {\n            "path": "/usr/bin/nvidia-container-runtime"\n'
        '        }\n    },\n    "default-runtime": "nvidia"\n}\n',
    ),
    (
        "the node of the demo",
        '{"log-driver": "json-file", "features": {"buildkit": true}, "insecure-registries": ["127.0.0.0/8"]}',
        WANT,
        '{"log-driver": "json-file", "features": {"buildkit": true}, "insecure-registries": ["127.0.0.0/8"], '
        '"runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime"}}, "default-runtime": "nvidia"}',
    ),
    (
        "nvidia-docker2's own file",
        '{\n    "runtimes": {\n        "nvidia": {\n            "path": "nvidia-container-runtime",\n'
        '            "runtimeArgs": []\n        }\n    }\n}\n',
        WANT,
        '{\n    "runtimes": {\n        "nvidia": {\n            "path": "/usr/bin/nvidia-container-runtime",\n'
        '            "runtimeArgs": []\n        }\n    },\n    "default-runtime": "nvidia"\n}\n',
    ),
    (
        "another default, and a named runtime only",
        '{\n  "default-runtime": "kata"\n}\n',
        Want(default=False),
        '{\n  "default-runtime": "kata",\n  "runtimes": {\n    "nvidia": {\n'
        '      "path": "/usr/bin/nvidia-container-runtime"\n    }\n  }\n}\n',
    ),
    (
        "another name and program",
        "{}",
        Want(name="gpu", path="/opt/r", default=False),
        '{\n    "runtimes": {\n        "gpu": {\n            "path": "/opt/r"\n        }\n    }\n}',
    ),
    (
        "CDI",
        '{"features": {"buildkit": true}}',
        Want(cdi=True, default=False),
        '{"features": {"buildkit": true, "cdi": true}, "runtimes": {"nvidia": {"path": '
        '"/usr/bin/nvidia-container-runtime"}}}',
    ),
]


@pytest.mark.parametrize(("name", "before", "want", "after"), GOLDEN, ids=[case[0] for case in GOLDEN])
def test_the_expected_file(name: str, before: str | None, want: Want, after: str) -> None:
    live = docker.Live("29.0.0", "runc", {}, False)
    assert text_of(docker.plan_present(PATH, before, want, live, {})) == after


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,}', "/etc/docker/daemon.json:1:8: trailing comma; file left untouched"),
        ('{"a": 1, "a": 2}', 'daemon.json:1:10: key "a" is given twice (first at 1:2); file left untouched'),
        ("[]", "daemon.json:1:1: the document must be an object"),
        ('{"runtimes": []}', "daemon.json:1:14: runtimes must be an object"),
        ('{\n"default-runtime": 1}', "daemon.json:2:20: default-runtime must be a string"),
        ('{"features": 1}', "daemon.json:1:14: features must be an object"),
        ('{"runtimes": {"nvidia": 1}}', "daemon.json:1:25: runtimes.nvidia must be an object"),
        (
            '{"runtimes": {"nvidia": {"runtimeType": "x"}}}',
            "runtimes.nvidia has runtimeType, which excludes path",
        ),
    ],
)
def test_refuses_a_file_it_cannot_merge(text: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        present(text, Daemon(), {})
    assert message in str(caught.value)


def test_a_reload_is_enough_and_a_run_that_died_before_it_is_noticed() -> None:
    daemon = Daemon()
    first = present("{}", daemon, {})
    assert first.action == "reload"
    second = present(text_of(first), daemon, first.record)
    assert (second.changed, second.action) == (False, "reload")
    daemon.reload(text_of(first))
    assert present(text_of(first), daemon, first.record).action == "none"


def test_another_path_in_the_running_daemon_is_noticed() -> None:
    daemon = Daemon()
    text = text_of(present("{}", daemon, {}))
    daemon.reload(text)
    daemon.runtimes["nvidia"] = "/old"
    assert present(text, daemon, {}).action == "reload"


def test_a_daemon_that_does_not_answer_needs_a_restart() -> None:
    assert docker.plan_present(PATH, "{}", WANT, docker.Live(), {}).action == "restart"


def test_the_way_back_takes_a_reload_in_between() -> None:
    daemon = Daemon()
    first = present('{"a": 1}', daemon, {})
    daemon.reload(text_of(first))
    step = absent(text_of(first), daemon, first.record)
    assert json.loads(text_of(step) or "") == {"a": 1, "default-runtime": "runc"}
    assert (step.action, step.run_again) == ("reload", True)
    # Died before the reload: the same again, no step skipped.
    again = absent(text_of(step), daemon, step.record)
    assert (again.changed, again.action, again.run_again) == (False, "reload", True)
    daemon.reload(text_of(step))
    end = absent(text_of(step), daemon, again.record)
    assert (text_of(end), end.action, end.run_again) == ('{"a": 1}', "none", False)


def test_no_longer_the_default_brings_back_the_one_before() -> None:
    daemon = Daemon()
    text = '{"default-runtime": "kata", "runtimes": {"kata": {"path": "/k"}}}'
    daemon.reload(text)
    first = present(text, daemon, {})
    daemon.reload(text_of(first))
    named = present(text_of(first), daemon, first.record, Want(default=False))
    assert json.loads(text_of(named) or "")["default-runtime"] == "kata"
    assert named.action == "reload"


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        (Flag("default-runtime", "runc", "/etc/x.conf:3"), ["key default-runtime", "/etc/x.conf:3", PATH]),
        (
            Flag("add-runtime", "kata=/k", "/etc/default/docker:9"),
            ["key runtimes", "/etc/default/docker:9", PATH],
        ),
        (
            Flag("config-file", "/else.json", "running dockerd (pid 7)"),
            ["/else.json", "running dockerd (pid 7)", PATH],
        ),
    ],
)
def test_a_colliding_flag_is_refused_with_both_places(flag: Flag, parts: list[str]) -> None:
    with pytest.raises(Refusal) as caught:
        docker.check_flags(PATH, [flag], WANT, adding=True)
    for part in parts:
        assert part in str(caught.value)


def test_flags_that_do_not_collide_are_let_be() -> None:
    flags = [Flag("host", "fd://", "u:1"), Flag("config-file", PATH, "u:1")]
    docker.check_flags(PATH, flags, WANT, adding=True)
    docker.check_flags(PATH, [Flag("default-runtime", "x", "u:1")], Want(default=False), adding=True)
    docker.check_flags(PATH, [Flag("default-runtime", "x", "u:1")], WANT, adding=False)


def test_cdi_needs_docker_25() -> None:
    with pytest.raises(Refusal, match="needs Docker 25"):
        docker.plan_present(PATH, "{}", Want(cdi=True), docker.Live("20.10.24", "runc", {}), {})


def test_a_reload_brings_the_runtime_where_cdi_still_waits_for_a_restart() -> None:
    want = Want(cdi=True)
    fresh = docker.plan_present(PATH, "{}", want, docker.Live("26.1", "runc", {}, False), {})
    assert (fresh.action, fresh.reload_helps) == ("restart", True)
    live = docker.Live("26.1", "nvidia", {"nvidia": WANT.path}, False)
    reloaded = docker.plan_present(PATH, text_of(fresh), want, live, fresh.record)
    assert (reloaded.changed, reloaded.action, reloaded.reload_helps) == (False, "restart", False)
