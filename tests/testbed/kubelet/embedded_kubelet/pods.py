"""The pods of an embedded node: what a scheduler and an API server would remember, in one file."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of one container."""

    name: str
    uid: str
    limits: Mapping[str, int]
    container: str = "main"
    namespace: str = NAMESPACE
    image: str = ""
    command: tuple[str, ...] = ()
    phase: str = "Pending"
    """Pending, Running, Succeeded, Failed."""
    reason: str = ""
    engine_name: str = ""
    """The container's name in the engine; empty for pods without one (tests)."""

    @property
    def containers(self) -> tuple[str, ...]:
        """Names of its containers."""
        return (self.container,)

    @property
    def active(self) -> bool:
        """Whether it holds what it was given."""
        return self.phase in ("Pending", "Running")


class PodStore:
    """Pods by name; written after each change when there is a file to write to."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._pods: dict[str, Pod] = {}
        if path is not None and path.exists():
            for item in json.loads(path.read_text()):
                item["command"] = tuple(item["command"])
                pod = Pod(**item)
                self._pods[pod.name] = pod

    def all(self) -> list[Pod]:
        """In the order they came."""
        with self._lock:
            return list(self._pods.values())

    def get(self, name: str) -> Pod | None:
        """By name."""
        with self._lock:
            return self._pods.get(name)

    def put(self, pod: Pod) -> None:
        """Add or replace."""
        with self._lock:
            self._pods[pod.name] = pod
            self._write()

    def change(self, name: str, **fields: Any) -> None:
        """Set fields of a pod that is there; nothing for one that isn't."""
        with self._lock:
            if name in self._pods:
                self.put(replace(self._pods[name], **fields))

    def remove(self, name: str) -> Pod | None:
        """Forget it."""
        with self._lock:
            pod = self._pods.pop(name, None)
            self._write()
            return pod

    def active_uids(self) -> set[str]:
        """Of pods that hold devices."""
        return {pod.uid for pod in self.all() if pod.active}

    def requested(self) -> dict[str, int]:
        """Sum of the active pods' limits by resource: what a scheduler subtracts from allocatable."""
        total: dict[str, int] = {}
        for pod in self.all():
            if pod.active:
                for resource, number in pod.limits.items():
                    total[resource] = total.get(resource, 0) + number
        return total

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps([asdict(pod) for pod in self._pods.values()], indent=1))
        temporary.replace(self._path)


def engine_arguments(responses: Sequence[Any], cdi: bool) -> list[str]:
    """``docker run`` options for what plugins answered: envs, devices, mounts, annotations, and CDI names where read.

    The first setting of a name wins, as in the kubelet.
    """
    envs: dict[str, str] = {}
    annotations: dict[str, str] = {}
    devices: dict[str, str] = {}
    mounts: dict[str, str] = {}
    cdi_names: list[str] = []
    for response in responses:
        for name, value in sorted(response.envs.items()):
            envs.setdefault(name, value)
        for name, value in sorted(response.annotations.items()):
            annotations.setdefault(name, value)
        for device in response.devices:
            devices.setdefault(
                device.container_path, f"{device.host_path}:{device.container_path}:{device.permissions}"
            )
        for mount in response.mounts:
            mode = ",readonly" if mount.read_only else ""
            mounts.setdefault(
                mount.container_path,
                f"type=bind,source={mount.host_path},target={mount.container_path}{mode}",
            )
        cdi_names.extend(device.name for device in response.cdi_devices)
    arguments: list[str] = []
    for name, value in envs.items():
        arguments += ["--env", f"{name}={value}"]
    for value in devices.values():
        arguments += ["--device", value]
    for value in mounts.values():
        arguments += ["--mount", value]
    for name, value in annotations.items():
        # Docker's containers have no annotations before 24; the kubelet hands them on as labels there (dockershim).
        arguments += ["--label", f"annotation.{name}={value}"]
    if cdi:
        for name in dict.fromkeys(cdi_names):
            arguments += ["--device", name]
    return arguments
