#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kubelet_feature_gate
short_description: Set or clear a feature gate of the kubelet wherever it is named
version_added: 0.1.0
description:
  - Finds a feature gate in every place a kubelet reads it from and changes only that, so that order, comments and
    other gates stay.
  - Places are flags in systemd units, drop-ins and environment files, C(KubeletConfiguration) files in YAML and JSON,
    C(--config-dir) drop-ins, the C(kubelet-arg) lists of k3s and rke2, the args file of MicroK8s and the units and
    worker profiles of k0s.
  - For C(DevicePlugins) it knows from the kubelet's version whether the gate is needed (1.8 and 1.9), harmless (1.10
    to 1.25),
    locked (1.26 and 1.27) or stops the kubelet (1.28 and later).
  - The kubelet is restarted only with O(restart=true), once, and only if something changed, in this run or in one that
    was killed before its restart. When it does not come up again the old files are put back, the kubelet is restarted
    with them, and the module fails with the last lines of its log.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.change_module
options:
  name:
    description:
      - The feature gate.
    type: str
    default: DevicePlugins
  state:
    description:
      - V(auto) decides by the table of kubelet versions and works for C(DevicePlugins) alone.
      - V(present) sees to it that the gate is on.
      - V(absent) removes every mention of it.
    type: str
    choices: [auto, present, absent]
    default: auto
  kubelet_version:
    description:
      - Version of the kubelet, such as V(1.20). Asked from the kubelet's program if it is not given.
    type: str
  target_version:
    description:
      - Version to which the node will be upgraded. A mention of the gate that this version would not bear is removed
        beforehand.
    type: str
  distribution:
    description:
      - The Kubernetes distribution, which decides on places and on the service. V(auto) looks through the places of
        all of them.
    type: str
    choices: [auto, kubeadm, kubespray, k3s, rke2, microk8s, k0s]
    default: auto
  files:
    description:
      - More files to look through. Their kind is told from their content.
    type: list
    elements: path
    default: []
  service:
    description:
      - The systemd service of the kubelet. Found from the distribution if it is not given.
    type: str
  restart:
    description:
      - Whether to restart the service after a change, wait for its healthz and roll back when it fails.
      - A service that is stopped stays stopped.
    type: bool
    default: false
  healthz_url:
    description:
      - Where the kubelet answers when it is well. Taken from C(healthzPort) of its configuration if it is not given.
    type: str
  timeout:
    description:
      - Seconds to wait for the kubelet after a restart.
    type: int
    default: 60
  backup:
    description:
      - Whether to keep a copy of each changed file beside it.
    type: bool
    default: true
  config_map:
    description:
      - Name of kubeadm's ConfigMap in the namespace C(kube-system), such as V(kubelet-config).
        C(kubeadm upgrade) writes C(/var/lib/kubelet/config.yaml) anew from it.
      - With it the module works on that ConfigMap and on nothing else, on a host with kubectl.
        It needs O(kubelet_version). A ConfigMap that does not exist is left at that.
    type: str
  kubectl:
    description:
      - The kubectl for O(config_map). May be several words, such as V(k3s kubectl).
    type: str
    default: kubectl
  kubeconfig:
    description:
      - The kubeconfig for O(config_map).
    type: path
seealso:
  - module: gpuops.k8s.device_plugin_info
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: Let the kubelet offer device plugins, whatever its version
  gpuops.k8s.kubelet_feature_gate:
    restart: true

- name: Before an upgrade to 1.28, take the gate away that would stop the new kubelet
  gpuops.k8s.kubelet_feature_gate:
    target_version: "1.28"
    restart: true

- name: Take the gate out of what kubeadm upgrade will write
  gpuops.k8s.kubelet_feature_gate:
    config_map: kubelet-config
    kubelet_version: "1.27"
    target_version: "1.28"
  delegate_to: control-plane-1
  run_once: true

- name: Only say where the gate is named
  gpuops.k8s.kubelet_feature_gate:
    state: absent
  check_mode: true
  register: gate
