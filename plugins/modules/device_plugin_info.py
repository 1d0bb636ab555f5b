#!/usr/bin/python
# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: device_plugin_info
short_description: Say whether the kubelet offers the devices it should, and which link is broken
version_added: 0.1.0
description:
  - Follows the chain from the kubelet over its feature gate, its socket, the plugin's socket and the registered
    devices to the node's
    allocatable resources, counts at each link, and names the first one that is broken, with the next step.
  - Sockets are asked, not looked at, so that a dead or hanging plugin is noticed though its socket and the kubelet's
    checkpoint are still there,
    and so is a node that goes on advertising devices nobody stands behind.
  - Works without an API server. With O(kubectl) or O(node) the node's allocatable resources are compared as well.
  - Nothing is allocated. Only Python is needed on the node.
extends_documentation_fragment:
  - gpuops.k8s.attributes
  - gpuops.k8s.attributes.info_module
options:
  resources:
    description:
      - Resources to look at. If neither this nor O(expect) is given, those that are registered.
    type: list
    elements: str
    default: []
  expect:
    description:
      - How many healthy devices of each resource there have to be. With it the module fails when a link is broken.
    type: dict
  strict:
    description:
      - Whether to fail when a link is broken, with no number expected.
    type: bool
    default: false
  plugin_dir:
    description:
      - The kubelet's device plugin directory. It does not follow the kubelet's C(--root-dir).
    type: path
    default: /var/lib/kubelet/device-plugins
  kubelet_root:
    description:
      - The kubelet's C(--root-dir), where C(pod-resources) is.
    type: path
    default: /var/lib/kubelet
  status_socket:
    description:
      - Where the plugin of this collection says what it offers. Skipped if it is not there.
    type: path
    default: /run/gpu-device-plugin/status.sock
  healthz_url:
    description:
      - Where the kubelet answers when it is well. Taken from its configuration if it is not given.
    type: str
  kubelet_version:
    description:
      - Version of the kubelet, for the feature gate. Asked from the kubelet's program if it is not given.
    type: str
  kubectl:
    description:
      - The kubectl program on this host, to read the node's allocatable resources with. Not used if it is not given.
    type: str
  kubeconfig:
    description:
      - The kubeconfig for O(kubectl).
    type: path
  node_name:
    description:
      - Name of the node object. The host's name in lower case if it is not given.
    type: str
  node:
    description:
      - The node object as C(kubectl get node -o json) gives it, if another host has fetched it. Used instead of
        O(kubectl).
    type: dict
  timeout:
    description:
      - Seconds to go on looking until no link is broken.
    type: float
    default: 0
  sleep:
    description:
      - Seconds between two looks.
    type: float
    default: 1
seealso:
  - module: gpuops.k8s.gpu_info
  - module: gpuops.k8s.kubelet_feature_gate
author:
  - The gpuops developers (@gpuops)
"""

EXAMPLES = r"""
- name: Look at what the kubelet offers
  gpuops.k8s.device_plugin_info:
  register: offered

- name: Fail unless the kubelet offers eight GPUs within half a minute
  gpuops.k8s.device_plugin_info:
    expect:
      nvidia.com/gpu: 8
    timeout: 30

- name: Compare with the node's status as well
  gpuops.k8s.device_plugin_info:
    kubectl: kubectl
    kubeconfig: /etc/kubernetes/kubelet.conf
    strict: true
"""

RETURN = r"""
resources:
  description: By name of the resource.
  returned: always
  type: dict
  contains:
    registered:
      description: Healthy devices in the kubelet's checkpoint, which may be stale.
      type: int
    healthy:
      description: Healthy devices that can be had now. 0 when the plugin or the kubelet does not answer.
      type: int
    unhealthy:
      description: Unhealthy devices by the plugin's word, with the reason.
      type: list
    offered:
      description: Devices the plugin of this collection lists, healthy or not. None when it was not asked.
      type: int
    allocatable:
      description: The node's allocatable number. None without an API server.
      type: int
    capacity:
      description: The node's capacity. None without an API server.
      type: int
    expected:
      description: The number that was expected.
      type: int
  sample:
    nvidia.com/gpu: {registered: 8, healthy: 8, unhealthy: [], offered: 8, allocatable: 8, capacity: 8, expected: 8}
advertised_but_dead:
  description: Resources the node goes on advertising though nobody can hand them out.
  returned: always
  type: list
  elements: str
  sample: []
