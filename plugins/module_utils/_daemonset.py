# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One node's pod of a DaemonSet, and the revision that it is of. Pure functions over objects as kubectl prints them.

A DaemonSet's templates are kept as ControllerRevisions; each pod carries the hash of its own as a label.
"""

from __future__ import annotations

import copy
from typing import Any, Iterable, Mapping, Sequence

Object = dict[str, Any]

HASH = "controller-revision-hash"
_LISTS = ("containers", "initContainers")


def owned(objects: Iterable[Object], daemonset: Mapping[str, Any]) -> list[Object]:
    """Those whose controller is ``daemonset``."""
    uid = daemonset["metadata"]["uid"]
    return [
        one
        for one in objects
        if any(
            o.get("uid") == uid and o.get("controller") for o in one["metadata"].get("ownerReferences", [])
        )
    ]


def revision_hash(obj: Mapping[str, Any] | None) -> str:
    """The label that names a pod's or a ControllerRevision's template; empty where there is none."""
    return str(((obj or {}).get("metadata", {}).get("labels") or {}).get(HASH, ""))


def newest(revisions: Iterable[Object]) -> Object | None:
    """The ControllerRevision of the DaemonSet's template as it is now: the one with the greatest number."""
    return max(revisions, key=lambda one: int(one.get("revision", 0)), default=None)


def images(template: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """List of containers -> container -> image."""
    spec = template.get("spec") or {}
    return {
        part: {one["name"]: one.get("image", "") for one in spec.get(part) or []}
        for part in _LISTS
        if spec.get(part)
    }


def template_of(revision: Mapping[str, Any]) -> Object:
    """The pod template that a ControllerRevision keeps."""
    found: Object = revision["data"]["spec"]["template"]
    return found


def differ_by_images_alone(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a pod of one template becomes one of the other by new images, which the API lets a running pod have."""
    return _without_images(one) == _without_images(other)


def _without_images(template: Mapping[str, Any]) -> Object:
    bare = copy.deepcopy(dict(template))
    bare.pop("$patch", None)  # a ControllerRevision's way to say "replace"
    for part in _LISTS:
        for container in (bare.get("spec") or {}).get(part) or []:
            container.pop("image", None)
    return bare


def swap(revision: Mapping[str, Any]) -> Object:
    """The strategic merge patch that makes a running pod one of ``revision``."""
    spec = {
        part: [{"name": name, "image": image} for name, image in found.items()]
        for part, found in images(template_of(revision)).items()
    }
    return {"metadata": {"labels": {HASH: revision_hash(revision)}}, "spec": spec}


def missing_annotations(pod: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, str]:
    """Those of ``wanted`` that the pod hasn't got with that value."""
    present = pod["metadata"].get("annotations") or {}
    return {name: value for name, value in wanted.items() if present.get(name) != value}


def container_ids(pod: Mapping[str, Any]) -> dict[str, str]:
    """Container -> its id; a container that was made anew has another."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return {one["name"]: one.get("containerID", "") for one in statuses}


def seconds_to_end(pod: Mapping[str, Any]) -> int:
    """How long the pod may take to end; the API server fills it in where nobody does."""
    return int((pod.get("spec") or {}).get("terminationGracePeriodSeconds") or 0)


def unfinished(pod: Mapping[str, Any] | None, new: Mapping[str, Any], stale: Mapping[str, str]) -> str:
    """Why the pod isn't a ready one of revision ``new`` yet, in words; empty when it is.

    ``stale``: ids of containers that have to be gone, since the API server shows them for a moment after the change.
    """
    if pod is None:
        return "there is no pod yet"
    name = pod["metadata"]["name"]
    if pod["metadata"].get("deletionTimestamp"):
        return f"pod {name} is being deleted"
    if revision_hash(pod) != revision_hash(new):
        return f"pod {name} is of an old template"
    if any(ident and ident == stale.get(container) for container, ident in container_ids(pod).items()):
        return f"pod {name} still runs its old container"
    conditions = pod.get("status", {}).get("conditions") or []
    if not any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
        return f"pod {name} is not ready"
    return ""


def hopeless(pod: Mapping[str, Any] | None) -> bool:
    """Whether a container of a pod that stays starts again and again, or has no image to start from."""
    if pod and pod["metadata"].get("deletionTimestamp"):
        return False
    waits = [
        (one.get("state", {}).get("waiting") or {}).get("reason")
        for one in ((pod or {}).get("status", {}).get("containerStatuses") or [])
    ]
    return any(reason in ("CrashLoopBackOff", "ErrImageNeverPull", "InvalidImageName") for reason in waits)


def first(objects: Sequence[Object]) -> Object | None:
    """A node has one pod of a DaemonSet; while one is being deleted and another is there, the one that stays."""
    staying = [one for one in objects if not one["metadata"].get("deletionTimestamp")]
    return next(iter([*staying, *objects]), None)
