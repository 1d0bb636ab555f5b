# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each view of the GPUs that disagrees is named; a machine in order names nothing."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpuops.k8s.plugins.module_utils import _gpus, _links, _nvml
from ansible_collections.gpuops.k8s.plugins.modules import gpu_info

BUS = [f"0000:{number:02x}:00.0" for number in (0x18, 0x2A, 0x3A, 0x5D)]
SMI = """<?xml version="1.0" ?>
<nvidia_smi_log>
  <driver_version>570.133.20</driver_version><cuda_version>12.8</cuda_version>
  <gpu id="00000000:18:00.0">
    <product_name>NVIDIA A100-SXM4-40GB</product_name><uuid>GPU-0</uuid><minor_number>0</minor_number>
    <mig_mode><current_mig>Enabled</current_mig></mig_mode>
    <mig_devices><mig_device><index>0</index><uuid>MIG-0</uuid></mig_device></mig_devices>
    <fb_memory_usage><total>40960 MiB</total></fb_memory_usage>
    <processes><process_info><pid>42</pid><used_memory>100 MiB</used_memory></process_info></processes>
    <pci><pci_bus_id>00000000:18:00.0</pci_bus_id></pci>
  </gpu>
  <gpu id="00000000:2A:00.0"><product_name>GPU is lost</product_name><uuid>GPU is lost</uuid></gpu>
</nvidia_smi_log>"""


def gpu(index, **change):
    about = {"index": index, "uuid": f"GPU-{index}", "minor": index, "pci_bus_id": BUS[index], "fault": None}
    return {
        **about,
        "name": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 80 << 30,
        "compute_capability": "9.0",
        **change,
    }


HEALTHY = _gpus.Views(
    pci=[_gpus.PciGpu(bus, "0x2330", 0, "nvidia") for bus in BUS],
    kernel="570.133.20",
    nvml={
        "driver_version": "570.133.20",
        "library_file": None,
        "cuda_version": "12.8",
        "gpus": [gpu(n) for n in range(4)],
    },
    nodes={
        "/dev/nvidiactl": True,
        "/dev/nvidia-uvm": True,
        "/dev/nvidia-uvm-tools": True,
        "/dev/nvidia0": True,
    },
    expected=4,
)


def broken(views):
    link = _links.first_broken(_gpus.judge(views))
    return None if link is None else link.link


def test_nothing_is_broken_on_a_machine_in_order():
    assert broken(HEALTHY) is None
    assert broken(replace(HEALTHY, expected=None)) is None


@pytest.mark.parametrize(
    ("change", "link"),
    [
        ({"pci": HEALTHY.pci[:3]}, "pci"),
        ({"pci": [], "nvml": None, "kernel": None}, "pci"),
        ({"kernel": None, "nvml": None, "nvml_error": "Driver Not Loaded"}, "driver"),
        ({"nvml": None, "nvml_error": "mismatch", "nvml_code": 18}, "driver_library"),
        ({"kernel": "535.1"}, "driver_library"),
        ({"nvml": None, "nvml_error": "Unknown Error", "nvml_code": 999}, "nvml"),
        ({"nvml": {**HEALTHY.nvml, "gpus": HEALTHY.nvml["gpus"][:3]}}, "gpus"),
        (
            {"nvml": {**HEALTHY.nvml, "gpus": [*HEALTHY.nvml["gpus"][:3], gpu(3, fault="GPU is lost")]}},
            "gpu_health",
        ),
        ({"nodes": {**HEALTHY.nodes, "/dev/nvidia0": False}}, "device_nodes"),
        ({"nodes": {**HEALTHY.nodes, "/dev/nvidia-uvm": False}}, "uvm"),
    ],
)
def test_each_break_is_told_by_its_link(change, link):
    assert broken(replace(HEALTHY, **change)) == link


def test_the_missing_gpu_is_named_by_its_address():
    views = replace(HEALTHY, nvml={**HEALTHY.nvml, "gpus": HEALTHY.nvml["gpus"][:3]})
    assert "0000:5d:00.0" in _links.message(_gpus.judge(views))


