#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: daemonset_pod
short_description: Bring one node's pod of a DaemonSet to the DaemonSet's newest template
version_added: 0.1.0
description:
  - For DaemonSets with the update strategy C(OnDelete), whose pods stay as they are until somebody acts. So a new
    version reaches a node when its turn has come, and no sooner.
  - Where the new template differs from the pod's by images alone, the running pod is given the new images. The
    kubelet then stops the container and starts the new one in the same pod, about a second later. Else the pod is
    deleted, and the DaemonSet makes another when the old one is gone. There are never two at once.
  - A pod that does not run, because its container starts again and again or has no image, is also deleted, so that a
    mended node does not wait for the kubelet's next try.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.change_module
  - gpuops.k8s.kubectl
options:
  name:
    description:
      - The DaemonSet.
    type: str
    required: true
  namespace:
    description:
      - Its namespace.
    type: str
    default: kube-system
  node:
    description:
      - The node's name in Kubernetes.
    type: str
    required: true
  annotations:
    description:
      - Annotations for the pod, which change nothing in it. A new value makes the kubelet look at the pod, and so
        at the ConfigMaps that it mounts, at once instead of within a minute or two.
    type: dict
    default: {}
  in_place:
    description:
      - Whether a running pod may be given new images. With V(false) it is always deleted.
    type: bool
    default: true
  immediate:
    description:
      - Whether a pod that is made anew leaves the API server at once (C(kubectl delete --force --grace-period=0)), so
        that the DaemonSet makes the new one while the kubelet ends the old one. Else the new one comes when the kubelet
        has told that nothing is left of the old one, which kubelet 1.20 tells every ten seconds.
      - Only for programs of which the next waits by itself until the one before has ended, as gpuops' plugin does.
      - A pod that asks for more than ten seconds to end (C(terminationGracePeriodSeconds)) gets them all the same,
        since older kubelets kill a pod at once that has left the API server.
    type: bool
    default: false
  timeout:
    description:
      - How many seconds to wait at most until the node's pod is of the newest template and ready.
    type: float
    default: 120
  sleep:
    description:
      - How many seconds to let pass between two looks.
    type: float
    default: 0.5
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: Give the node the plugin that the DaemonSet now asks for
  gpuops.k8s.daemonset_pod:
    name: gpu-device-plugin
    node: gpu-node-1
  delegate_to: control-plane-1
"""

RETURN = r"""
action:
  description:
    - What was done. V(none), V(annotated), V(swapped) for new images in the running pod, V(replaced) for a pod that
      was deleted and made anew.
  returned: success
  type: str
  sample: swapped
pod:
  description: The node's pod. Empty in check mode where it has none yet.
  returned: success
  type: str
  sample: gpu-device-plugin-x7k2p
images:
  description: Container and image of the newest template.
  returned: success
  type: dict
  sample: {"gpu-device-plugin": "gpuops/device-plugin:0.2.0-4b7ac2e1d0f9"}
images_before:
  description: Container and image of the node's pod before.
  returned: success
  type: dict
  sample: {"gpu-device-plugin": "gpuops/device-plugin:0.1.0-2c26b46b68ff"}
waited:
  description: How many seconds passed until the pod was ready.
  returned: success
  type: float
  sample: 1.9
"""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import _daemonset as daemonsets
from ansible_collections.gpuops.k8s.plugins.module_utils import _kubernetes_objects as objects
from ansible_collections.gpuops.k8s.plugins.module_utils._kubectl import (
    ARGUMENTS,
    Kubectl,
    KubectlError,
    through_kubectl,
)

QUICK_SECONDS = 10  # what a pod may ask for that is taken from the API server at once


class NodePod:
    """One node's pod of one DaemonSet."""

    def __init__(self, kubectl: Kubectl, name: str, node: str) -> None:
        self.kubectl, self.name, self.node = kubectl, name, node
        self.daemonset: objects.Object = {}
        self.revisions: list[objects.Object] = []
        self.selector = ""

    def look(self) -> objects.Object | None:
        """The DaemonSet's newest revision; None while its controller has not seen the newest template yet."""
        self.daemonset = json.loads(self.kubectl.call("get", "daemonset", self.name, "-o", "json"))
        self.selector = objects.selector_of(self.daemonset) or ""
        if (
            self.daemonset.get("status", {}).get("observedGeneration", 0)
            < self.daemonset["metadata"]["generation"]
        ):
            return None
        found = self._get("controllerrevisions", "-l", self.selector)
        self.revisions = daemonsets.owned(found, self.daemonset)
        return daemonsets.newest(self.revisions)

    def pod(self) -> objects.Object | None:
        """The node's pod, with what the API server knows of it."""
        found = self._get("pods", "-l", self.selector, "--field-selector", f"spec.nodeName={self.node}")
        return daemonsets.first(daemonsets.owned(found, self.daemonset))

    def revision_of(self, pod: objects.Object) -> objects.Object | None:
        """The ControllerRevision that the pod was made from; None when the API server has forgotten it."""
        mark = daemonsets.revision_hash(pod)
        return next((one for one in self.revisions if daemonsets.revision_hash(one) == mark), None)

    def patch(self, pod: objects.Object, change: dict[str, Any]) -> None:
        """A strategic merge patch of the running pod."""
        self.kubectl.call(
            "patch", "pod", pod["metadata"]["name"], "--type=strategic", "-p", json.dumps(change)
        )

    def delete(self, pod: objects.Object, *, immediate: bool) -> None:
        """Ends the pod; ``immediate``: without waiting for the kubelet's word that it has ended."""
        at_once = ["--force", "--grace-period=0"] if immediate else []
        self.kubectl.call("delete", "pod", pod["metadata"]["name"], "--wait=false", *at_once)

    def log(self, pod: objects.Object | None) -> list[str]:
        """The last words of a pod in trouble."""
        said = objects.pod_troubles([pod] if pod else [])
        if pod:
            try:
                tail = self.kubectl.call("logs", pod["metadata"]["name"], "--all-containers", "--tail=5")
                said += [f"log: {line}" for line in tail.splitlines()[-5:]]
            except KubectlError:
                pass  # a container that never ran has no log
        return said

    def refusals(self) -> list[str]:
        """Why the API server takes no pod of the DaemonSet, if it is so."""
        return self.kubectl.refusals({"kind": "DaemonSet", "apiVersion": "apps/v1", **self.daemonset})

    def _get(self, *words: str) -> list[objects.Object]:
        return list(json.loads(self.kubectl.call("get", *words, "-o", "json"))["items"])


