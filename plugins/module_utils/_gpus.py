# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GPUs of a node as PCI, the driver, nvidia-smi and /dev show them, and the links between these views."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence
from xml.etree import ElementTree

from ansible_collections.gpuops.k8s.plugins.module_utils._links import Link
from ansible_collections.gpuops.k8s.plugins.module_utils._nvml import (
    ERROR_LIB_RM_VERSION_MISMATCH,
    normal_bus_id,
)

NVIDIA = "0x10de"
DISPLAY_CLASSES = ("0x0300", "0x0302")  # VGA compatible controller, 3D controller
CONTROL_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")
# CUDA compute capability -> the family GPU feature discovery names
_FAMILIES = {
    "3": "kepler",
    "5": "maxwell",
    "6": "pascal",
    "7": "volta",
    "7.5": "turing",
    "8": "ampere",
    "8.9": "ada-lovelace",
    "9": "hopper",
    "10": "blackwell",
    "12": "blackwell",
}


@dataclass(frozen=True)
class PciGpu:
    """One NVIDIA display device on the bus."""

    bus_id: str
    device_id: str
    numa_node: Optional[int]
    driver: Optional[str]
    """``nvidia``, ``nouveau``, ``vfio-pci``; None when nothing drives it."""


def _line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def scan_pci(sysfs: str = "/sys") -> List[PciGpu]:
    """NVIDIA GPUs in the order of their bus ids."""
    base = os.path.join(sysfs, "bus/pci/devices")
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    found = []
    for name in names:
        folder = os.path.join(base, name)
        if _line(f"{folder}/vendor").lower() != NVIDIA or _line(f"{folder}/class")[:6] not in DISPLAY_CLASSES:
            continue
        numa = _line(f"{folder}/numa_node")
        link = f"{folder}/driver"
        found.append(
            PciGpu(
                name,
                _line(f"{folder}/device"),
                int(numa) if re.fullmatch(r"\d+", numa) else None,
                os.path.basename(os.path.realpath(link)) if os.path.exists(link) else None,
            )
        )
    return found


def kernel_driver_version(proc: str = "/proc") -> Optional[str]:
    """Version of the loaded kernel module, from /proc/driver/nvidia/version; None when it is not loaded."""
    found = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d[\d.]+)", _line(f"{proc}/driver/nvidia/version"))
    return found.group(1) if found else None


def library_version(path: Optional[str]) -> Optional[str]:
    """Driver version in the name of libnvidia-ml.so.535.129.03; None when the name carries none."""
    found = re.search(r"\.so\.(\d+\.[\d.]+)$", path or "")
    return found.group(1) if found else None


def minors_from_proc(proc: str = "/proc") -> Dict[str, int]:
    """PCI address -> N of /dev/nvidiaN, as the driver lists them."""
    base = os.path.join(proc, "driver/nvidia/gpus")
    minors = {}
    for name in sorted(os.listdir(base)) if os.path.isdir(base) else ():
        found = re.search(r"Device Minor:\s*(\d+)", _line(f"{base}/{name}/information"))
        if found:
            minors[normal_bus_id(name)] = int(found.group(1))
    return minors


def device_nodes(dev: str, minors: Sequence[int]) -> Dict[str, bool]:
    """Path -> whether it is a character device, for the control nodes and each GPU's."""
    names = [*CONTROL_NODES, *(f"nvidia{minor}" for minor in minors)]
    nodes = {}
    for name in names:
        path = os.path.join(dev, name)
        try:
            nodes[path] = stat.S_ISCHR(os.stat(path).st_mode)
        except OSError:
            nodes[path] = False
    return nodes


def _xml_text(node: ElementTree.Element, path: str) -> Optional[str]:
    text = (node.findtext(path) or "").strip()
    return None if text in ("", "N/A", "[N/A]", "Unknown Error", "GPU is lost") else text


