#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_snapshot
short_description: Remember configuration files of a node and put them back
version_added: 0.1.0
description:
  - Copies files before a change and puts them back, byte for byte, with mode and owner, when the change turned out
    badly. What did not exist is removed again, and what has not changed since is not touched.
  - The playbook C(gpuops.k8s.provision) rolls a node back with it. It restarts nothing; the returned list
    of files tells what to reload.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.change_module
options:
  state:
    description:
      - V(saved) copies O(paths) to O(dest). As it changes nothing of the node's configuration it doesn't count as a
        change.
      - An earlier finished copy there, which nobody has discarded, is of a change that did not come to its end. It
        stays what the node was before (RV(kept)), and only paths that it lacks are added to it.
      - V(restored) puts the files back. It fails when nothing was saved.
      - V(discarded) removes the copy, which does not count as a change either.
    type: str
    choices: [saved, restored, discarded]
    required: true
  paths:
    description:
      - Files and directories, absolute. Those that don't exist are remembered as absent. Directories are taken with
        everything in them.
      - Needed with O(state=saved).
    type: list
    elements: path
  dest:
    description:
      - The directory for the copy. It is readable by its owner alone, and has to survive a reboot, since a node may be
        rebooted in the middle of a change.
    type: path
    default: /var/lib/gpuops/snapshot
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: Remember docker's configuration
  gpuops.k8s.node_snapshot:
    state: saved
    paths: [/etc/docker/daemon.json]

- name: Put it back
  gpuops.k8s.node_snapshot:
    state: restored
  register: rollback

- name: Make docker read it
  ansible.builtin.systemd_service:
    name: docker
    state: reloaded
  when: "'/etc/docker/daemon.json' in rollback.files"
"""

RETURN = r"""
kept:
  description: Whether an earlier copy, of a change that did not come to its end, stays what the node was before.
  returned: with O(state=saved)
  type: bool
  sample: false
saved_at:
  description: When that copy was begun, in the node's time.
  returned: with O(state=saved) and RV(kept)
  type: str
  sample: "2026-11-23 12:30:00"
files:
  description:
    - With O(state=saved), the files of the copy.
    - With O(state=restored), the files that were put back or removed.
  returned: success
  type: list
  elements: str
  sample: [/etc/docker/daemon.json]
