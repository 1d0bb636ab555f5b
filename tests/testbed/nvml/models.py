"""GPU models and machines that the stand-in can play: figures from NVIDIA's data sheets and `nvidia-smi -q`.

Everything here is data and pure functions; standard library only, because it also runs on test nodes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

MIB = 1024 * 1024

# NVML_TOPOLOGY_*: the nearest common ancestor of two GPUs.
SINGLE, MULTIPLE, HOSTBRIDGE, NODE, SYSTEM = 10, 20, 30, 40, 50

# PCI buses in the order of an HGX board, then eight more for machines with 16.
BUSES = (0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB, 0xE0, 0xE2, 0xE5, 0xE7, 0xEA, 0xEC, 0xEE, 0xF0)
NVSWITCH_BUSES = (0x07, 0x08, 0x09, 0x0A)
MAX_GPUS = len(BUSES)


@dataclass(frozen=True)
class MigProfile:
    """A GPU instance profile as `nvidia-smi mig -lgip` lists it; `kind` is NVML_GPU_INSTANCE_PROFILE_*."""

    name: str
    kind: int
    id: int
    slices: int
    size: int  # memory slices, of 8
    starts: tuple[int, ...]  # memory slices where it may start
    gis: tuple[int, ...]  # the ids that the driver gives such instances
    memory_mib: int
    multiprocessors: int


def _profiles(
    names: str, memory_mib: tuple[int, ...], multiprocessors: tuple[int, ...]
) -> tuple[MigProfile, ...]:
    """The seven profiles every MIG GPU has: 1g, 1g+me, 1g with double memory, 2g, 3g, 4g, 7g."""
    shapes = (
        (0, 19, 1, 1, (0, 1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12, 13)),
        (7, 20, 1, 1, (0, 1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12, 13)),
        (9, 15, 1, 2, (0, 2, 4, 6), (3, 4, 5, 6)),
        (1, 14, 2, 2, (0, 2, 4), (3, 4, 5)),
        (2, 9, 3, 4, (0, 4), (1, 2)),
        (3, 5, 4, 4, (0,), (1,)),
        (4, 0, 7, 8, (0,), (0,)),
    )
    return tuple(
        MigProfile(name, kind, pid, slices, size, starts, gis, memory, sms)
        for name, (kind, pid, slices, size, starts, gis), memory, sms in zip(
            names.split(), shapes, memory_mib, multiprocessors
        )
    )


@dataclass(frozen=True)
class Model:
    """One GPU model. Memory in MiB, power in watts, clocks in MHz."""

    name: str
    device_id: int
    subsystem_id: int
    memory_mib: int
    capability: tuple[int, int]
    architecture: int  # NVML_DEVICE_ARCH_*
    brand: int  # NVML_BRAND_*
    cores: int
    power_w: int
    clock_mhz: int
    memory_clock_mhz: int
    bar1_mib: int
    bus_width: int
    vbios: str
    pcie_generation: int
    reserved_mib: int = 500
    nvlinks: int = 0
    nvlink_version: int = 0
    nvlink_mbps: int = 0
    wiring: str = "none"  # none, switch (NVSwitch), dgx1v
    pcie: str = "nodes"  # nodes (own root port), pairs (two behind one switch), dgx1v
    pci_class: int = 0x030200
    mig: tuple[MigProfile, ...] = field(default=())


MODELS: dict[str, Model] = {
    "H100": Model(
        "NVIDIA H100 80GB HBM3", 0x2330, 0x16C110DE, 81559, (9, 0), 9, 14, 16896, 700, 1980, 2619, 131072, 5120,
        "96.00.74.00.01", 5, 551, 18, 4, 26562, "switch", "nodes",
        mig=_profiles("1g.10gb 1g.10gb+me 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
                      (9984, 9984, 20096, 20096, 40448, 40448, 81152), (16, 16, 26, 32, 60, 64, 132)),
    ),
    "A100": Model(
        "NVIDIA A100-SXM4-80GB", 0x20B2, 0x147F10DE, 81920, (8, 0), 7, 14, 6912, 400, 1410, 1593, 131072, 5120,
        "92.00.45.00.05", 4, 529, 12, 3, 25000, "switch", "pairs",
        mig=_profiles("1g.10gb 1g.10gb+me 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb",
                      (9728, 9728, 19968, 19968, 40192, 40192, 80640), (14, 14, 14, 28, 42, 56, 98)),
    ),
    "A100-40": Model(
        "NVIDIA A100-SXM4-40GB", 0x20B0, 0x134F10DE, 40960, (8, 0), 7, 14, 6912, 400, 1410, 1215, 65536, 5120,
        "92.00.19.00.01", 4, 413, 12, 3, 25000, "switch", "pairs",
        mig=_profiles("1g.5gb 1g.5gb+me 1g.10gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb",
                      (4864, 4864, 9856, 9984, 20096, 20096, 40192), (14, 14, 14, 28, 42, 56, 98)),
    ),
    "B200": Model(
        "NVIDIA B200", 0x2901, 0x199910DE, 183359, (10, 0), 10, 14, 18944, 1000, 1965, 3996, 262144, 8192,
        "97.00.82.00.18", 5, 738, 18, 5, 50000, "switch", "nodes",
        mig=_profiles("1g.23gb 1g.23gb+me 1g.45gb 2g.45gb 3g.90gb 4g.90gb 7g.180gb",
                      (22784, 22784, 45568, 45568, 91136, 91136, 182528), (18, 18, 30, 36, 70, 74, 148)),
    ),
    "L40S": Model(
        "NVIDIA L40S", 0x26B9, 0x185110DE, 46068, (8, 9), 8, 14, 18176, 350, 2520, 9001, 65536, 384,
        "95.02.66.00.02", 4, 579,
    ),
    "V100": Model(
        "Tesla V100-SXM2-16GB", 0x1DB1, 0x121210DE, 16384, (7, 0), 5, 2, 5120, 300, 1530, 877, 16384, 4096,
        "88.00.4F.00.09", 3, 224, 6, 2, 25781, "dgx1v", "dgx1v",
    ),
    "T4": Model(
        "Tesla T4", 0x1EB8, 0x12A210DE, 15360, (7, 5), 6, 2, 2560, 70, 1590, 5001, 256, 256,
        "90.04.A7.00.01", 3, 447,
    ),
    # What a device plugin has to leave out.
    "DGX-DISPLAY": Model(
        "NVIDIA DGX Display", 0x1FB0, 0x147F10DE, 3928, (7, 5), 6, 14, 896, 50, 1200, 5000, 256, 128,
        "90.17.49.00.0C", 3, 200, pci_class=0x030000,
    ),
}  # fmt: skip

# NVLinks between pairs of the eight V100s of a DGX-1V.
DGX1V_LINKS = (
    (0, 1, 1, 2, 2, 0, 0, 0),
    (1, 0, 2, 1, 0, 2, 0, 0),
    (1, 2, 0, 2, 0, 0, 1, 0),
    (2, 1, 2, 0, 0, 0, 0, 1),
    (2, 0, 0, 0, 0, 1, 1, 2),
    (0, 2, 0, 0, 1, 0, 2, 1),
    (0, 0, 1, 0, 1, 2, 0, 2),
    (0, 0, 0, 1, 2, 1, 2, 0),
)


def gpu_uuid(seed: str, serial: int) -> str:
    """A UUID in NVML's spelling, the same for the same seed."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{seed}/gpu/{serial}')}"