"""

RETURN = r"""
required:
  description: Whether the gate was V(needed), a V(leftover) to remove, or V(none) of both.
  returned: always
  type: str
  sample: leftover
reason:
  description: Why, in words.
  returned: always
  type: str
  sample: kubelet 1.28 does not start with DevicePlugins
kubelet_version:
  description: Version of the kubelet that decided.
  returned: always
  type: str
  sample: "1.20"
effective:
  description: The value that won before the change. None when no place names the gate.
  returned: always
  type: bool
  sample: false
places:
  description: Where the gate was named before the change.
  returned: always
  type: list
  elements: dict
  contains:
    file:
      description: The file.
      type: str
      sample: /etc/default/kubelet
    line:
      description: Line number, from 1.
      type: int
      sample: 1
    kind:
      description: V(env), V(unit), V(args), V(kubelet-arg) or V(config).
      type: str
      sample: env
    value:
      description: The value as written.
      type: str
      sample: "false"
    used:
      description: Whether the kubelet reads this file now.
      type: bool
      sample: true
files:
  description: Files that were changed, or would be in check mode.
  returned: always
  type: list
  elements: str
  sample: [/etc/default/kubelet]
backup_files:
  description: Copies of the changed files.
  returned: always
  type: list
  elements: str
  sample: ["/etc/default/kubelet.4242.2026-11-23@06:30:00~"]