def test_nvidia_smi_says_the_same_as_nvml_and_a_lost_gpu_has_a_fault():
    found = _gpus.parse_nvidia_smi(SMI)
    assert (found["driver_version"], found["cuda_version"]) == ("570.133.20", "12.8")
    first, second = found["gpus"]
    assert (first["uuid"], first["pci_bus_id"], first["memory_bytes"]) == ("GPU-0", BUS[0], 40960 << 20)
    assert first["mig_enabled"]
    assert first["mig_devices"][0]["uuid"] == "MIG-0"
    assert first["processes"] == [{"pid": 42, "memory_bytes": 100 << 20}]
    assert second["fault"]
    with pytest.raises(ValueError, match="nvidia-smi"):
        _gpus.parse_nvidia_smi("NVIDIA-SMI has failed")


def test_labels_carry_the_names_of_feature_discovery():
    labels = _gpus.labels(HEALTHY.nvml)
    assert labels["nvidia.com/gpu.count"] == "4"
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert labels["nvidia.com/gpu.memory"] == "81920"
    assert labels["nvidia.com/gpu.family"] == "hopper"
    assert labels["nvidia.com/cuda.driver-version.full"] == "570.133.20"
    assert _gpus.labels({}) == {"nvidia.com/gpu.present": "false"}


@pytest.mark.parametrize(
    ("capability", "family"),
    [
        ("7.0", "volta"),
        ("7.5", "turing"),
        ("8.0", "ampere"),
        ("8.9", "ada-lovelace"),
        ("9.0", "hopper"),
        ("10.0", "blackwell"),
        (None, None),
    ],
)
def test_the_family_follows_the_compute_capability(capability, family):
    assert _gpus.family(capability) == family


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build", "550.54.15"),
        ("", None),
    ],
)
def test_the_kernel_modules_version_is_read(tmp_path, text, version):
    (tmp_path / "driver/nvidia").mkdir(parents=True)
    (tmp_path / "driver/nvidia/version").write_text(text)
    assert _gpus.kernel_driver_version(str(tmp_path)) == version


def test_a_library_that_is_not_there_is_said_and_one_that_hangs_is_given_up(tmp_path):
    with pytest.raises(_nvml.NvmlError, match="cannot open shared object"):
        _nvml.ask(str(tmp_path / "none.so"))
    with pytest.raises(_nvml.NvmlError, match=r"did not answer within 0[.]2 s"):
        _nvml.ask(str(tmp_path / "none.so"), 0.2, ask_in_child=lambda *_unused: os.read(os.pipe()[0], 1))


@pytest.fixture
def machine(tmp_path):
    """Roots of a machine with two GPUs on the bus and an nvidia-smi; no real device node can be made everywhere."""
    for bus in BUS[:2]:
        folder = tmp_path / "sys/bus/pci/devices" / bus
        folder.mkdir(parents=True)
        for name, text in {
            "vendor": "0x10de",
            "class": "0x030200",
            "device": "0x2330",
            "numa_node": "1",
        }.items():
            (folder / name).write_text(text + "\n")
    other = tmp_path / "sys/bus/pci/devices/0000:00:1f.0"
    other.mkdir()
    (other / "vendor").write_text("0x8086\n")
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'EOF'\n{SMI}\nEOF\n")
    smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
    return {
        "sysfs_root": str(tmp_path / "sys"),
        "proc_root": str(tmp_path / "proc"),
        "dev_root": str(tmp_path / "dev"),
        "nvidia_smi": str(smi),
        "nvml_library": str(tmp_path / "none.so"),
    }


def run(capsys, **arguments):
    with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
        gpu_info.main()
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_the_module_falls_back_to_nvidia_smi_and_counts_the_bus(machine, capsys):
    code, found = run(capsys, **machine)
    assert (code, found["source"], found["pci_count"], found["count"], found["healthy"]) == (
        0,
        "nvidia-smi",
        2,
        2,
        1,
    )
    assert found["gpus"][0]["numa_node"] == 1
    assert found["broken_link"] == "driver"


def test_with_expect_the_module_fails_with_link_and_next_step(machine, capsys):
    code, found = run(capsys, expect=8, **machine)
    assert code == 1
    assert found["msg"].startswith("pci: 2 NVIDIA GPUs on the PCI bus, 8 expected; check seating")
