# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the visibility check tells the engines."""

from __future__ import annotations

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _visibility


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("busybox", "docker.io/library/busybox"),
        ("gpuops/workload:1", "docker.io/gpuops/workload:1"),
        ("docker.io/gpuops/workload:1", "docker.io/gpuops/workload:1"),
        ("localhost/a:1", "localhost/a:1"),
        ("registry:5000/a", "registry:5000/a"),
    ],
)
def test_containerd_is_given_the_name_with_its_registry(short, full):
    assert _visibility.full_name(short) == full


def test_containerd_is_given_mounts_as_the_kubelet_would_give_them(monkeypatch):
    lines = []

    def run(command, timeout):
        lines.append(list(command))
        return 0, f"{_visibility.NAME} 4242 RUNNING" if command[-2:] == ["tasks", "ls"] else "", ""

    monkeypatch.setattr(_visibility, "_run", run)
    pid = _visibility.Containerd(1, None).start("pause:1", _visibility.ask("volume-mounts", ["GPU-a"]), [])
    (started,) = [line for line in lines if "run" in line]
    assert pid == 4242
    mount = started[started.index("--mount") + 1]
    assert mount == "type=bind,src=/dev/null,dst=/var/run/nvidia-container-devices/GPU-a,options=rbind:ro"
    assert "NVIDIA_VISIBLE_DEVICES=/var/run/nvidia-container-devices" in started


def test_a_docker_without_pull_is_given_the_whole_command_again(monkeypatch):
    lines = []

    def run(command, timeout):
        lines.append(list(command))
        if "--pull" in command:
            return 125, "", "unknown flag: --pull"
        return 0, "4242" if "inspect" in command else "", ""

    monkeypatch.setattr(_visibility, "_run", run)
    assert _visibility.Docker(1, None).start("a:1", _visibility.NOTHING, ["sleep", "60"]) == 4242
    again = [line for line in lines if "run" in line][-1]
    assert again[-3:] == ["a:1", "sleep", "60"] and "--pull" not in again