notes:
  description: What else to know, such as a file that another program rewrites.
  returned: always
  type: list
  elements: str
  sample: ["/var/lib/kubelet/config.yaml: kubeadm upgrade rewrites it from the ConfigMap kube-system/kubelet-config;
    change that too"]
service:
  description: The service that reads these files.
  returned: always
  type: str
  sample: kubelet
restart_required:
  description: Whether the service still has to be restarted.
  returned: always
  type: bool
  sample: false
restarted:
  description: Whether the service was restarted.
  returned: always
  type: bool
  sample: true
before:
  description: The changed files as they were.
  returned: always
  type: dict
  sample: {"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=false\n"}
after:
  description: The changed files as they are now.
  returned: always
  type: dict
  sample: {"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=--feature-gates=DevicePlugins=true\n"}
"""

import os
import traceback

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import _files
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_config_map as gate_config_map
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_mark as gate_mark
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_places as places_of
from ansible_collections.gpuops.k8s.plugins.module_utils import _gate_table as table
from ansible_collections.gpuops.k8s.plugins.module_utils._gate_plan import diff_of, plan_edits, report
from ansible_collections.gpuops.k8s.plugins.module_utils._kubelet_service import Service, kubelet_version

ARGUMENTS = {
    "name": {"type": "str", "default": "DevicePlugins"},
    "state": {"type": "str", "choices": ["auto", "present", "absent"], "default": "auto"},
    "kubelet_version": {"type": "str"},
    "target_version": {"type": "str"},
    "distribution": {
        "type": "str",
        "choices": ["auto", "kubeadm", "kubespray", "k3s", "rke2", "microk8s", "k0s"],
        "default": "auto",
    },
    "files": {"type": "list", "elements": "path", "default": []},
    "service": {"type": "str"},
    "restart": {"type": "bool", "default": False},
    "healthz_url": {"type": "str"},
    "timeout": {"type": "int", "default": 60},
    "backup": {"type": "bool", "default": True},
    "config_map": {"type": "str"},
    "kubectl": {"type": "str", "default": "kubectl"},
    "kubeconfig": {"type": "path"},
}


KEEP_BYTES = "surrogateescape"  # as places are read: bytes that are no UTF-8 stay what they are


def old_texts(edits, before, mark):
    """{path: text to go back to} for what is written now and for what a run before wrote and no kubelet has read."""
    old = {path: before[path] if os.path.exists(path) else None for path in edits}
    for path, text in mark.get("before", {}).items():
        now = before[path] if path in edits else places_of.read_text("/", path)
        if now == mark["after"].get(path):  # else somebody has changed it since: theirs to keep
            old[path] = text
    return old


def apply_edits(module, edits, before, service, result, mark):  # noqa: PLR0917
    """Writes, restarts if asked, and puts everything back when the kubelet does not come up.

    ``mark``: of a run that wrote and did not restart; {} where there was none.
    """
    gate = module.params["name"]
    old = old_texts(edits, before, mark)
    if module.params["backup"]:
        kept = [path for path in edits if os.path.exists(path)]
        result["backup_files"] = [module.backup_local(path) for path in kept]
    if edits:
        now = {path: before[path] if os.path.exists(path) else None for path in edits}
        begun = gate_mark.begun(old, {**mark.get("after", {}), **edits})
        gate_mark.save(module, gate, begun)
        try:
            _files.replace_all(module, edits, now, errors=KEEP_BYTES)
        except _files.FileError:
            gate_mark.save(module, gate, mark)
            raise
        gate_mark.save(module, gate, gate_mark.written(begun))
    result["restart_required"] = True
    if not module.params["restart"]:
        return
    was = service.active_state()
    if was in ("inactive", ""):
        result["restart_required"] = False
        result["notes"].append("{0} is stopped and was left so".format(service.unit))
        gate_mark.save(module, gate, {})
        return
    reload_units = any("/systemd/" in path for path in old)
    problem = service.restart(reload_units)
    if problem is None:
        result["restarted"] = True
        result["restart_required"] = False
        gate_mark.save(module, gate, {})
        return
    tail = service.log_tail()
    _files.put_back(module, old, errors=KEEP_BYTES)
    again = service.restart(reload_units)
    gate_mark.save(module, gate, {})
    result["changed"] = False
    result["after"] = result["before"]
    module.fail_json(
        msg="{0}; {1} put back{2}. Last lines of its log:\n{3}".format(
            problem,
            ", ".join(old),
            " and the kubelet is well again"
            if again is None
            else ", but the kubelet is not well with them either",
            tail,
        ),
        **result,
    )


def run(module):
    """The whole module; separate from main so that tests can call it."""
    params = module.params
    places = places_of.find_places("/", params["distribution"], tuple(params["files"]))
    distribution = params["distribution"]
    if distribution == "auto":
        distribution = places_of.detect("/")
    version = (
        table.parse_version(params["kubelet_version"])
        if params["kubelet_version"]
        else kubelet_version(module, distribution)
    )
    target = table.parse_version(params["target_version"]) if params["target_version"] else None
    texts, mentions, effective = places_of.survey("/", places, params["name"])
    decision = table.decide(version, bool(mentions), effective, target, params["state"], params["name"])
    edits = plan_edits(decision, params["name"], places, texts, mentions, distribution)
    before = {path: texts.get(path, "") for path in edits}
    unit = params["service"] or places_of.service("/", distribution)
    result = report(decision, version, effective, mentions, edits, before, unit)
    if module._diff:
        result["diff"] = diff_of(result)
    mark = gate_mark.load(params["name"])
    if edits or mark:
        url = params["healthz_url"] or places_of.healthz_url(texts)
        service = Service(module, unit, url, params["timeout"])
        stale = mark and not gate_mark.unread(mark, service.main_pid(), service.active_state())
        mark = {} if stale else mark
        if mark:
            result["restart_required"] = True
            result["changed"] = bool(edits) or params["restart"]
            result["notes"].append(
                "{0}: an earlier run wrote it and died before {1} was restarted".format(
                    ", ".join(mark["after"]), unit
                )
            )
        if not module.check_mode:
            if edits or mark:
                apply_edits(module, edits, before, service, result, mark)
            else:
                gate_mark.save(module, params["name"], {})
    module.exit_json(**result)


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS, supports_check_mode=True, required_by={"config_map": ["kubelet_version"]}
    )
    try:
        if module.params["config_map"]:
            gate_config_map.run(module)
        run(module)
    except (table.GateError, _files.FileError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg="{0}; no other file was touched".format(error), exception=traceback.format_exc())


if __name__ == "__main__":
    main()
