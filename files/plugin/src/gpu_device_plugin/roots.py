"""Where the driver's files and device nodes are: on the node, and as this process sees them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from posixpath import normpath

from .config import Settings

LIBRARY_FOLDERS = (
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu/nvidia/current",
    "usr/lib",
    "lib",
)
"""Where a driver root keeps its libraries: distributions, and driver containers (`lib64`, GKE)."""
PROGRAM_FOLDERS = ("usr/bin", "bin", "usr/local/bin", "opt/bin")


def below(root: str, path: str) -> str:
    """``path`` as one outside of ``root`` writes it, normalised: ``/run/nvidia/driver/dev/nvidia0``."""
    return normpath(f"{root}/{path}").replace("//", "/")


def visible_roots(driver_root: str, container_driver_root: str) -> tuple[str, ...]:
    """Where the driver may be as this process sees it: in a pod the driver root is mounted at the container's; on the
    host it is the path itself. "/" is left to the loader."""
    roots = [container_driver_root] if os.path.isdir(container_driver_root) else []
    if driver_root.rstrip("/"):
        roots.append(driver_root)
    return tuple(roots)


def device_root(settings: Settings) -> str:
    """Root of the device nodes on the node: what stands before the host's path of each."""
    return settings.nvidia_dev_root or settings.nvidia_driver_root


def dev_roots(settings: Settings) -> tuple[str, ...]:
    """Where /dev may be as this process sees it: mounted with the driver root, at its own path, or given to this very
    container by the NVIDIA runtime. :func:`dev_root` chooses."""
    roots = [settings.container_driver_root] if os.path.isdir(settings.container_driver_root) else []
    return tuple(dict.fromkeys(root.rstrip("/") for root in (*roots, device_root(settings), "/")))


def dev_root(roots: Sequence[str]) -> str:
    """The first that holds the driver's nodes, without a slash at its end; the first of all while none does."""
    return next((root for root in roots if os.path.exists(f"{root}/dev/nvidiactl")), roots[0])
