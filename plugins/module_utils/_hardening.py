# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may name GPUs in NVIDIA's config.toml: set both keys in its text, and put back exactly what stood there. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from ansible_collections.gpuops.k8s.plugins.module_utils import _toml_read

MOUNTS = "accept-nvidia-visible-devices-as-volume-mounts"
VARIABLE = "accept-nvidia-visible-devices-envvar-when-unprivileged"
DEFAULTS = {MOUNTS: False, VARIABLE: True}
"""What NVIDIA's runtime takes where a key is not given (its config.toml names them in comments)."""
HARDENED = {MOUNTS: True, VARIABLE: False}


@dataclass(frozen=True)
class Record:
    """What an undo has to know of each key that is ours: the value as it was written before us and by us."""

    prior: dict[str, Optional[str]] = field(default_factory=dict)
    """None: the key was not there."""
    ours: dict[str, str] = field(default_factory=dict)
    made: bool = False
    """There was no file before us."""

    @classmethod
    def load(cls, entry: dict[str, Any]) -> Record:
        """From JSON; what does not look like one of ours counts as none."""
        prior, ours = entry.get("prior"), entry.get("ours")
        if not isinstance(prior, dict) or not isinstance(ours, dict):
            return cls()
        keys = [key for key in DEFAULTS if key in prior and isinstance(ours.get(key), str)]
        return cls(
            {key: prior[key] for key in keys}, {key: ours[key] for key in keys}, entry.get("made") is True
        )

    def dump(self) -> dict[str, Any]:
        """For JSON; {} when nothing is ours."""
        return {"prior": self.prior, "ours": self.ours, "made": self.made} if self.ours else {}


def _raw(text: str, key: str) -> Optional[str]:
    span = _toml_read.parse(text).spans.get((key,))
    return text[span[0] : span[1]] if span else None


def _means(raw: Optional[str], key: str) -> Optional[bool]:
    """The boolean that the runtime reads, None for something that is none."""
    return DEFAULTS[key] if raw is None else {"true": True, "false": False}.get(raw)


def _put(text: str, key: str, raw: Optional[str]) -> str:
    """The text with this value, or without the key; every byte outside the value or the new line stays."""
    document = _toml_read.parse(text)
    span = document.spans.get((key,))
    if span is None:
        newline = "\r\n" if "\r\n" in text else "\n"
        return text if raw is None else f"{key} = {raw}{newline}{text}"
    if raw is not None:
        return text[: span[0]] + raw + text[span[1] :]
    start = text.rfind("\n", 0, document.keys[(key,)]) + 1
    end = text.find("\n", span[1])
    return text[:start] + ("" if end < 0 else text[end + 1 :])


def values(text: Optional[str]) -> dict[str, Optional[bool]]:
    """What the runtime takes for each key. Raises TomlError."""
    return {key: _means(_raw(text or "", key), key) for key in DEFAULTS}


def set_to(text: Optional[str], wish: dict[str, bool], record: Record) -> tuple[Optional[str], Record]:
    """(text, record) after each key has the wished value. A key that has it already is not touched, and one that had it
    before us gets back what stood there. Raises TomlError."""
    new, prior, ours = text or "", dict(record.prior), dict(record.ours)
    for key, wished in wish.items():
        raw = _raw(new, key)
        held = key in ours and raw == ours[key]
        before = prior.pop(key, None) if held else raw
        written = ours.pop(key, None)
        if _means(raw, key) is wished:
            if held and written is not None:
                prior[key], ours[key] = before, written
        elif held and _means(before, key) is wished:
            new = _put(new, key, before)
        else:
            prior[key], ours[key] = before, "true" if wished else "false"
            new = _put(new, key, ours[key])
    prior = {key: prior.get(key) for key in ours}
    made = text is None or record.made
    return (None if made and not new.strip() else new), Record(prior, ours, made and bool(ours))


def undo(text: Optional[str], record: Record) -> Optional[str]:
    """The text as it was before us, None for no file; a key that somebody else has changed since stays. Raises
    TomlError."""
    if text is None:
        return None
    for key, written in record.ours.items():
        if _raw(text, key) == written:
            text = _put(text, key, record.prior.get(key))
    return None if record.made and not text.strip() else text
