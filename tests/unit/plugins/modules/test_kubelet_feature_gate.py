# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module decides over several files, and kubeadm's ConfigMap by a stand-in kubectl."""

from __future__ import annotations

import json
import stat

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_places as places_of
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_table as table
from ansible_collections.gpuops.k8s.plugins.modules import kubelet_feature_gate as module

GATE = "DevicePlugins"
FLAG = "/etc/default/kubelet"
CONFIG = "/var/lib/kubelet/config.yaml"
KUBECTL = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$*" in
  *" get configmap kubelet-config "*) cat {folder}/config-map.json ;;
  *" get configmap "*) echo 'Error from server (NotFound): configmaps not found' >&2; exit 1 ;;
  *" patch "*) for word; do last=$word; done; printf '%s' "$last" > {folder}/patch ;;
esac
"""


def edits_of(root, version, target=None, state="auto"):
    places = places_of.find_places(str(root))
    texts, mentions, effective = places_of.survey(str(root), places, GATE)
    wanted = None if target is None else (1, target)
    decision = table.decide((1, version), bool(mentions), effective, wanted, state)
    return module.plan_edits(decision, GATE, places, texts, mentions, "kubeadm")


@pytest.fixture
def root(tmp_path):
    for path, text in {
        FLAG: 'KUBELET_EXTRA_ARGS="--feature-gates=DevicePlugins=false"\n',
        CONFIG: "kind: KubeletConfiguration\nfeatureGates:\n  A: true\n  DevicePlugins: false\n",
    }.items():
        (tmp_path / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.lstrip("/")).write_text(text)
    return tmp_path


def test_every_false_that_counts_is_made_true(root):
    assert edits_of(root, 20) == {
        FLAG: 'KUBELET_EXTRA_ARGS="--feature-gates=DevicePlugins=true"\n',
        CONFIG: "kind: KubeletConfiguration\nfeatureGates:\n  A: true\n  DevicePlugins: true\n",
    }


def test_every_leftover_goes_before_an_upgrade_and_nothing_else(root):
    assert edits_of(root, 20, target=28) == {
        FLAG: 'KUBELET_EXTRA_ARGS=""\n',
        CONFIG: "kind: KubeletConfiguration\nfeatureGates:\n  A: true\n",
    }


def test_a_kubelet_that_needs_nothing_gets_nothing(tmp_path):
    assert edits_of(tmp_path, 20) == {}
    assert edits_of(tmp_path, 30, target=31) == {}


@pytest.fixture
def config_map(tmp_path, capsys):
    """`config_map("kubelet-config", kubelet: text)` runs the module; what it returned, the patch, and the calls."""
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL.format(folder=tmp_path))
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)

    def run(name, text="kind: KubeletConfiguration\n", **arguments):
        (tmp_path / "config-map.json").write_text(json.dumps({"data": {"kubelet": text}}))
        asked = {"config_map": name, "kubelet_version": "1.20", "kubectl": str(kubectl), **arguments}
        with patch_module_args(asked), pytest.raises(SystemExit):
            module.main()
        patch = tmp_path / "patch"
        return json.loads(capsys.readouterr().out), json.loads(patch.read_text()) if patch.exists() else None

    return run


def test_the_config_map_loses_a_leftover_before_an_upgrade(config_map):
    text = "featureGates:\n  DevicePlugins: true\nport: 1 # mine\n"
    found, patch = config_map("kubelet-config", text, target_version="1.28")
    assert found["changed"]
    assert found["files"] == ["ConfigMap kube-system/kubelet-config"]
    assert patch == {"data": {"kubelet": "port: 1 # mine\n"}}


def test_a_config_map_in_check_mode_is_not_written(config_map):
    text = "featureGates:\n  DevicePlugins: false\n"
    found, patch = config_map("kubelet-config", text, _ansible_check_mode=True, _ansible_diff=True)
    assert (found["changed"], patch) == (True, None)
    assert found["diff"][0]["after"] == "featureGates:\n  DevicePlugins: true\n"


def test_a_config_map_that_is_right_or_missing_is_left(config_map):
    assert config_map("kubelet-config") == (config_map("kubelet-config")[0], None)
    found, patch = config_map("kubelet-config-1.20")
    assert (found["changed"], patch) == (False, None)