def bus_id(gpu: dict) -> str:
    """The address that sysfs uses: 0000:18:00.0."""
    pci = gpu["pci"]
    return f"{pci['domain']:04x}:{pci['bus']:02x}:{pci['device']:02x}.0"


def make_gpu(model_key: str, seed: str, serial: int, numa_node: int) -> dict:
    """One GPU as the state file holds it. `serial` counts GPUs that ever were: it makes UUID, minor and bus."""
    model = MODELS[model_key]
    return {
        "model": model_key,
        "uuid": gpu_uuid(seed, serial),
        "minor": serial,
        "name": model.name,
        "serial": f"165{int(uuid.uuid5(uuid.NAMESPACE_OID, f'{seed}/serial/{serial}')) % 10**10:010d}",
        "brand": model.brand,
        "architecture": model.architecture,
        "compute_capability": list(model.capability),
        "cores": model.cores,
        "vbios": model.vbios,
        "inforom": "G520.0200.00.05",
        "board_part": "692-2G520-0200-000",
        "board_id": BUSES[serial % MAX_GPUS] << 8,
        "module_id": serial + 1,
        "numa_node": numa_node,
        "pci": {
            "domain": serial // MAX_GPUS,
            "bus": BUSES[serial % MAX_GPUS],
            "device": 0,
            "device_id": model.device_id,
            "subsystem_id": model.subsystem_id,
            "class": model.pci_class,
        },
        "memory_total": model.memory_mib * MIB,
        "memory_reserved": model.reserved_mib * MIB,
        "memory_used": 0,
        "memory_bus_width": model.bus_width,
        "bar1_total": model.bar1_mib * MIB,
        "bar1_used": MIB,
        "utilization_gpu": 0,
        "utilization_memory": 0,
        "temperature": 31 + serial % 5,
        "memory_temperature": 40 + serial % 5,
        "power_mw": model.power_w * 100,
        "power_limit_mw": model.power_w * 1000,
        "energy_mj": 1_000_000,
        "clocks": {"graphics": 345, "sm": 345, "memory": model.memory_clock_mhz, "video": 765},
        "clocks_max": {
            "graphics": model.clock_mhz,
            "sm": model.clock_mhz,
            "memory": model.memory_clock_mhz,
            "video": model.clock_mhz * 9 // 10,
        },
        "pstate": 0,
        "pcie_generation": model.pcie_generation,
        "pcie_width": 16,
        "persistence": 1,
        "ecc_mode": 0 if model_key == "DGX-DISPLAY" else 1,
        "ecc": {},
        "remapped_rows": {"corrected": 0, "uncorrected": 0, "pending": False, "failed": False},
        "retired_pages": {"single_bit": 0, "double_bit": 0, "pending": False},
        "nvlink_version": model.nvlink_version,
        "nvlink_mbps": model.nvlink_mbps,
        "nvlinks": [],
        "lost": False,
        "errors": {},
        "processes": [],
        "mig": {
            "capable": bool(model.mig),
            "enabled": False,
            "max": 7,
            "profiles": [
                {
                    "name": p.name,
                    "kind": p.kind,
                    "id": p.id,
                    "slices": p.slices,
                    "instances": len(p.starts) if p.kind != 7 else 1,
                    "memory_mib": p.memory_mib,
                    "multiprocessors": p.multiprocessors,
                }
                for p in model.mig
            ],
            "devices": [],
        },
    }


