"""The CDI specifications of this node: building them (pure) and writing them (atomic).

The content follows what ``nvidia-ctk cdi generate`` makes: device nodes for each GPU and slice, and for all of them the
control nodes, the driver's libraries and programs, and hooks that link and cache the libraries. The format is CDI's
SPEC.md, of which 0.5.0 has all that is used here, so that containerd 1.7.0 reads it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, dirname
from typing import Any

from .config import Settings
from .devices import Plan, Snapshot
from .features import KINDS, Feature
from .roots import LIBRARY_FOLDERS, below, device_root

VENDOR = "k8s.device-plugin.nvidia.com"
CLASS = "gpu"
FILE_NAME = f"{VENDOR}-{CLASS}.json"
VERSION = "0.5.0"

BINARIES = (
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-debugdump",
    "nvidia-imex",
    "nvidia-imex-ctl",
    "nvidia-persistenced",
    "nvidia-smi",
)
OTHER_LIBRARIES = ("libnvidia-egl-gbm.so.*.*", "libnvidia-egl-wayland.so.*.*", "libnvidia-nvvm70.so.*")
"""Of the driver, though their names don't end in its version."""
CONFIGURATION = (
    "glvnd/egl_vendor.d/10_nvidia.json",
    "egl/egl_external_platform.d/10_nvidia_wayland.json",
    "egl/egl_external_platform.d/15_nvidia_gbm.json",
    "nvidia/nvoptix.bin",
    "vulkan/icd.d/nvidia_icd*.json",
    "vulkan/icd.d/nvidia_layers.json",
    "vulkan/implicit_layer.d/nvidia_layers.json",
)
"""Below /etc or /usr/share: how EGL, Vulkan and OptiX find the driver."""
SOCKETS = ("run/nvidia-fabricmanager/socket", "run/nvidia-persistenced/socket")
_OPTIONS = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
_SOCKET_OPTIONS = ["nosuid", "nodev", "rbind", "rprivate", "noexec"]
"""Not read-only, as nvidia-ctk from 1.18.2 on: a container that runs containers could not hand it on."""


@dataclass(frozen=True, slots=True)
class DriverFiles:
    """What of the driver goes into containers; paths below the driver root (``/usr/bin/nvidia-smi``), sorted."""

    libraries: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Firmware, configuration and sockets."""


def qualified(kind: str, name: str) -> str:
    """A device as requests name it: ``k8s.device-plugin.nvidia.com/gpu=GPU-...``; ``kind`` is CLASS or one of
    features.KINDS."""
    return f"{VENDOR}/{kind}={name}"


def find_driver_files(root: str, driver_version: str | None) -> DriverFiles:
    """Looks below ``root`` (the driver root as this process sees it) for files of this version, which NVML told; what
    isn't there is left out. The only reading this module does; no errors."""
    if driver_version is None or not re.fullmatch(r"[0-9]+(\.[0-9]+)+", driver_version, re.ASCII):
        return DriverFiles()
    base = Path(root)
    libraries: dict[Path, str] = {}
    for directory in LIBRARY_FOLDERS:
        for pattern in (f"lib*.so.{driver_version}", f"vdpau/lib*.so.{driver_version}", *OTHER_LIBRARIES):
            for path in sorted((base / directory).glob(pattern)):
                with contextlib.suppress(OSError):
                    libraries.setdefault(path.resolve(strict=True), f"/{path.relative_to(base)}")
    files = [*base.glob(f"lib/firmware/nvidia/{driver_version}/gsp*.bin")]
    for pattern in CONFIGURATION:
        files += next(
            filter(None, ([*base.glob(f"{folder}/{pattern}")] for folder in ("etc", "usr/share"))), []
        )
    found = [f"/{path.relative_to(base)}" for path in files]
    return DriverFiles(
        tuple(sorted(libraries.values())),
        tuple(f"/usr/bin/{name}" for name in BINARIES if (base / "usr/bin" / name).exists()),
        tuple(sorted([*found, *(f"/{name}" for name in SOCKETS if (base / name).is_socket())])),
    )


