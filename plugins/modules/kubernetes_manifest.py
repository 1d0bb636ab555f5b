#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: kubernetes_manifest
short_description: Apply, delete and wait for Kubernetes objects through kubectl
version_added: 0.1.0
description:
  - Brings Kubernetes objects into the wanted state by server-side apply, and only when their meaning would
    change. A second run changes nothing.
  - Runs C(kubectl) on the host of the task. Delegate it to a control-plane host, where kubectl and a
    kubeconfig are. Nothing else is needed there; no Python library for Kubernetes, and none for YAML.
  - Fields that another manager owns and this manifest does not name are left alone. Fields that an earlier
    run set and this manifest no longer names are removed, as server-side apply does.
requirements:
  - kubectl 1.20 or later, and an API server with server-side apply (1.18 or later)
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.kubectl
attributes:
  check_mode:
    support: full
    details:
      - Asks the API server for a dry run, so that a manifest it would refuse fails in check mode too. Objects
        in a namespace that the same task would create can't be tried so, and are reported as they are given.
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    platforms: posix
    support: full
options:
  definition:
    description:
      - One manifest as a mapping, several as a list, or the text of any number of YAML or JSON documents.
      - Give either O(definition) or O(src).
    type: raw
  src:
    description:
      - A file with YAML or JSON documents, on the host of the task.
    type: path
  state:
    description:
      - V(present) applies the objects.
      - V(absent) deletes them. Only C(apiVersion), C(kind), C(metadata.name) and C(metadata.namespace) matter
        then.
      - V(ready) changes nothing and waits until the objects are ready.
    type: str
    choices: [present, absent, ready]
    default: present
  wait:
    description:
      - With O(state=present), wait until the objects are ready. That is, DaemonSets, Deployments and
        StatefulSets have all their pods in the newest version and available; Jobs are complete; Pods ready or
        succeeded; Nodes Ready; CustomResourceDefinitions established; other kinds need only exist.
      - With O(state=absent), wait until the objects are gone, and the pods that belong to them.
    type: bool
    default: false
  timeout:
    description:
      - How many seconds to wait at most.
    type: int
    default: 120
  sleep:
    description:
      - How many seconds to let pass between two looks while waiting.
    type: float
    default: 1.0
  namespace:
    description:
      - The namespace of objects that name none.
    type: str
  field_manager:
    description:
      - The name under which the API server records which fields this module owns.
    type: str
    default: gpuops.k8s
  force:
    description:
      - Whether to take over fields that another manager set to another value, for example somebody with
        C(kubectl edit). Without it such a conflict fails the task and names the manager and the field.
    type: bool
    default: true
  remove_conditions:
    description:
      - Types of conditions to take out of the status of the Nodes that the task names, with O(state=present).
      - A condition that a program on the node has written stays when the program is gone, and server-side apply
        of the Node does not reach it.
    type: list
    elements: str
    default: []
notes:
  - A Node is never created by O(state=present), as only its kubelet can do that. The task fails when it isn't
    there. Labels that a task applies to a Node and later leaves out are removed from it again.
  - Values of Secrets appear neither in the diff nor in what is returned.
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: Deploy a DaemonSet and wait until every node runs it
  gpuops.k8s.kubernetes_manifest:
    definition: "{{ lookup('ansible.builtin.template', 'daemonset.yaml.j2') }}"
    wait: true
    timeout: 300
  delegate_to: control-plane-1
  run_once: true

- name: Label a node
  gpuops.k8s.kubernetes_manifest:
    definition:
      apiVersion: v1
      kind: Node
      metadata:
        name: gpu-node-1
        labels:
          nvidia.com/gpu.present: "true"
    field_manager: gpuops.k8s.labels
  delegate_to: control-plane-1

- name: Take away a label of ours and a condition that a removed program has left
  gpuops.k8s.kubernetes_manifest:
    definition:
      apiVersion: v1
      kind: Node
      metadata:
        name: gpu-node-1
        labels: {}
    field_manager: gpuops.k8s.labels
    remove_conditions: [GPUsHealthy]
  delegate_to: control-plane-1

