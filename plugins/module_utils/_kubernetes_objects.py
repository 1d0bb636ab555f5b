# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Kubernetes objects as plain dictionaries: identity, meaning, readiness. Pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Iterable, Iterator, Mapping, Sequence

Object = dict[str, Any]

# Written by the server, or by controllers in answer to our change; never part of what somebody asked for.
_SERVER_METADATA = ("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink")
_SERVER_ANNOTATIONS = (
    "deprecated.daemonset.template.generation",
    "deployment.kubernetes.io/revision",
    "kubectl.kubernetes.io/last-applied-configuration",
)
# Fields whose values are quantities by name: containers, claims, resource quotas.
_QUANTITIES = ("limits", "requests", "hard")
# Reasons for which a container waits in the ordinary course of things.
_HARMLESS_WAITS = ("ContainerCreating", "PodInitializing")


@dataclass(frozen=True)
class Key:
    """What tells one object from another. ``group`` has no version: v1beta1 and v1 name the same object."""

    group: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.kind} {self.name}{where}"

    def names(self, other: Key) -> bool:
        """Whether both are the same object, an absent namespace on either side meaning kubectl's default."""
        same_namespace = not self.namespace or not other.namespace or self.namespace == other.namespace
        return (self.group, self.kind, self.name) == (other.group, other.kind, other.name) and same_namespace


@dataclass(frozen=True)
class Readiness:
    """``ready``; else ``reason`` in words, and ``failed`` when waiting longer is of no use."""

    ready: bool
    reason: str = ""
    failed: bool = False


READY = Readiness(True)


def key_of(obj: Mapping[str, Any]) -> Key:
    """The key of an object that :func:`check` has passed."""
    api_version = str(obj["apiVersion"])
    metadata = obj["metadata"]
    return Key(
        group=api_version.rpartition("/")[0],
        kind=str(obj["kind"]),
        namespace=str(metadata.get("namespace") or ""),
        name=str(metadata["name"]),
    )


def check(documents: Iterable[Any]) -> list[Object]:
    """Flatten lists, drop empty documents, and refuse what kubectl could not place.

    Raises:
        ValueError: the text names the document (counted from 1) and what it lacks.
    """
    found: list[Object] = []
    for number, document in enumerate(documents, start=1):
        found.extend(_check_one(document, f"document {number}"))
    seen: set[Key] = set()
    for obj in found:
        key = key_of(obj)
        if key in seen:
            raise ValueError(f"{key} is given twice; keep one of them")
        seen.add(key)
    return found


def _check_one(document: Any, where: str) -> Iterator[Object]:
    if document is None:
        return
    if isinstance(document, (list, tuple)):
        for number, item in enumerate(document, start=1):
            yield from _check_one(item, f"{where}, item {number}")
        return
    if not isinstance(document, Mapping):
        raise ValueError(
            f"{where} is {type(document).__name__}, not a mapping; a manifest has apiVersion and kind"
        )
    kind = document.get("kind")
    if isinstance(kind, str) and kind.endswith("List") and isinstance(document.get("items"), list):
        for number, item in enumerate(document["items"], start=1):
            yield from _check_one(item, f"{where}, item {number}")
        return
    for field in ("apiVersion", "kind"):
        if not isinstance(document.get(field), str) or not document[field]:
            raise ValueError(f"{where} has no {field}")
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping) or not metadata.get("name"):
        raise ValueError(f"{where} ({kind}) has no metadata.name; generateName can't be applied twice")
    yield with_text_quantities(document)


def with_text_quantities(value: Any) -> Any:
    """A copy with quantities as text: ``nvidia.com/gpu: 1`` becomes ``"1"``.

    Server-side apply of API servers before 1.22 refuses numbers there ("expected string, got 1"), which every
    other way of creating objects takes.
    """
    if isinstance(value, Mapping):
        return {
            name: {key: str(one) if _is_number(one) else one for key, one in inner.items()}
            if name in _QUANTITIES and isinstance(inner, Mapping)
            else with_text_quantities(inner)
            for name, inner in value.items()
        }
    return [with_text_quantities(one) for one in value] if isinstance(value, (list, tuple)) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def decode(text: str) -> list[Object]:
    """What ``kubectl -o json`` printed: nothing, one object, a List, or several objects in a row."""
    decoder = json.JSONDecoder()
    found: list[Object] = []
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position >= len(text):
            return found
        value, position = decoder.raw_decode(text, position)
        found.extend(value["items"] if value.get("kind") == "List" else [value])


def find(key: Key, objects: Iterable[Object]) -> Object | None:
    """The object with this key, or None."""
    return next((obj for obj in objects if key.names(key_of(obj))), None)


