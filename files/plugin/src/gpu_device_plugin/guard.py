"""The occupancy guard: a GPU that the kubelet calls free but on which something runs is not given out until it
is clean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .devices import Snapshot
from .nvml import NvmlSource
from .podresources import PodResources
from .state import World


def occupied(nvml: NvmlSource, snapshot: Snapshot, world: World, pods: PodResources) -> Mapping[str, str]:
    """UUID of each GPU that no container holds and that runs processes -> why it must not be given out.

    GPUs shared by MPS are left out: their server always runs. Nothing is guarded while PodResources does not answer,
    because then every GPU in use would look stolen.
    """
    holders, problem = pods.holders()
    if problem is not None:
        return {}
    held: set[str] = set()
    skipped: set[str] = set()
    for name, offer in world.offers.items():
        for device in offer.plan.devices:
            if device.gpu_uuid is None:
                continue
            if offer.plan.shared == "mps":
                skipped.add(device.gpu_uuid)
            if (name, device.id) in holders:
                held.add(device.gpu_uuid)
    result = {}
    with nvml.lock:
        handles = nvml.handles()
        api = nvml.library.api
        for gpu in snapshot.gpus:
            if gpu.fault or gpu.uuid in held or gpu.uuid in skipped or gpu.uuid not in handles:
                continue
            pids = _processes(api, handles[gpu.uuid])
            if pids:
                listed = ", ".join(str(pid) for pid in pids[:5])
                result[gpu.uuid] = (
                    f"no container holds it but {len(pids)} process(es) use it (pid {listed}); "
                    "it is offered again when they end"
                )
    return result


def _processes(api: Any, handle: Any) -> list[int]:
    try:
        return sorted(int(process.pid) for process in api.nvmlDeviceGetComputeRunningProcesses(handle))
    except api.NVMLError:
        return []
