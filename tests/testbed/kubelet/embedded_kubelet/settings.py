"""What an embedded kubelet is told: places, times, the version to imitate, and faults to show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .version import DEFAULT

PLUGIN_DIR = Path("/var/lib/kubelet/device-plugins")
"""Fixed in the kubelet: does not follow --root-dir (K15)."""
ROOT_DIR = Path("/var/lib/kubelet")


@dataclass(frozen=True, slots=True)
class Settings:
    """Times are seconds. The defaults are the kubelet's; tests shorten them."""

    plugin_dir: Path = PLUGIN_DIR
    root_dir: Path = ROOT_DIR
    """``pod-resources/``, ``plugins_registry/`` and our own ``embedded/`` lie in it."""
    version: str = DEFAULT
    gate: bool = True
    """The DevicePlugins gate; False is K16."""
    dial_seconds: float = 10.0
    """How long a registered socket is dialled (K1)."""
    endpoint_grace_seconds: float = 300.0
    """How long capacity outlives a dead plugin (K14)."""
    node_status_seconds: float = 10.0
    """How often capacity and allocatable are published (nodeStatusUpdateFrequency)."""
    pre_start_seconds: float = 30.0
    """Deadline of PreStartContainer (K26)."""
    registry_seconds: float = 1.0
    """How often plugins_registry is looked at."""
    numa_nodes: tuple[int, ...] = (0,)
    """NUMA nodes of the machine: a device on another one never aligns (K20)."""
    topology_policy: str = "none"
    """Topology manager: none, or single-numa-node (allocations are taken from one node where that fits)."""
    seed: int | None = None
    """Of the random order in which ids are sent (K29)."""
    docker: str = "docker"
    """The engine's command line, for pods."""


@dataclass(slots=True)
class Faults:
    """Faults to show on purpose; may be changed while the kubelet runs."""

    refuse_register: str = ""
    """Register fails with this text (UNKNOWN)."""
    hang_register: float = 0.0
    """Seconds before Register is looked at."""
    answer_delay: float = 0.0
    """Seconds from the end of a registration to its answer: by then the stream may have come and gone."""
    dial_delay: float = 0.0
    """Seconds before the plugin is dialled."""
    never_dial: bool = False
    """Register is answered, and nothing comes after (K1)."""
    drop_streams_after: int = 0
    """End each stream after so many lists; 0: never."""
    resources_hidden: set[str] = field(default_factory=set)
    """Resources whose registration is answered and forgotten."""
