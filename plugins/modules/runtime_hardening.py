#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_hardening
short_description: Whether unprivileged containers may ask NVIDIA's runtime for GPUs by an environment variable
version_added: 0.1.0
description:
  - Sets C(accept-nvidia-visible-devices-envvar-when-unprivileged) and C(accept-nvidia-visible-devices-as-volume-mounts)
    in the configuration of NVIDIA's container runtime, both in one step. Other keys, their order and comments stay.
  - What stood there before is remembered in C(/var/lib/gpuops/container_runtime.json), so that O(state=absent) puts
    back exactly that.
  - The runtime reads the file whenever a container starts. Nothing is restarted.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.change_module
options:
  hardened:
    description:
      - With V(true) the variable counts for privileged containers alone, and GPUs are asked for by volume mounts.
        With V(false) it is as NVIDIA ships it.
      - A key that has its value already is not touched.
    type: bool
    default: true
  state:
    description:
      - V(absent) puts back what stood there before this module. A value that somebody else has changed since stays.
    type: str
    choices: [present, absent]
    default: present
  path:
    description: The runtime's configuration file. It is made if it is missing.
    type: path
    default: /etc/nvidia-container-runtime/config.toml
  backup:
    description: Whether to keep the old file beside the new one.
    type: bool
    default: true
seealso:
  - module: gpuops.k8s.container_runtime
  - module: gpuops.k8s.gpu_visibility_info
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: Let no unprivileged container name its GPUs
  gpuops.k8s.runtime_hardening:

- name: Put back what stood there before
  gpuops.k8s.runtime_hardening:
    state: absent
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
  sample: /etc/nvidia-container-runtime/config.toml
before:
  description: What the runtime took for each key. None where the value was no boolean.
  returned: success
  type: dict
  sample:
    accept-nvidia-visible-devices-as-volume-mounts: false
    accept-nvidia-visible-devices-envvar-when-unprivileged: true
after:
  description: What it takes now.
  returned: success
  type: dict
  sample:
    accept-nvidia-visible-devices-as-volume-mounts: true
    accept-nvidia-visible-devices-envvar-when-unprivileged: false
backup_file:
  description: The copy of the old file. Empty when there is none.
  returned: success
  type: str
  sample: /etc/nvidia-container-runtime/config.toml.20261123T120000Z~
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import (
    _files,
    _hardening,
    _runtime_record,
    _toml_read,
)


def run(module: AnsibleModule) -> None:
    path, key = module.params["path"], "nvidia:" + module.params["path"]
    record = _hardening.Record.load(_runtime_record.load(_runtime_record.DEFAULT_PATH, key))
    old = _files.read_text(path)
    if module.params["state"] == "absent" and not record.ours:
        module.exit_json(changed=False, path=path, before={}, after={}, backup_file="")
    if module.params["state"] == "absent":
        new, kept = _hardening.undo(old, record), _hardening.Record()
    else:
        wish = _hardening.HARDENED if module.params["hardened"] else _hardening.DEFAULTS
        new, kept = _hardening.set_to(old, wish, record)
    before, after = _hardening.values(old), _hardening.values(new)
    changed, copy = new != old, ""
    if not module.check_mode:
        if kept.ours:  # before the change: whoever dies in between has lost nothing
            _runtime_record.save(module, _runtime_record.DEFAULT_PATH, key, kept.dump())
        if changed:
            copy = _files.backup(path) if module.params["backup"] and old is not None else ""
            if new is None:
                _files.remove(path)
            else:
                _files.replace(module, path, new)
        if not kept.ours:
            _runtime_record.save(module, _runtime_record.DEFAULT_PATH, key, {})
    module.exit_json(
        changed=changed,
        path=path,
        before=before,
        after=after,
        backup_file=copy,
        diff={"before_header": path, "after_header": path, "before": old or "", "after": new or ""},
    )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "hardened": {"type": "bool", "default": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "path": {"type": "path", "default": "/etc/nvidia-container-runtime/config.toml"},
            "backup": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    try:
        run(module)
    except _toml_read.TomlError as error:
        module.fail_json(
            msg=f"{module.params['path']}:{error}; file left untouched. Mend this line and run again."
        )
    except _files.FileError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
