# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Written, and not yet restarted: a mark on the node, from before the kubelet's files change until it has read them.

A run that is killed in between leaves files that are right, and a kubelet that runs without them for good.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from . import _runtime_probe, _runtime_record

PATH = "/var/lib/gpuops/kubelet_feature_gate.json"


def load(gate: str) -> Dict[str, Any]:
    """The mark of a gate's files, {} when there is none."""
    return _runtime_record.load(PATH, gate)


def save(module: Any, gate: str, mark: Mapping[str, Any]) -> None:
    """Writes the mark; {} takes it away. Raises FileError."""
    _runtime_record.save(module, PATH, gate, dict(mark))


def begun(before: Mapping[str, Optional[str]], after: Mapping[str, str]) -> Dict[str, Any]:
    """A mark for files that are about to be written: their texts before (None: no such file) and after."""
    boot = _runtime_probe.boot_id()
    return {"boot": boot, "ticks": None, "before": dict(before), "after": dict(after)}


def written(mark: Mapping[str, Any]) -> Dict[str, Any]:
    """The same once they are written: a process that starts from now on has read them."""
    return {**mark, "ticks": _runtime_probe.uptime_ticks()}


def unread(mark: Mapping[str, Any], pid: Optional[int], state: str) -> bool:
    """Whether the kubelet (its pid and its unit's ActiveState) runs, or tries to, without what the mark is of."""
    if not mark or mark.get("boot") != _runtime_probe.boot_id() or state in ("inactive", ""):
        return False
    if mark.get("ticks") is None:
        return True  # the run died while it wrote: who runs now may have read a half
    return _runtime_probe.started_before(pid, dict(mark))