sockets:
  description: The plugin sockets, each with name, state (V(alive), V(hung) or V(dead)), resource and ours.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "gpuops-nvidia.com_gpu-4242a1.sock", "state": "alive", "resource": "nvidia.com/gpu", "ours":
    true}]
dra_drivers:
  description: Sockets of DRA drivers that answer on this node.
  returned: always
  type: list
  elements: str
  sample: []
device_list_strategy:
  description:
    - How the plugin of this collection hands out GPUs. One or more of V(envvar), V(volume-mounts), V(cdi-annotations),
      V(cdi-cri) and V(driver-mounts). None when it was not asked.
  returned: always
  type: list
  elements: str
  sample: [envvar]
links:
  description: Every link of the chain with link, ok, detail and next_step.
  returned: always
  type: list
  elements: dict
  sample: [{"link": "kubelet", "ok": true, "detail": "healthz answers", "next_step": ""}]
broken_link:
  description:
    - The first broken link. One of V(kubelet), V(gate), V(kubelet_socket), V(plugin), V(one_owner), V(registered),
      V(healthy), V(allocatable) and V(expected).
    - None when nothing is broken.
  returned: always
  type: str
  sample: plugin
reason:
  description: What is wrong with it.
  returned: always
  type: str
  sample: "no plugin has a socket for nvidia.com/gpu; the kubelet's checkpoint still names 8 devices"
next_step:
  description: What to do.
  returned: always
  type: str
  sample: look at `systemctl status gpu-device-plugin` or the plugin's pod on this node, and start it
waited:
  description: Seconds it took until nothing was broken, or until the time was up.
  returned: always
  type: float
  sample: 0.1
