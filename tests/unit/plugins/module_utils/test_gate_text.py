# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: E501 - samples stay on one line
"""A gate is found, set and removed in every syntax, and nothing else changes."""

from __future__ import annotations

import json

import pytest
import yaml
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_text as gate
from hypothesis import given
from hypothesis import strategies as st

G = "DevicePlugins"

CASES = [
    # kind, with the gate off, after set_true, after remove
    (
        gate.ENV,
        'KUBELET_EXTRA_ARGS="--v=2 --feature-gates=DevicePlugins=false"\n',
        'KUBELET_EXTRA_ARGS="--v=2 --feature-gates=DevicePlugins=true"\n',
        'KUBELET_EXTRA_ARGS="--v=2"\n',
    ),
    (
        gate.ENV,
        "KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false\n",
        "KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=true\n",
        "KUBELET_EXTRA_ARGS=\n",
    ),
    (
        gate.ENV,
        'X="--feature-gates=DevicePlugins=false --v=2"\n',
        'X="--feature-gates=DevicePlugins=true --v=2"\n',
        'X="--v=2"\n',
    ),
    (
        gate.ENV,
        "X='--feature-gates A=true,DevicePlugins=false,B=false -v 2'\n",
        "X='--feature-gates A=true,DevicePlugins=true,B=false -v 2'\n",
        "X='--feature-gates A=true,B=false -v 2'\n",
    ),
    (
        gate.ENV,
        "# --feature-gates=DevicePlugins=false\nX=--feature-gates=DevicePlugins=0\n",
        "# --feature-gates=DevicePlugins=false\nX=--feature-gates=DevicePlugins=true\n",
        "# --feature-gates=DevicePlugins=false\nX=\n",
    ),
    (
        gate.UNIT,
        '[Service]\nEnvironment="KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false"\n',
        '[Service]\nEnvironment="KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=true"\n',
        '[Service]\nEnvironment="KUBELET_EXTRA_ARGS="\n',
    ),
    (
        gate.UNIT,
        "[Service]\nExecStart=/usr/bin/kubelet \\\n  --v=2 \\\n  --feature-gates=DevicePlugins=false\nRestart=always\n",
        "[Service]\nExecStart=/usr/bin/kubelet \\\n  --v=2 \\\n  --feature-gates=DevicePlugins=true\nRestart=always\n",
        "[Service]\nExecStart=/usr/bin/kubelet \\\n  --v=2\nRestart=always\n",
    ),
    (
        gate.UNIT,
        "ExecStart=/usr/bin/kubelet \\\n  --feature-gates=DevicePlugins=false \\\n  --v=2\n",
        "ExecStart=/usr/bin/kubelet \\\n  --feature-gates=DevicePlugins=true \\\n  --v=2\n",
        "ExecStart=/usr/bin/kubelet \\\n  --v=2\n",
    ),
    (
        gate.UNIT,
        "ExecStart=/usr/local/bin/k3s \\\n    agent \\\n\t'--kubelet-arg=feature-gates=DevicePlugins=false' \\\n",
        "ExecStart=/usr/local/bin/k3s \\\n    agent \\\n\t'--kubelet-arg=feature-gates=DevicePlugins=true' \\\n",
        "ExecStart=/usr/local/bin/k3s \\\n    agent \\\n",
    ),
    (
        gate.UNIT,
        "ExecStart=/usr/bin/k0s worker --kubelet-extra-args=--feature-gates=DevicePlugins=false --token-file /t\n",
        "ExecStart=/usr/bin/k0s worker --kubelet-extra-args=--feature-gates=DevicePlugins=true --token-file /t\n",
        "ExecStart=/usr/bin/k0s worker --token-file /t\n",
    ),
    (
        gate.ARGS,
        "--config=/x\n--feature-gates=DevicePlugins=false\n--v=1\n",
        "--config=/x\n--feature-gates=DevicePlugins=true\n--v=1\n",
        "--config=/x\n--v=1\n",
    ),
    (
        gate.KUBELET_ARG,
        'node-name: a\nkubelet-arg:\n  - "feature-gates=DevicePlugins=false"\n  - "v=2"\ntoken: x\n',
        'node-name: a\nkubelet-arg:\n  - "feature-gates=DevicePlugins=true"\n  - "v=2"\ntoken: x\n',
        'node-name: a\nkubelet-arg:\n  - "v=2"\ntoken: x\n',
    ),
    (
        gate.KUBELET_ARG,
        "kubelet-arg:\n- feature-gates=DevicePlugins=false\ntoken: x\n",
        "kubelet-arg:\n- feature-gates=DevicePlugins=true\ntoken: x\n",
        "token: x\n",
    ),
    (
        gate.KUBELET_ARG,
        'kubelet-arg: ["v=2", "feature-gates=DevicePlugins=false"]\n',
        'kubelet-arg: ["v=2", "feature-gates=DevicePlugins=true"]\n',
        'kubelet-arg: ["v=2"]\n',
    ),
    (
        gate.CONFIG,
        "kind: KubeletConfiguration\nfeatureGates:\n  # why\n  A: true\n  DevicePlugins: false # off\n  B: false\nport: 1\n",
        "kind: KubeletConfiguration\nfeatureGates:\n  # why\n  A: true\n  DevicePlugins: true # off\n  B: false\nport: 1\n",
        "kind: KubeletConfiguration\nfeatureGates:\n  # why\n  A: true\n  B: false\nport: 1\n",
    ),
    (
        gate.CONFIG,
        "a: 1\nfeatureGates:\n  DevicePlugins: false\nport: 1\n",
        "a: 1\nfeatureGates:\n  DevicePlugins: true\nport: 1\n",
        "a: 1\nport: 1\n",
    ),
    (
        gate.CONFIG,
        "featureGates: {A: true, DevicePlugins: false}\nport: 1\n",
        "featureGates: {A: true, DevicePlugins: true}\nport: 1\n",
        "featureGates: {A: true}\nport: 1\n",
    ),
    (
        gate.CONFIG,
        '{\n  "port": 1,\n  "featureGates": {\n    "DevicePlugins": false,\n    "A": true\n  }\n}\n',
        '{\n  "port": 1,\n  "featureGates": {\n    "DevicePlugins": true,\n    "A": true\n  }\n}\n',
        '{\n  "port": 1,\n  "featureGates": {\n    \n    "A": true\n  }\n}\n',
    ),
    (
        gate.CONFIG,
        "spec:\n  workerProfiles:\n    - name: gpu\n      values:\n        featureGates:\n          DevicePlugins: no\n",
        "spec:\n  workerProfiles:\n    - name: gpu\n      values:\n        featureGates:\n          DevicePlugins: true\n",
        "spec:\n  workerProfiles:\n    - name: gpu\n      values:\n",
    ),
]


