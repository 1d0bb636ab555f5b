"""What there is on the node and what we offer of it: frozen dataclasses, nothing else.

A source of devices (NVML, host files) makes a :class:`Snapshot`; :mod:`resources` turns it and the settings
into a :class:`Plan`, the lists of :class:`Device` that the kubelet sees. Every tuple is in its fixed order: GPUs
by index, slices by index in the GPU, replicas by number, so two runs give the same bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

from .features import Node


class PcieAncestor(enum.IntEnum):
    """Closest common PCIe ancestor of two GPUs; the value is the peer's score of the pair."""

    UNKNOWN = 0
    SYSTEM = 10
    NUMA_NODE = 20
    HOST_BRIDGE = 30
    MULTIPLE_SWITCHES = 40
    SINGLE_SWITCH = 50
    SAME_BOARD = 60


@dataclass(frozen=True, slots=True)
class Link:
    """How GPU row and GPU column of a matrix are joined. ``nvlinks`` counts direct links, 0 where there are none."""

    ancestor: PcieAncestor = PcieAncestor.UNKNOWN
    nvlinks: int = 0


@dataclass(frozen=True, slots=True)
class MigSlice:
    """One MIG device of a GPU."""

    uuid: str
    index: int
    """Position among the GPU's slices, from 0; the device's index is ``<gpu>:<index>``."""
    profile: str
    """As NVML names it without the leading "MIG ": ``1g.10gb``, ``1g.10gb+me``, ``1c.2g.20gb``."""
    gpu_instance: int
    compute_instance: int
    memory_bytes: int = 0
    capability_paths: tuple[str, ...] = ()
    """The two /dev/nvidia-caps nodes (GPU instance, compute instance), below the device root."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU as NVML shows it."""

    index: int
    uuid: str
    minor: int
    """N of /dev/nvidiaN, which need not equal the index."""
    name: str
    memory_bytes: int = 0
    pci_bus_id: str = ""
    """Lower case with a four-digit domain, as in sysfs: ``0000:18:00.0``."""
    numa_node: int | None = None
    """None where sysfs says -1 or nothing (K20)."""
    compute_capability: tuple[int, int] | None = None
    mig_enabled: bool = False
    slices: tuple[MigSlice, ...] = ()
    paths: tuple[str, ...] = ()
    """Its own device nodes, ``/dev/nvidia3``, as below the device root (:mod:`respond` puts the root before it)."""
    fault: str | None = None
    """Why it can't be used although it is there (lost, unreadable, ...); it stays listed, Unhealthy."""


@dataclass(frozen=True, slots=True)
class HostDevice:
    """A thing offered by its device files alone: InfiniBand, FPGA, NIC, DRI, or what a third source finds."""

    resource: str
    """Full name, ``example.com/fpga``."""
    id: str
    paths: tuple[str, ...]
    permissions: str = "rw"
    numa_node: int | None = None
    replicas: int = 1
    """How many containers may hold it at once (``count`` of the setting)."""
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a scan found."""

    gpus: tuple[Gpu, ...] = ()
    links: tuple[tuple[Link, ...], ...] = ()
    """Square, in the order of ``gpus``; () where it could not be read. Any matrix must be survivable."""
    host_devices: tuple[HostDevice, ...] = ()
    control_paths: tuple[str, ...] = ()
    """The nodes every GPU container gets where they exist: nvidiactl, nvidia-uvm, nvidia-uvm-tools, nvidia-modeset."""
    display_nodes: tuple[tuple[str, str], ...] = ()
    """(PCI address of a GPU, a /dev/dri node of it); only CDI hands them out."""
    feature_nodes: tuple[Node, ...] = ()
    """Nodes of IMEX, GDRCopy, GPUDirect Storage and MOFED that are there (:mod:`features`)."""
    driver_version: str | None = None
    cuda_version: str | None = None
    """``13.0``, from NVML's number 13000."""
    problems: tuple[str, ...] = ()
    """Sentences for log, status and readiness: what could not be read, and the next step."""


class Source(Protocol):
    """Where devices come from. A third source must need no change elsewhere."""

    def scan(self) -> Snapshot:
        """Look once. Raises :class:`SourceError` when nothing at all could be read."""


class SourceError(Exception):
    """A scan that failed as a whole (no driver, library missing); the text says what and the next step."""


@dataclass(frozen=True, slots=True)
class Device:
    """One entry of a list that the kubelet gets: a GPU, a slice, a replica of one, a host device."""

    id: str
    """UUID, or ``UUID::n`` for replica n."""
    resource: str
    uuid: str
    """What the container's request is answered with: the id without its replica."""
    index: str
    """``3``, ``3:1`` for a slice; the host device's id otherwise."""
    gpu_uuid: str | None = None
    """The physical GPU below it; None for host devices."""
    gpu_index: int | None = None
    gpu_instance: int | None = None
    compute_instance: int | None = None
    replica: int | None = None
    """None when the device is not shared."""
    paths: tuple[str, ...] = ()
    """Device nodes that are its own (control nodes are added by the answer): below the device root for GPUs and slices,
    host paths for host devices."""
    permissions: str = "rw"
    numa_node: int | None = None
    memory_bytes: int = 0
    fault: str | None = None
    """None when Healthy, else the reason in words."""

    @property
    def healthy(self) -> bool:
        """Whether the kubelet is told Healthy."""
        return self.fault is None


@dataclass(frozen=True, slots=True)
class ResourcePlan:
    """One resource as the kubelet will see it."""

    name: str
    devices: tuple[Device, ...] = ()
    shared: str | None = None
    """None, ``time-slicing`` or ``mps``."""
    fail_requests_greater_than_one: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything offered, by resource name in sorted order, and what was wrong on the way."""

    resources: tuple[ResourcePlan, ...] = ()
    problems: tuple[str, ...] = field(default=())
    """What is wrong with the node; the rest is offered all the same."""
    errors: tuple[str, ...] = field(default=())
    """Settings that this node can't honour (a sharing entry that matches nothing, too many replicas, a bad name).
    At start: serve what is right, not ready, say why. After an edit of the file: refuse it, keep the old settings."""
