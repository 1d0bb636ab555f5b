# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A chain of links from the hardware to what a scheduler sees; the first broken one is the answer. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, Iterable, List, Optional


@dataclass(frozen=True)
class Link:
    """One thing that has to be true."""

    link: str
    """Its name, a stable word that programs may test."""
    ok: Optional[bool]
    """None: it could not be looked at, and why is in ``detail``."""
    detail: str
    """What was found, in words."""
    next_step: str = ""
    """What to do when it is broken."""


def first_broken(links: Iterable[Link]) -> Optional[Link]:
    """The first link that is known to be broken."""
    return next((link for link in links if link.ok is False), None)


def summary(links: List[Link]) -> Dict[str, Any]:
    """``links``, ``broken_link``, ``reason`` and ``next_step`` as the info modules return them."""
    broken = first_broken(links)
    return {
        "links": [asdict(link) for link in links],
        "broken_link": broken.link if broken else None,
        "reason": broken.detail if broken else None,
        "next_step": broken.next_step if broken else None,
    }


def message(links: List[Link]) -> Optional[str]:
    """One line for a failing module: link, what is wrong, next step. None when nothing is broken."""
    broken = first_broken(links)
    if broken is None:
        return None
    return f"{broken.link}: {broken.detail}" + (f"; {broken.next_step}" if broken.next_step else "")
