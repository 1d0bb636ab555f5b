"""Reading single facts around NVML: calls that may not be there, sysfs, the kernel module's /proc files."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .devices import Gpu, Link, MigSlice, PcieAncestor
from .nvml_library import GONE, NOT_SUPPORTED

_ANCESTORS = {
    0: PcieAncestor.SAME_BOARD,
    10: PcieAncestor.SINGLE_SWITCH,
    20: PcieAncestor.MULTIPLE_SWITCHES,
    30: PcieAncestor.HOST_BRIDGE,
    40: PcieAncestor.NUMA_NODE,
    50: PcieAncestor.SYSTEM,
}
RECOVERY = {
    0: "none",
    1: "reset",
    2: "reboot",
    3: "drain",
    4: "drain",
    5: "recover-imex-domain",
    6: "reset",
    7: "reboot",
}
_RECOVERY_FIELD = 230
"""NVML_FI_DEV_GET_GPU_RECOVERY_ACTION."""
_MAX_LINKS = 18


def bus_id(raw: str | bytes) -> str:
    """NVML's ``00000000:18:00.0`` as sysfs writes it: ``0000:18:00.0``."""
    text = (raw.decode() if isinstance(raw, bytes) else raw).lower().strip("\0")
    domain, _unused, rest = text.partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest else text


def handle_value(handle: Any) -> int:
    """What makes a handle comparable."""
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)


