"""The table of XIDs, and how settings change it.

Every XID has a class. ``ignore``: the application's own fault (the peer's set). ``transient``: Unhealthy until a quiet
time has passed and a probe is clean. ``fatal``: Unhealthy until the machine has booted anew or the GPU was reset, over
restarts of plugin and kubelet. Classes and scopes follow NVIDIA's "XID Errors" and its catalogue of XIDs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .config import HealthSettings

IGNORE, TRANSIENT, FATAL = "ignore", "transient", "fatal"
PENDING = "pending"
"""Class of XIDs 63 and 64: fatal where a probe says that a reset is pending or remapping failed, else transient."""


@dataclass(frozen=True, slots=True)
class Xid:
    """One row of the table."""

    kind: str
    text: str
    whole_gpu: bool = False
    """The whole GPU is hit, even if the event names a slice."""


XIDS: Mapping[int, Xid] = MappingProxyType(
    {
        13: Xid(IGNORE, "graphics engine exception"),
        31: Xid(IGNORE, "GPU memory page fault"),
        43: Xid(IGNORE, "GPU stopped processing"),
        45: Xid(IGNORE, "preemptive cleanup, due to previous errors"),
        68: Xid(IGNORE, "video processor exception"),
        109: Xid(IGNORE, "context switch timeout"),
        8: Xid(TRANSIENT, "GPU stopped processing"),
        32: Xid(TRANSIENT, "invalid or corrupted push buffer stream"),
        38: Xid(TRANSIENT, "driver firmware error", True),
        44: Xid(TRANSIENT, "graphics engine fault during context switch"),
        46: Xid(FATAL, "GPU stopped processing, reset needed", True),
        48: Xid(FATAL, "double-bit ECC error", True),
        54: Xid(FATAL, "auxiliary power is not connected", True),
        61: Xid(TRANSIENT, "internal micro-controller breakpoint", True),
        62: Xid(FATAL, "internal micro-controller halt", True),
        63: Xid(PENDING, "ECC page retirement or row remapping recorded", True),
        64: Xid(PENDING, "ECC page retirement or row remapping failed", True),
        69: Xid(TRANSIENT, "graphics engine class error"),
        74: Xid(FATAL, "NVLink error", True),
        79: Xid(FATAL, "GPU has fallen off the bus", True),
        92: Xid(TRANSIENT, "high single-bit ECC error rate", True),
        94: Xid(FATAL, "contained memory error"),
        95: Xid(FATAL, "uncontained memory error", True),
        110: Xid(FATAL, "security fault", True),
        119: Xid(FATAL, "GSP RPC timeout", True),
        120: Xid(FATAL, "GSP error", True),
        136: Xid(FATAL, "link training failed", True),
        140: Xid(FATAL, "unrecovered ECC error", True),
        143: Xid(FATAL, "GPU initialisation error", True),
        154: Xid(PENDING, "GPU recovery action changed", True),
        155: Xid(FATAL, "NVLink: software-defined error", True),
        156: Xid(PENDING, "resource retirement", True),
        158: Xid(FATAL, "GPU fatal timeout", True),
    }
)
UNKNOWN = Xid(TRANSIENT, "not in the table")


def classes(settings: HealthSettings) -> Mapping[int, str]:
    """XID -> class, of every XID that isn't judged by its table row alone; 0 stands for all others.

    In this order, the later wins: the table, ``health.xids``, DP_DISABLE_HEALTHCHECKS, DP_ENABLE_HEALTHCHECKS. The two
    lists are read as the peer reads them: ``all`` or ``xids`` anywhere in the first means every XID; what is no number
    is passed over; an XID in the second is heeded whatever else says that it is ignored.
    """
    found = dict(settings.xids)
    disabled, enabled = _words(settings.disable), _words(settings.enable)
    if disabled & {"all", "xids"}:
        found = dict.fromkeys([*XIDS, *found, 0], IGNORE)
    found |= dict.fromkeys((int(word) for word in disabled if word.isdigit()), IGNORE)
    if enabled & {"all", "xids"}:
        return {xid: _heeded(xid, settings) for xid in {*XIDS, *found} - {0}}
    return found | {int(word): _heeded(int(word), settings) for word in enabled if word.isdigit()}


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in text.split(",") if word.strip().isascii())


def _heeded(xid: int, settings: HealthSettings) -> str:
    kind = dict(settings.xids).get(xid, XIDS.get(xid, UNKNOWN).kind)
    return TRANSIENT if kind == IGNORE else kind


def checks_disabled(settings: HealthSettings) -> bool:
    """Every check is off: ``all`` (or ``xids``) is disabled and nothing enabled again, as with the peer."""
    enabled = any(word in ("all", "xids") or word.isdigit() for word in _words(settings.enable))
    return bool(_words(settings.disable) & {"all", "xids"}) and not enabled


def kind_of(xid: int, settings: HealthSettings) -> str:
    """The XID's class under these settings."""
    chosen = classes(settings)
    return chosen[xid] if xid in chosen else chosen[0] if 0 in chosen else XIDS.get(xid, UNKNOWN).kind


def xids_only(settings: HealthSettings) -> bool:
    """All is disabled but some XIDs: nothing else is heeded then."""
    return 0 in classes(settings)
