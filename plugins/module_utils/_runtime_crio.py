# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What CRI-O's drop-in must say so that pods reach the NVIDIA runtime (crio.conf(5), crio.conf.d(5)).

CRI-O merges drop-ins key by key, in the order of their names, over crio.conf. It reads every file in the
directory whatever its name, so nothing else may be written there: no backup, no temporary file that stays.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Optional

from . import _files
from . import _toml_edit as toml
from ._daemon_flags import Flag
from ._runtime import NONE, RESTART, FileEdit, Plan, Refusal, Want

UNIT = "crio.service"
PROGRAMS = ("crio",)
DEFAULT_CONFIG = "/etc/crio/crio.conf"
DEFAULT_DROPIN = "/etc/crio/crio.conf.d/99-nvidia.toml"
MONITORS = (
    "/usr/libexec/crio/conmon",
    "/usr/libexec/podman/conmon",
    "/usr/bin/conmon",
    "/usr/local/libexec/crio/conmon",
)
HEADER = "# Made by gpuops.k8s (module container_runtime). Changes here are overwritten.\n"


@dataclass(frozen=True)
class Loaded:
    """crio.conf, the other drop-ins by path in reading order, and ours."""

    config_path: str
    dropin_path: str
    text: Optional[str]
    dropin: Optional[str]
    others: dict[str, str]


def load(config_path: str, dropin_path: str) -> Loaded:
    """Reads what CRI-O reads. Raises FileError."""
    directory = os.path.dirname(dropin_path)
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    others: dict[str, str] = {}
    for name in names:
        path = os.path.join(directory, name)
        if path != dropin_path and os.path.isfile(path):
            others[path] = _files.read_text(path) or ""
    return Loaded(
        config_path, dropin_path, _files.read_text(config_path), _files.read_text(dropin_path), others
    )


def find_monitor() -> Optional[str]:
    """Where this machine has conmon, or None."""
    return next((path for path in MONITORS if os.access(path, os.X_OK)), None)


def check_flags(config_path: str, dropin_path: str, flags: list[Flag], want: Want) -> None:
    """Raises Refusal, naming both places, when a flag would win over the drop-in."""
    directory = os.path.dirname(dropin_path)
    for flag in flags:
        other = {"config": config_path, "c": config_path, "config-dir": directory, "d": directory}.get(
            flag.name
        )
        if other is not None and flag.value and flag.value.rstrip("/") != other:
            raise Refusal(
                f"{flag.place}: crio is started with {flag}, so nothing in {other} would count; no file changed. "
                "Set config_path and dropin_path to what the flag names."
            )
        if (
            flag.name == "default-runtime" and want.default and flag.value != want.name
        ) or flag.name == "runtimes":
            raise Refusal(
                f"{dropin_path}: crio gets {flag} from {flag.place}, which wins over the file; no file changed. "
                f"Take the flag out of {flag.place} and restart crio."
            )


def _runtime_section(path: str, text: Optional[str]) -> dict[str, Any]:
    try:
        value = toml.parse(text or "").value
    except toml.TomlError as error:
        raise Refusal(f"{path}:{error}; file left untouched. Mend this line and run again.") from error
    section = value.get("crio", {})
    section = section.get("runtime", {}) if isinstance(section, dict) else {}
    return section if isinstance(section, dict) else {}


def _effective(loaded: Loaded) -> dict[str, Any]:
    """default_runtime, runtimes and conmon without our drop-in."""
    effective: dict[str, Any] = {"runtimes": {}}
    for path, text in [(loaded.config_path, loaded.text), *loaded.others.items()]:
        section = _runtime_section(path, text)
        for name, entry in section.get("runtimes", {}).items():
            effective["runtimes"][name] = {**effective["runtimes"].get(name, {}), **entry}
        effective.update({key: section[key] for key in ("default_runtime", "conmon") if key in section})
    return effective


def _summary(section: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "default_runtime": section.get("default_runtime"),
        "runtime": section.get("runtimes", {}).get(name),
        "cdi": None,
    }


def plan_present(loaded: Loaded, want: Want, monitor: Optional[str]) -> Plan:
    """The drop-in says what is wanted."""
    effective = _effective(loaded)
    ours = _runtime_section(loaded.dropin_path, loaded.dropin)
    for path, text in loaded.others.items():
        if os.path.basename(path) <= os.path.basename(loaded.dropin_path):
            continue
        section = _runtime_section(path, text)
        clash = [
            key for key in ("default_runtime",) if want.default and section.get(key, want.name) != want.name
        ]
        clash += [f"runtimes.{want.name}"] if want.name in section.get("runtimes", {}) else []
        if clash:
            raise Refusal(
                f"{path}: key crio.runtime.{clash[0]} is read after {loaded.dropin_path} and would win; no file "
                f"changed. Give it a name that sorts before {os.path.basename(loaded.dropin_path)}."
            )
    base = effective["runtimes"].get(effective.get("default_runtime", "runc"), {})
    entry: dict[str, Any] = {"runtime_path": want.path, "runtime_type": "oci"}
    entry.update(
        {
            key: base[key]
            for key in ("runtime_root", "monitor_cgroup", "monitor_env", "monitor_path")
            if key in base
        }
    )
    # Without a monitor of its own a runtime takes the old key crio.runtime.conmon; where that is missing, it needs one.
    if "monitor_path" not in entry and not effective.get("conmon") and monitor:
        entry["monitor_path"] = monitor
    runtime: dict[str, Any] = {"runtimes": {want.name: entry}}
    if want.default:
        runtime = {"default_runtime": want.name, **runtime}
    value = {"crio": {"runtime": runtime}}
    new = HEADER + toml.dumps(value)
    if loaded.dropin is not None and toml.parse(loaded.dropin).value == value:
        new = loaded.dropin
    edit = FileEdit(loaded.dropin_path, loaded.dropin, new, generated=True)
    before = {**effective, **{k: v for k, v in ours.items() if k != "runtimes"}}
    before["runtimes"] = {**effective["runtimes"], **ours.get("runtimes", {})}
    after = {**effective, **runtime, "runtimes": {**effective["runtimes"], want.name: entry}}
    action = RESTART if edit.changes else NONE
    return Plan((edit,), action, _summary(before, want.name), _summary(after, want.name))


def plan_absent(loaded: Loaded, want: Want) -> Plan:
    """Our drop-in is gone."""
    edit = FileEdit(loaded.dropin_path, loaded.dropin, None, generated=True)
    effective = _effective(loaded)
    ours = _runtime_section(loaded.dropin_path, loaded.dropin)
    action = RESTART if edit.changes else NONE
    return Plan((edit,), action, _summary(ours or effective, want.name), _summary(effective, want.name))


def scratch_copy(loaded: Loaded, plan: Plan, scratch: str) -> tuple[str, str]:
    """Writes the planned files below ``scratch``; the paths of crio.conf and of the drop-ins' directory there."""
    directory = os.path.join(scratch, "crio.conf.d")
    os.makedirs(directory, exist_ok=True)
    main = os.path.join(scratch, "crio.conf")
    texts: dict[str, Optional[str]] = {main: loaded.text or ""}
    texts.update({os.path.join(directory, os.path.basename(p)): text for p, text in loaded.others.items()})
    texts.update({os.path.join(directory, os.path.basename(edit.path)): edit.new for edit in plan.edits})
    for path, text in texts.items():
        if text is not None:
            with open(path, "w", encoding="utf-8", newline="") as stream:
                stream.write(text)
    return main, directory
