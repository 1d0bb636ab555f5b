"""``gpu-device-plugin check``: what would go wrong on this node, before it serves. Changes nothing, takes no GPU.

One line a finding, in the order of the chain: settings, driver, GPUs, device nodes, plan, kubelet, places to write. A
finding that fails says the next step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import status
from .config import CDI_ANNOTATIONS, CDI_CRI, Settings
from .config_load import ConfigError, load
from .daemon import read_file
from .devices import Snapshot, SourceError
from .engine import HEALTH_FILE
from .files import boot_id
from .health import load_book
from .hostdev import HostDeviceSource
from .nvml import NvmlSource
from .nvml_read import proc_gpus
from .resources import plan
from .roots import dev_root, dev_roots, visible_roots

GPU_CLASSES = ("0x0300", "0x0302")
"""VGA and 3D controllers (PCI class code, upper 16 bits)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: str
    """``ok``, ``warn`` (serves all the same), ``fail``."""
    text: str


SYSFS = "/sys"
PROC = "/proc"


def gpus_on_bus(sysfs: str) -> list[str]:
    """PCI addresses of NVIDIA GPUs, drivers or not."""
    found = []
    for device in sorted(Path(f"{sysfs}/bus/pci/devices").glob("*")):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()[:6]
        except OSError:
            continue
        if vendor == "0x10de" and kind in GPU_CLASSES:
            found.append(device.name)
    return found


def findings(settings: Settings) -> Iterator[Finding]:
    """Everything, in order."""
    yield Finding(
        "settings",
        "ok",
        f"{settings.config_file or 'no config file'}; {len(settings.warnings)} without effect",
    )
    for warning in settings.warnings:
        yield Finding("settings", "warn", warning)
    roots = visible_roots(settings.nvidia_driver_root, settings.container_driver_root)
    source = NvmlSource(roots, dev_roots(settings), SYSFS, PROC)
    snapshot = Snapshot()
    bus = gpus_on_bus(SYSFS)
    try:
        snapshot = source.scan()
    except SourceError as error:
        text = str(error)
        if not bus:
            text += "; no NVIDIA GPU is on the PCI bus either"
        yield Finding("driver", "fail" if settings.fail_on_init_error else "warn", text)
    else:
        yield Finding("driver", "ok", f"{snapshot.driver_version}, CUDA {snapshot.cuda_version}")
        yield from _gpus(snapshot, bus)
        yield from _nodes(snapshot, settings)
    if settings.host_devices:
        there = HostDeviceSource(settings.host_devices).scan()
        for problem in there.problems:
            yield Finding("host devices", "warn", problem)
        snapshot = replace(snapshot, host_devices=there.host_devices)
    yield from _plan(snapshot, source, settings)
    source.close()
    yield from _kubelet(settings)
    yield from _places(settings)


def _gpus(snapshot: Snapshot, bus: list[str]) -> Iterator[Finding]:
    count = len(snapshot.gpus)
    if bus and len(bus) != count:
        listed = {gpu.pci_bus_id for gpu in snapshot.gpus}
        missing = ", ".join(address for address in bus if address not in listed)
        yield Finding(
            "gpus",
            "fail",
            f"{len(bus)} on the PCI bus but {count} by NVML; missing: {missing}: look at dmesg for NVRM",
        )
    elif not count:
        yield Finding("gpus", "warn", "the driver runs and there is no GPU: nothing will be registered")
    else:
        yield Finding("gpus", "ok", f"{count}: {', '.join(dict.fromkeys(gpu.name for gpu in snapshot.gpus))}")
    for problem in snapshot.problems:
        yield Finding("gpus", "fail", problem)


def _nodes(snapshot: Snapshot, settings: Settings) -> Iterator[Finding]:
    if not snapshot.gpus:
        return
    root = dev_root(dev_roots(settings))
    minors = (entry.get("minor") for entry in proc_gpus(PROC).values())
    wanted = [path for gpu in snapshot.gpus for path in gpu.paths]
    wanted += [path for gpu in snapshot.gpus for one in gpu.slices for path in one.capability_paths]
    wanted += ["/dev/nvidiactl", "/dev/nvidia-uvm", *(f"/dev/nvidia{minor}" for minor in minors if minor)]
    missing = [path for path in dict.fromkeys(wanted) if not os.path.exists(root + path)]
    if missing:
        yield Finding(
            "device nodes",
            "fail",
            f"missing below {root or '/'}: {', '.join(missing)}: run nvidia-modprobe -c 0 -u on the host",
        )
    else:
        yield Finding("device nodes", "ok", f"{len(set(wanted))} below {root or '/'}")


def _plan(snapshot: Snapshot, source: NvmlSource, settings: Settings) -> Iterator[Finding]:
    try:
        text: str | None = (Path(settings.state_dir) / HEALTH_FILE).read_text()
    except OSError:
        text = None
    book = load_book(text, settings.health, boot_id(), 0.0).probe(source.probes(), 0.0)
    offered = plan(snapshot, settings, book.reason)
    for error in offered.errors:
        yield Finding("plan", "fail", error)
    for problem in offered.problems:
        yield Finding("plan", "warn", problem)
    for resource in offered.resources:
        healthy = sum(device.healthy for device in resource.devices)
        sick = dict.fromkeys(f"{device.index}: {device.fault}" for device in resource.devices if device.fault)
        yield Finding(
            "plan",
            "warn" if sick else "ok",
            f"{resource.name}: {len(resource.devices)} devices, {healthy} healthy"
            + "".join(f"; {one}" for one in sick),
        )


