# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What containerd's files must say so that pods reach the NVIDIA runtime.

A drop-in of our own and one ``imports`` entry in config.toml (containerd-config.toml(5)). Before 2.1 a file that
names a plugin replaces that plugin's whole table, so the drop-in carries a copy of the CRI plugin's settings; from
2.1 on tables are merged and it carries our keys alone. The drop-in's version is that of config.toml: a higher
one keeps config.toml from being migrated. Seen on 1.6.20: a ``runtimes`` table without ``runc`` takes runc away.
"""

from __future__ import annotations

import copy
import os
from typing import Any, Optional

from . import _toml_edit as toml
from ._containerd_files import Loaded, load, matches, parse, scratch_copy
from ._daemon_flags import Flag
from ._runtime import NONE, RESTART, FileEdit, Plan, Refusal, Want, version_tuple

__all__ = ["check_dump", "check_flags", "load", "plan_absent", "plan_present", "scratch_copy"]

UNIT = "containerd.service"
PROGRAMS = ("containerd",)
DOCKERS_OWN = (
    "/docker/containerd/containerd.toml"  # the configuration of the containerd that dockerd starts itself
)
DEFAULT_CONFIG = "/etc/containerd/config.toml"
DEFAULT_DROPIN = "/etc/containerd/conf.d/99-nvidia.toml"
CRI_TABLES = {1: "cri", 2: "io.containerd.grpc.v1.cri"}
CRI_TABLE_V3 = "io.containerd.cri.v1.runtime"
DISABLED_CRI = ("cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime")
RUNC_V2 = "io.containerd.runc.v2"
MERGES_SINCE = (2, 1)
CDI_SINCE = (1, 7)
HEADER = (
    "# Made by gpuops.k8s (module container_runtime). Changes here are overwritten; settings of the CRI plugin belong\n"
    "# into config.toml, from where the next run copies them.\n"
)


def check_flags(config_path: str, flags: list[Flag]) -> None:
    """Raises Refusal when containerd is started with another configuration file."""
    for flag in flags:
        if flag.name in ("config", "c") and flag.value and flag.value != config_path:
            raise Refusal(
                f"{flag.place}: containerd is started with {flag}, so nothing in {config_path} would count; no file "
                f"changed. Set config_path to {flag.value}."
            )


def cri_table(version: int) -> str:
    """The name of the CRI plugin's table under ``plugins`` for a configuration version."""
    return CRI_TABLES.get(version, CRI_TABLE_V3)


def _config_version(path: str, document: toml.Document) -> int:
    version = document.value.get("version", 1)
    if not isinstance(version, int) or version < 1:
        raise Refusal(f"{path}: key version must be a number; file left untouched. Mend it and run again.")
    return version


def _cri(document: toml.Document, table: str) -> Optional[dict[str, Any]]:
    plugins = document.value.get("plugins", {})
    found = plugins.get(table) if isinstance(plugins, dict) else None
    return found if isinstance(found, dict) else None


def _deep_merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _deep_merge(merged[key], value) if both else value
    return merged


def _effective(loaded: Loaded, table: str, merges: bool) -> dict[str, Any]:
    """The CRI settings as containerd sees them without our drop-in."""
    effective: dict[str, Any] = {}
    for path in loaded.order:
        if path == loaded.dropin_path:
            continue
        text = loaded.text if path == loaded.config_path else loaded.others[path]
        cri = _cri(parse(path, text), table)
        if cri is not None:
            effective = _deep_merge(effective, cri) if merges else cri
    return copy.deepcopy(effective)


def _summary(cri: dict[str, Any], name: str) -> dict[str, Any]:
    containerd = cri.get("containerd", {})
    return {
        "default_runtime": containerd.get("default_runtime_name"),
        "runtime": containerd.get("runtimes", {}).get(name),
        "cdi": cri.get("enable_cdi"),
    }


def _satisfied(cri: dict[str, Any], want: Want) -> bool:
    summary = _summary(cri, want.name)
    runtime = summary["runtime"] or {}
    return (
        runtime.get("runtime_type") == RUNC_V2
        and runtime.get("options", {}).get("BinaryName") == want.path
        and (summary["default_runtime"] == want.name) is want.default
        and (not want.cdi or summary["cdi"] is True)
    )


def _runtime(containerd: dict[str, Any], want: Want) -> dict[str, Any]:
    """The runtime's table: the default runtime's settings (SystemdCgroup above all) with our program."""
    runtimes = containerd.get("runtimes", {})
    candidates = [
        runtimes.get(want.name),
        runtimes.get(containerd.get("default_runtime_name", "runc")),
        runtimes.get("runc"),
    ]
    candidates.append(containerd.get("default_runtime"))  # version 1
    base: dict[str, Any] = {}
    for candidate in candidates:
        if isinstance(candidate, dict) and candidate.get("runtime_type", RUNC_V2) in (
            "",
            RUNC_V2,
            "io.containerd.runc.v1",
        ):
            base = copy.deepcopy(candidate)
            break
    options = base.pop("options", {})
    return {**base, "runtime_type": RUNC_V2, "options": {**options, "BinaryName": want.path}}


