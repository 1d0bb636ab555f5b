# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was asked of each node, made into what the fleet report shows. Pure, and in a fixed order."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_summary
short_description: What the fleet report shows, from what each node said
version_added: 0.1.0
author:
  - The gpuops developers (@gpuops)
description:
  - Counts the GPUs of a fleet, names what needs attention and why, who holds which GPU, and where versions differ.
  - Used by the playbook C(gpuops.k8s.report). A node that said nothing, or only a part, is shown as such.
options:
  _input:
    description:
      - One mapping a node with C(host), C(name), C(reachable), C(facts), C(gpus) (from M(gpuops.k8s.gpu_info)),
        C(offered) (from M(gpuops.k8s.device_plugin_info)), C(status) (the plugin's own), C(object) (the node's
        object from the API server), C(versions), C(default_runtime) and C(outcome) (of C(gpuops.k8s.provision)).
    type: list
    elements: dict
    required: true
  pods:
    description: Pods from the API server that are not running yet. Those that ask for GPUs are shown as waiting.
    type: list
    elements: dict
    default: []
  api:
    description:
      - How the API server answered, one mapping a request - C(asked) (C(nodes) or C(pods)), C(by) (the control host),
        C(command), C(answered), C(reached) (whether the control host was) and C(words), what was said instead.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: How many GPUs are free
  ansible.builtin.debug:
    msg: "{{ (report_all_nodes | gpuops.k8s.fleet_summary).totals.free }}"
"""

RETURN = r"""
_value:
  description:
    - C(totals), counts in which every GPU is one of held, free, unhealthy and not offered.
    - C(nodes), what needs attention first; C(holders), C(waiting), C(versions) and C(run).
    - C(api), what could not be asked of the API server, with why and the next step.
  type: dict
"""

import re
from typing import Any

# Tiles name this many pods of a GPU that is shared, and say how many there are more.
_SHOWN_HOLDERS = 4
_ORDER = {"bad": 0, "down": 1, "good": 2}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _model(name: Any) -> str:
    return str(name or "unknown model").replace("NVIDIA ", "", 1)


def _natural(text: Any) -> list[Any]:
    """Sorts gpu2 before gpu10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", str(text))]


def _tile(same: list[dict[str, Any]]) -> dict[str, Any]:
    """One GPU or slice with all its replicas."""
    first = same[0]
    holders = [
        f"{who.get('namespace')}/{who.get('pod')}"
        for who in (_dict(device.get("holder")) for device in same)
        if who
    ]
    names = sorted(set(holders), key=_natural)
    sick = [device for device in same if not device.get("healthy")]
    return {
        "index": first.get("index"),
        "uuid": first.get("uuid") or first.get("id"),
        "model": _model(first.get("model")) if first.get("model") else "",
        "copies": len(same),
        "held": len(holders),
        "holders": names[:_SHOWN_HOLDERS],
        "more": max(len(names) - _SHOWN_HOLDERS, 0),
        "kind": "sick" if sick else "held" if holders else "free",
        "reason": (sick[0].get("reason") or "no reason given") if sick else "",
    }


def _resources(status: dict[str, Any]) -> list[dict[str, Any]]:
    shown = []
    for resource in _list(status.get("resources")):
        by_uuid: dict[str, list[dict[str, Any]]] = {}
        for device in _list(resource.get("devices")):
            by_uuid.setdefault(str(device.get("uuid") or device.get("id")), []).append(device)
        tiles = sorted((_tile(same) for same in by_uuid.values()), key=lambda tile: _natural(tile["index"]))
        shown.append(
            {
                "name": resource.get("name"),
                "problem": resource.get("problem") or "",
                "total": sum(tile["copies"] for tile in tiles),
                "held": sum(tile["held"] for tile in tiles),
                "healthy": sum(1 for device in _list(resource.get("devices")) if device.get("healthy")),
                "tiles": tiles,
            }
        )
    return shown


