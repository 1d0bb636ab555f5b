# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""containerd's configuration as it lies on disk: config.toml, what it imports, our drop-in."""

from __future__ import annotations

import fnmatch
import glob
import os
from dataclasses import dataclass
from typing import Optional

from . import _files
from . import _toml_edit as toml
from ._runtime import Plan, Refusal


@dataclass(frozen=True)
class Loaded:
    """The configuration as it lies on disk: config.toml, what it imports, and our drop-in."""

    config_path: str
    dropin_path: str
    text: Optional[str]  # config.toml
    dropin: Optional[str]
    others: dict[str, str]  # path -> text of every other imported file
    order: tuple[
        str, ...
    ]  # in which containerd reads them; the drop-in's path among them when it is imported
    sleeping: tuple[str, ...]  # *.toml beside the drop-in that nothing imports


def parse(path: str, text: Optional[str]) -> toml.Document:
    """The document of a file that may be missing. Raises Refusal with file, line and column."""
    try:
        return toml.parse(text or "")
    except toml.TomlError as error:
        raise Refusal(f"{path}:{error}; file left untouched. Mend this line and run again.") from error


def imports(path: str, document: toml.Document) -> list[str]:
    """The imports of a file as absolute paths or patterns. Raises Refusal."""
    entries = document.value.get("imports", [])
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise Refusal(
            f"{path}: key imports must be a list of strings; file left untouched. Mend it and run again."
        )
    return [os.path.normpath(os.path.join(os.path.dirname(path), entry)) for entry in entries]


def matches(pattern: str, path: str) -> bool:
    """Whether an imports entry takes this file in, there or not."""
    if os.path.dirname(pattern) == os.path.dirname(path):
        return fnmatch.fnmatchcase(os.path.basename(path), os.path.basename(pattern))
    return pattern == path


def load(config_path: str, dropin_path: str, extra_import: str = "") -> Loaded:
    """Reads config.toml and its imports in containerd's order (breadth first, globs sorted). Raises Refusal."""
    text, dropin = _files.read_text(config_path), _files.read_text(dropin_path)
    others: dict[str, str] = {}
    order: list[str] = []
    pending = [config_path]
    while pending:
        path = pending.pop(0)
        if path in order:
            continue
        order.append(path)
        current = {config_path: text, dropin_path: dropin}.get(path, "")
        if path not in (config_path, dropin_path):
            found = _files.read_text(path)
            if found is None:
                raise Refusal(
                    f"{path}: imported by {config_path} but not there, so containerd can't start; no file changed. "
                    f"Take it out of imports."
                )
            current = others[path] = found
        entries = imports(path, parse(path, current))
        if path == config_path and extra_import:
            entries.append(extra_import)
        for entry in entries:
            names = set(glob.glob(entry)) if "*" in entry else {entry}
            if matches(entry, dropin_path):
                names.add(dropin_path)
            pending.extend(sorted(names))
    beside = glob.glob(os.path.join(os.path.dirname(dropin_path), "*.toml"))
    sleeping = tuple(sorted(path for path in beside if path not in order and path != dropin_path))
    return Loaded(config_path, dropin_path, text, dropin, others, tuple(order), sleeping)


def scratch_copy(loaded: Loaded, plan: Plan, scratch: str) -> Optional[str]:
    """Writes the planned files below ``scratch``, imports bent to there; config.toml's path, None if there is none."""
    texts: dict[str, Optional[str]] = {
        **loaded.others,
        loaded.config_path: loaded.text,
        loaded.dropin_path: loaded.dropin,
    }
    texts.update({edit.path: edit.new for edit in plan.edits})
    if texts[loaded.config_path] is None:
        return None
    for path, text in texts.items():
        if text is None:
            continue
        document = parse(path, text)
        bent = text
        if ("imports",) in document.spans:
            start, end = document.spans[("imports",)]
            entries = ", ".join(toml.basic_string(scratch + entry) for entry in imports(path, document))
            bent = f"{text[:start]}[{entries}]{text[end:]}"
        os.makedirs(os.path.dirname(scratch + path), exist_ok=True)
        with open(scratch + path, "w", encoding="utf-8", newline="") as stream:
            stream.write(bent)
    return scratch + loaded.config_path