"""

import json
import os
import socket
import subprocess
import time
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.k8s.plugins.module_utils import (
    _gate_places,
    _gate_table,
    _grpc_probe,
    _kubelet_service,
    _kubelet_view,
    _links,
)

ARGUMENTS = {
    "resources": {"type": "list", "elements": "str", "default": []},
    "expect": {"type": "dict"},
    "strict": {"type": "bool", "default": False},
    "plugin_dir": {"type": "path", "default": "/var/lib/kubelet/device-plugins"},
    "kubelet_root": {"type": "path", "default": "/var/lib/kubelet"},
    "status_socket": {"type": "path", "default": "/run/gpu-device-plugin/status.sock"},
    "healthz_url": {"type": "str"},
    "kubelet_version": {"type": "str"},
    "kubectl": {"type": "str"},
    "kubeconfig": {"type": "path"},
    "node_name": {"type": "str"},
    "node": {"type": "dict"},
    "timeout": {"type": "float", "default": 0},
    "sleep": {"type": "float", "default": 1},
}


def healthz(url):
    """Empty when the kubelet is well, else why not."""
    problem = _kubelet_service.healthz_problem(url, timeout=3)
    return "" if problem is None else f"{url}: {problem}"


def gate_link(module, version_text, socket_state):
    """(link, address of healthz) from the files on the node, and from what the kubelet that runs has read of them."""
    places = _gate_places.find_places("/")
    texts, mentions, effective = _gate_places.survey("/", places, _gate_table.GATE)
    url = _gate_places.healthz_url(texts)
    try:
        version = _gate_table.parse_version(version_text)
    except _gate_table.GateError as error:
        return _links.Link("gate", None, str(error)), url
    decision = _gate_table.decide(version, bool(mentions), effective)
    row = _gate_table.rule(version)
    if not row.offered:
        return _links.Link("gate", False, decision.reason, "use a newer kubelet"), url
    if decision.action == _gate_table.KEEP or (
        decision.action == _gate_table.REMOVE and row.true_is == "warning" and effective is not False
    ):
        return unread(module, places, socket_state) or _links.Link("gate", True, decision.reason), url
    where = ", ".join(f"{place.path}:{entry.line}" for place, entry in mentions)
    reason = f"{decision.reason} ({where})" if where else decision.reason
    step = "run the role device_plugin, or the module kubelet_feature_gate with restart: true"
    return _links.Link("gate", False, reason, step), url


def unread(module, places, socket_state):
    """The broken link of a kubelet that was not restarted since its files were mended; None when nothing says so.

    A newer file alone says little, since most settings have nothing to do with the gate. With it off nobody listens on
    kubelet.sock.
    """
    unit = _gate_places.service("/", _gate_places.detect("/"))
    systemctl = module.get_bin_path("systemctl")
    pid = _kubelet_service.Service(module, unit, "", 0).main_pid() if systemctl else None
    if pid is None:
        return None
    step = f"restart the kubelet: `systemctl restart {unit}`"
    if _kubelet_service.gate_of_process(pid, _gate_table.GATE) is False:
        flag = f"--feature-gates={_gate_table.GATE}=false"
        reason = f"the kubelet (pid {pid}) runs with {flag}, which no file says any more: device plugins are off (K16)"
        return _links.Link("gate", False, reason, step)
    newer = _kubelet_service.newer_than_process(pid, [place.path for place in places if place.used])
    if newer and socket_state in (_grpc_probe.MISSING, _grpc_probe.DEAD):
        files = ", ".join(newer)
        reason = (
            f"nobody listens on kubelet.sock, and {files} changed after the kubelet (pid {pid}) had started"
        )
        return _links.Link("gate", False, reason, step)
    return None


def ask_node(params):
    """The node object by kubectl. Raises OSError or ValueError with the reason in words."""
    command = [params["kubectl"]]
    if params["kubeconfig"]:
        command += ["--kubeconfig", params["kubeconfig"]]
    name = params["node_name"] or socket.gethostname().lower()
    command += ["get", "node", name, "-o", "json", "--request-timeout=5s"]
    answer = subprocess.run(command, capture_output=True, timeout=15, check=False)  # pylint: disable=ansible-bad-function
    if answer.returncode != 0:
        raise OSError(answer.stderr.decode("utf-8", "replace").strip() or f"kubectl get node {name} failed")
    return json.loads(answer.stdout)


def look(module, params, version):
    """One View of the node, and the link of the API server when it could not be asked."""
    directory = params["plugin_dir"]
    kubelet_socket = _grpc_probe.state_of(os.path.join(directory, _kubelet_view.KUBELET_SOCKET))
    gate, url = gate_link(module, version, kubelet_socket)
    node, trouble = params["node"], None
    if node is None and params["kubectl"]:
        try:
            node = ask_node(params)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            step = "check kubeconfig and node_name"
            trouble = _links.Link("api_server", False, f"the node can not be read: {error}", step)
    checkpoint, checkpoint_problem = {}, ""
    try:
        checkpoint = _kubelet_view.read_checkpoint(directory)
    except ValueError as error:
        checkpoint_problem = str(error)
    view = _kubelet_view.View(
        kubelet=healthz(params["healthz_url"] or url),
        gate=gate,
        directory=os.path.isdir(directory),
        kubelet_socket=kubelet_socket,
        sockets=_kubelet_view.list_sockets(directory),
        checkpoint=checkpoint,
        checkpoint_problem=checkpoint_problem,
        live=_grpc_probe.allocatable_devices(
            os.path.join(params["kubelet_root"], "pod-resources/kubelet.sock")
        ),
        status=_kubelet_view.ask_status(params["status_socket"]),
        dra=_kubelet_view.dra_drivers(params["kubelet_root"]),
        allocatable=_kubelet_view.quantities(node, "allocatable") if node else None,
        capacity=_kubelet_view.quantities(node, "capacity") if node else None,
        ready=_kubelet_view.is_ready(node) if node else None,
    )
    return view, trouble


def main():
    """Entry point."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    try:
        expect = {name: int(count) for name, count in (params["expect"] or {}).items()}
    except (TypeError, ValueError):
        module.fail_json(msg=f"expect: {params['expect']!r}: each value has to be a whole number")
    version = params["kubelet_version"] or _kubelet_service.printed_version(module, _gate_places.detect("/"))
    start = time.monotonic()
    while True:
        try:
            view, trouble = look(module, params, version)
        except (OSError, ValueError) as error:
            module.fail_json(msg=f"{error}; run as root, on the node")
        resources = _kubelet_view.resources_of(view, params["resources"], expect)
        links = _kubelet_view.judge(view, resources, expect) + ([trouble] if trouble else [])
        problem = _links.message(links)
        waited = time.monotonic() - start
        if problem is None or waited + params["sleep"] > params["timeout"]:
            break
        time.sleep(params["sleep"])
    result = {
        "changed": False,
        "resources": {name: _kubelet_view.counts(view, name, expect) for name in resources},
        "advertised_but_dead": [name for name in resources if _kubelet_view.advertised_but_dead(view, name)],
        "sockets": [asdict(entry) for entry in view.sockets],
        "dra_drivers": list(view.dra),
        "device_list_strategy": (view.status or {}).get("device_list_strategy"),
        "waited": round(waited, 1),
    }
    result.update(_links.summary(links))
    if problem and (params["strict"] or params["expect"] is not None):
        module.fail_json(msg=problem, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
