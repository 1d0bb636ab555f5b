# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the kubelet to what a scheduler may hand out: what is seen of each link, and which one is broken.

The checkpoint alone is not believed: it stays as it was when a plugin dies or the gate is switched off (K9, K16). What
counts is who answers on the sockets, then the kubelet's live word (K27), then the checkpoint, then the node.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.gpuops.k8s.plugins.module_utils import _grpc_probe as grpc_probe
from ansible_collections.gpuops.k8s.plugins.module_utils._links import Link

CHECKPOINT = "kubelet_internal_checkpoint"
KUBELET_SOCKET = "kubelet.sock"
DEFAULT_RESOURCE = "nvidia.com/gpu"
DRA_SOCKETS = ("plugins/gpu.nvidia.com/dra.sock", "plugins/compute-domain.nvidia.com/dra.sock")


@dataclass(frozen=True)
class PluginSocket:
    """One socket beside the kubelet's."""

    name: str
    state: str
    """``alive``, ``hung`` or ``dead`` of :mod:`_grpc_probe`."""
    resource: Optional[str]
    """From the name, where it is one that is known; else None."""
    ours: bool


@dataclass(frozen=True)
class View:
    """All that was seen at one time."""

    kubelet: str
    """Empty when healthz answers, else why not."""
    gate: Link
    directory: bool
    kubelet_socket: str
    """State of kubelet.sock."""
    sockets: Tuple[PluginSocket, ...] = ()
    checkpoint: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Resource -> healthy ids of ``RegisteredDevices``."""
    checkpoint_problem: str = ""
    """Why the checkpoint can't be understood."""
    live: Optional[Mapping[str, Sequence[str]]] = None
    """The same from PodResources; None where this kubelet does not say."""
    status: Optional[Mapping[str, Any]] = None
    """What our plugin says of itself on its status socket; None when it was not asked or is silent."""
    dra: Tuple[str, ...] = ()
    """DRA drivers that answer for the same GPUs."""
    allocatable: Optional[Mapping[str, int]] = None
    """From the node object; None without an API server."""
    capacity: Optional[Mapping[str, int]] = None
    ready: Optional[bool] = None
    """The node's Ready condition."""


def resource_of(socket_name: str) -> Tuple[Optional[str], bool]:
    """(resource, whether the socket is our plugin's) from a socket's name; (None, False) for an unknown one."""
    ours = re.match(r"gpuops-([^_]+)_(.+)-\w+\.sock$", socket_name)
    if ours:
        return f"{ours.group(1)}/{ours.group(2)}", True
    if re.match(r"nvidiaGPU(-\d+)?\.sock$", socket_name) or socket_name == "nvidia.sock":
        return DEFAULT_RESOURCE, False
    theirs = re.match(r"nvidia-(.+)\.sock$", socket_name)
    return (f"nvidia.com/{theirs.group(1)}", False) if theirs else (None, False)


def read_checkpoint(directory: str) -> Dict[str, List[str]]:
    """Resource -> healthy ids; {} without a checkpoint. Raises ValueError when it can't be understood."""
    path = os.path.join(directory, CHECKPOINT)
    try:
        with open(path, encoding="utf-8") as stream:
            data = json.load(stream)
        registered = (data.get("Data") or {}).get("RegisteredDevices") or {}
        return {name: list(ids or []) for name, ids in registered.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def list_sockets(directory: str, timeout: float = 2.0) -> Tuple[PluginSocket, ...]:
    """Every plugin socket in the directory, probed; sorted by name."""
    found = []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name)
        try:
            if name == KUBELET_SOCKET or not stat.S_ISSOCK(os.stat(path).st_mode):
                continue
        except OSError:
            continue  # it went away in between
        resource, ours = resource_of(name)
        found.append(PluginSocket(name, grpc_probe.state_of(path, timeout), resource, ours))
    return tuple(found)


def dra_drivers(kubelet_root: str) -> Tuple[str, ...]:
    """DRA drivers of NVIDIA that answer on this node."""
    paths = [os.path.join(kubelet_root, name) for name in DRA_SOCKETS]
    return tuple(path for path in paths if grpc_probe.state_of(path, 1.0) == grpc_probe.ALIVE)


def ask_status(path: str) -> Optional[Dict[str, Any]]:
    """Our plugin's own words from its status socket, within two seconds; None when it is silent."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(2)
            stream.connect(path)
            raw = b""
            while True:
                chunk = stream.recv(65536)
                if not chunk:
                    break
                raw += chunk
            found = json.loads(raw)
            return found if isinstance(found, dict) else None
    except (OSError, ValueError):
        return None


def quantities(node: Mapping[str, Any], key: str) -> Dict[str, int]:
    """Whole numbers of a node object's ``capacity`` or ``allocatable``, by resource."""
    found = (node.get("status") or {}).get(key) or {}
    return {name: int(value) for name, value in found.items() if "/" in name and str(value).isdigit()}