def _dropin_value(
    loaded: Loaded, effective: dict[str, Any], want: Want, version: Optional[int], merges: bool
) -> dict[str, Any]:
    containerd = effective.get("containerd", {})
    runtimes = containerd.get("runtimes", {})
    ours: dict[str, Any] = {want.name: _runtime(containerd, want)}
    if "runc" not in runtimes:
        ours["runc"] = {"runtime_type": RUNC_V2}
    add: dict[str, Any] = {"containerd": {"runtimes": ours}}
    if want.default:
        add["containerd"] = {"default_runtime_name": want.name, **add["containerd"]}
    if want.cdi:
        add["enable_cdi"] = True
    cri = add if merges else _deep_merge(effective, add)
    if not want.default and cri["containerd"].get("default_runtime_name") == want.name:
        cri["containerd"]["default_runtime_name"] = "runc"
    head = {} if version is None else {"version": version}
    return {**head, "plugins": {cri_table(version or 1): cri}}


def _check_later(loaded: Loaded, table: str, want: Want, merges: bool) -> None:
    """Refuses when a file that is read after the drop-in would undo it."""
    if loaded.dropin_path not in loaded.order:
        return
    for path in loaded.order[loaded.order.index(loaded.dropin_path) + 1 :]:
        document = parse(path, loaded.others[path])
        cri = _cri(document, table)
        if cri is None:
            continue
        containerd = cri.get("containerd", {})
        own = containerd.get("default_runtime_name", want.name) != want.name and want.default
        if not merges or own or want.name in containerd.get("runtimes", {}):
            line = next(
                (document_line(loaded.others[path], document, key) for key in document.keys if table in key),
                1,
            )
            raise Refusal(
                f"{path}:{line}: table plugins.{toml.basic_string(table)} is read after {loaded.dropin_path} and would "
                f"replace it; no file changed. Give {os.path.basename(path)} a name that sorts before "
                f"{os.path.basename(loaded.dropin_path)}, or set dropin_path to one that sorts last."
            )


def document_line(text: str, document: toml.Document, key: toml.Path) -> int:
    """The line, from 1, on which a key stands."""
    return text.count("\n", 0, document.keys[key]) + 1


def _enable_cri(loaded: Loaded, fix: bool, record: dict[str, Any]) -> dict[str, str]:
    """path -> text with the CRI plugin no longer disabled; refuses unless ``fix``."""
    mended: dict[str, str] = {}
    for path in loaded.order:
        if path == loaded.dropin_path:
            continue
        text = loaded.text or "" if path == loaded.config_path else loaded.others[path]
        document = parse(path, text)
        disabled = document.value.get("disabled_plugins", [])
        for item in [item for item in DISABLED_CRI if isinstance(disabled, list) and item in disabled]:
            if not fix:
                line = document_line(text, document, ("disabled_plugins",))
                raise Refusal(
                    f"{path}:{line}: key disabled_plugins names {item}, so containerd serves no pods and no runtime "
                    "would take effect; no file changed. Take it out, or set fix_disabled_plugins."
                )
            text = toml.remove_from_root_array(text, "disabled_plugins", item)
            mended[path] = text
            record.setdefault("disabled", []).append([path, item])
    return mended


