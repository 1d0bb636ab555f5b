"""What differs between kubelets, by version: one table; the rest of the package asks for behaviour, not numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT = "1.36.2"
"""Imitated when nobody says which: the newest one that was observed."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a kubelet of one version behaves. K numbers: KUBELET.md."""

    version: str
    """``1.20.2``."""
    dials_inside_register: bool
    """K1: the plugin is dialled and asked for its options before Register is answered (1.25 and later)."""
    options_from_request: bool
    """K3: options are read from RegisterRequest (before 1.25), not from GetDevicePluginOptions."""
    old_stream_drops_new: bool
    """K6: the end of a stream drops whatever is registered for that resource now (1.25 to 1.36)."""
    deletes_every_file: bool
    """K9: at start every non-directory but the checkpoint goes (up to 1.32); later only sockets do."""
    panics_on_vanished: bool
    """K19: a device that left the list while its Allocate ran is a nil pointer (seen on 1.36.2)."""
    rejects_unready: bool
    """K13: pods with devices whose containers don't run are refused at a restart until the plugin is back."""
    cdi: bool
    """K28: cdi_devices reach the runtime (on from 1.29)."""
    allocatable_resources: bool
    """K27: GetAllocatableResources is served (1.23 and later without a gate)."""
    get_pod: bool
    """K27: Get is served without a gate (1.34 and later)."""
    rate_limit: bool
    """K27: 100 calls a second (1.27 and later)."""
    no_topology_is_numa_0: bool
    """Devices without topology are kept under NUMA node 0 (before 1.21), later under -1."""


def parse(version: str) -> tuple[int, int]:
    """(major, minor) of ``v1.20.2``, ``1.36``, ``1.27.3-gke.100``. Raises ValueError for anything else."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.\d+)?", version)
    if match is None:
        raise ValueError(f"{version!r} is no Kubernetes version: say something like 1.20.2")
    return int(match[1]), int(match[2])


def behaviour(version: str = DEFAULT) -> Behaviour:
    """The behaviour of that kubelet."""
    number = parse(version)
    full = version.removeprefix("v")
    if re.fullmatch(r"\d+\.\d+", full):
        full += {"1.20": ".2", "1.36": ".2"}.get(full, ".0")
    modern = number >= (1, 25)
    return Behaviour(
        version=full,
        dials_inside_register=modern,
        options_from_request=not modern,
        old_stream_drops_new=modern and number <= (1, 36),
        deletes_every_file=number <= (1, 32),
        panics_on_vanished=number >= (1, 36),
        rejects_unready=number >= (1, 28),
        cdi=number >= (1, 29),
        allocatable_resources=number >= (1, 23),
        get_pod=number >= (1, 34),
        rate_limit=number >= (1, 27),
        no_topology_is_numa_0=number < (1, 21),
    )
