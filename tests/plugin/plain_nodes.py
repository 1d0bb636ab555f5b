"""Nodes to test against, built from plain values."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_device_plugin.devices import Device, Gpu, Link, MigSlice, PcieAncestor, ResourcePlan, Snapshot

GIB = 1 << 30

DGX1V_NVLINKS = (
    (0, 1, 1, 2, 2, 0, 0, 0),
    (1, 0, 2, 1, 0, 2, 0, 0),
    (1, 2, 0, 2, 0, 0, 1, 0),
    (2, 1, 2, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 1, 1, 2),
    (0, 2, 0, 0, 1, 0, 2, 1),
    (0, 0, 1, 0, 1, 2, 0, 2),
    (0, 0, 0, 1, 2, 1, 2, 0),
)


def uuid(number: int) -> str:
    return f"GPU-{number:08x}-0000-4000-8000-000000000000"


def gpu(index: int, **changes: object) -> Gpu:
    values: dict[str, object] = {
        "index": index,
        "uuid": uuid(index),
        "minor": index,
        "name": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 80 * GIB,
        "pci_bus_id": f"0000:{0x18 + index:02x}:00.0",
        "numa_node": index // 4,
        "compute_capability": (9, 0),
        "paths": (f"/dev/nvidia{index}",),
    }
    return Gpu(**(values | changes))  # type: ignore[arg-type]


def piece(of: int, index: int, profile: str = "1g.10gb", gi: int | None = None, ci: int = 0) -> MigSlice:
    instance = index + 7 if gi is None else gi
    return MigSlice(
        uuid=f"MIG-{of:08x}-{index:04x}-4000-8000-000000000000",
        index=index,
        profile=profile,
        gpu_instance=instance,
        compute_instance=ci,
        memory_bytes=10 * GIB,
        capability_paths=(
            f"/dev/nvidia-caps/nvidia-cap{of * 100 + index * 2}",
            f"/dev/nvidia-caps/nvidia-cap{of * 100 + index * 2 + 1}",
        ),
    )


def cut(index: int, *profiles: str, **changes: object) -> Gpu:
    """A GPU with MIG enabled and these slices."""
    slices = tuple(piece(index, number, profile) for number, profile in enumerate(profiles))
    return gpu(index, mig_enabled=True, slices=slices, **changes)


def node(*gpus: Gpu, **changes: object) -> Snapshot:
    values: dict[str, object] = {
        "gpus": gpus,
        "control_paths": (
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/nvidia-uvm-tools",
            "/dev/nvidia-modeset",
        ),
        "driver_version": "550.54.15",
    }
    return Snapshot(**(values | changes))  # type: ignore[arg-type]


def dgx1v() -> Snapshot:
    def ancestor(a: int, b: int) -> PcieAncestor:
        if a // 2 == b // 2:
            return PcieAncestor.SINGLE_SWITCH
        return PcieAncestor.HOST_BRIDGE if a // 4 == b // 4 else PcieAncestor.SYSTEM

    links = tuple(
        tuple(Link() if a == b else Link(ancestor(a, b), DGX1V_NVLINKS[a][b]) for b in range(8))
        for a in range(8)
    )
    return node(*(gpu(index) for index in range(8)), links=links)


def matrix(rows: Sequence[Sequence[int]]) -> Snapshot:
    """GPUs whose pair scores are 100 x the cell."""
    links = tuple(tuple(Link(PcieAncestor.UNKNOWN, cell) for cell in row) for row in rows)
    return node(*(gpu(index) for index in range(len(rows))), links=links)


def whole(snapshot: Snapshot, name: str = "nvidia.com/gpu") -> ResourcePlan:
    """All its GPUs, as a plan offers them."""
    return ResourcePlan(
        name,
        tuple(
            Device(g.uuid, name, g.uuid, str(g.index), gpu_uuid=g.uuid, gpu_index=g.index, paths=g.paths)
            for g in snapshot.gpus
        ),
    )
