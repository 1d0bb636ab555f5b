"""The CDI specification of this node's GPUs: building it (pure) and writing it (atomic).

The content follows what ``nvidia-ctk cdi generate`` makes: device nodes for each GPU and slice, and for all of them the
control nodes, the driver's libraries and programs, and hooks that link and cache the libraries. The format is CDI's
SPEC.md, of which 0.5.0 has all that is used here, so that containerd 1.7.0 reads it too.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, dirname, normpath
from typing import Any

from .config import Settings
from .devices import Plan, Snapshot

VENDOR = "k8s.device-plugin.nvidia.com"
CLASS = "gpu"
KIND = f"{VENDOR}/{CLASS}"
FILE_NAME = f"{VENDOR}-{CLASS}.json"
VERSION = "0.5.0"

LIBRARY_DIRECTORIES = (
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu/nvidia/current",
)
BINARIES = (
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-smi",
)
SOCKETS = ("run/nvidia-fabricmanager/socket", "run/nvidia-persistenced/socket")
_OPTIONS = ["ro", "nosuid", "nodev", "rbind", "rprivate"]


@dataclass(frozen=True, slots=True)
class DriverFiles:
    """What of the driver goes into containers; paths below the driver root (``/usr/bin/nvidia-smi``), sorted."""

    libraries: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Firmware files and sockets."""


def find_driver_files(root: str, driver_version: str | None) -> DriverFiles:
    """Looks below ``root`` (the driver root as this process sees it) for files of this version, which NVML told; what
    isn't there is left out. The only reading this module does; no errors."""
    if driver_version is None or not re.fullmatch(r"[0-9]+(\.[0-9]+)+", driver_version, re.ASCII):
        return DriverFiles()
    base = Path(root)
    libraries: dict[Path, str] = {}
    for directory in LIBRARY_DIRECTORIES:
        for path in sorted((base / directory).glob(f"lib*.so.{driver_version}")):
            with contextlib.suppress(OSError):
                libraries.setdefault(path.resolve(strict=True), f"/{path.relative_to(base)}")
    firmware = sorted((base / "lib/firmware/nvidia" / driver_version).glob("gsp*.bin"))
    found = [f"/{path.relative_to(base)}" for path in firmware]
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
    root = settings.nvidia_dev_root or settings.nvidia_driver_root
    devices: dict[str, dict[str, Any]] = {}
    for resource in plan.resources:
        for device in resource.devices:
            name = device.index if by_index else device.uuid
            if device.gpu_uuid is not None and device.paths and name not in devices:
                nodes = [_node(path, root) for path in device.paths]
                devices[name] = {"name": name, "containerEdits": {"deviceNodes": nodes}}
    edits: dict[str, Any] = {"env": ["NVIDIA_VISIBLE_DEVICES=void"]}
    if snapshot.control_paths:
        edits["deviceNodes"] = [_node(path, root) for path in snapshot.control_paths]
    mounts = [
        _mount(path, settings.nvidia_driver_root)
        for path in (*driver.libraries, *driver.binaries, *driver.others)
    ]
    if mounts:
        edits["mounts"] = mounts
    hooks = _hooks(settings.nvidia_cdi_hook_path, driver.libraries)
    if hooks:
        edits["hooks"] = hooks
    return {"cdiVersion": VERSION, "kind": KIND, "devices": list(devices.values()), "containerEdits": edits}


def _below(root: str, path: str) -> str:
    return normpath(f"{root}/{path}").replace("//", "/")


def _node(path: str, root: str) -> dict[str, Any]:
    host = _below(root, path)
    return {"path": path, **({"hostPath": host} if host != path else {}), "permissions": "rw"}


def _mount(path: str, root: str) -> dict[str, Any]:
    options = [*_OPTIONS, "noexec"] if path.lstrip("/") in SOCKETS else list(_OPTIONS)
    return {"hostPath": _below(root, path), "containerPath": path, "options": options}


def _hooks(program: str, libraries: tuple[str, ...]) -> list[dict[str, Any]]:
    """Links that programs load by (``libcuda.so``), then the cache for everything else. None without a program."""
    if not program or not libraries:
        return []
    name = basename(program)
    command = [name, "hook"] if name == "nvidia-ctk" else [name]
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
    return [{"hookName": "createContainer", "path": program, "args": [*command, *call]} for call in calls]


def names(spec: Mapping[str, Any]) -> frozenset[str]:
    """Device names in it, unqualified: what :class:`respond.Responder` may answer."""
    return frozenset(device["name"] for device in spec["devices"])


def write(directory: str, spec: Mapping[str, Any]) -> str:
    """Write FILE_NAME in ``directory`` atomically, only if it differs; the path. Without devices, which CDI doesn't
    allow, the file is taken away instead. Raises OSError."""
    path = Path(directory) / FILE_NAME
    if not spec["devices"]:
        remove(directory)
        return str(path)
    text = json.dumps(spec, indent=2) + "\n"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return str(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{FILE_NAME}.{os.getpid()}")  # a name that CDI's readers pass over
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
    """Take the file away; nothing happens when it isn't there. Raises OSError."""
    (Path(directory) / FILE_NAME).unlink(missing_ok=True)
