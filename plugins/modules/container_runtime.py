#!/usr/bin/python

# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Adds the NVIDIA runtime to a container engine's configuration, or takes it away; see DOCUMENTATION."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_runtime
short_description: Merge the NVIDIA runtime into the configuration of docker, containerd or CRI-O
version_added: 0.1.0
author:
  - The gpuops developers (@gpuops)
description:
  - Adds a runtime to a container engine's configuration, makes it the default one if wanted, or takes it away again.
  - It merges. Keys, their order, the indentation and, in TOML, every comment stay as they are.
  - For docker it edits C(daemon.json). For containerd it writes the drop-in C(99-nvidia.toml) and adds one C(imports)
    line to C(config.toml). For CRI-O it writes a drop-in.
  - It refuses, naming file, line and key, when a file can't be read, when a key is given twice, or when a flag of the
    running daemon or of its unit collides with what would be written. A refusal leaves every file as it was.
  - What it writes is checked by the engine itself before it replaces anything, replaced by a rename, and the file
    that was there is kept as C(NAME.YYYYMMDDTHHMMSSZ~).
  - It neither reloads nor restarts an engine. RV(action_needed) says what is needed; it looks at the running daemon
    too, so that a run that died between writing and reloading is noticed by the next one.
options:
  engine:
    description: Which container engine's configuration to change.
    type: str
    required: true
    choices: [docker, containerd, crio]
  name:
    description: Name of the runtime in the engine's configuration.
    type: str
    default: nvidia
  path:
    description: Absolute path of the runtime's program on the node. The module does not look whether it is there.
    type: path
    default: /usr/bin/nvidia-container-runtime
  default:
    description:
      - Whether the runtime is the engine's default one.
      - With V(false) a default that this module has set before is taken back; another default is left alone.
    type: bool
    default: true
  state:
    description:
      - V(present) adds the runtime.
      - V(absent) takes the runtime away and brings back the default that was there before.
    type: str
    choices: [present, absent]
    default: present
  config_path:
    description:
      - The engine's configuration file.
      - By default C(/etc/docker/daemon.json), C(/etc/containerd/config.toml) or C(/etc/crio/crio.conf).
    type: path
  dropin_path:
    description:
      - The drop-in file for containerd and CRI-O. Its directory is made when missing.
      - By default C(/etc/containerd/conf.d/99-nvidia.toml) or C(/etc/crio/crio.conf.d/99-nvidia.toml).
    type: path
  cdi:
    description:
      - Switch on the Container Device Interface in the engine. Docker 25 or later, containerd 1.7 or later; CRI-O
        has it always on.
    type: bool
    default: false
  fix_disabled_plugins:
    description:
      - Take the CRI plugin off containerd's C(disabled_plugins), where Docker's packages put it.
      - With V(false) such a file is refused, because no pod could use the runtime.
    type: bool
    default: false
  backup:
    description: Keep a dated copy of every file that is changed.
    type: bool
    default: true
  docker_socket:
    description: Socket on which dockerd answers.
    type: path
    default: /var/run/docker.sock
  record_path:
    description: File in which the module notes what an undo has to bring back.
    type: path
    default: /var/lib/gpuops/container_runtime.json
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.change_module
notes:
  - V(absent) for docker takes two runs while the daemon still runs with the runtime as its default, because a reload
    does not take a default away. The first run returns RV(run_again); reload docker and run the module again.
"""

EXAMPLES = r"""
- name: Docker uses the NVIDIA runtime for every container
  gpuops.k8s.container_runtime:
    engine: docker
  notify: Apply the container runtime

- name: Containerd offers it to pods with the runtime class nvidia, and only to them
  gpuops.k8s.container_runtime:
    engine: containerd
    default: false

- name: Take it away again
  gpuops.k8s.container_runtime:
    engine: crio
    state: absent
"""

RETURN = r"""
action_needed:
  description: What makes the running engine use what the files say.
  returned: always
  type: str
  sample: reload
restart_required:
  description: Whether RV(action_needed) is V(restart).
  returned: always
  type: bool
  sample: false
run_again:
  description: Whether the module has to run once more after the engine was reloaded.
  returned: always
  type: bool
  sample: false
config_path:
  description: The engine's configuration file.
  returned: always
  type: str
  sample: /etc/docker/daemon.json
files:
  description: The files that were changed, or would be in check mode, in the order in which they are written.
  returned: always
  type: list
  elements: str
  sample: [/etc/docker/daemon.json]
backup_files:
  description:
    - What each changed file was before. V(backup) is null where there was no file.
    - When nothing changed but an earlier change was never applied, those of the earlier change.
  returned: always
  type: list
  elements: dict
  sample: [{"path": "/etc/docker/daemon.json", "backup": "/etc/docker/daemon.json.20261123T061200Z~"}]
before:
  description: Default runtime, the runtime's entry and CDI as the files had them.
  returned: always
  type: dict
  sample: {"default_runtime": null, "runtime": null, "cdi": null}
after:
  description: The same after the change.
  returned: always
  type: dict
  sample: {"default_runtime": "nvidia", "runtime": {"path": "/usr/bin/nvidia-container-runtime"}, "cdi": null}
reload_helps:
  description: Whether a reload brings at least a part of the change, when RV(action_needed) is V(restart).
  returned: always
  type: bool
  sample: true