- name: See what a change of a file would do
  gpuops.k8s.kubernetes_manifest:
    src: /etc/kubernetes/gpu/device-plugin.yaml
    kubeconfig: /etc/kubernetes/admin.conf
  check_mode: true
  diff: true

- name: Delete the DaemonSet, and wait until its pods have gone
  gpuops.k8s.kubernetes_manifest:
    definition:
      apiVersion: apps/v1
      kind: DaemonSet
      metadata:
        name: gpuops-device-plugin
        namespace: kube-system
    state: absent
    wait: true
"""

RETURN = r"""
objects:
  description: The objects, in the order they were given.
  returned: success
  type: list
  elements: dict
  contains:
    api_version:
      description: As in the manifest.
      type: str
      sample: apps/v1
    kind:
      description: As in the manifest.
      type: str
      sample: DaemonSet
    name:
      description: As in the manifest.
      type: str
      sample: gpuops-device-plugin
    namespace:
      description: Empty for objects that belong to no namespace.
      type: str
      sample: kube-system
    action:
      description:
        - What was done, or in check mode would be done.
        - V(adopted) means that the object was as wanted already, and that its fields are now recorded as this
          manager's.
      type: str
      sample: updated
      choices: [created, updated, adopted, unchanged, deleted, absent, ready]
    changed_fields:
      description: The fields whose values differ, dotted; only for V(updated).
      type: list
      elements: str
      sample: [spec.template.spec.containers]
    status:
      description: The object's status when the module looked last. Empty when it isn't there.
      type: dict
      sample: {"desiredNumberScheduled": 3, "numberReady": 3}
diff:
  description: One entry an object that changed. Shown with C(--diff).
  returned: when something changed
  type: list
  elements: dict
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import _kubernetes_objects as objects
from ansible_collections.gpuops.k8s.plugins.module_utils._kubectl import (
    ARGUMENTS,
    Kubectl,
    KubectlError,
    through_kubectl,
)

try:
    import yaml
except ImportError:  # kubectl parses instead
    yaml = None


def read(module: AnsibleModule, kubectl: Kubectl) -> list[objects.Object]:
    """The objects that the task names."""
    definition = module.params["definition"]
    if module.params["src"] is not None:
        try:
            with open(module.params["src"], encoding="utf-8") as stream:
                definition = stream.read()
        except (OSError, UnicodeDecodeError) as error:
            module.fail_json(msg=f"{module.params['src']} can't be read: {error}")
    where = module.params["src"] or "definition"
    try:
        if isinstance(definition, str):
            documents = list(yaml.safe_load_all(definition)) if yaml else kubectl.parse(definition)
        else:
            documents = definition if isinstance(definition, list) else [definition]
        wanted = objects.check(documents)
    except ValueError as error:
        module.fail_json(msg=f"{where}: {error}")
    except KubectlError:
        raise
    except Exception as error:  # noqa: BLE001 - PyYAML, where present, has a tree of its own exceptions
        module.fail_json(msg=f"{where} is not valid YAML: {error}")
    if not wanted:
        module.fail_json(msg=f"{where} holds no Kubernetes object; give at least one")
    return wanted


def report(wanted: objects.Object, live: objects.Object | None, action: str, **more: Any) -> dict[str, Any]:
    """One entry of the returned list."""
    key = objects.key_of(live or wanted)
    return {
        "api_version": wanted["apiVersion"],
        "kind": key.kind,
        "name": key.name,
        "namespace": key.namespace,
        "action": action,
        "status": (live or {}).get("status", {}),
        **more,
    }


def difference(
    wanted: objects.Object, before: objects.Object | None, after: objects.Object | None
) -> dict[str, str]:
    """A diff entry as Ansible shows it."""
    header = str(objects.key_of(wanted))

    def text(obj: objects.Object | None) -> str:
        return json.dumps(objects.shown(obj), indent=2, sort_keys=True) + "\n" if obj else ""

    return {"before_header": header, "after_header": header, "before": text(before), "after": text(after)}


