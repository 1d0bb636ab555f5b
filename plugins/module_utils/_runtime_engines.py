# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One look at an engine: what its files and its daemon say, what is to be written, and whether it would take that.

Changes nothing. ``params`` are the options of the module container_runtime, ``record`` what an undo has to know.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from typing import Any, Callable, Optional

from . import _files, _runtime_containerd, _runtime_crio, _runtime_docker, _runtime_probe
from ._daemon_flags import daemon_flags
from ._runtime import Plan, Want


@dataclasses.dataclass(frozen=True)
class Engine:
    """The outcome of looking at one engine: what to do, and how to check it before it counts."""

    config_path: str
    plan: Plan
    version: str
    pid: Optional[int]
    restart_stops: int = 0
    problem: Optional[str] = None  # the engine's own complaint about the planned files


def _want(params: dict[str, Any]) -> Want:
    return Want(params["name"], params["path"], params["default"], params["cdi"])


def look_at_docker(params: dict[str, Any], record: dict[str, Any]) -> Engine:
    """daemon.json, and what the running dockerd says. Raises Refusal and FileError."""
    path = params["config_path"] or _runtime_docker.DEFAULT_CONFIG
    want, adding = _want(params), params["state"] == "present"
    pid, flags = daemon_flags(_runtime_docker.UNIT, _runtime_docker.PROGRAMS)
    text = _files.read_text(path)
    _runtime_docker.read(path, text)  # a broken file is told before a colliding flag
    _runtime_docker.check_flags(path, flags, want, adding)
    live = _runtime_probe.docker_live(params["docker_socket"], pid is not None)
    if any(flag.name == "default-runtime" for flag in flags) and live.default is not None:
        live = dataclasses.replace(live, default="")  # the flag's doing, not the file's: nothing to take back
    planner = _runtime_docker.plan_present if adding else _runtime_docker.plan_absent
    plan = planner(path, text, want, live, record)
    problem = None
    for edit in plan.edits:
        if edit.changes and edit.new:
            with tempfile.TemporaryDirectory(prefix="container_runtime.") as scratch:
                candidate = os.path.join(scratch, "daemon.json")
                _write_scratch(candidate, edit.new)
                problem = _runtime_probe.validate_docker(live.version, candidate)
    complaint = problem and f"{path}: dockerd would refuse it: {problem}"
    return Engine(path, plan, live.version, pid, live.restart_stops, complaint)


def look_at_containerd(params: dict[str, Any], record: dict[str, Any]) -> Engine:
    """config.toml and its drop-in, tried by ``containerd config dump``. Raises Refusal and FileError."""
    path = params["config_path"] or _runtime_containerd.DEFAULT_CONFIG
    dropin = params["dropin_path"] or _runtime_containerd.DEFAULT_DROPIN
    want, adding = _want(params), params["state"] == "present"
    pid, flags = daemon_flags(
        _runtime_containerd.UNIT, _runtime_containerd.PROGRAMS, not_with=_runtime_containerd.DOCKERS_OWN
    )
    version = _runtime_probe.program_version("containerd")
    files = _runtime_containerd.load(path, dropin)
    if adding:
        _runtime_containerd.check_flags(path, flags)
        plan = _runtime_containerd.plan_present(files, want, version, record, params["fix_disabled_plugins"])
    else:
        plan = _runtime_containerd.plan_absent(files, want, record)
    problem = None
    if plan.changed and version:
        with tempfile.TemporaryDirectory(prefix="container_runtime.") as scratch:
            candidate = _runtime_containerd.scratch_copy(files, plan, scratch)
            dump, problem = _runtime_probe.dump_containerd(candidate) if candidate else (None, "")
            problem = problem.replace(scratch, "") if problem else None
            if dump is not None and adding:
                problem = _runtime_containerd.check_dump(dump, want)
    return Engine(path, plan, version, pid, 0, problem and f"{path}: containerd would refuse it: {problem}")


def look_at_crio(params: dict[str, Any], record: dict[str, Any]) -> Engine:
    """crio.conf and its drop-in, tried by ``crio config``. Raises Refusal and FileError."""
    path = params["config_path"] or _runtime_crio.DEFAULT_CONFIG
    dropin = params["dropin_path"] or _runtime_crio.DEFAULT_DROPIN
    want, adding = _want(params), params["state"] == "present"
    pid, flags = daemon_flags(_runtime_crio.UNIT, _runtime_crio.PROGRAMS)
    version = _runtime_probe.program_version("crio")
    files = _runtime_crio.load(path, dropin)
    if adding:
        _runtime_crio.check_flags(path, dropin, flags, want)
        plan = _runtime_crio.plan_present(files, want, _runtime_crio.find_monitor())
    else:
        plan = _runtime_crio.plan_absent(files, want)
    problem = None
    if plan.changed and version:
        with tempfile.TemporaryDirectory(prefix="container_runtime.") as scratch:
            main, directory = _runtime_crio.scratch_copy(files, plan, scratch)
            dump, problem = _runtime_probe.dump_crio(main, directory)
            problem = problem.replace(scratch, "") if dump is None else None
    return Engine(path, plan, version, pid, 0, problem and f"{dropin}: cri-o would refuse it: {problem}")


def _write_scratch(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", newline="") as stream:
        stream.write(text)


LOOKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Engine]] = {
    "docker": look_at_docker,
    "containerd": look_at_containerd,
    "crio": look_at_crio,
}