def build(
    plan: Plan, snapshot: Snapshot, settings: Settings, driver: DriverFiles = DriverFiles()
) -> dict[str, Any]:
    """The specification as JSON values; pure. One device a GPU or slice that is offered, named as answers name it."""
    by_index = settings.device_id_strategy == "index"
    root, hook = device_root(settings), settings.nvidia_cdi_hook_path
    displays = _displays(snapshot)
    devices: dict[str, dict[str, Any]] = {}
    for resource in plan.resources:
        for device in resource.devices:
            name = device.index if by_index else device.uuid
            if device.gpu_uuid is not None and device.paths and name not in devices:
                drawing = displays.get(device.gpu_uuid, {}) if device.gpu_instance is None else {}
                nodes = [_node(path, below(root, path)) for path in (*device.paths, *drawing)]
                edits: dict[str, Any] = {"deviceNodes": nodes}
                if drawing and hook:
                    links = [word for link in drawing.values() for word in ("--link", link)]
                    edits["hooks"] = [_hook(hook, "create-symlinks", *links)]
                devices[name] = {"name": name, "containerEdits": edits}
    shared: dict[str, Any] = {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
    if snapshot.control_paths:
        shared["deviceNodes"] = [_node(path, below(root, path)) for path in snapshot.control_paths]
    mounts = [
        _mount(path, below(settings.nvidia_driver_root, path))
        for path in (*driver.libraries, *driver.binaries, *driver.others)
    ]
    if mounts:
        shared["mounts"] = mounts
    hooks = _hooks(hook, driver.libraries)
    if hooks:
        shared["hooks"] = hooks
    return _specification(CLASS, list(devices.values())) | {"containerEdits": shared}


def _displays(snapshot: Snapshot) -> dict[str, dict[str, str]]:
    """UUID -> {``/dev/dri/card1``: the link by PCI address that leads to it, as the hook takes it}."""
    found: dict[str, dict[str, str]] = {}
    for gpu in snapshot.gpus:
        for bus, path in snapshot.display_nodes:
            if bus == gpu.pci_bus_id:
                name = basename(path)
                kind = "card" if name.startswith("card") else "render"
                found.setdefault(gpu.uuid, {})[path] = f"../{name}::/dev/dri/by-path/pci-{bus}-{kind}"
    return found


def build_features(features: Sequence[Feature]) -> tuple[dict[str, Any], ...]:
    """A specification for each kind of feature, in the order of KINDS; one without devices where there is none."""
    specs = []
    for kind in KINDS:
        devices = []
        for feature in features:
            if feature.kind == kind:
                edits: dict[str, Any] = {"deviceNodes": [_node(path, host) for path, host in feature.nodes]}
                if feature.mounts:
                    edits["mounts"] = [_mount(path, host) for path, host in feature.mounts]
                devices.append({"name": feature.name, "containerEdits": edits})
        specs.append(_specification(kind, devices))
    return tuple(specs)


def _specification(kind: str, devices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"cdiVersion": VERSION, "kind": f"{VENDOR}/{kind}", "devices": devices}


def _node(path: str, host: str) -> dict[str, Any]:
    return {"path": path, **({"hostPath": host} if host != path else {}), "permissions": "rw"}


def _mount(path: str, host: str) -> dict[str, Any]:
    options = _SOCKET_OPTIONS if path.lstrip("/") in SOCKETS else _OPTIONS
    return {"hostPath": host, "containerPath": path, "options": list(options)}


def _hooks(program: str, libraries: tuple[str, ...]) -> list[dict[str, Any]]:
    """Links that programs load by (``libcuda.so``), then the cache for everything else. None without a program."""
    if not program or not libraries:
        return []
    links = []
    for library in libraries:
        stem = basename(library).split(".so.")[0]
        if stem in ("libcuda", "libnvidia-opticalflow"):
            links += ["--link", f"{stem}.so.1::{dirname(library)}/{stem}.so"]
    folders = [
        word
        for folder in sorted({dirname(library) for library in libraries})
        for word in ("--folder", folder)
    ]
    calls = ([["create-symlinks", *links]] if links else []) + [["update-ldcache", *folders]]
    return [_hook(program, *call) for call in calls]


def _hook(program: str, *call: str) -> dict[str, Any]:
    name = basename(program)
    command = [name, "hook"] if name == "nvidia-ctk" else [name]
    return {"hookName": "createContainer", "path": program, "args": [*command, *call]}


def names(spec: Mapping[str, Any]) -> frozenset[str]:
    """Qualified names of the devices in it: what :class:`respond.Responder` may answer."""
    return frozenset(f"{spec['kind']}={device['name']}" for device in spec["devices"])


def file_name(spec: Mapping[str, Any]) -> str:
    """``k8s.device-plugin.nvidia.com-gpu.json``."""
    return f"{spec['kind'].replace('/', '-')}.json"


def write(directory: str, spec: Mapping[str, Any]) -> str:
    """Write its file in ``directory`` atomically, only if it differs; the path. Without devices, which CDI doesn't
    allow, the file is taken away instead. Raises OSError."""
    path = Path(directory) / file_name(spec)
    if not spec["devices"]:
        path.unlink(missing_ok=True)
        return str(path)
    text = json.dumps(spec, indent=2) + "\n"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return str(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # a name that CDI's readers pass over
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return str(path)


def remove(directory: str) -> None:
    """Take every file of ours away; nothing happens where there is none. Raises OSError."""
    for kind in (CLASS, *KINDS):
        (Path(directory) / file_name(_specification(kind, []))).unlink(missing_ok=True)
