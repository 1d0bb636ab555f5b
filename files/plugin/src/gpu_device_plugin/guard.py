"""The occupancy guard: a GPU that the kubelet calls free but on which something runs is not given out until it
is clean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .devices import Gpu, Plan, Snapshot
from .nvml import NvmlSource
from .podresources import PodResources


def occupied(nvml: NvmlSource, snapshot: Snapshot, plan: Plan, pods: PodResources) -> Mapping[str, str]:
    """UUID of each GPU that no container holds and that runs processes -> why it must not be given out.

    GPUs that ``plan`` shares by MPS are left out: their server always runs. Nothing is guarded while PodResources does
    not answer, because then every GPU in use would look stolen.

    Processes are looked at before and after the kubelet is asked, and only those count that ran all the while: a
    container that starts has its GPU before its processes, and one that ends has lost its processes before its GPU.
    """
    shared = {
        device.gpu_uuid
        for resource in plan.resources
        if resource.shared == "mps"
        for device in resource.devices
    }
    gpus = [gpu for gpu in snapshot.gpus if not gpu.fault and gpu.uuid not in shared]
    before = _processes(nvml, gpus)
    if not before:
        return {}
    holders, problem = pods.ask_now()
    if problem is not None:
        return {}
    # By GPU, whatever the id's resource or replica: they may be those of settings, or of a plugin, of before.
    held = {identity.partition("::")[0] for _resource, identity in holders}
    free = [gpu for gpu in gpus if gpu.uuid in before and held.isdisjoint(_names(gpu))]
    result = {}
    for uuid, after in (_processes(nvml, free) if free else {}).items():
        pids = sorted(before[uuid] & after)
        if pids:
            listed = ", ".join(str(pid) for pid in pids[:5])
            result[uuid] = (
                f"no container holds it but {len(pids)} process(es) use it (pid {listed}); "
                "it is offered again when they end"
            )
    return result


def _names(gpu: Gpu) -> set[str]:
    """Its own UUID and its slices'."""
    return {gpu.uuid, *(piece.uuid for piece in gpu.slices)}


def _processes(nvml: NvmlSource, gpus: Collection[Gpu]) -> dict[str, set[int]]:
    """UUID -> process ids, of those that have any."""
    result = {}
    with nvml.lock:
        handles = nvml.handles()
        for gpu in gpus:
            if gpu.uuid in handles and (pids := _pids(nvml.library.api, handles[gpu.uuid])):
                result[gpu.uuid] = pids
    return result


def _pids(api: Any, handle: Any) -> set[int]:
    try:
        return {int(process.pid) for process in api.nvmlDeviceGetComputeRunningProcesses(handle)}
    except api.NVMLError:
        return set()
