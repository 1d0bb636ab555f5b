"""What health is judged from and in: events, probes, troubles."""

from __future__ import annotations

from dataclasses import dataclass

from .xids import FATAL

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
    generation: str | None = None
    """Anything that changes when the driver is loaded anew or the GPU is reset, and at no other time."""

    @property
    def answers(self) -> bool:
        """Whether the GPU could be read at all."""
        return not self.lost and self.unreadable is None


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that makes a GPU or slice Unhealthy."""

    gpu_uuid: str | None
    """None: every GPU."""
    code: str
    """``xid-79``, ``ecc-double``, ``remap-pending``, ``remap-failed``, ``recovery``, ``lost``, ``unreadable``,
    ``monitor``."""
    kind: str
    """``transient`` or ``fatal``; ``lost``, ``unreadable`` and ``monitor`` end as soon as they are over."""
    text: str
    gpu_instance: int | None = None
    compute_instance: int | None = None
    since: float = 0.0
    """Wall clock, seconds."""
    quiet_until: float = 0.0
    """Monotonic, seconds; a transient trouble goes with the first clean probe after it."""

    @property
    def key(self) -> tuple[str | None, str, int | None, int | None]:
        """What makes two of them the same."""
        return self.gpu_uuid, self.code, self.gpu_instance, self.compute_instance

    def hits(self, gpu_uuid: str, gpu_instance: int | None, compute_instance: int | None) -> bool:
        """Whether this GPU or slice is ill of it. A whole GPU is ill of its slices' troubles."""
        if self.gpu_uuid not in (None, gpu_uuid):
            return False
        if self.gpu_instance is None or gpu_instance is None:
            return True
        return self.gpu_instance == gpu_instance and (
            self.compute_instance is None or compute_instance in (None, self.compute_instance)
        )


PASSING = ("lost", "unreadable", "monitor")
"""Codes of what ends by itself as soon as it is over."""

FOUND = ("ecc-double-count", "remap-pending", "remap-failed", "recovery")
"""Codes of what probes find; they end when a probe doesn't find them any more."""


def found_by(result: Probe, wall: float) -> list[Trouble]:
    found = []
    if result.ecc_double_bit:
        text = f"{result.ecc_double_bit} double-bit ECC errors since the driver was loaded"
        found.append(Trouble(result.gpu_uuid, "ecc-double-count", FATAL, text, since=wall))
    if result.remap_pending:
        text = "row remapping or page retirement is pending"
        found.append(Trouble(result.gpu_uuid, "remap-pending", FATAL, text, since=wall))
    if result.remap_failed:
        found.append(Trouble(result.gpu_uuid, "remap-failed", FATAL, "row remapping failed", since=wall))
    if result.recovery_action not in (None, "none"):
        text = f"the driver asks for recovery: {result.recovery_action}"
        found.append(Trouble(result.gpu_uuid, "recovery", FATAL, text, since=wall))
    return found


def wants_reset(result: Probe) -> bool:
    return result.remap_pending or result.remap_failed or result.recovery_action not in (None, "none")


def was_reset(before: Probe, after: Probe) -> bool:
    """A reset (or a reload of the driver) between two probes: volatile counts fell, what was pending is done, the
    driver no longer asks for one, or the generation is another."""
    old, new = before.ecc_double_bit, after.ecc_double_bit
    fell = old is not None and new is not None and new < old
    done = before.remap_pending and not after.remap_pending
    asked = before.recovery_action in ("reset", "reboot", "drain") and after.recovery_action == "none"
    anew = None not in (before.generation, after.generation) and before.generation != after.generation
    return fell or done or asked or anew