def attempt(api: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's value; None where this GPU or driver doesn't say. Raises NVMLError when NVML itself is gone."""
    try:
        return call(*arguments)
    except api.NVMLError as error:
        if error.value in GONE:
            raise
        return None


def text_of(api: Any, call: Callable[..., Any], *arguments: Any) -> str | None:
    value = attempt(api, call, *arguments)
    return value.decode() if isinstance(value, bytes) else value


def cuda_version(api: Any) -> str | None:
    number = attempt(api, api.nvmlSystemGetCudaDriverVersion_v2)
    return None if not number else f"{number // 1000}.{number % 1000 // 10}"


def recovery_action(api: Any, handle: Any) -> str | None:
    value = api.nvmlDeviceGetFieldValues(handle, [_RECOVERY_FIELD])[0]
    if value.nvmlReturn != 0:
        return None
    return RECOVERY.get(int(value.value.uiVal))


def mig_profile(api: Any, device: Any) -> str:
    """``1g.10gb``: from the device's name where it ends so, else from its attributes as nvidia-smi prints them."""
    name = text_of(api, api.nvmlDeviceGetName, device) or ""
    _unused, marker, tail = name.partition("MIG ")
    if marker and tail:
        return tail.strip()
    attributes = api.nvmlDeviceGetAttributes(device)
    gpu, compute = int(attributes.gpuInstanceSliceCount), int(attributes.computeInstanceSliceCount)
    gigabytes = (int(attributes.memorySizeMB) + 1023) // 1024
    prefix = f"{compute}c." if compute != gpu else ""
    return f"{prefix}{gpu}g.{gigabytes}gb"


def mig_slices(api: Any, handle: Any, minor: int, proc: str) -> tuple[MigSlice, ...]:
    """The MIG devices of one GPU. Raises NVMLError when the layout can not be read."""
    minors = mig_minors(proc)
    slices = []
    for position in range(api.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            device = api.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)
        except api.NVMLError as error:
            if error.value == api.NVML_ERROR_NOT_FOUND or error.value in NOT_SUPPORTED:
                continue
            raise
        gi = int(api.nvmlDeviceGetGpuInstanceId(device))
        ci = int(api.nvmlDeviceGetComputeInstanceId(device))
        memory = attempt(api, api.nvmlDeviceGetMemoryInfo, device)
        paths = [
            f"/dev/nvidia-caps/nvidia-cap{minors[key]}"
            for key in (f"gpu{minor}/gi{gi}/access", f"gpu{minor}/gi{gi}/ci{ci}/access")
            if key in minors
        ]
        slices.append(
            MigSlice(
                uuid=api.nvmlDeviceGetUUID(device),
                index=position,
                profile=mig_profile(api, device),
                gpu_instance=gi,
                compute_instance=ci,
                memory_bytes=int(memory.total) if memory is not None else 0,
                capability_paths=tuple(paths),
            )
        )
    return tuple(slices)


def nvlink_ends(api: Any, handle: Any, by_bus: dict[str, int]) -> list[int]:
    """For each active link of a GPU that ends at another GPU: that one's position. Links to switches don't count."""
    ends = []
    for link in range(_MAX_LINKS):
        state = attempt(api, api.nvmlDeviceGetNvLinkState, handle, link)
        if state is None:  # no such link, nor any after it
            break
        if state != 1:
            continue
        remote = attempt(api, api.nvmlDeviceGetNvLinkRemotePciInfo, handle, link)
        position = by_bus.get(bus_id(remote.busId)) if remote is not None else None
        if position is not None:
            ends.append(position)
    return ends


def links(api: Any, gpus: Sequence[Gpu], handles: Sequence[Any]) -> tuple[tuple[Link, ...], ...]:
    """How each pair of GPUs is joined. A GPU without a handle (it can't be asked) has an empty row."""
    by_bus = {gpu.pci_bus_id: position for position, gpu in enumerate(gpus) if gpu.pci_bus_id}
    size = len(gpus)
    ancestors = [[PcieAncestor.UNKNOWN] * size for _unused in range(size)]
    nvlinks = [[0] * size for _unused in range(size)]
    for row, handle in enumerate(handles):
        if handle is None:
            continue
        for column in range(row + 1, size):
            if handles[column] is not None:
                level = attempt(api, api.nvmlDeviceGetTopologyCommonAncestor, handle, handles[column])
                ancestor = _ANCESTORS.get(level, PcieAncestor.UNKNOWN)
                ancestors[row][column] = ancestors[column][row] = ancestor
        for column in nvlink_ends(api, handle, by_bus):
            if column != row:
                nvlinks[row][column] += 1
    return tuple(
        tuple(Link(ancestors[row][column], nvlinks[row][column]) for column in range(size))
        for row in range(size)
    )


def numa_node(sysfs: str, bus: str) -> int | None:
    """K20: -1 and nothing are None."""
    try:
        number = int(Path(f"{sysfs}/bus/pci/devices/{bus}/numa_node").read_text())
    except (OSError, ValueError):
        return None
    return number if bus and number >= 0 else None


def display_nodes(sysfs: str, buses: Iterable[str], dev_root: str) -> tuple[tuple[str, str], ...]:
    """(PCI address, ``/dev/dri/card1`` or ``/dev/dri/renderD128``) of each GPU that has such nodes, which programs that
    draw without a screen open (EGL, Vulkan)."""
    found = []
    for bus in buses:
        try:
            names = sorted(os.listdir(f"{sysfs}/bus/pci/devices/{bus}/drm")) if bus else []
        except OSError:
            continue
        paths = [f"/dev/dri/{name}" for name in names if re.fullmatch("(card|renderD)[0-9]+", name, re.ASCII)]
        found += [(bus, path) for path in paths if os.path.exists(dev_root + path)]
    return tuple(found)


def bound_to_driver(sysfs: str) -> frozenset[str]:
    """PCI addresses that the nvidia kernel module holds."""
    try:
        return frozenset(name for name in os.listdir(f"{sysfs}/bus/pci/drivers/nvidia") if ":" in name)
    except OSError:
        pass
    devices = f"{sysfs}/bus/pci/devices"
    try:
        names = os.listdir(devices)
    except OSError:
        return frozenset()
    return frozenset(name for name in names if _driver(f"{devices}/{name}/driver") == "nvidia")


def _driver(link: str) -> str:
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return ""


def proc_gpus(proc: str) -> dict[str, dict[str, str]]:
    """PCI address -> uuid, model, minor, as the kernel module tells it even of GPUs that NVML can't read."""
    result: dict[str, dict[str, str]] = {}
    names = {"GPU UUID": "uuid", "Model": "model", "Device Minor": "minor"}
    try:
        entries = sorted(os.listdir(f"{proc}/driver/nvidia/gpus"))
    except OSError:
        return result
    for entry in entries:
        try:
            text = Path(f"{proc}/driver/nvidia/gpus/{entry}/information").read_text()
        except OSError:
            continue
        fields = (line.partition(":") for line in text.splitlines())
        result[entry.lower()] = {
            names[k.strip()]: v.strip() for k, _unused, v in fields if k.strip() in names
        }
    return result


def mig_minors(proc: str) -> dict[str, int]:
    """``gpu0/gi1/access`` -> N of /dev/nvidia-caps/nvidia-capN."""
    try:
        text = Path(f"{proc}/driver/nvidia-caps/mig-minors").read_text()
    except OSError:
        return {}
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}