@pytest.mark.parametrize(("kind", "text", "on", "gone"), CASES)
def test_the_gate_is_found_set_and_removed_and_nothing_else_changes(kind, text, on, gone):
    assert [entry.value for entry in gate.find(text, G, kind)] == [False]
    assert gate.set_true(text, G, kind) == on
    assert [entry.value for entry in gate.find(on, G, kind)] == [True]
    assert gate.remove(text, G, kind) == gone
    assert gate.find(gone, G, kind) == ()
    assert gate.set_true(on, G, kind) == on
    assert gate.remove(gone, G, kind) == gone


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            gate.KUBELET_ARG,
            "kube-apiserver-arg:\n  - feature-gates=DevicePlugins=true\nkubelet-arg:\n  - v=2\n",
        ),
        (
            gate.UNIT,
            "ExecStart=/usr/local/bin/k3s server '--kube-apiserver-arg=feature-gates=DevicePlugins=true'\n",
        ),
        (
            gate.UNIT,
            "ExecStart=/usr/local/bin/k3s server --kube-apiserver-arg --feature-gates=DevicePlugins=true\n",
        ),
        (gate.UNIT, "; --feature-gates=DevicePlugins=true\n#--feature-gates=DevicePlugins=true\n"),
        (gate.ENV, "X=--other-feature-gates=DevicePlugins=true\n"),
        (gate.ENV, "X=--feature-gates=DevicePluginsCDI=true\n"),
        (gate.CONFIG, "#featureGates:\n#  DevicePlugins: true\n"),
        (gate.CONFIG, "featureGates:\n  # DevicePlugins: true\n  A: true\n"),
        (gate.CONFIG, "featureGates:\n  A: true\nDevicePlugins: true\n"),
        (gate.CONFIG, 'x: "a" # featureGates: {DevicePlugins: true}\n'),
    ],
)
def test_what_another_component_or_a_comment_says_is_left_alone(kind, text):
    assert gate.find(text, G, kind) == ()
    assert gate.remove(text, G, kind) == text


def test_the_line_is_named():
    text = "a: 1\n\nfeatureGates:\n  A: true\n  DevicePlugins: false\n"
    (entry,) = gate.find(text, G, gate.CONFIG)
    assert (entry.line, entry.raw) == (5, "false")


def test_null_in_a_drop_in_is_a_mention_without_value():
    (entry,) = gate.find("featureGates:\n  DevicePlugins: null\n", G, gate.CONFIG)
    assert entry.value is None