def pcie_level(wiring: str, first: int, second: int, count: int) -> int:
    """NVML_TOPOLOGY_* between two positions of a machine of `count` GPUs on two sockets."""
    half = max(1, (count + 1) // 2) if wiring != "dgx1v" else 4
    if first // half != second // half:
        return SYSTEM
    if wiring == "dgx1v":
        return SINGLE if first // 2 == second // 2 else HOSTBRIDGE
    if wiring == "pairs":
        return MULTIPLE if first // 2 == second // 2 else NODE
    return NODE


def topology(gpus: list[dict]) -> list[list[int]]:
    """The matrix of PCIe levels for the state; 0 on the diagonal."""
    count = len(gpus)
    return [
        [0 if a == b else pcie_level(MODELS[gpus[a]["model"]].pcie, a, b, count) for b in range(count)]
        for a in range(count)
    ]


def nvlinks(gpus: list[dict], position: int) -> list[dict]:
    """The NVLinks of one GPU: to its peers on a DGX-1V, to the switches of an NVSwitch machine."""
    model = MODELS[gpus[position]["model"]]
    if model.wiring == "switch" and len(gpus) > 1:
        return [
            {"type": "switch", "bus": NVSWITCH_BUSES[n % len(NVSWITCH_BUSES)], "active": True}
            for n in range(model.nvlinks)
        ]
    if model.wiring == "dgx1v" and position < 8:
        links = [
            {"type": "gpu", "peer": gpus[other]["uuid"], "active": True}
            for other in range(min(8, len(gpus)))
            for _ in range(DGX1V_LINKS[position][other])
        ]
        return links + [{"type": "gpu", "active": False}] * (model.nvlinks - len(links))
    return [{"type": "gpu", "active": False}] * model.nvlinks


def make_state(
    models: list[str], seed: str = "testbed", numa_nodes: int = 2, driver: str = "570.133.20"
) -> dict:
    """A whole machine: one entry of `models` a GPU, spread over NUMA nodes in order (0: no NUMA, node -1)."""
    if len(models) > MAX_GPUS:
        raise ValueError(f"{len(models)} GPUs asked for: this stand-in plays {MAX_GPUS} at most")
    for key in models:
        if key not in MODELS:
            raise ValueError(f"unknown GPU model {key!r}: one of {', '.join(MODELS)}")
    share = max(1, -(-len(models) // numa_nodes)) if numa_nodes else 1
    gpus = [make_gpu(key, seed, n, n // share if numa_nodes else -1) for n, key in enumerate(models)]
    for position, gpu in enumerate(gpus):
        gpu["nvlinks"] = nvlinks(gpus, position)
    return {
        "version": 1,
        "seed": seed,
        "numa_nodes": numa_nodes,
        "driver_version": driver,
        "nvml_version": f"12.{driver}",
        "cuda_version": 12080,
        "init_error": 0,
        "hotplug": "reinit",
        "list_by_device_nodes": True,
        "dev_root": "/dev",
        "serials": len(gpus),
        "topology": topology(gpus),
        "gpus": gpus,
        "events": [],
    }