def parse_nvidia_smi(xml: str) -> Dict[str, Any]:
    """What ``nvidia-smi -q -x`` says, in the shape of :func:`_nvml.ask`. Raises ValueError when it isn't XML."""
    try:
        # The text comes from the driver's own program, not from a stranger.
        root = ElementTree.fromstring(xml[xml.index("<") :])  # noqa: S314
    except (ElementTree.ParseError, ValueError) as problem:
        raise ValueError(f"nvidia-smi -q -x: {problem}") from problem
    gpus = []
    for index, node in enumerate(root.findall("gpu")):
        memory = re.match(r"(\d+)\s*MiB", _xml_text(node, "fb_memory_usage/total") or "")
        minor = _xml_text(node, "minor_number")
        uuid = _xml_text(node, "uuid")
        gpus.append(
            {
                "index": index,
                "uuid": uuid,
                "name": _xml_text(node, "product_name"),
                "minor": int(minor) if minor and minor.isdigit() else None,
                "pci_bus_id": normal_bus_id(_xml_text(node, "pci/pci_bus_id") or node.get("id") or ""),
                "memory_bytes": int(memory.group(1)) << 20 if memory else 0,
                "mig_enabled": _xml_text(node, "mig_mode/current_mig") == "Enabled",
                "mig_devices": [
                    {
                        "index": int(_xml_text(mig, "index") or 0),
                        "uuid": _xml_text(mig, "uuid"),
                        "profile": _xml_text(mig, "name"),
                    }
                    for mig in node.findall("mig_devices/mig_device")
                ],
                "processes": [
                    {
                        "pid": int(_xml_text(row, "pid") or 0),
                        "memory_bytes": _mebibytes(_xml_text(row, "used_memory")),
                    }
                    for row in node.findall("processes/process_info")
                ],
                "fault": None if uuid else "nvidia-smi shows no UUID for it",
            }
        )
    return {
        "driver_version": _xml_text(root, "driver_version"),
        "cuda_version": _xml_text(root, "cuda_version"),
        "library_file": None,
        "gpus": gpus,
    }


def _mebibytes(text: Optional[str]) -> int:
    found = re.match(r"(\d+)\s*MiB", text or "")
    return int(found.group(1)) << 20 if found else 0


def family(compute_capability: Optional[str]) -> Optional[str]:
    """``9.0`` -> ``hopper``."""
    if not compute_capability:
        return None
    return _FAMILIES.get(compute_capability) or _FAMILIES.get(compute_capability.partition(".")[0])


def labels(found: Dict[str, Any], mig_strategy: str = "none") -> Dict[str, str]:
    """Node labels a scheduler can use, under the names GPU feature discovery gives them. Memory in MiB."""
    gpus = [gpu for gpu in found.get("gpus", []) if gpu.get("uuid")]
    if not gpus:
        return {"nvidia.com/gpu.present": "false"}
    first = gpus[0]
    major, _unused, minor = (first.get("compute_capability") or "").partition(".")
    driver = (found.get("driver_version") or "").split(".")
    cuda = (found.get("cuda_version") or "").split(".")
    wanted = {
        "gpu.present": "true",
        "gpu.count": str(len(gpus)),
        "gpu.product": re.sub(r"[^A-Za-z0-9_.-]+", "-", first.get("name") or "").strip("-._")[:63],
        "gpu.memory": str((first.get("memory_bytes") or 0) >> 20),
        "gpu.family": family(first.get("compute_capability")) or "",
        "gpu.compute.major": major,
        "gpu.compute.minor": minor,
        "cuda.driver-version.full": found.get("driver_version") or "",
        "cuda.driver-version.major": driver[0],
        "cuda.runtime-version.major": cuda[0],
        "cuda.runtime-version.minor": cuda[1] if len(cuda) > 1 else "",
        "mig.strategy": mig_strategy,
    }
    return {f"nvidia.com/{key}": value for key, value in wanted.items() if value}


@dataclass(frozen=True)
class Views:
    """All views of a node's GPUs at one time, for :func:`judge`."""

    pci: Sequence[PciGpu]
    kernel: Optional[str]
    """Version of the kernel module."""
    nvml: Optional[Dict[str, Any]]
    nvml_error: str = ""
    nvml_code: Optional[int] = None
    nodes: Optional[Dict[str, bool]] = None
    expected: Optional[int] = None


def judge(views: Views) -> List[Link]:
    """The links from the bus to NVML, in that order. Device nodes come first: without them NVML sees no GPU."""
    return [
        _pci(views),
        _driver(views),
        *_nodes(views),
        _library(views),
        _nvml(views),
        _gpus(views),
        _lost(views),
    ]


def _pci(views: Views) -> Link:
    count = len(views.pci)
    detail = f"{count} NVIDIA GPUs on the PCI bus"
    if count and (views.expected is None or count >= views.expected):
        return Link("pci", True, detail)
    if views.expected == 0 and not count:
        return Link("pci", True, detail)
    if not count and views.nvml and views.nvml["gpus"]:
        return Link("pci", None, f"{detail}, though NVML shows some: no sysfs in here?")
    wanted = "" if views.expected is None else f", {views.expected} expected"
    return Link(
        "pci", False, detail + wanted, "check seating and power, `lspci -d 10de:` and the machine's BIOS"
    )


