"""MPS sharing, the pure part: limits, paths, commands and what Allocate adds. The supervisor is another module."""

from __future__ import annotations

from collections.abc import Sequence

from .config import Settings
from .devices import Device, ResourcePlan

CONTAINER_ROOT = "/mps"


def max_clients(compute_capability: tuple[int, int] | None) -> int:
    """Clients of one GPU's MPS server: 48 from compute capability 7.0 on, 16 before (and where it is unknown)."""
    raise NotImplementedError


def pipe_directory(root: str, resource: str) -> str:
    """Below the host's or the container's MPS root."""
    return f"{root.rstrip('/')}/{resource}/pipe"


def log_directory(root: str, resource: str) -> str:
    """Below the host's or the container's MPS root."""
    return f"{root.rstrip('/')}/{resource}/log"


def shm_directory(root: str) -> str:
    """One for all resources."""
    return f"{root.rstrip('/')}/shm"


def memory_limits(devices: Sequence[Device]) -> dict[str, str]:
    """Device index -> ``<MiB>M``, its memory divided by its replicas."""
    raise NotImplementedError


def thread_percentage(devices: Sequence[Device]) -> int | None:
    """100 divided by the replicas of a device, None without devices."""
    raise NotImplementedError


def control_commands(resource: ResourcePlan) -> tuple[str, ...]:
    """What to tell ``nvidia-cuda-mps-control`` once it runs, one command a line."""
    raise NotImplementedError


def daemon_environment(root: str, resource: ResourcePlan) -> dict[str, str]:
    """Of the control daemon and of every command sent to it."""
    raise NotImplementedError


def client_environment(resource: ResourcePlan) -> dict[str, str]:
    """What Allocate adds to the container's environment."""
    raise NotImplementedError


def client_mounts(settings: Settings, resource: ResourcePlan) -> tuple[tuple[str, str], ...]:
    """(container path, host path) of what Allocate mounts."""
    raise NotImplementedError
