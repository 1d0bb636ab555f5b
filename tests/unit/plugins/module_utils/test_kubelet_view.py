# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Each way in which a node can be broken is told by the right link, and a healthy node by none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from ansible_collections.gpuops.k8s.plugins.module_utils import _kubelet_view as view_of
from ansible_collections.gpuops.k8s.plugins.module_utils._links import Link, first_broken, message

GPU = "nvidia.com/gpu"
IDS = [f"GPU-{index}" for index in range(8)]


def plugin(state="alive", name="gpuops-nvidia.com_gpu-42ab.sock"):
    resource, ours = view_of.resource_of(name)
    return view_of.PluginSocket(name, state, resource, ours)


def status(bad=()):
    devices = [
        {"id": uid, "healthy": uid not in bad, "reason": "XID 79" if uid in bad else None} for uid in IDS
    ]
    return {"resources": [{"name": GPU, "devices": devices}]}


HEALTHY = view_of.View(
    kubelet="",
    gate=Link("gate", True, ""),
    directory=True,
    kubelet_socket="alive",
    sockets=(plugin(),),
    checkpoint={GPU: IDS},
    status=status(),
)


def broken(view, expect=8):
    resources = view_of.resources_of(view, [], {GPU: expect} if expect is not None else {})
    link = first_broken(view_of.judge(view, resources, {GPU: expect} if expect is not None else {}))
    return None if link is None else link.link


def test_nothing_is_broken_on_a_healthy_node():
    assert broken(HEALTHY) is None
    assert broken(replace(HEALTHY, status=None)) is None
    assert (
        broken(replace(HEALTHY, live={GPU: IDS}, allocatable={GPU: 8}, capacity={GPU: 8}, ready=True)) is None
    )


@pytest.mark.parametrize(
    ("change", "link"),
    [
        ({"kubelet": "connection refused"}, "kubelet"),
        ({"kubelet": "refused", "gate": Link("gate", False, "does not start with DevicePlugins")}, "gate"),
        ({"gate": Link("gate", False, "off")}, "gate"),
        ({"kubelet_socket": "dead"}, "kubelet_socket"),
        ({"kubelet_socket": "missing", "directory": False}, "kubelet_socket"),
        ({"sockets": ()}, "plugin"),
        ({"sockets": (plugin("dead"),)}, "plugin"),
        ({"sockets": (plugin("hung"),)}, "plugin"),
        ({"sockets": (plugin(), plugin(name="nvidia-gpu.sock"))}, "one_owner"),
        ({"dra": ("/var/lib/kubelet/plugins/gpu.nvidia.com/dra.sock",)}, "one_owner"),
        ({"checkpoint": {}}, "registered"),
        ({"checkpoint": {}, "checkpoint_problem": "kubelet_internal_checkpoint: line 1"}, "registered"),
        ({"checkpoint": {GPU: IDS[:7]}}, "registered"),
        ({"checkpoint": {GPU: IDS[:7]}, "status": status(["GPU-3"])}, "healthy"),
        ({"checkpoint": {GPU: IDS[:7]}, "status": None}, "expected"),
        ({"live": {GPU: []}}, "healthy"),
        ({"allocatable": {GPU: 0}}, "allocatable"),
        ({"allocatable": {GPU: 8}, "ready": False}, "allocatable"),
    ],
)
def test_each_break_is_told_by_its_link(change, link):
    assert broken(replace(HEALTHY, **change)) == link


def test_a_leftover_socket_of_a_dead_process_beside_a_living_one_breaks_nothing():
    assert (
        broken(replace(HEALTHY, sockets=(plugin(), plugin("dead", "gpuops-nvidia.com_gpu-41ff.sock"))))
        is None
    )


def test_fewer_than_expected_is_told_though_every_device_is_healthy():
    assert broken(HEALTHY, expect=16) == "expected"
    assert broken(HEALTHY, expect=None) is None


def test_a_dead_plugin_behind_a_stale_checkpoint_is_advertised_but_dead():
    dead = replace(HEALTHY, sockets=(plugin("dead"),))
    assert view_of.advertised_but_dead(dead, GPU)
    assert view_of.counts(dead, GPU, {})["healthy"] == 0
    assert not view_of.advertised_but_dead(HEALTHY, GPU)
    off = replace(HEALTHY, kubelet_socket="dead", allocatable={GPU: 8})
    assert view_of.advertised_but_dead(off, GPU)
    assert "K16" in message(view_of.judge(off, [GPU], {}))


def test_the_unhealthy_gpu_is_named_with_its_reason():
    view = replace(HEALTHY, checkpoint={GPU: IDS[:3] + IDS[4:]}, status=status(["GPU-3"]))
    assert message(view_of.judge(view, [GPU], {GPU: 8})).startswith(
        "healthy: 1 of 8 nvidia.com/gpu: GPU-3: XID 79; run"
    )


@pytest.mark.parametrize(
    ("name", "resource", "ours"),
    [
        ("gpuops-nvidia.com_gpu-4242a1b2.sock", GPU, True),
        ("gpuops-nvidia.com_mig-1g.10gb-7f.sock", "nvidia.com/mig-1g.10gb", True),
        ("gpuops-example.com_my_fpga-7f.sock", "example.com/my_fpga", True),
        ("nvidia-gpu.sock", GPU, False),
        ("nvidia-gpu.shared.sock", "nvidia.com/gpu.shared", False),
        ("nvidiaGPU-1690000000.sock", GPU, False),
        ("intel-qat.sock", None, False),
    ],
)
def test_a_socket_tells_its_resource_by_its_name(name, resource, ours):
    assert view_of.resource_of(name) == (resource, ours)


def test_an_unknown_socket_counts_as_owner_of_what_the_kubelet_lists():
    view = replace(HEALTHY, sockets=(plugin(name="acme.sock"),), status=None)
    assert broken(view) is None


def test_the_checkpoint_is_read_and_a_broken_one_is_named(tmp_path):
    assert view_of.read_checkpoint(str(tmp_path)) == {}
    file = tmp_path / view_of.CHECKPOINT
    file.write_text(
        json.dumps({"Data": {"PodDeviceEntries": None, "RegisteredDevices": {GPU: IDS, "a/b": None}}})
    )
    assert view_of.read_checkpoint(str(tmp_path)) == {GPU: IDS, "a/b": []}
    file.write_text("{")
    with pytest.raises(ValueError, match=view_of.CHECKPOINT):
        view_of.read_checkpoint(str(tmp_path))