def meaning(obj: Mapping[str, Any] | None) -> Object:
    """The object without its status and without what servers and controllers write; {} for None."""
    if obj is None:
        return {}
    kept = {name: value for name, value in obj.items() if name not in ("status", "metadata")}
    metadata = {n: v for n, v in obj.get("metadata", {}).items() if n not in _SERVER_METADATA}
    annotations = metadata.get("annotations")
    if annotations is not None:
        ours = {n: v for n, v in annotations.items() if n not in _SERVER_ANNOTATIONS}
        metadata["annotations"] = ours
        if not ours:
            del metadata["annotations"]
    kept["metadata"] = metadata
    return kept


def shown(obj: Mapping[str, Any] | None) -> Object:
    """:func:`meaning` fit for logs and diffs: the values of a Secret are replaced, their names stay."""
    kept = meaning(obj)
    if kept.get("kind") == "Secret":
        for field in ("data", "stringData"):
            if isinstance(kept.get(field), Mapping):
                kept[field] = dict.fromkeys(kept[field], "(not shown)")
    return kept


def applied_by(obj: Mapping[str, Any] | None, manager: str) -> bool:
    """Whether ``manager`` has applied this object before (server-side apply keeps a record a manager)."""
    entries = (obj or {}).get("metadata", {}).get("managedFields") or []
    return any(entry.get("manager") == manager and entry.get("operation") == "Apply" for entry in entries)


def conditions(obj: Mapping[str, Any] | None, types: Iterable[str]) -> list[Object]:
    """Those conditions of a live object whose type is one of ``types``."""
    found = (obj or {}).get("status", {}).get("conditions") or []
    wanted = set(types)
    return [one for one in found if one.get("type") in wanted]


def new_namespaces(wanted: Iterable[Object], current: Sequence[Object]) -> set[str]:
    """Names of the namespaces that are asked for here and don't exist yet."""
    keys = (key_of(obj) for obj in wanted if obj["kind"] == "Namespace")
    return {key.name for key in keys if find(key, current) is None}


def selector_of(obj: Mapping[str, Any]) -> str:
    """The label selector of a workload's pods as ``kubectl -l`` takes it, or ''."""
    selector = obj.get("spec", {}).get("selector")
    labels = selector.get("matchLabels") if isinstance(selector, Mapping) else None
    return ",".join(f"{name}={value}" for name, value in sorted((labels or {}).items()))


def readiness(obj: Mapping[str, Any] | None) -> Readiness:
    """Whether a live object has become what it was meant to be; of most kinds it need only exist."""
    if obj is None:
        return Readiness(False, "does not exist")
    judge = _JUDGES.get(obj["kind"])
    return judge(obj) if judge else READY