"""

import json
import os
import shutil
import stat
import time
from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule

MANIFEST = "manifest.json"


def entries(path: str) -> list[str]:
    """``path`` and, for a directory, everything below, parents first; [] when it does not exist."""
    if not os.path.lexists(path):
        return []
    found = [path]
    if os.path.isdir(path) and not os.path.islink(path):
        for folder, folders, files in os.walk(path):
            found.extend(os.path.join(folder, name) for name in sorted(folders) + sorted(files))
    return found


def look(path: str) -> dict[str, Any]:
    """Kind, mode, owner and, for a link, target of what is at ``path``."""
    status = os.lstat(path)
    kind = "link" if stat.S_ISLNK(status.st_mode) else "folder" if stat.S_ISDIR(status.st_mode) else "file"
    found = {"kind": kind, "mode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}
    if kind == "link":
        found["target"] = os.readlink(path)
    return found


def content(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def load(dest: str) -> Optional[dict[str, Any]]:
    """The manifest of a finished copy; None when there is none, or one that was never finished."""
    try:
        with open(os.path.join(dest, MANIFEST), encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def make_folder(dest: str) -> None:
    """A new folder that only its owner can read, and so is a folder ``gpuops`` that is made for it."""
    parent = os.path.dirname(dest)
    if os.path.basename(parent) == "gpuops" and not os.path.isdir(parent):
        os.makedirs(parent, mode=0o700)
    os.makedirs(dest, mode=0o700)


def save(paths: list[str], dest: str) -> tuple[list[str], Optional[str]]:
    """Copy; the manifest is written last, so that a copy without one was never finished.

    Returns the files of the copy, and when it was begun if it is an earlier one that was kept.
    """
    earlier = load(dest)
    if earlier is None:
        shutil.rmtree(dest, ignore_errors=True)
        make_folder(dest)
    manifest = earlier or {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "paths": [], "entries": {}}
    saved: dict[str, Any] = manifest["entries"]
    new = [path for path in paths if not covered(path, manifest["paths"])]
    for path in new:
        for entry in entries(path):
            if entry in saved:
                continue  # below two of the paths
            found = look(entry)
            if found["kind"] == "file":
                found["copy"] = str(len(saved))
                copy_surely(entry, os.path.join(dest, found["copy"]))
            saved[entry] = found
    if new or earlier is None:
        manifest["paths"] += new
        draft = os.path.join(dest, f"{MANIFEST}.new")
        with open(draft, "w", encoding="utf-8") as stream:
            json.dump(manifest, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, os.path.join(dest, MANIFEST))
    kept = str(manifest.get("at", "an earlier run")) if earlier else None
    return [path for path, found in saved.items() if found["kind"] != "folder"], kept


def covered(path: str, paths: list[str]) -> bool:
    """Whether ``path`` is one of ``paths`` or below one."""
    return any(path == one or path.startswith(one.rstrip("/") + "/") for one in paths)


def copy_surely(path: str, copy: str) -> None:
    """Copy a file so that the copy is whole after a power cut too."""
    shutil.copyfile(path, copy)
    with open(copy, "rb+") as stream:
        os.fsync(stream.fileno())


def differs(path: str, saved: dict[str, Any], dest: str) -> bool:
    """Whether what is at ``path`` is not what was saved."""
    if not os.path.lexists(path):
        return True
    found = look(path)
    if {name: value for name, value in saved.items() if name != "copy"} != found:
        return True
    return found["kind"] == "file" and content(path) != content(os.path.join(dest, saved["copy"]))


def added(manifest: dict[str, Any]) -> list[str]:
    """What lies under the saved paths and was not there, children first."""
    now = [entry for path in manifest["paths"] for entry in entries(path)]
    return [entry for entry in reversed(now) if entry not in manifest["entries"]]


def put_back(path: str, saved: dict[str, Any], dest: str) -> None:
    """Make ``path`` what was saved; files are replaced in one step."""
    if os.path.lexists(path) and look(path)["kind"] != saved["kind"]:
        remove(path)
    if saved["kind"] == "folder":
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Hidden: the kubelet would take another file beside a static pod's for a pod too.
        fresh = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.gpuops-restored")
        if os.path.lexists(fresh):
            os.unlink(fresh)
        if saved["kind"] == "link":
            os.symlink(saved["target"], fresh)
        else:
            shutil.copyfile(os.path.join(dest, saved["copy"]), fresh)
            os.chmod(fresh, saved["mode"])
        os.chown(fresh, saved["uid"], saved["gid"], follow_symlinks=False)
        os.replace(fresh, path)
        return
    os.chown(path, saved["uid"], saved["gid"])
    os.chmod(path, saved["mode"])


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def shown(path: str) -> str:
    """Text for the diff; binary files and folders only say what they are."""
    if not os.path.lexists(path):
        return ""
    kind = look(path)["kind"]
    if kind != "file":
        return f"({kind})\n"
    try:
        return content(path).decode("utf-8")
    except UnicodeDecodeError:
        return "(binary)\n"


def restore(module: AnsibleModule, dest: str) -> None:
    manifest = load(dest)
    if manifest is None:
        module.fail_json(msg=f"{dest} holds no finished snapshot, so nothing was put back")
    extra = added(manifest)
    wrong = [path for path, saved in manifest["entries"].items() if differs(path, saved, dest)]
    diffs = []
    for path in [*extra, *wrong]:
        saved = manifest["entries"].get(path, {})
        after = (
            shown(os.path.join(dest, saved["copy"]))
            if "copy" in saved
            else f"({saved.get('kind', 'absent')})\n"
        )
        diffs.append({"before_header": path, "after_header": path, "before": shown(path), "after": after})
    if not module.check_mode:
        for path in extra:
            remove(path)
        for path in wrong:
            put_back(path, manifest["entries"][path], dest)
    module.exit_json(changed=bool(extra or wrong), files=sorted([*extra, *wrong]), diff=diffs)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["saved", "restored", "discarded"], "required": True},
            "paths": {"type": "list", "elements": "path"},
            "dest": {"type": "path", "default": "/var/lib/gpuops/snapshot"},
        },
        required_if=[["state", "saved", ["paths"]]],
        supports_check_mode=True,
    )
    state, dest = module.params["state"], module.params["dest"]
    try:
        if state == "restored":
            restore(module, dest)
        elif state == "saved":
            relative = [path for path in module.params["paths"] if not os.path.isabs(path)]
            if relative:
                module.fail_json(msg=f"paths must be absolute: {', '.join(relative)}")
            files, kept = ([], None) if module.check_mode else save(module.params["paths"], dest)
            since = {"saved_at": kept} if kept else {}
            module.exit_json(changed=False, files=files, kept=kept is not None, **since)
        elif not module.check_mode:
            shutil.rmtree(dest, ignore_errors=True)
            parent = os.path.dirname(dest)
            if os.path.basename(parent) == "gpuops" and os.path.isdir(parent) and not os.listdir(parent):
                os.rmdir(parent)
    except OSError as error:
        module.fail_json(msg=f"snapshot could not be {state}: {error}. Is the disk full or read-only?")
    module.exit_json(changed=False, files=[])


if __name__ == "__main__":
    main()
