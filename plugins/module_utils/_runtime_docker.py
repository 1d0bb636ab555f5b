# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What docker's daemon.json must say so that containers reach the NVIDIA runtime: pure functions over text.

Keys: dockerd(8), "Daemon configuration file". A reload (SIGHUP) adds a runtime and sets the default one, and
no container dies. It takes nothing away (seen on 20.10): with ``default-runtime`` gone from the file the daemon
keeps the old default until it restarts. So the way back has two steps: the file says ``runc``, a reload, and
then the key goes (``Plan.run_again``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Optional

from . import _json_edit as json_edit
from ._daemon_flags import Flag
from ._runtime import NONE, RELOAD, RESTART, FileEdit, Plan, Refusal, Want, strongest, version_tuple

UNIT = "docker.service"
PROGRAMS = ("dockerd",)
DEFAULT_CONFIG = "/etc/docker/daemon.json"
BUILT_IN_DEFAULT = "runc"
# Flag -> key. dockerd stops when both are given ("specified both as a flag and in the configuration file").
FLAG_KEYS = {"default-runtime": "default-runtime", "add-runtime": "runtimes"}
VALIDATE_SINCE = (23, 0)  # dockerd --validate
CDI_SINCE = (25, 0)  # features.cdi
BOM = "\ufeff"


@dataclass(frozen=True)
class Live:
    """What the running dockerd says of itself; ``default`` is None when it does not answer."""

    version: str = ""
    default: Optional[str] = None
    runtimes: Optional[dict[str, str]] = None  # name -> path
    cdi: Optional[bool] = None
    restart_stops: int = 0  # containers that run and would not outlive a restart


def check_flags(config_path: str, flags: list[Flag], want: Want, adding: bool) -> None:
    """Raises Refusal, naming both places, when the daemon's command line collides with what we would write."""
    for flag in flags:
        if flag.name == "config-file" and flag.value and flag.value != config_path:
            raise Refusal(
                f"{flag.place}: dockerd is started with --config-file={flag.value}, so nothing in {config_path} would "
                f"count; no file changed. Set config_path to {flag.value}."
            )
        key = FLAG_KEYS.get(flag.name)
        if not adding or key is None or (key == "default-runtime" and not want.default):
            continue
        raise Refusal(
            f"{config_path}: key {key} can't be set, because dockerd gets --{flag.name} {flag.value} from "
            f"{flag.place} and does not start when a setting is given in both places; no file changed. "
            f"Take the flag out of {flag.place} and restart docker."
        )


def read(path: str, text: Optional[str]) -> json_edit.Node:
    """The document; an absent or blank file is an empty object. Raises Refusal with file, line and column."""
    if text is None or not text.lstrip(BOM).strip():
        return json_edit.Node({}, 0, 0, ())
    try:
        root = json_edit.parse(text.lstrip(BOM))
    except json_edit.JsonError as error:
        raise Refusal(f"{path}:{error}; file left untouched. Mend this line and run again.") from error
    for keys, kind, wanted in (
        ((), dict, "an object"),
        (("runtimes",), dict, "an object"),
        (("default-runtime",), str, "a string"),
        (("features",), dict, "an object"),
    ):
        node: Optional[json_edit.Node] = root
        for key in keys:
            member = node.get(key) if node else None
            node = member.node if member else None
        if node is not None and not isinstance(node.value, kind):
            raise _refuse_at(path, text, node, f"{'.'.join(keys) or 'the document'} must be {wanted}")
    return root


def _refuse_at(path: str, text: str, node: json_edit.Node, reason: str) -> Refusal:
    line, column = json_edit.position(text.lstrip(BOM), node.start)
    return Refusal(f"{path}:{line}:{column}: {reason}; file left untouched. Mend this line and run again.")


def _summary(value: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "default_runtime": value.get("default-runtime"),
        "runtime": (value.get("runtimes") or {}).get(name),
        "cdi": (value.get("features") or {}).get("cdi"),
    }


def plan_present(path: str, text: Optional[str], want: Want, live: Live, record: dict[str, Any]) -> Plan:
    """The runtime is there, with the given path, and is the default one if so wanted."""
    root = read(path, text)
    entry = (root.value.get("runtimes") or {}).get(want.name)
    if entry is not None:
        node = root.get("runtimes").node.get(want.name).node  # type: ignore[union-attr]
        if not isinstance(entry, dict):
            raise _refuse_at(path, text or "", node, f"runtimes.{want.name} must be an object")
        if "runtimeType" in entry:
            reason = (
                f"runtimes.{want.name} has runtimeType, which excludes path; choose another name or remove it"
            )
            raise _refuse_at(path, text or "", node, reason)
    if want.cdi and version_tuple(live.version) and version_tuple(live.version) < CDI_SINCE:
        raise Refusal(
            f"{path}: features.cdi needs Docker {CDI_SINCE[0]} or later, this is {live.version}; file left untouched. "
            "Leave cdi off or upgrade docker."
        )
    new_record = _remember(root.value, text, want, record)
    bom, new = _body(text)
    new = json_edit.set_member(new, ("runtimes", want.name, "path"), want.path)
    run_again = False
    if want.default:
        new = json_edit.set_member(new, ("default-runtime",), want.name)
        new_record.pop("bridge", None)
    else:
        new, run_again = _without_default(new, want.name, live, new_record)
    action = NONE
    cdi_before = (root.value.get("features") or {}).get("cdi")
    if want.cdi and cdi_before is not True:
        new_record.update(
            {"cdi_before": cdi_before, "cdi": True, "features_existed": "features" in root.value}
        )
        new = json_edit.set_member(new, ("features", "cdi"), True)
        action = RESTART
    after = json_edit.parse(new).value
    new_text = text if after == root.value and text is not None else bom + _end(new, text)
    edit = FileEdit(path, text, new_text)
    if edit.changes:
        action = strongest(action, RELOAD if live.default is not None else RESTART)
    action = strongest(action, _live_action(live, want, run_again))
    helps = live.default is not None and (
        edit.changes or _live_action(live, replace(want, cdi=False), run_again) == RELOAD
    )
    before = _summary(root.value, want.name)
    return Plan((edit,), action, before, _summary(after, want.name), new_record, run_again, helps)


def plan_absent(path: str, text: Optional[str], want: Want, live: Live, record: dict[str, Any]) -> Plan:
    """No runtime of this name, and the default one that was there before us (by the record) is back."""
    root = read(path, text)
    new_record = dict(record)
    if text is None and live.default != want.name:
        return Plan((FileEdit(path, None, None),), NONE, _summary({}, want.name), _summary({}, want.name), {})
    bom, new = _body(text)
    new, run_again = _without_default(new, want.name, live, new_record)
    new = json_edit.delete_member(new, ("runtimes", want.name))
    runtimes = json_edit.parse(new).value.get("runtimes")
    if runtimes == {} and root.value.get("runtimes") and not record.get("runtimes_existed"):
        new = json_edit.delete_member(new, ("runtimes",))
    action = NONE
    if record.get("cdi"):
        new, action = _without_cdi(new, record), RESTART
        new_record.pop("cdi")
    after = json_edit.parse(new).value
    new_text: Optional[str] = text if after == root.value else bom + _end(new, text)
    if not after and record.get("origin") in ("missing", "empty"):
        new_text = None if record["origin"] == "missing" else ""
    edit = FileEdit(path, text, new_text)
    if edit.changes and live.default == want.name:
        action = strongest(action, RELOAD)
    if run_again:
        action = strongest(action, RELOAD)
    else:
        new_record = {}
    before = _summary(root.value, want.name)
    return Plan(
        (edit,), action, before, _summary(after, want.name), new_record, run_again, reload_helps=run_again
    )


def _body(text: Optional[str]) -> tuple[str, str]:
    """A byte order mark, kept apart, and the text to edit."""
    if text is None or not text.lstrip(BOM).strip():
        return "", "{}"
    return (BOM, text[1:]) if text.startswith(BOM) else ("", text)


def _end(new: str, text: Optional[str]) -> str:
    """A file we make ends in a line end; one that was there ends as it did."""
    return new if text is not None and text.strip() else new + "\n"


def _remember(
    value: dict[str, Any], text: Optional[str], want: Want, record: dict[str, Any]
) -> dict[str, Any]:
    new = dict(record)
    if "origin" not in new:
        new["origin"] = "missing" if text is None else ("file" if text.strip() else "empty")
        new["runtimes_existed"] = "runtimes" in value
    current = value.get("default-runtime")
    if want.default and current != want.name:
        new["default_before"] = None if new.get("bridge") and current == BUILT_IN_DEFAULT else current
    return new


def _without_default(text: str, name: str, live: Live, record: dict[str, Any]) -> tuple[str, bool]:
    """The text with ``name`` no longer the default; True when it takes a reload and a second run."""
    current = json_edit.parse(text).value.get("default-runtime")
    before = record.get("default_before")
    bridging = current is None or current == name or (record.get("bridge") and current == BUILT_IN_DEFAULT)
    if not bridging:
        return text, False
    if current == name and before and before != name:
        record.pop("default_before", None)
        return json_edit.set_member(text, ("default-runtime",), before), False
    if live.default == name:
        record["bridge"] = True
        return json_edit.set_member(text, ("default-runtime",), BUILT_IN_DEFAULT), True
    record.pop("bridge", None)
    record.pop("default_before", None)
    return json_edit.delete_member(text, ("default-runtime",)), False


def _without_cdi(text: str, record: dict[str, Any]) -> str:
    if record.get("cdi_before") is not None:
        return json_edit.set_member(text, ("features", "cdi"), record["cdi_before"])
    text = json_edit.delete_member(text, ("features", "cdi"))
    if json_edit.parse(text).value.get("features") == {} and not record.get("features_existed"):
        text = json_edit.delete_member(text, ("features",))
    return text


def _live_action(live: Live, want: Want, run_again: bool) -> str:
    """What the running daemon still lacks although the file may say it: a run that died before its reload."""
    if live.default is None:
        return NONE
    if want.default and live.default != want.name:
        return RELOAD
    if run_again or (live.runtimes or {}).get(want.name) != want.path:
        return RELOAD
    return RESTART if want.cdi and live.cdi is False else NONE