restart_stops:
  description:
    - How many running containers a restart of the engine would stop.
    - Containers of containerd and CRI-O outlive it, those of docker only with live-restore.
  returned: always
  type: int
  sample: 20
engine_version:
  description: Version of the engine, empty when it is not known.
  returned: always
  type: str
  sample: 20.10.24+dfsg1
engine_running:
  description: Whether a daemon of this engine runs.
  returned: always
  type: bool
  sample: true
"""

import os
import shutil
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import (
    _files,
    _runtime_engines,
    _runtime_probe,
    _runtime_record,
)
from ansible_collections.gpuops.k8s.plugins.module_utils._runtime import (
    NONE,
    RELOAD,
    RESTART,
    FileEdit,
    Plan,
    Refusal,
    strongest,
)

ARGUMENTS = {
    "engine": {"type": "str", "required": True, "choices": ["docker", "containerd", "crio"]},
    "name": {"type": "str", "default": "nvidia"},
    "path": {"type": "path", "default": "/usr/bin/nvidia-container-runtime"},
    "default": {"type": "bool", "default": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "config_path": {"type": "path"},
    "dropin_path": {"type": "path"},
    "cdi": {"type": "bool", "default": False},
    "fix_disabled_plugins": {"type": "bool", "default": False},
    "backup": {"type": "bool", "default": True},
    "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
    "record_path": {"type": "path", "default": _runtime_record.DEFAULT_PATH},
}


def _apply(module: AnsibleModule, plan: Plan) -> list[dict[str, Any]]:
    """Writes the plan's files in order; when one fails those before it are put back. Returns the backups."""
    kept: list[dict[str, Any]] = []
    done: list[FileEdit] = []
    store = os.path.dirname(module.params["record_path"])
    try:
        for edit in (edit for edit in plan.edits if edit.changes):
            saved = None
            if edit.old is not None and module.params["backup"]:
                if edit.generated:
                    _files.make_directory(store, 0o700)
                saved = _files.backup(edit.path, store if edit.generated else None)
            kept.append({"path": edit.path, "backup": saved})
            done.append(edit)
            _put(module, edit.path, edit.new)
    except (_files.FileError, OSError, shutil.Error):
        for edit in reversed(done):
            _put(module, edit.path, edit.old)
        raise
    return kept


def _put(module: AnsibleModule, path: str, text: Optional[str]) -> None:
    if text is None:
        _files.remove(path)
    else:
        _files.replace(module, path, text)


def _diff(plan: Plan) -> list[dict[str, str]]:
    return [
        {
            "before_header": edit.path,
            "after_header": edit.path,
            "before": edit.old or "",
            "after": edit.new or "",
        }
        for edit in plan.edits
        if edit.changes
    ]


def _run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    record_path = params["record_path"]
    key = f"{params['engine']}:{params['config_path'] or 'default'}:{params['name']}"
    record = _runtime_record.load(record_path, key)
    stored = dict(record)
    written = record.pop("written", None)
    engine = _runtime_engines.LOOKS[params["engine"]](params, record)
    plan, action = engine.plan, engine.plan.action
    if engine.problem:
        raise Refusal(
            f"{engine.problem}; no file changed. Run again with --diff to see what was to be written."
        )
    # A daemon older than what an earlier run wrote has not read it: that run died before its restart. Docker
    # that answers was asked instead. An unfinished mark (the run died while writing) counts from now on.
    if written and written.get("ticks") is None:
        written = {**written, "ticks": _runtime_probe.uptime_ticks()}
    asked = params["engine"] == "docker" and engine.pid is not None
    if written and not asked and not plan.changed and _runtime_probe.started_before(engine.pid, written):
        # An engine that is down since then may be down because of what was written: it needs a start in any case.
        action = strongest(action, RESTART if engine.pid is None else written.get("action", NONE))
    backups = (written or {}).get("backups", []) if action != NONE else []
    new = dict(plan.record)
    if not module.check_mode:
        if plan.changed:
            mark = {"boot": _runtime_probe.boot_id(), "action": action, "ticks": None, "backups": []}
            # Twice: before the files, so that an undo is known whenever we die; after them, with the backups.
            _runtime_record.save(module, record_path, key, {**new, "written": mark})
            backups = _apply(module, plan)
            if action != NONE:
                new["written"] = {**mark, "ticks": _runtime_probe.uptime_ticks(), "backups": backups}
        elif written and action != NONE:
            new["written"] = written
        if new != stored or plan.changed:
            _runtime_record.save(module, record_path, key, new)
    for warning in plan.warnings:
        module.warn(warning)
    changed_files = [edit.path for edit in plan.edits if edit.changes]
    if module.check_mode and plan.changed:
        backups = []
    return {
        "changed": plan.changed,
        "action_needed": action,
        "restart_required": action == RESTART,
        "restart_stops": engine.restart_stops,
        "reload_helps": plan.reload_helps or action == RELOAD,
        "run_again": plan.run_again,
        "config_path": engine.config_path,
        "files": changed_files,
        "backup_files": backups,
        "before": plan.before,
        "after": plan.after,
        "engine_version": engine.version,
        "engine_running": engine.pid is not None,
        "diff": _diff(plan),
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    try:
        result = _run(module)
    except (Refusal, _files.FileError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or module.params['engine']}: {error.strerror}; run again when that is mended."
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
