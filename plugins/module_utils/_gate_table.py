# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kubelet of a given version makes of the DevicePlugins feature gate, and what to do about it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional, Tuple

GATE = "DevicePlugins"

KEEP = "keep"
SET = "set"
REMOVE = "remove"

NEEDED = "needed"
LEFTOVER = "leftover"
NONE = "none"

Version = Tuple[int, int]


class GateError(Exception):
    """Something that was asked for would stop the kubelet, or can't be known; the text says what to do."""


@dataclass(frozen=True)
class GateRule:
    """One row of the table in docs/kubelet-gate.md for one kubelet version."""

    offered: bool
    """Whether this kubelet has device plugins at all."""
    default: bool
    """On when nothing names the gate."""
    true_is: str
    """What naming it ``true`` does: ``needed``, ``harmless``, ``warning`` or ``fatal``."""
    false_is: str
    """What naming it ``false`` does: ``off`` (K16) or ``fatal``."""


_RULES = (
    # first minor version, rule
    (28, GateRule(True, True, "fatal", "fatal")),  # the gate is gone: naming it stops the kubelet
    (26, GateRule(True, True, "warning", "fatal")),  # GA and locked on
    (10, GateRule(True, True, "harmless", "off")),  # beta, on
    (8, GateRule(True, False, "needed", "off")),  # alpha, off
    (0, GateRule(False, False, "fatal", "fatal")),  # unknown
)


@dataclass(frozen=True)
class Decision:
    """What to do with the gate on one node."""

    action: str
    """``keep``, ``set`` (to true) or ``remove`` (every mention)."""
    required: str
    """``needed``, ``leftover`` or ``none``."""
    reason: str


def parse_version(text: str) -> Version:
    """Major and minor version out of ``Kubernetes v1.20.2``, ``v1.28.3+k3s1`` or ``1.28``.

    Raises GateError when there is none in it.
    """
    match = re.search(r"(?<![\d.])v?(\d+)\.(\d+)", text)
    if match is None:
        raise GateError(
            "no kubelet version in {0!r}; give kubelet_version, such as 1.28".format(text.strip()[:80])
        )
    return int(match.group(1)), int(match.group(2))


def rule(version: Version) -> GateRule:
    """The row for a kubelet of that version."""
    major, minor = version
    if major < 1:
        return _RULES[-1][1]
    if major > 1:
        return _RULES[0][1]
    return next(row for first, row in _RULES if minor >= first)


def _breaks(version: Version) -> bool:
    """Whether a mention of the gate must not stay for a kubelet of that version."""
    return rule(version).true_is in ("warning", "fatal")


def decide(  # noqa: PLR0917, PLR0911 - a table
    version: Version,
    named: bool,
    effective: Optional[bool],
    target: Optional[Version] = None,
    state: str = "auto",
    gate: str = GATE,
) -> Decision:
    """What to do, from the version, whether any place names the gate, and the value that wins (None: no place).

    ``target`` is the version the node will be upgraded to. ``state`` present or absent overrules the table, except
    that nothing is written that stops the kubelet: then GateError is raised.
    """
    label = "{0}.{1}".format(*version)
    if state == "absent":
        if named:
            return Decision(REMOVE, LEFTOVER, "{0} is named and state is absent".format(gate))
        return Decision(KEEP, NONE, "{0} is named nowhere".format(gate))
    if gate != GATE:
        if state == "auto":
            raise GateError(
                "the version table knows {0} alone; for {1} say state: present or absent".format(GATE, gate)
            )
        if effective is True:
            return Decision(KEEP, NEEDED, "{0} is already on".format(gate))
        return Decision(SET, NEEDED, "{0} is wanted and not on".format(gate))
    row = rule(version)
    if state == "present":
        if row.true_is == "fatal":
            raise GateError(
                "a kubelet {0} exits when {1} is named; use state: auto or absent".format(label, gate)
            )
        if effective is True:
            return Decision(KEEP, NEEDED, "{0} is already on".format(gate))
        return Decision(SET, NEEDED, "{0} is wanted and not on".format(gate))
    return _by_table(version, row, named, effective, target, label)


def _by_table(  # noqa: PLR0917, PLR0911 - a table
    version: Version,
    row: GateRule,
    named: bool,
    effective: Optional[bool],
    target: Optional[Version],
    label: str,
) -> Decision:
    if row.true_is == "needed":
        if effective is True:
            return Decision(KEEP, NEEDED, "kubelet {0} needs {1}=true and has it".format(label, GATE))
        return Decision(
            SET, NEEDED, "kubelet {0} offers no device plugins without {1}=true".format(label, GATE)
        )
    if named and _breaks(version):
        what = "warns about" if row.true_is == "warning" and effective else "does not start with"
        return Decision(REMOVE, LEFTOVER, "kubelet {0} {1} {2}".format(label, what, GATE))
    if named and target is not None and _breaks(target):
        return Decision(
            REMOVE, LEFTOVER, "kubelet {0}.{1} must not find {2} named".format(target[0], target[1], GATE)
        )
    if effective is False:
        return Decision(SET, NEEDED, "{0}=false switches device plugins off".format(GATE))
    if not row.offered:
        return Decision(
            KEEP, NONE, "a kubelet {0} has no device plugins at all; 1.8 was the first".format(label)
        )
    return Decision(KEEP, NONE, "kubelet {0} has device plugins on by itself".format(label))
