"""MPS sharing, the pure part: limits, paths, commands and what Allocate adds. The supervisor is another module.

As the peer has it: a control daemon for each resource, its pipe mounted into clients, memory and threads divided by the
replicas.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from .config import Settings
from .devices import Device, ResourcePlan

CONTAINER_ROOT = "/mps"
"""Where the host's MPS root is seen in the plugin's container, and the pipes in clients."""

MIB = 1 << 20


def max_clients(compute_capability: tuple[int, int] | None) -> int:
    """Clients of one GPU's MPS server: 48 from compute capability 7.0 on, 16 before (and where it is unknown)."""
    return 48 if compute_capability is not None and compute_capability >= (7, 0) else 16


def pipe_directory(root: str, resource: str) -> str:
    """Below the host's or the container's MPS root."""
    return f"{root.rstrip('/')}/{resource}/pipe"


def log_directory(root: str, resource: str) -> str:
    """Below the host's or the container's MPS root."""
    return f"{root.rstrip('/')}/{resource}/log"


def shm_directory(root: str) -> str:
    """One for all resources; mounted over /dev/shm in clients and in the daemon."""
    return f"{root.rstrip('/')}/shm"


def exclusive_file(root: str, resource: str) -> str:
    """UUIDs of the GPUs whose compute mode was set for the resource's daemon, one a line.

    What is to be put back when the resource is no longer shared so, by whichever process then runs."""
    return f"{root.rstrip('/')}/{resource}/exclusive"


def left(root: str, shared: Collection[str]) -> tuple[str, ...]:
    """Resources for which a daemon was started and that are not among ``shared`` (by MPS) now. Reads directories."""
    names = ("/".join(path.parts[-3:-1]) for path in sorted(Path(root).glob("*/*/exclusive")))
    return tuple(name for name in names if name not in shared)


def seen_root(settings: Settings) -> str:
    """The MPS root as this process sees it: mounted at /mps in a pod, itself on the host."""
    return CONTAINER_ROOT if Path(CONTAINER_ROOT).is_dir() else settings.mps_root


def _replicas(devices: Sequence[Device]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for device in devices:
        if device.replica is not None:
            counts[device.index] = counts.get(device.index, 0) + 1
    return counts


def memory_limits(devices: Sequence[Device]) -> dict[str, str]:
    """GPU index -> ``<MiB>M``, its memory divided by its replicas; none where the memory isn't known."""
    counts = _replicas(devices)
    return {
        device.index: f"{device.memory_bytes // counts[device.index] // MIB}M"
        for device in devices
        if device.replica == 0 and device.memory_bytes > 0
    }


def thread_percentage(devices: Sequence[Device]) -> int | None:
    """100 divided by the replicas of the GPU that has most (the daemon knows one number for all); None without any."""
    counts = _replicas(devices)
    return max(1, 100 // max(counts.values())) if counts else None


def control_commands(resource: ResourcePlan) -> tuple[str, ...]:
    """What to tell ``nvidia-cuda-mps-control`` once it runs, one command a line."""
    limits = memory_limits(resource.devices)
    commands = [f"set_default_device_pinned_mem_limit {index} {limit}" for index, limit in limits.items()]
    percentage = thread_percentage(resource.devices)
    if percentage is not None:
        commands.append(f"set_default_active_thread_percentage {percentage}")
    return tuple(commands)


def daemon_environment(root: str, resource: ResourcePlan) -> dict[str, str]:
    """Of the control daemon and of every command sent to it; ``root`` as the daemon sees it."""
    return {
        "CUDA_MPS_PIPE_DIRECTORY": pipe_directory(root, resource.name),
        "CUDA_MPS_LOG_DIRECTORY": log_directory(root, resource.name),
    }


def client_environment(resource: ResourcePlan) -> dict[str, str]:
    """What Allocate adds to the container's environment."""
    return {"CUDA_MPS_PIPE_DIRECTORY": pipe_directory(CONTAINER_ROOT, resource.name)}


def client_mounts(settings: Settings, resource: ResourcePlan) -> tuple[tuple[str, str], ...]:
    """(container path, host path) of what Allocate mounts, writable."""
    return (
        (pipe_directory(CONTAINER_ROOT, resource.name), pipe_directory(settings.mps_root, resource.name)),
        ("/dev/shm", shm_directory(settings.mps_root)),  # noqa: S108 - the container's
    )
