# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shapes shared by the three engines of the container_runtime module. No behaviour, no side effects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

NONE, RELOAD, RESTART = "none", "reload", "restart"
_STRENGTH = {NONE: 0, RELOAD: 1, RESTART: 2}


class Refusal(Exception):
    """We won't change this: the text names the place, the reason and the next step. Nothing was written."""


@dataclass(frozen=True)
class Want:
    """What the administrator asked for."""

    name: str = "nvidia"
    path: str = "/usr/bin/nvidia-container-runtime"
    default: bool = True
    cdi: bool = False


@dataclass(frozen=True)
class FileEdit:
    """One file's text before and after; None means that there is no such file."""

    path: str
    old: Optional[str]
    new: Optional[str]
    generated: bool = False  # wholly ours: its backup need not lie beside it

    @property
    def changes(self) -> bool:
        return self.old != self.new


@dataclass(frozen=True)
class Plan:
    """What has to be done, in this order. ``record`` is what a later undo has to know (JSON types only)."""

    edits: tuple[FileEdit, ...] = ()
    action: str = NONE
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    run_again: bool = False
    reload_helps: bool = False  # where a restart is needed: a reload alone brings a part of it
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return any(edit.changes for edit in self.edits)


def strongest(*actions: str) -> str:
    """The action that includes all the others: restart over reload over none."""
    return max(actions, key=lambda action: _STRENGTH[action], default=NONE)


def version_tuple(text: str) -> tuple[int, ...]:
    """``20.10.24+dfsg1`` -> (20, 10, 24); an unknown version is () and compares as older than all."""
    numbers: list[int] = []
    for part in text.lstrip("v").split("."):
        digits = ""
        for char in part:
            if not char.isdigit():
                break
            digits += char
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
