"""A plugin's service for more GPUs than the stand-in NVML plays: real state, answers and sockets over a made-up scan.

    many_gpus.py COUNT SOCKET

Groups of eight joined like a DGX (NVLink inside, the host across), so that no two pairs score alike by accident.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from gpu_device_plugin.config import Settings
from gpu_device_plugin.devices import Device, Gpu, Link, PcieAncestor, Plan, ResourcePlan, Snapshot
from gpu_device_plugin.prefer import Chooser
from gpu_device_plugin.respond import Responder
from gpu_device_plugin.service import Service
from gpu_device_plugin.state import Desk, State
from gpu_device_plugin.topology import scores


class Silent:
    """Listens to nothing."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_: None


def link(a: int, b: int) -> Link:
    """Of two GPUs."""
    if a // 8 != b // 8:
        return Link(PcieAncestor.SYSTEM if a // 16 != b // 16 else PcieAncestor.NUMA_NODE)
    ancestor = PcieAncestor.SINGLE_SWITCH if a // 2 == b // 2 else PcieAncestor.HOST_BRIDGE
    return Link(ancestor, (a % 8 + b % 8) % 4)


def serve(count: int, socket: str) -> None:
    """Until killed."""
    gpus = tuple(
        Gpu(index=i, uuid=f"GPU-{i:04}", minor=i, name="NVIDIA H100", paths=(f"/dev/nvidia{i}",))
        for i in range(count)
    )
    matrix = tuple(tuple(Link() if a == b else link(a, b) for b in range(count)) for a in range(count))
    snapshot = Snapshot(gpus=gpus, links=matrix)
    devices = tuple(
        Device(id=g.uuid, resource="nvidia.com/gpu", uuid=g.uuid, index=str(g.index), gpu_uuid=g.uuid,
               gpu_index=g.index, paths=g.paths)
        for g in gpus
    )  # fmt: skip
    state = State()
    table = scores(snapshot)
    state.publish(
        Settings(), snapshot, Plan((ResourcePlan("nvidia.com/gpu", devices),)),
        lambda resource: Desk(Responder(resource, Settings()), Chooser(resource, table)),
    )  # fmt: skip
    Service("nvidia.com/gpu", socket, state, Silent()).start()
    print("serving", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