def present(module: AnsibleModule, kubectl: Kubectl, wanted: list[objects.Object]) -> dict[str, Any]:
    """Apply what differs."""
    manager, force = module.params["field_manager"], module.params["force"]
    unwanted = module.params["remove_conditions"]
    current = kubectl.get(wanted)
    for obj in wanted:
        if obj["kind"] == "Node" and objects.find(objects.key_of(obj), current) is None:
            raise KubectlError(
                f"{objects.key_of(obj)} is not registered with the API server: is its kubelet running, "
                "and is this its name there (kubectl get nodes)?"
            )
    coming = objects.new_namespaces(wanted, current)
    homeless = [
        obj for obj in wanted if objects.key_of(obj).namespace in coming and obj["kind"] != "Namespace"
    ]
    tried = kubectl.apply(
        [o for o in wanted if o not in homeless], manager=manager, force=force, dry_run=True
    )

    entries, diffs, to_apply, to_clear = [], [], [], []
    for obj in wanted:
        before = objects.find(objects.key_of(obj), current)
        after = objects.find(objects.key_of(obj), tried) or obj
        fields: list[str] = []
        if before is None:
            action = "created"
        else:
            fields = objects.changed_fields(objects.meaning(before), objects.meaning(after))
            adopted = objects.applied_by(after, manager) and not objects.applied_by(before, manager)
            action = "updated" if fields else "adopted" if adopted else "unchanged"
        if action != "unchanged":
            to_apply.append(obj)
            diffs.append(difference(obj, before, after))
        cleared = objects.conditions(before, unwanted) if obj["kind"] == "Node" else []
        if cleared:
            action, fields = "updated", [*fields, "status.conditions"]
            to_clear.append(obj["metadata"]["name"])
            text = json.dumps(cleared, indent=2, sort_keys=True) + "\n"
            header = f"{objects.key_of(obj)}: conditions"
            diffs.append({"before_header": header, "after_header": header, "before": text, "after": ""})
        entries.append((obj, before, action, fields))

    live = current
    if to_apply and not module.check_mode:
        applied = kubectl.apply(to_apply, manager=manager, force=force, dry_run=False)
        live = applied + current
    if not module.check_mode:
        for name in to_clear:
            kubectl.remove_conditions(name, unwanted)
    if module.params["wait"] and not module.check_mode:
        live = kubectl.wait(wanted, timeout=module.params["timeout"], sleep=module.params["sleep"])
    found = [
        report(obj, objects.find(objects.key_of(obj), live) or before, action, changed_fields=fields)
        for obj, before, action, fields in entries
    ]
    return {"changed": bool(to_apply or to_clear), "objects": found, "diff": diffs}


def absent(module: AnsibleModule, kubectl: Kubectl, unwanted: list[objects.Object]) -> dict[str, Any]:
    """Delete what is there."""
    current = kubectl.get(unwanted)
    if current and not module.check_mode:
        kubectl.delete(current, wait=module.params["wait"], timeout=module.params["timeout"])
    entries, diffs = [], []
    for obj in unwanted:
        before = objects.find(objects.key_of(obj), current)
        entries.append(report(obj, before, "deleted" if before else "absent"))
        if before:
            diffs.append(difference(obj, before, None))
    return {"changed": bool(current), "objects": entries, "diff": diffs}


def ready(module: AnsibleModule, kubectl: Kubectl, wanted: list[objects.Object]) -> dict[str, Any]:
    """Wait, change nothing."""
    live = kubectl.wait(wanted, timeout=module.params["timeout"], sleep=module.params["sleep"])
    return {
        "changed": False,
        "objects": [report(obj, objects.find(objects.key_of(obj), live), "ready") for obj in wanted],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "definition": {"type": "raw"},
            "src": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent", "ready"], "default": "present"},
            "wait": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 120},
            "sleep": {"type": "float", "default": 1.0},
            **ARGUMENTS,
            "namespace": {"type": "str"},
            "field_manager": {"type": "str", "default": "gpuops.k8s"},
            "force": {"type": "bool", "default": True},
            "remove_conditions": {"type": "list", "elements": "str", "default": []},
        },
        mutually_exclusive=[["definition", "src"]],
        required_one_of=[["definition", "src"]],
        supports_check_mode=True,
    )

    work = {"present": present, "absent": absent, "ready": ready}[module.params["state"]]
    through_kubectl(module, lambda kubectl: work(module, kubectl, read(module, kubectl)))


if __name__ == "__main__":
    main()
