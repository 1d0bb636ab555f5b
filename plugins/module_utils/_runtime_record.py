# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an undo has to know, kept beside the engines: one JSON file, one entry an engine's configuration file.

JSON configuration can't carry a comment, so what stood there before us is written here, before the change.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from . import _files

DEFAULT_PATH = "/var/lib/gpuops/container_runtime.json"


def load(path: str, key: str) -> dict[str, Any]:
    """The entry of ``key``, {} when there is none. A broken file counts as none: then an undo just removes."""
    try:
        entries = json.loads(_files.read_text(path) or "{}")
    except ValueError:
        return {}
    entry = entries.get(key) if isinstance(entries, dict) else None
    return entry if isinstance(entry, dict) else {}


def save(module: Any, path: str, key: str, entry: dict[str, Any]) -> None:
    """Writes the entry, removes it when it is empty, and the file with the last one. Raises FileError."""
    text = _files.read_text(path)
    try:
        entries = json.loads(text or "{}")
    except ValueError:
        entries = {}
    entries = entries if isinstance(entries, dict) else {}
    before = dict(entries)
    entries.pop(key, None)
    if entry:
        entries[key] = entry
    if entries == before:
        return
    if entries:
        _files.replace(module, path, json.dumps(entries, indent=2, sort_keys=True) + "\n", mode=0o600)
    elif text is not None:
        _files.remove(path)
        with contextlib.suppress(OSError):  # ours as well, unless backups of drop-ins lie in it
            os.rmdir(os.path.dirname(path))