def _condition(obj: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    conditions = obj.get("status", {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == name), {})


def _unseen(obj: Mapping[str, Any]) -> bool:
    """The controller has not looked at the newest spec yet, so its numbers are of the old one."""
    generation: int = obj["metadata"].get("generation", 0)
    observed: int = obj.get("status", {}).get("observedGeneration", 0)
    return observed < generation


def _counts(obj: Mapping[str, Any], wanted: int, updated_field: str, available_field: str) -> Readiness:
    status = obj.get("status", {})
    updated, available = status.get(updated_field, 0), status.get(available_field, 0)
    if updated < wanted:
        return Readiness(False, f"{updated} of {wanted} pods are of the newest version")
    if available < wanted:
        return Readiness(False, f"{available} of {wanted} pods are available")
    return READY


def _daemonset(obj: Mapping[str, Any]) -> Readiness:
    if _unseen(obj):
        return Readiness(False, "the DaemonSet controller has not seen the change yet")
    wanted = obj.get("status", {}).get("desiredNumberScheduled", 0)
    # With OnDelete old pods stay until somebody deletes them: waiting for new ones would never end.
    on_delete = obj.get("spec", {}).get("updateStrategy", {}).get("type") == "OnDelete"
    return _counts(obj, wanted, "numberReady" if on_delete else "updatedNumberScheduled", "numberAvailable")


def _deployment(obj: Mapping[str, Any]) -> Readiness:
    if _unseen(obj):
        return Readiness(False, "the Deployment controller has not seen the change yet")
    progressing = _condition(obj, "Progressing")
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return Readiness(False, str(progressing.get("message")), failed=True)
    judged = _counts(obj, obj["spec"].get("replicas", 1), "updatedReplicas", "availableReplicas")
    status = obj.get("status", {})
    old = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    return Readiness(False, f"{old} old pods are still there") if judged.ready and old > 0 else judged


def _statefulset(obj: Mapping[str, Any]) -> Readiness:
    if _unseen(obj):
        return Readiness(False, "the StatefulSet controller has not seen the change yet")
    return _counts(obj, obj["spec"].get("replicas", 1), "updatedReplicas", "readyReplicas")


def _job(obj: Mapping[str, Any]) -> Readiness:
    failed = _condition(obj, "Failed")
    if failed.get("status") == "True":
        return Readiness(False, f"{failed.get('reason')}: {failed.get('message')}", failed=True)
    done = _condition(obj, "Complete").get("status") == "True"
    return READY if done else Readiness(False, "is not complete")


def _pod(obj: Mapping[str, Any]) -> Readiness:
    status = obj.get("status", {})
    phase = status.get("phase")
    if phase == "Failed":
        words = [str(status[field]) for field in ("reason", "message") if status.get(field)]
        return Readiness(False, ": ".join(["phase Failed", *words]), failed=True)
    if phase == "Succeeded" or _condition(obj, "Ready").get("status") == "True":
        return READY
    return Readiness(False, "; ".join(pod_troubles([obj])) or f"phase {phase or 'unknown'}")


def _condition_judge(name: str, reason: str) -> Any:
    def judge(obj: Mapping[str, Any]) -> Readiness:
        condition = _condition(obj, name)
        if condition.get("status") == "True":
            return READY
        return Readiness(False, str(condition.get("message") or reason))

    return judge


def _phase_judge(name: str) -> Any:
    def judge(obj: Mapping[str, Any]) -> Readiness:
        phase = obj.get("status", {}).get("phase")
        return READY if phase == name else Readiness(False, f"phase {phase or 'unknown'}, not {name}")

    return judge


_JUDGES = {
    "DaemonSet": _daemonset,
    "Deployment": _deployment,
    "StatefulSet": _statefulset,
    "Job": _job,
    "Pod": _pod,
    "Node": _condition_judge("Ready", "the node is not Ready"),
    "CustomResourceDefinition": _condition_judge("Established", "is not established"),
    "APIService": _condition_judge("Available", "is not available"),
    "Namespace": _phase_judge("Active"),
    "PersistentVolumeClaim": _phase_judge("Bound"),
}


def refusal(events: Iterable[Mapping[str, Any]]) -> str:
    """What the newest FailedCreate among Events says, with when it was; '' without one.

    A controller sends it when the API server takes none of its pods: quota, admission, Pod Security.
    """
    failed = [one for one in events if one.get("reason") == "FailedCreate"]
    newest = max(failed, key=_seen_last, default=None)
    if newest is None:
        return ""
    times = (newest.get("series") or {}).get("count") or newest.get("count") or 1
    often = f", {times} times" if times > 1 else ""
    why = str(newest.get("message", ""))
    for prefix in ("(combined from similar events): ", "Error creating: "):
        why = why[len(prefix) :] if why.startswith(prefix) else why
    return f"no pod could be created (at {_seen_last(newest)}{often}): {why}"


def _seen_last(event: Mapping[str, Any]) -> str:
    """When an Event was seen last: RFC 3339 in UTC, so that text order is time order. Its writer fills one of these."""
    series = (event.get("series") or {}).get("lastObservedTime")
    places = (
        series,
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    return str(next((time for time in places if time), ""))


def pod_troubles(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each pod or container that isn't well: where it is, and what the kubelet says."""
    return [line for pod in pods for line in _pod_troubles(pod)]


def _pod_troubles(pod: Mapping[str, Any]) -> Iterator[str]:
    status = pod.get("status", {})
    node = pod.get("spec", {}).get("nodeName")
    name = f"pod {pod['metadata']['name']}" + (f" on {node}" if node else "")
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        yield f"{name}: {scheduled.get('reason')}: {scheduled.get('message')}"
    if status.get("phase") == "Failed" and not status.get("containerStatuses"):
        yield f"{name}: {status.get('reason')}: {status.get('message')}"
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        for detail in _container_troubles(container):
            yield f"{name}: container {container['name']}: {detail}"


def _container_troubles(container: Mapping[str, Any]) -> Iterator[str]:
    waiting = container.get("state", {}).get("waiting")
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    if waiting and waiting.get("reason") not in _HARMLESS_WAITS:
        yield ": ".join(str(waiting[field]) for field in ("reason", "message") if waiting.get(field))
    if ended and ended.get("exitCode"):
        yield f"ended with exit code {ended['exitCode']} ({ended.get('reason')})"
    if "running" in container.get("state", {}) and not container.get("ready"):
        yield "runs but is not ready (its readiness probe fails)"


def changed_fields(before: Any, after: Any, path: str = "") -> list[str]:
    """Dotted paths of the values that differ, sorted; lists are compared as a whole."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [
            found
            for name in sorted({*before, *after})
            for found in changed_fields(
                before.get(name), after.get(name), f"{path}.{name}" if path else str(name)
            )
        ]
    return [] if before == after else [path]