def _driver(views: Views) -> Link:
    if views.kernel:
        return Link("driver", True, f"kernel module {views.kernel} is loaded")
    if not views.pci and views.expected == 0:
        return Link("driver", None, "no GPU, no driver needed")
    others = sorted({gpu.driver for gpu in views.pci if gpu.driver and gpu.driver != "nvidia"})
    held = f"; {', '.join(others)} holds the GPUs" if others else ""
    return Link(
        "driver",
        False,
        f"the NVIDIA kernel module is not loaded{held}",
        "install the driver, run `modprobe nvidia`, look at `dmesg | grep -i nvrm`",
    )


def _library(views: Views) -> Link:
    version = library_version(views.nvml["library_file"]) if views.nvml else None
    step = "reboot, or unload and load the kernel modules, so that both are of one version"
    if views.nvml_code == ERROR_LIB_RM_VERSION_MISMATCH:
        text = f"NVML's library is of another version than the kernel module {views.kernel or '(unknown)'}"
        return Link("driver_library", False, f"{text}: {views.nvml_error}", step)
    said = version or (views.nvml["driver_version"] if views.nvml else None)
    if said and views.kernel and said != views.kernel:
        return Link("driver_library", False, f"library {said} beside kernel module {views.kernel}", step)
    if views.nvml is None:
        return Link("driver_library", None, "NVML does not answer")
    return Link("driver_library", True, f"library and kernel module are {views.kernel or said}")


def _nvml(views: Views) -> Link:
    if views.nvml is not None:
        return Link("nvml", True, f"{len(views.nvml['gpus'])} GPUs in NVML")
    return Link(
        "nvml",
        False,
        f"NVML does not answer: {views.nvml_error}",
        "run `nvidia-smi`; install the driver's libraries (libnvidia-ml.so.1); look at `dmesg | grep -i nvrm`",
    )


def _gpus(views: Views) -> Link:
    if views.nvml is None:
        return Link("gpus", None, "NVML does not answer")
    there = {gpu.get("pci_bus_id") for gpu in views.nvml["gpus"]}
    count = len(views.nvml["gpus"])
    missing = [gpu.bus_id for gpu in views.pci if gpu.bus_id not in there]
    if views.pci and count < len(views.pci):
        named = f" (missing: {', '.join(missing)})" if len(missing) == len(views.pci) - count else ""
        return Link(
            "gpus",
            False,
            f"{len(views.pci)} GPUs on the PCI bus, {count} in NVML{named}",
            "look at `dmesg | grep -i -e nvrm -e xid` for the missing one; reset it or reboot",
        )
    if views.expected is not None and count != views.expected:
        return Link(
            "gpus", False, f"{count} GPUs in NVML, {views.expected} expected", "check what was expected"
        )
    return Link("gpus", True, f"PCI {len(views.pci)}, NVML {count}")


def _lost(views: Views) -> Link:
    if views.nvml is None:
        return Link("gpu_health", None, "NVML does not answer")
    bad = [gpu for gpu in views.nvml["gpus"] if gpu.get("fault")]
    if not bad:
        return Link("gpu_health", True, "every GPU answers")
    detail = "; ".join(f"GPU {gpu['index']} ({gpu.get('uuid') or 'no UUID'}): {gpu['fault']}" for gpu in bad)
    return Link("gpu_health", False, detail, "drain the node, then reset the GPU or reboot")


def _nodes(views: Views) -> List[Link]:
    if views.nodes is None:
        return []
    if not views.kernel and not views.pci:
        return [Link("device_nodes", None, "no GPU"), Link("uvm", None, "no GPU")]
    missing = [path for path, there in views.nodes.items() if not there and "nvidia-uvm" not in path]
    uvm = [path for path, there in views.nodes.items() if not there and "nvidia-uvm" in path]
    links = []
    if missing:
        step = "run `nvidia-modprobe -c 0 -u`, or enable nvidia-persistenced, which makes them at boot"
        links.append(Link("device_nodes", False, f"missing or no device: {', '.join(missing)}", step))
    else:
        links.append(Link("device_nodes", True, f"{len(views.nodes)} character devices"))
    if uvm:
        step = (
            "run `modprobe nvidia-uvm && nvidia-modprobe -u -c 0`; without it CUDA fails in every container"
        )
        links.append(Link("uvm", False, f"missing or no device: {', '.join(uvm)}", step))
    else:
        links.append(Link("uvm", True, "nvidia-uvm and nvidia-uvm-tools are there"))
    return links