def _kubelet(settings: Settings) -> Iterator[Finding]:
    from .registration import accepts  # noqa: PLC0415 - brings grpc

    kubelet = settings.kubelet
    if kubelet.registration == "plugins-registry":
        there = Path(kubelet.plugins_registry_dir).is_dir()
        yield Finding(
            "kubelet",
            "ok" if there else "fail",
            f"{kubelet.plugins_registry_dir} is {'there' if there else 'not there'}",
        )
        return
    directory = Path(kubelet.plugin_dir)
    socket = kubelet.socket or f"{directory}/kubelet.sock"
    if not directory.is_dir():
        yield Finding(
            "kubelet", "fail",
            f"{directory} is not there: no kubelet has run here, its directory is another "
            "(kubelet.pluginDir), or its DevicePlugins gate is off",
        )  # fmt: skip
        return
    if not os.access(directory, os.W_OK):
        yield Finding("kubelet", "fail", f"{directory} can't be written: run as root")
    if accepts(socket):
        yield Finding("kubelet", "ok", f"answers on {socket}")
    elif Path(socket).exists():
        yield Finding(
            "kubelet",
            "fail",
            f"nobody listens on {socket}: the kubelet is stopped, or its DevicePlugins gate is off",
        )
    else:
        yield Finding(
            "kubelet", "fail", f"{socket} is not there: start the kubelet, or see its DevicePlugins gate"
        )
    try:
        answer = status.ask(settings.run_dir, seconds=3)
        yield Finding("other plugins", "ok", f"ours runs here already, pid {answer['pid']}")
        own = {Path(one["socket"]).name for one in answer["resources"] if one["socket"]}
    except status.NotRunning:
        own = set()
    others = [
        entry.name
        for entry in sorted(directory.iterdir())
        if entry.is_socket() and entry.name not in own and str(entry) != socket and accepts(str(entry))
    ]
    if others:
        yield Finding(
            "other plugins", "warn",
            f"other sockets answer in {directory}: {', '.join(others)}: no two plugins may offer the same resource",
        )  # fmt: skip
    pods = f"{kubelet.pod_resources_dir}/kubelet.sock"
    if accepts(pods):
        yield Finding("pod resources", "ok", f"answers on {pods}")
    else:
        yield Finding(
            "pod resources", "warn", f"nobody answers on {pods}: holders stay unknown in metrics and status"
        )


def _places(settings: Settings) -> Iterator[Finding]:
    places = {"state_dir": settings.state_dir, "run_dir": settings.run_dir}
    if {CDI_ANNOTATIONS, CDI_CRI} & set(settings.device_list_strategy):
        places["cdi.specDir"] = settings.cdi_spec_dir
        yield from _cdi_hook(settings)
    for name, place in places.items():
        there = Path(place)
        while not there.exists():
            there = there.parent
        if os.access(there, os.W_OK):
            yield Finding("places", "ok", f"{name} {place}")
        else:
            yield Finding("places", "fail", f"{name} {place} can't be written")
    if settings.mps is not None:
        from .mps_supervisor import find_binary  # noqa: PLC0415

        binary = find_binary(visible_roots(settings.nvidia_driver_root, settings.container_driver_root))
        if binary is None:
            yield Finding(
                "mps", "fail", "nvidia-cuda-mps-control is not there: install the driver's MPS tools"
            )
        else:
            yield Finding("mps", "ok", binary)


def _cdi_hook(settings: Settings) -> Iterator[Finding]:
    """The program that the CDI specification calls is the node's own, which a pod sees below a mounted "/" alone."""
    program = settings.nvidia_cdi_hook_path
    mounted = os.path.isdir(settings.container_driver_root)
    if not program or (mounted and settings.nvidia_driver_root.rstrip("/")):
        return
    if os.path.exists(f"{settings.container_driver_root}{program}" if mounted else program):
        yield Finding("cdi", "ok", f"{program} is there")
    else:
        yield Finding(
            "cdi", "fail",
            f"{program}, which the CDI specification calls, is not there, so that no container with a GPU would start: "
            "install nvidia-container-toolkit-base, or set nvidiaCDIHookPath",
        )  # fmt: skip


def main(argv: Sequence[str], environ: Mapping[str, str], as_json: bool) -> int:
    """0 when nothing fails, 1 otherwise, 2 when the settings themselves are refused."""
    try:
        settings = load(argv, environ, read_file)
    except ConfigError as error:
        found = [Finding("settings", "fail", str(fault)) for fault in error.faults]
        code = 2
    else:
        found = list(findings(settings))
        code = int(any(one.state == "fail" for one in found))
    if as_json:
        print(json.dumps({"ok": code == 0, "findings": [asdict(one) for one in found]}, indent=2))
    else:
        for one in found:
            print(f"{one.state.upper():4}  {one.what}: {one.text}", file=sys.stdout)
    return code
