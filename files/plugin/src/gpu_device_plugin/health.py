"""What is wrong with which GPU: judged from events and probes, without touching any."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .config import HealthSettings

NO_INSTANCE = 0xFFFFFFFF
"""NVML's "no GPU instance, no compute instance"."""


@dataclass(frozen=True, slots=True)
class Event:
    """One NVML event. ``gpu_uuid`` None: the GPU could not be told, so it hits all of them."""

    gpu_uuid: str | None
    kind: str = "xid"
    """``xid``, ``ecc-double`` or ``ecc-single``."""
    xid: int = 0
    gpu_instance: int | None = None
    """None or NO_INSTANCE: the whole GPU."""
    compute_instance: int | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What one look at a GPU through NVML showed. None: the GPU or driver doesn't say."""

    gpu_uuid: str
    lost: bool = False
    """NVML_ERROR_GPU_IS_LOST, or it is gone from the bus."""
    unreadable: str | None = None
    """Any other NVML error, in words."""
    ecc_double_bit: int | None = None
    """Volatile uncorrected count (since driver load or reset)."""
    remap_pending: bool = False
    """Row remapping or page retirement pending: a reset applies it."""
    remap_failed: bool = False
    recovery_action: str | None = None
    """NVML_FI_DEV_GET_GPU_RECOVERY_ACTION in words: ``none``, ``reset``, ``reboot``, ``drain``."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that makes a GPU or slice Unhealthy."""

    gpu_uuid: str
    code: str
    """``xid-79``, ``ecc``, ``remap-pending``, ``remap-failed``, ``lost``, ``unreadable``, ``monitor``, ``nvml``."""
    severity: str
    """``transient`` or ``fatal``."""
    text: str
    gpu_instance: int | None = None
    compute_instance: int | None = None
    since: float = 0.0
    """Wall clock, seconds."""
    quiet_until: float = 0.0
    """Monotonic, seconds; a transient trouble goes with the first clean probe after it."""


@dataclass(frozen=True, slots=True)
class HealthBook:
    """All that is known of the GPUs' health; every change gives a new book."""

    settings: HealthSettings = HealthSettings()
    boot_id: str = ""
    troubles: tuple[Trouble, ...] = ()

    @property
    def watch_events(self) -> bool:
        """False where DP_DISABLE_HEALTHCHECKS turns every check off."""
        raise NotImplementedError

    def observe(self, event: Event, now: float, wall: float = 0.0) -> HealthBook:
        """After an event. ``now`` is monotonic, ``wall`` the clock, both seconds."""
        raise NotImplementedError

    def probe(self, results: Iterable[Probe], now: float, wall: float = 0.0) -> HealthBook:
        """After a look at some GPUs: finds ECC, remap and lost troubles; a clean look ends transient ones whose quiet time
        is over, and shows resets that end fatal ones."""
        raise NotImplementedError

    def tick(self, now: float) -> HealthBook:
        """Time passes: forgives old strikes (the back-off's memory)."""
        raise NotImplementedError

    def due(self, now: float) -> tuple[str, ...]:
        """UUIDs that a probe could heal or should look at right now."""
        raise NotImplementedError

    def next_due(self) -> float | None:
        """Monotonic time of the next :meth:`due`, None when nothing waits."""
        raise NotImplementedError

    def monitor_failed(self, reason: str, wall: float = 0.0) -> HealthBook:
        """The event monitor can't start or died: every GPU is Unhealthy, not silently Healthy."""
        raise NotImplementedError

    def monitor_works(self) -> HealthBook:
        """It runs (again)."""
        raise NotImplementedError

    def reason(
        self, gpu_uuid: str, gpu_instance: int | None = None, compute_instance: int | None = None
    ) -> str | None:
        """Why this GPU or slice is Unhealthy, None when it isn't. A whole GPU has its slices' troubles too."""
        raise NotImplementedError

    def to_json(self, now: float) -> str:
        """What must outlive restarts (``health.json`` in state_dir)."""
        raise NotImplementedError


def load_book(text: str | None, settings: HealthSettings, boot_id: str, now: float) -> HealthBook:
    """The book as saved, empty when ``text`` is None, broken, or from another boot. Never raises."""
    raise NotImplementedError