def plan(
    pod: objects.Object, old: objects.Object | None, new: objects.Object, *, in_place: bool
) -> tuple[str, objects.Object]:
    """What brings the pod to revision ``new``, and the patch for it."""
    if daemonsets.hopeless(pod):
        return "replaced", {}  # its state would say nothing of what it is about to become
    if daemonsets.revision_hash(pod) == daemonsets.revision_hash(new):
        return "none", {}
    alike = old is not None and daemonsets.differ_by_images_alone(
        daemonsets.template_of(old), daemonsets.template_of(new)
    )
    return ("swapped", daemonsets.swap(new)) if in_place and alike else ("replaced", {})


@dataclass
class Change:
    """What was done to the pod, and what it was before."""

    action: str = "none"
    images: dict[str, str] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)


def settled(here: NodePod, deadline: float, sleep: float) -> objects.Object:
    """The newest revision, once the DaemonSet's controller has made it."""
    while True:
        found = here.look()
        if found is not None:
            return found
        if time.monotonic() >= deadline:
            # Before 1.26 the controller says that it has seen a template only once it could make its pods.
            why = here.refusals() or ["does kube-controller-manager run?"]
            raise KubectlError(
                f"DaemonSet {here.name}: its controller has not seen the newest template; {' '.join(why)}"
            )
        time.sleep(sleep)


def act(
    here: NodePod, pod: objects.Object, new: objects.Object, settings: dict[str, Any], dry: bool
) -> Change:
    """Brings a pod that stays to revision ``new``, without waiting."""
    action, patch = plan(pod, here.revision_of(pod), new, in_place=settings["in_place"])
    notes = daemonsets.missing_annotations(pod, settings["annotations"])
    if notes and action != "replaced":
        action = "annotated" if action == "none" else action
        patch.setdefault("metadata", {})["annotations"] = notes
    if not dry and patch:
        here.patch(pod, patch)
    elif not dry and action == "replaced":
        here.delete(pod, immediate=settings["immediate"] and daemonsets.seconds_to_end(pod) <= QUICK_SECONDS)
    stale = daemonsets.container_ids(pod) if action == "swapped" else {}
    return Change(action, daemonsets.images(pod).get("containers", {}), stale)


def bring(module: AnsibleModule, kubectl: Kubectl) -> dict[str, Any]:
    """Look, act once, and wait."""
    settings, dry = module.params, module.check_mode
    started = time.monotonic()
    deadline = started + settings["timeout"]
    here = NodePod(kubectl, settings["name"], settings["node"])
    new = settled(here, deadline, settings["sleep"])
    change: Change | None = None
    while True:
        pod = here.pod()
        if pod and change is None and not pod["metadata"].get("deletionTimestamp"):
            change = act(here, pod, new, settings, dry)
            pod = pod if dry or change.action == "none" else here.pod()
        complaint = daemonsets.unfinished(pod, new, change.containers if change else {})
        if dry or not complaint:
            break
        if time.monotonic() >= deadline or daemonsets.hopeless(pod):
            raise KubectlError(told(here, pod, complaint, settings["timeout"]))
        time.sleep(settings["sleep"])
    change = change or Change()
    images = daemonsets.images(daemonsets.template_of(new)).get("containers", {})
    changed = change.action in ("swapped", "replaced")
    return {
        "changed": changed,
        "action": change.action,
        "pod": pod["metadata"]["name"] if pod else "",
        "images": images,
        "images_before": change.images,
        "waited": round(time.monotonic() - started, 1),
        "diff": {"before": _lines(change.images), "after": _lines(images if changed else change.images)},
    }


def told(here: NodePod, pod: objects.Object | None, complaint: str, timeout: float) -> str:
    """The failure in words, with what the pod says."""
    head = f"DaemonSet {here.name} on {here.node}: {complaint}"
    if pod is None:
        refusals = here.refusals()
        if refusals:
            return "\n".join([f"{head} after {timeout:g} s", *(f"  {line}" for line in refusals)])
        wants = here.daemonset.get("spec", {}).get("template", {}).get("spec", {}).get("nodeSelector")
        return (
            f"{head} after {timeout:g} s: does the node carry the labels of its nodeSelector {json.dumps(wants)}, "
            "and do its tolerations fit the node's taints?"
        )
    when = "; it will not be" if daemonsets.hopeless(pod) else f" after {timeout:g} s"
    return "\n".join([head + when, *(f"  {line}" for line in here.log(pod))])


def _lines(images: dict[str, str]) -> str:
    return "".join(f"{name}: {image}\n" for name, image in sorted(images.items()))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "namespace": {"type": "str", "default": "kube-system"},
            "node": {"type": "str", "required": True},
            "annotations": {"type": "dict", "default": {}},
            "in_place": {"type": "bool", "default": True},
            "immediate": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 120},
            "sleep": {"type": "float", "default": 0.5},
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )

    through_kubectl(module, lambda kubectl: bring(module, kubectl))


if __name__ == "__main__":
    main()