def is_ready(node: Mapping[str, Any]) -> Optional[bool]:
    """The node object's Ready condition; None when it has none."""
    for condition in (node.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready":
            return bool(condition.get("status") == "True")
    return None


def devices_of_status(status: Optional[Mapping[str, Any]], resource: str) -> List[Mapping[str, Any]]:
    """Our plugin's devices of a resource, from its status; [] when it says nothing."""
    listed = (status or {}).get("resources") or []
    if isinstance(listed, dict):
        listed = [
            {"name": name, **(value if isinstance(value, dict) else {})} for name, value in listed.items()
        ]
    for entry in listed:
        if entry.get("name") == resource or entry.get("resource") == resource:
            return list(entry.get("devices") or [])
    return []


def is_healthy(device: Mapping[str, Any]) -> bool:
    """Whether a device of a status is healthy."""
    health = device.get("health", device.get("healthy", True))
    return health is True or str(health).lower() == "healthy"


def resources_of(view: View, wanted: Sequence[str], expect: Mapping[str, int]) -> List[str]:
    """The resources to judge: those asked for, else all that can be seen, else nvidia.com/gpu."""
    if wanted or expect:
        return list(dict.fromkeys([*wanted, *expect]))
    seen = [s.resource for s in view.sockets if s.resource] + [
        name for name, ids in view.checkpoint.items() if ids
    ]
    return sorted(set(seen)) or [DEFAULT_RESOURCE]


def owners(view: View, resource: str) -> List[PluginSocket]:
    """Sockets that serve a resource; an unknown socket counts when no known one does and the kubelet lists devices."""
    known = [s for s in view.sockets if s.resource == resource]
    if known or not view.checkpoint.get(resource):
        return known
    return [s for s in view.sockets if s.resource is None]


def counts(view: View, resource: str, expect: Mapping[str, int]) -> Dict[str, Any]:
    """One entry of the module's ``resources``."""
    alive = any(s.state == grpc_probe.ALIVE for s in owners(view, resource))
    usable = alive and not view.kubelet and view.kubelet_socket == grpc_probe.ALIVE
    named = list((view.live if view.live is not None else view.checkpoint).get(resource, ()))
    bad = [dict(device) for device in devices_of_status(view.status, resource) if not is_healthy(device)]
    return {
        "registered": len(view.checkpoint.get(resource, ())),
        "healthy": len(named) if usable else 0,
        "unhealthy": bad,
        "offered": len(devices_of_status(view.status, resource)) or None,
        "allocatable": None if view.allocatable is None else view.allocatable.get(resource, 0),
        "capacity": None if view.capacity is None else view.capacity.get(resource, 0),
        "expected": expect.get(resource),
    }


def advertised_but_dead(view: View, resource: str) -> bool:
    """K16: the node goes on advertising a number that nobody stands behind."""
    table = counts(view, resource, {})
    claimed = table["registered"] if table["allocatable"] is None else table["allocatable"]
    return bool(claimed) and not table["healthy"]


def judge(view: View, resources: Sequence[str], expect: Mapping[str, int]) -> List[Link]:
    """The links from the kubelet to what was expected, in that order."""
    links = [view.gate, _kubelet(view)] if view.kubelet else [_kubelet(view), view.gate]
    links.append(_kubelet_socket(view, resources))
    for resource in resources:
        links += [_plugin(view, resource), _one_owner(view, resource)]
        links += [_registered(view, resource), _healthy(view, resource, expect)]
        links += [_allocatable(view, resource), _expected(view, resource, expect)]
    return links


def _kubelet(view: View) -> Link:
    if not view.kubelet:
        return Link("kubelet", True, "healthz answers")
    return Link(
        "kubelet",
        False,
        f"the kubelet does not answer: {view.kubelet}",
        "look at `systemctl status kubelet` and `journalctl -u kubelet -n 50`",
    )


def _kubelet_socket(view: View, resources: Sequence[str]) -> Link:
    if view.kubelet_socket == grpc_probe.ALIVE:
        return Link("kubelet_socket", True, "the kubelet takes registrations")
    what = {
        grpc_probe.MISSING: "there is no kubelet.sock"
        if view.directory
        else "there is no device-plugins directory",
        grpc_probe.DEAD: "nobody listens on kubelet.sock",
        grpc_probe.HUNG: "kubelet.sock does not answer",
    }[view.kubelet_socket]
    still = [name for name in resources if view.checkpoint.get(name)]
    if still and not view.kubelet:
        what += f"; the node goes on advertising {', '.join(still)} and its pods get no device (K16)"
    step = "restart the kubelet: it runs with device plugins off, or its directory was replaced under it"
    return Link("kubelet_socket", False, what, step)


def _plugin(view: View, resource: str) -> Link:
    mine = owners(view, resource)
    alive = [s.name for s in mine if s.state == grpc_probe.ALIVE]
    if alive:
        return Link("plugin", True, f"{', '.join(alive)} answers for {resource}")
    stale = len(view.checkpoint.get(resource, ()))
    tail = f"; the kubelet's checkpoint still names {stale} devices" if stale else ""
    hung = [s.name for s in mine if s.state == grpc_probe.HUNG]
    step = "look at `systemctl status gpu-device-plugin` or the plugin's pod on this node, and start it"
    if hung:
        return Link(
            "plugin",
            False,
            f"{', '.join(hung)} does not answer for {resource}: its process hangs{tail}",
            step,
        )
    if mine:
        names = ", ".join(s.name for s in mine)
        return Link(
            "plugin", False, f"nobody listens on {names} for {resource}: its process is gone{tail}", step
        )
    return Link("plugin", False, f"no plugin has a socket for {resource}{tail}", step)


def _one_owner(view: View, resource: str) -> Link:
    alive = [s.name for s in view.sockets if s.resource == resource and s.state == grpc_probe.ALIVE]
    if len(alive) > 1:
        return Link(
            "one_owner",
            False,
            f"{len(alive)} plugins serve {resource}: {', '.join(alive)}",
            "stop all but one; the kubelet drops the newer when the older one ends (K6)",
        )
    if view.dra and alive:
        return Link(
            "one_owner",
            False,
            f"a DRA driver ({', '.join(view.dra)}) hands out the same GPUs as {alive[0]}",
            "keep one of them on this node",
        )
    return Link("one_owner", True, f"one owner of {resource}")


def _registered(view: View, resource: str) -> Link:
    if view.checkpoint_problem:
        again = "move it away and restart the kubelet; running pods keep their devices, but the kubelet forgets whose"
        return Link(
            "registered", False, f"the kubelet's checkpoint is broken: {view.checkpoint_problem}", again
        )
    named = view.checkpoint.get(resource)
    offered = devices_of_status(view.status, resource)
    healthy = sum(1 for device in offered if is_healthy(device))
    step = "look at the plugin's and the kubelet's log; restart the plugin"
    if named is None:
        return Link("registered", False, f"the kubelet knows no resource {resource}", step)
    if offered and healthy != len(named):
        return Link(
            "registered",
            False,
            f"the plugin offers {healthy} healthy {resource}, the kubelet has {len(named)}",
            step,
        )
    return Link("registered", True, f"{len(named)} {resource} registered")


def _healthy(view: View, resource: str, expect: Mapping[str, int]) -> Link:
    table = counts(view, resource, expect)
    if table["unhealthy"]:
        why = "; ".join(
            f"{device.get('id', '?')}: {device.get('fault') or device.get('reason') or 'Unhealthy'}"
            for device in table["unhealthy"]
        )
        step = "run `gpu-device-plugin status` on the node; drain it, then reset the GPU or reboot"
        return Link(
            "healthy", False, f"{len(table['unhealthy'])} of {table['offered']} {resource}: {why}", step
        )
    if table["registered"] and not table["healthy"]:
        step = "look at the plugin's log"
        return Link("healthy", False, f"{table['registered']} {resource} registered, none can be had", step)
    return Link("healthy", True, f"{table['healthy']} {resource} healthy")


def _allocatable(view: View, resource: str) -> Link:
    table = counts(view, resource, {})
    if table["allocatable"] is None:
        return Link("allocatable", None, "no API server was asked")
    if view.ready is False:
        return Link("allocatable", False, "the node is not Ready", "look at `kubectl describe node`")
    if table["allocatable"] != table["healthy"]:
        return Link(
            "allocatable",
            False,
            f"the node's status has {table['allocatable']} {resource} allocatable, the kubelet has {table['healthy']}",
            "wait for the next node status (10 s); then look at the kubelet's connection to the API server",
        )
    return Link("allocatable", True, f"{table['allocatable']} {resource} allocatable")


def _expected(view: View, resource: str, expect: Mapping[str, int]) -> Link:
    table = counts(view, resource, expect)
    have = table["healthy"] if table["allocatable"] is None else table["allocatable"]
    if table["expected"] is None:
        return Link("expected", None, f"no number of {resource} was expected")
    if have != table["expected"]:
        return Link(
            "expected",
            False,
            f"{have} {resource} can be had, {table['expected']} expected",
            "compare with `gpu-device-plugin status` on the node: filters, sharing, MIG or an unhealthy GPU",
        )
    return Link("expected", True, f"{have} {resource}, as expected")