def plan_present(loaded: Loaded, want: Want, engine_version: str, record: dict[str, Any], fix: bool) -> Plan:
    """The drop-in says what is wanted and config.toml imports it."""
    record = copy.deepcopy(record)
    document = parse(loaded.config_path, loaded.text)
    engine = version_tuple(engine_version)
    fresh = not document.value and not (loaded.text or "").strip()
    new_main = f"version = {3 if engine >= (2,) else 2}\n" if fresh else loaded.text or ""
    if fresh:
        record["origin"] = record.get("origin", "missing" if loaded.text is None else "empty")
        document = toml.parse(new_main)
    number = _config_version(loaded.config_path, document)
    table, merges = cri_table(number), engine >= MERGES_SINCE
    if number > 2 and engine and engine < (2,):
        raise Refusal(
            f"{loaded.config_path}: key version is {number}, but containerd {engine_version} reads 1 and 2; no file "
            "changed. Correct it, or upgrade containerd."
        )
    if want.cdi and engine and engine < CDI_SINCE:
        raise Refusal(
            f"{loaded.config_path}: enable_cdi needs containerd 1.7 or later, this is {engine_version}; no file "
            "changed. Leave cdi off or upgrade containerd."
        )
    mended = _enable_cri(loaded, fix, record)
    new_main = mended.pop(loaded.config_path, new_main)
    effective = _effective(loaded, table, merges)
    before = effective
    if loaded.dropin is not None and loaded.dropin_path in loaded.order:
        ours = _cri(parse(loaded.dropin_path, loaded.dropin), table)
        before = effective if ours is None else _deep_merge(effective, ours) if merges else ours
    elif _satisfied(effective, want) and not mended and new_main == loaded.text:
        return Plan((), NONE, _summary(effective, want.name), _summary(effective, want.name), record)
    value = _dropin_value(loaded, effective, want, number if "version" in document.value else None, merges)
    new_dropin = HEADER + toml.dumps(value)
    if loaded.dropin is not None and parse(loaded.dropin_path, loaded.dropin).value == value:
        new_dropin = loaded.dropin
    if loaded.dropin_path not in loaded.order:
        # A file beside ours that nothing imported until now must not wake up by our glob.
        pattern = os.path.join(os.path.dirname(loaded.dropin_path), "*.toml")
        entry = loaded.dropin_path if loaded.sleeping or not matches(pattern, loaded.dropin_path) else pattern
        record.update({"import": entry, "import_line": "imports" not in document.value})
        new_main = toml.add_to_root_array(new_main, "imports", entry)
        if not fresh:
            loaded = load(loaded.config_path, loaded.dropin_path, entry)
    _check_later(loaded, table, want, merges)
    edits = [FileEdit(loaded.dropin_path, loaded.dropin, new_dropin, generated=True)]
    edits += [FileEdit(path, loaded.others[path], text) for path, text in mended.items()]
    edits.append(FileEdit(loaded.config_path, loaded.text, new_main))
    after = _deep_merge(effective, value["plugins"][table])
    changed = any(edit.changes for edit in edits)
    if changed and record.get("origin") == "missing":
        record["made"] = new_main
    action = RESTART if changed else NONE
    return Plan(tuple(edits), action, _summary(before, want.name), _summary(after, want.name), record)


def plan_absent(loaded: Loaded, want: Want, record: dict[str, Any]) -> Plan:
    """The drop-in and our imports entry are gone; config.toml goes too if we made it and nobody added to it."""
    new_main = loaded.text
    others: list[FileEdit] = []
    if new_main is not None:
        for path, item in record.get("disabled", []):
            text = new_main if path == loaded.config_path else loaded.others.get(path)
            # Where the administrator has dropped the list since, there is nothing to bring back.
            if text is None or item in parse(path, text).value.get("disabled_plugins", [item]):
                continue
            restored = toml.add_to_root_array(text, "disabled_plugins", item)
            if path == loaded.config_path:
                new_main = restored
            else:
                others.append(FileEdit(path, text, restored))
        if record.get("import"):
            new_main = toml.remove_from_root_array(
                new_main, "imports", record["import"], bool(record.get("import_line"))
            )
        if record.get("origin") == "missing" and loaded.text == record.get("made"):
            new_main = None
    # config.toml first: without its import the drop-in is nothing, the other way round containerd might not start.
    edits = [FileEdit(loaded.config_path, loaded.text, new_main), *others]
    edits.append(FileEdit(loaded.dropin_path, loaded.dropin, None, generated=True))
    document = parse(loaded.config_path, loaded.text)
    table = cri_table(_config_version(loaded.config_path, document))
    effective = _effective(loaded, table, merges=False)
    ours = _cri(parse(loaded.dropin_path, loaded.dropin), table)
    warnings: tuple[str, ...] = ()
    if want.name in effective.get("containerd", {}).get("runtimes", {}):
        warnings = (
            f"{loaded.config_path} or a file it imports defines runtime {want.name} itself; that was not made by this "
            "module and stays. Remove it by hand if it is not wanted.",
        )
    action = RESTART if any(edit.changes for edit in edits) else NONE
    return Plan(
        tuple(edits),
        action,
        _summary(ours or effective, want.name),
        _summary(effective, want.name),
        {},
        warnings=warnings,
    )


def check_dump(dump: str, want: Want) -> Optional[str]:
    """Whether containerd's merged configuration holds what is wanted; None, or what is wrong."""
    document = toml.parse(dump)
    for table in (CRI_TABLE_V3, CRI_TABLES[2], CRI_TABLES[1]):
        cri = _cri(document, table)
        if cri is None or "containerd" not in cri:
            continue
        summary = _summary(cri, want.name)
        program = ((summary["runtime"] or {}).get("options") or {}).get("BinaryName")
        if program != want.path:
            return f"runtime {want.name} would run {program!r} instead of {want.path!r}"
        if want.default and summary["default_runtime"] != want.name:
            return f"default_runtime_name would be {summary['default_runtime']!r}"
        return None
    return "its merged configuration has no CRI plugin"
