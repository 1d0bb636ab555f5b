# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the module decides over several files, and kubeadm's ConfigMap by a stand-in kubectl."""

from __future__ import annotations

import json
import os
import stat

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_mark, _kubelet_service, _runtime_probe
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_places as places_of
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_table as table
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_text as text_of
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


class Killed(BaseException):
    """The run ends here, with nothing cleaned up."""


class Kubelet:
    """Stands in for systemd: counts restarts, and dies or fails in one when told to."""

    def __init__(self):
        self.restarts, self.state, self.started, self.then = 0, "active", 0, None

    def __call__(self, _module, unit, _url, _timeout):
        self.unit = unit
        return self

    def active_state(self):
        return self.state

    def main_pid(self):
        return 42 if self.state == "active" else None

    def log_tail(self):
        return "its last words"

    def restart(self, _reload_units):
        then, self.then = self.then, None
        if then is Killed:
            raise Killed
        self.restarts += 1
        self.started = _runtime_probe.uptime_ticks() + 1
        return then


@pytest.fixture
def killed(tmp_path, monkeypatch, capsys):
    """`killed(check=False)` runs the module on one file with the gate off; the kubelet is `killed.kubelet`."""
    kubelet, file = Kubelet(), tmp_path / "kubelet.env"
    file.write_text('KUBELET_EXTRA_ARGS="--feature-gates=DevicePlugins=false"\n')
    monkeypatch.setattr(module, "Service", kubelet)
    monkeypatch.setattr(_gate_mark, "PATH", str(tmp_path / "gpuops" / "gate.json"))
    monkeypatch.setattr(places_of, "find_places", lambda *_: (places_of.Place(str(file), text_of.ENV, 2),))
    monkeypatch.setattr(_runtime_probe, "start_ticks", lambda _pid: kubelet.started)

    def run(check=False, restart=True):
        asked = {"kubelet_version": "1.20", "restart": restart, "backup": False, "_ansible_check_mode": check}
        with patch_module_args(asked), pytest.raises(SystemExit):
            module.main()
        return json.loads(capsys.readouterr().out)

    run.kubelet, run.file, run.mark = kubelet, file, tmp_path / "gpuops"
    return run


def test_a_run_that_is_killed_before_the_restart_is_finished_by_the_next_one(killed):
    killed.kubelet.then = Killed
    with pytest.raises(Killed):
        killed()
    assert "DevicePlugins=true" in killed.file.read_text() and killed.kubelet.restarts == 0

    checked = killed(check=True)
    assert checked["changed"] and checked["restart_required"] and killed.kubelet.restarts == 0
    done = killed()
    assert (done["changed"], done["restarted"], done["files"]) == (True, True, [])
    assert "an earlier run wrote it" in done["notes"][0]
    again = killed()
    assert (again["changed"], again["restart_required"], killed.kubelet.restarts) == (False, False, 1)
    assert not killed.mark.exists()


def test_a_kubelet_that_was_restarted_since_is_left_alone(killed):
    assert killed(restart=False)["restart_required"]
    assert killed(restart=False)["restart_required"], "it has still not read the file"
    killed.kubelet.started = _runtime_probe.uptime_ticks() + 1  # by hand
    done = killed()
    assert (done["changed"], killed.kubelet.restarts) == (False, 0)
    assert not killed.mark.exists()


def test_what_a_killed_run_wrote_goes_back_too_when_the_kubelet_does_not_take_it(killed):
    old = killed.file.read_text()
    killed.kubelet.then = Killed
    with pytest.raises(Killed):
        killed()
    killed.kubelet.then = "kubelet failed"
    done = killed()
    assert done["failed"] and "put back and the kubelet is well again" in done["msg"]
    assert killed.file.read_text() == old
    assert not killed.mark.exists()


def test_a_file_that_somebody_has_changed_since_is_theirs(killed):
    killed.kubelet.then = Killed
    with pytest.raises(Killed):
        killed()
    killed.file.write_text("# mine\n" + killed.file.read_text())
    killed.kubelet.then = "kubelet failed"
    assert killed()["failed"]
    assert killed.file.read_text().startswith("# mine")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["/usr/bin/kubelet", "--v=1", "--feature-gates=A=true,DevicePlugins=false"], False),
        (["/usr/bin/kubelet", "--feature-gates", "DevicePlugins=true"], True),
        (["/usr/bin/kubelet", "--v=1"], None),
    ],
)
def test_a_running_kubelet_is_asked_by_its_flags(tmp_path, words, value):
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "cmdline").write_text("\0".join(words) + "\0")
    assert _kubelet_service.gate_of_process(42, GATE, str(tmp_path)) is value
    assert _kubelet_service.gate_of_process(43, GATE, str(tmp_path)) is None


def test_a_file_is_newer_than_a_process_that_started_before_it(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("")
    new.write_text("")
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "stat").write_text("42 (kubelet) S " + "0 " * 18 + "500 0 0\n")
    (tmp_path / "stat").write_text("cpu 1 2 3\nbtime 1000\n")
    os.utime(old, (1005, 1005))  # in the second in which it started
    os.utime(new, (1100, 1100))
    paths = [str(old), str(new), str(tmp_path / "absent")]
    assert _kubelet_service.newer_than_process(42, paths, str(tmp_path)) == [str(new)]