@pytest.mark.parametrize(
    ("kind", "text", "added"),
    [
        (gate.ENV, "", 'KUBELET_EXTRA_ARGS="--feature-gates=DevicePlugins=true"\n'),
        (gate.ENV, "KUBELET_EXTRA_ARGS=\n", 'KUBELET_EXTRA_ARGS="--feature-gates=DevicePlugins=true"\n'),
        (
            gate.ENV,
            "KUBELET_EXTRA_ARGS=--v=2\n",
            'KUBELET_EXTRA_ARGS="--v=2 --feature-gates=DevicePlugins=true"\n',
        ),
        (gate.ENV, "A='--feature-gates=B=true'\n", "A='--feature-gates=B=true,DevicePlugins=true'\n"),
        (gate.ARGS, "--v=2", "--v=2\n--feature-gates=DevicePlugins=true\n"),
        (gate.CONFIG, "a: 1\n", "a: 1\nfeatureGates:\n  DevicePlugins: true\n"),
        (gate.CONFIG, "featureGates: {}\n", "featureGates: {DevicePlugins: true}\n"),
        (gate.CONFIG, "featureGates: null\na: 1\n", "featureGates:\n  DevicePlugins: true\na: 1\n"),
        (
            gate.CONFIG,
            "featureGates:\n    A: true\n",
            "featureGates:\n    DevicePlugins: true\n    A: true\n",
        ),
        (gate.KUBELET_ARG, "a: 1\n", 'a: 1\nkubelet-arg:\n  - "feature-gates=DevicePlugins=true"\n'),
        (
            gate.KUBELET_ARG,
            "kubelet-arg:\n- v=2\n",
            'kubelet-arg:\n- "feature-gates=DevicePlugins=true"\n- v=2\n',
        ),
        (
            gate.KUBELET_ARG,
            "kubelet-arg: [v=2]\n",
            'kubelet-arg: ["feature-gates=DevicePlugins=true", v=2]\n',
        ),
        (
            gate.KUBELET_ARG,
            "kubelet-arg: v=2\n",
            'kubelet-arg:\n  - "feature-gates=DevicePlugins=true"\n  - v=2\n',
        ),
    ],
)
def test_a_gate_that_is_named_nowhere_is_added_where_it_fits(kind, text, added):
    assert gate.add(text, G, kind) == added
    assert [entry.value for entry in gate.find(added, G, kind)] == [True]


NAMES = st.sampled_from(["A", "AllAlpha", "CPUManager", "DevicePluginsCDI", "KubeletPodResources"])
GATES = st.dictionaries(NAMES, st.booleans(), max_size=4)
SCALARS = st.one_of(st.integers(), st.booleans(), st.text("abc:#- ", max_size=6))
CONFIGS = st.dictionaries(st.sampled_from(["kind", "port", "clusterDNS", "zone"]), SCALARS, max_size=4)


@given(
    CONFIGS,
    GATES,
    st.one_of(st.none(), st.booleans()),
    st.sampled_from(["block", "flow", "json"]),
    st.booleans(),
)
def test_any_configuration_keeps_its_meaning_but_for_the_gate(config, gates, mine, style, first):
    gates = dict(gates)
    if mine is not None:
        gates = {G: mine, **gates} if first else {**gates, G: mine}
    whole = {**config, "featureGates": gates} if gates else config
    if style == "json":
        text = json.dumps(whole, indent=2)
    else:
        text = yaml.safe_dump(whole, default_flow_style=False if style == "block" else None, sort_keys=False)
    expected = [] if mine is None else [mine]
    assert [entry.value for entry in gate.find(text, G, gate.CONFIG)] == expected
    removed = yaml.safe_load(gate.remove(text, G, gate.CONFIG)) or {}
    others = {name: value for name, value in gates.items() if name != G}
    assert (removed.pop("featureGates", None) or {}) == others
    assert removed == config
    on = gate.set_true(text, G, gate.CONFIG) if mine is not None else gate.add(text, G, gate.CONFIG)
    loaded = yaml.safe_load(on)
    assert loaded.pop("featureGates") == {**others, G: True}
    assert loaded == config


@given(
    st.lists(st.sampled_from(["--v=2", "--node-ip=10.0.0.1", "-v 3", "--register-node"]), max_size=3),
    GATES,
    st.booleans(),
)
def test_any_flags_keep_their_meaning_but_for_the_gate(flags, gates, mine):
    def gates_flag(values):
        return (
            ["--feature-gates=" + ",".join(f"{k}={str(v).lower()}" for k, v in values.items())]
            if values
            else []
        )

    line = " ".join([*flags[:1], *gates_flag({**gates, G: mine}), *flags[1:]])
    text = f'KUBELET_EXTRA_ARGS="{line}"\n'
    kept = " ".join([*flags[:1], *gates_flag(gates), *flags[1:]])
    assert gate.remove(text, G, gate.ENV) == f'KUBELET_EXTRA_ARGS="{kept}"\n'
    turned = " ".join([*flags[:1], *gates_flag({**gates, G: True}), *flags[1:]])
    assert gate.set_true(text, G, gate.ENV) == f'KUBELET_EXTRA_ARGS="{turned}"\n'
