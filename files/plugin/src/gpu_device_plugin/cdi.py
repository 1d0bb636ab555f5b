"""The CDI specification of this node's GPUs: building it (pure) and writing it (atomic)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .config import Settings
from .devices import Plan, Snapshot

VENDOR = "k8s.device-plugin.nvidia.com"
CLASS = "gpu"
KIND = f"{VENDOR}/{CLASS}"
FILE_NAME = f"{VENDOR}-{CLASS}.json"


@dataclass(frozen=True, slots=True)
class DriverFiles:
    """What of the driver goes into containers; paths below the driver root, in sorted order."""

    libraries: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Firmware directories, sockets, configuration."""


def find_driver_files(root: str, driver_version: str | None) -> DriverFiles:
    """Looks below ``root`` (the driver root as this process sees it). The only reading this module does."""
    raise NotImplementedError


def build(
    plan: Plan, snapshot: Snapshot, settings: Settings, driver: DriverFiles = DriverFiles()
) -> dict[str, Any]:
    """The specification as JSON values; pure."""
    raise NotImplementedError


def names(spec: Mapping[str, Any]) -> frozenset[str]:
    """Device names in it, unqualified: what :class:`respond.Responder` may answer."""
    raise NotImplementedError


def write(directory: str, spec: Mapping[str, Any]) -> str:
    """Write FILE_NAME in ``directory`` atomically, only if it differs; the path. Raises OSError."""
    raise NotImplementedError


def remove(directory: str) -> None:
    """Take the file away; nothing happens when it isn't there. Raises OSError."""
    raise NotImplementedError
