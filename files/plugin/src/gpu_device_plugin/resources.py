"""From what a scan found to what the kubelet is offered."""

from __future__ import annotations

from collections.abc import Callable

from .config import Settings
from .devices import Plan, Snapshot

FaultLookup = Callable[[str, int | None, int | None], str | None]
"""(GPU UUID, GPU instance or None, compute instance or None) -> reason in words, or None. :meth:`HealthBook.reason` is one."""


def no_faults(gpu_uuid: str, gpu_instance: int | None, compute_instance: int | None) -> str | None:
    """A lookup for a node whose health isn't watched."""
    return None


def plan(snapshot: Snapshot, settings: Settings, faults: FaultLookup = no_faults) -> Plan:
    """Pure; never raises. ``problems`` and ``errors`` of the plan say what could not be offered and why."""
    raise NotImplementedError