def _gpus(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Every GPU of a node with its state: held, free, unhealthy or not offered."""
    status = _dict(node.get("status"))
    reasons = {gpu.get("uuid"): gpu.get("reason") for gpu in _list(status.get("gpus"))}
    seen: dict[Any, set[str]] = {}
    for resource in _list(status.get("resources")):
        for device in _list(resource.get("devices")):
            words = seen.setdefault(device.get("gpu") or device.get("uuid"), {"offered"})
            if not device.get("healthy"):
                words.add("unhealthy")
            if device.get("holder"):
                words.add("held")
    found = []
    for gpu in _list(_dict(node.get("gpus")).get("gpus")):
        words = seen.get(gpu.get("uuid"), set())
        if gpu.get("fault") or reasons.get(gpu.get("uuid")) or "unhealthy" in words:
            state = "unhealthy"
        elif not words:
            state = "not offered"
        else:
            state = "held" if "held" in words else "free"
        found.append(
            {
                "index": gpu.get("index"),
                "uuid": gpu.get("uuid") or "",
                "model": _model(gpu.get("name")),
                "state": state,
                "reason": gpu.get("fault") or reasons.get(gpu.get("uuid")) or "",
            }
        )
    return found


def _why(node: dict[str, Any], ready: dict[str, Any]) -> list[dict[str, str]]:
    """Everything that needs attention, each with what, why and the next step."""
    found = []
    if not node.get("reachable"):
        return [
            {
                "what": "The node does not answer",
                "why": "Nothing below is known of it, and its GPUs are not in the counts.",
                "next": "Is it up, and can the control host reach it by SSH?",
            }
        ]
    outcome = _dict(node.get("outcome"))
    if outcome.get("failed"):
        found.append(
            {"what": f"This run: {outcome.get('state')}", "why": outcome.get("reason") or "", "next": ""}
        )
    for part in ("gpus", "offered"):
        link = _dict(node.get(part))
        if link.get("broken_link"):
            found.append(
                {
                    "what": str(link["broken_link"]),
                    "why": link.get("reason") or "",
                    "next": link.get("next_step") or "",
                }
            )
            break  # links follow each other: what comes after a broken one is broken by it
        if link.get("failed") and not link.get("links"):
            found.append(
                {"what": f"{part} could not be asked", "why": str(link.get("msg") or ""), "next": ""}
            )
            break
    if ready and ready.get("status") != "True":
        found.append(
            {
                "what": "The node is not Ready",
                "why": ready.get("message") or ready.get("reason") or "",
                "next": "look at the kubelet's log on the node",
            }
        )
    return found


def _counts(node: dict[str, Any], resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a resource: what the plugin has, what the kubelet says, what the API server says."""
    offered = _dict(_dict(node.get("offered")).get("resources"))
    allocatable = _dict(_dict(_dict(node.get("object")).get("status")).get("allocatable"))
    own = {resource["name"]: resource for resource in resources}
    rows = []
    for name in sorted({*offered, *own}):
        said = _dict(offered.get(name))
        rows.append(
            {
                "name": name,
                "registered": said.get("registered"),
                "healthy": said.get("healthy", _dict(own.get(name)).get("healthy")),
                "allocatable": allocatable.get(name, said.get("allocatable")),
                "expected": said.get("expected"),
            }
        )
    return rows


def _node(node: dict[str, Any]) -> dict[str, Any]:
    facts, gpus, status = _dict(node.get("facts")), _dict(node.get("gpus")), _dict(node.get("status"))
    spec = _dict(_dict(node.get("object")).get("spec"))
    conditions = _list(_dict(_dict(node.get("object")).get("status")).get("conditions"))
    ready = next((_dict(one) for one in conditions if _dict(one).get("type") == "Ready"), {})
    resources, cards, why = _resources(status), _gpus(node), _why(node, ready)
    # A node that runs everything as it should may still have a GPU that does not.
    sick = any(card["state"] == "unhealthy" for card in cards) or any(
        tile["kind"] == "sick" for resource in resources for tile in resource["tiles"]
    )
    state = "down" if not node.get("reachable") else "bad" if why or sick else "good"
    words = {"good": "In order", "bad": "Needs attention", "down": "Unreachable"}[state]
    models: dict[str, int] = {}
    for card in cards:
        models[card["model"]] = models.get(card["model"], 0) + 1
    versions = {
        "system": f"{facts.get('distribution') or ''} {facts.get('distribution_version') or ''}".strip(),
        "kernel": facts.get("kernel"),
        "driver": gpus.get("driver_version") or status.get("driver_version"),
        "CUDA": gpus.get("cuda_version") or status.get("cuda_version"),
        "device plugin": status.get("version"),
        **_dict(node.get("versions")),
        "default runtime": node.get("default_runtime"),
    }
    outcome = _dict(node.get("outcome"))
    return {
        "host": str(node.get("host")),
        "state": state,
        "badge": words + (", cordoned" if spec.get("unschedulable") else ""),
        "models": [{"name": name, "count": count} for name, count in models.items()],
        "gpus": cards,
        "count": {
            word: sum(card["state"] == word for card in cards)
            for word in ("held", "free", "unhealthy", "not offered")
        },
        "why": why,
        "resources": resources,
        "rows": _counts(node, resources),
        "versions": {name: str(value) for name, value in versions.items() if value},
        "problems": list(
            dict.fromkeys(str(one) for one in [*_list(gpus.get("problems")), *_list(status.get("problems"))])
        ),
        "outcome": {
            "state": str(outcome.get("state")),
            "failed": bool(outcome.get("failed")),
            "files": [str(file) for file in _list(outcome.get("files"))],
        }
        if outcome
        else {},
    }


def _holders(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who holds what: one row a pod, node and resource; the indices of its GPUs or slices."""
    held: dict[tuple[str, str, str], list[str]] = {}
    for node in nodes:
        for resource in _list(_dict(node.get("status")).get("resources")):
            for device in _list(resource.get("devices")):
                who = _dict(device.get("holder"))
                if who:
                    key = (
                        f"{who.get('namespace')}/{who.get('pod')}",
                        str(node.get("host")),
                        str(resource.get("name")),
                    )
                    held.setdefault(key, []).append(str(device.get("index")))
    return [
        {
            "pod": pod,
            "host": host,
            "resource": resource,
            "count": len(which),
            "gpus": sorted(set(which), key=_natural),
        }
        for (pod, host, resource), which in sorted(
            held.items(), key=lambda one: [_natural(word) for word in one[0]]
        )
    ]


def _waiting(pods: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pods that ask for an extended resource of GPUs and were not placed, with the scheduler's reason."""
    found = []
    for pod in pods:
        spec, status, meta = _dict(pod.get("spec")), _dict(pod.get("status")), _dict(pod.get("metadata"))
        if status.get("phase") != "Pending" or spec.get("nodeName"):
            continue
        wants: dict[str, int] = {}
        for container in _list(spec.get("containers")):
            for name, count in _dict(_dict(container.get("resources")).get("limits")).items():
                if name.startswith("nvidia.com/"):
                    wants[name] = wants.get(name, 0) + (int(count) if str(count).isdigit() else 0)
        if wants:
            placed = [
                one for one in _list(status.get("conditions")) if _dict(one).get("type") == "PodScheduled"
            ]
            found.append(
                {
                    "pod": f"{meta.get('namespace')}/{meta.get('name')}",
                    "wants": [{"name": name, "count": count} for name, count in sorted(wants.items())],
                    "reason": (_dict(placed[0]).get("message") if placed else None) or "not looked at yet",
                }
            )
    return sorted(found, key=lambda one: _natural(one["pod"]))


# What the page can't tell without each answer.
_UNKNOWN = {"nodes": "which nodes are cordoned or not Ready", "pods": "which pods wait for GPUs"}


def _api(answers: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Requests that the API server did not answer, with the reason and the next step; those of one reason are one."""
    by_words: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for answer in answers:
        if not answer.get("answered"):
            key = (str(answer.get("words") or "nothing was said"), bool(answer.get("reached")))
            by_words.setdefault(key, []).append(answer)
    found = []
    for (words, reached), same in by_words.items():
        asked = [str(one.get("asked")) for one in same]
        by, command = same[0].get("by"), str(same[0].get("command") or "kubectl")
        found.append(
            {
                "what": f"The API server did not say {' nor '.join(_UNKNOWN.get(one, one) for one in asked)}",
                "why": words,
                "next": f"on {by} run `{command.replace(' -o json', '')}`; device_plugin_control_host, "
                "device_plugin_kubectl and device_plugin_kubeconfig say how it is asked"
                if reached
                else f"is {by} (device_plugin_control_host) up, and can it be reached by SSH?",
            }
        )
    return found


def _versions(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each program with its versions, the commonest first; ``hosts`` names those that have another."""
    found = []
    for name in dict.fromkeys(name for node in nodes for name in node["versions"]):
        by_version: dict[str, list[str]] = {}
        for node in nodes:
            if name in node["versions"]:
                by_version.setdefault(node["versions"][name], []).append(node["host"])
        values = sorted(by_version.items(), key=lambda one: (-len(one[1]), _natural(one[0])))
        found.append(
            {
                "name": name,
                "values": [
                    {"version": version, "count": len(hosts), "hosts": hosts} for version, hosts in values
                ],
            }
        )
    return found


def fleet_summary(
    nodes: list[dict[str, Any]],
    pods: list[dict[str, Any]] | None = None,
    api: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Everything the page shows, in the order in which it shows it."""
    nodes = [_dict(node) for node in _list(nodes)]
    shown = sorted(
        (_node(node) for node in nodes), key=lambda one: (_ORDER[one["state"]], _natural(one["host"]))
    )
    counts = {
        word: sum(one["count"][word] for one in shown)
        for word in ("held", "free", "unhealthy", "not offered")
    }
    outcomes: dict[str, list[str]] = {}
    for one in shown:
        if one["outcome"]:
            outcomes.setdefault(one["outcome"]["state"], []).append(one["host"])
    return {
        "totals": {
            "nodes": len(shown),
            "in_order": sum(one["state"] == "good" for one in shown),
            "attention": sum(one["state"] == "bad" for one in shown),
            "unreachable": sum(one["state"] == "down" for one in shown),
            "gpus": sum(counts.values()),
            "held": counts["held"],
            "free": counts["free"],
            "unhealthy": counts["unhealthy"],
            "not_offered": counts["not offered"],
        },
        "nodes": shown,
        "api": _api([_dict(answer) for answer in _list(api)]),
        "holders": _holders(nodes),
        "waiting": _waiting([_dict(pod) for pod in _list(pods)]),
        "versions": _versions(shown),
        "run": [{"state": state, "hosts": hosts} for state, hosts in outcomes.items()],
    }


class FilterModule:
    """Ansible's way to find the filter."""

    def filters(self) -> dict[str, Any]:
        """Name -> function."""
        return {"fleet_summary": fleet_summary}
