# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what was found of a gate, and what is decided, to the new texts of files and the module's answer. Pure."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import _gate_places as places_of
from . import _gate_table as table
from . import _gate_text as text_of

Mention = Tuple[places_of.Place, text_of.Named]


def plan_edits(  # noqa: PLR0917
    decision: table.Decision,
    gate: str,
    places: Tuple[places_of.Place, ...],
    texts: Dict[str, str],
    mentions: Sequence[Mention],
    distribution: str,
) -> Dict[str, str]:
    """{path: new text} for a decision. Pure."""
    edits = {}
    named = list(dict.fromkeys(place for place, _unused in mentions))
    if decision.action == table.REMOVE:
        for place in named:
            edits[place.path] = text_of.remove(texts[place.path], gate, place.kind)
    elif decision.action == table.SET:
        used = [place for place in named if place.used]
        for place in used:
            edits[place.path] = text_of.set_true(texts[place.path], gate, place.kind)
        if not used:
            place = places_of.place_to_add(places, texts, distribution)
            edits[place.path] = text_of.add(texts.get(place.path, ""), gate, place.kind)
    return {path: text for path, text in edits.items() if text != texts.get(path)}


def report(  # noqa: PLR0917
    decision: table.Decision,
    version: Tuple[int, int],
    effective: Optional[bool],
    mentions: Sequence[Mention],
    edits: Dict[str, str],
    before: Dict[str, str],
    unit: str,
) -> Dict[str, Any]:
    """What the module returns, before anything is written. Pure."""
    return {
        "changed": bool(edits),
        "required": decision.required,
        "reason": decision.reason,
        "kubelet_version": "{}.{}".format(*version),
        "effective": effective,
        "places": [
            {
                "file": place.path,
                "line": entry.line,
                "kind": place.kind,
                "value": entry.raw,
                "used": place.used,
            }
            for place, entry in mentions
        ],
        "files": list(edits),
        "backup_files": [],
        "notes": ["{}: {}".format(p, places_of.REWRITTEN[p]) for p in edits if p in places_of.REWRITTEN],
        "service": unit,
        "restart_required": bool(edits),
        "restarted": False,
        "before": before,
        "after": edits,
    }


def diff_of(result: Dict[str, Any]) -> List[Dict[str, str]]:
    """One entry a changed file, as --diff shows them."""
    return [
        {"before_header": path, "after_header": path, "before": result["before"][path], "after": text}
        for path, text in result["after"].items()
    ]
