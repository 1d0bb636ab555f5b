"""What the suite asks of a node, whichever kubelet runs there: the same questions, the same answers."""

from __future__ import annotations

import abc
import json
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from embedded_kubelet import AdmissionError, EmbeddedKubelet, KubeletPanicError, Settings
from embedded_kubelet.pods import engine_arguments
from embedded_kubelet.version import Behaviour, behaviour
from embedded_kubelet.wire import CHANNEL_OPTIONS, api, podresources

CLOCK_STEP = 4_000_000
"""Nanoseconds: files' times come from a clock that ticks 250 times a second."""


@dataclass(frozen=True)
class PodOutcome:
    """What became of a pod, and what its container was given."""

    admitted: bool
    reason: str = ""
    envs: dict[str, str] = field(default_factory=dict)
    devices: tuple[tuple[str, str, str], ...] = ()
    """(container path, host path, permissions)"""
    mounts: tuple[tuple[str, str, bool], ...] = ()
    """(container path, host path, read only), the kubelet's own left out"""
    annotations: dict[str, str] = field(default_factory=dict)
    cdi: tuple[str, ...] = ()


class Node(abc.ABC):
    """A node with one kubelet that starts, stops and dies."""

    name: str
    version: str

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="gc-", dir="/tmp"))
        self.plugin_dir = self.base / "kubelet" / "device-plugins"
        self.root_dir = self.base / "kubelet"
        self.root_dir.mkdir()
        self.started_at = 0
        """When the kubelet was started last: wall clock, nanoseconds."""

    @property
    def behaviour(self) -> Behaviour:
        """The table's row of this version."""
        return behaviour(self.version)

    @abc.abstractmethod
    def start(self, *, gate: bool = True, root_dir: Path | None = None) -> None:
        """Until kubelet.sock is there (with the gate on)."""

    @abc.abstractmethod
    def stop(self) -> None:
        """As SIGTERM."""

    @abc.abstractmethod
    def kill(self) -> None:
        """As SIGKILL."""

    @abc.abstractmethod
    def run_pod(self, name: str, limits: dict[str, int]) -> PodOutcome:
        """Admit and start a pod of one container."""

    @abc.abstractmethod
    def remove_pod(self, name: str) -> None:
        """Until its devices are free."""

    @abc.abstractmethod
    def restart_container(self, name: str) -> None:
        """The container of a running pod dies and is started again."""

    @abc.abstractmethod
    def registrations_counted(self, resource: str) -> int:
        """The counter of the kubelet's metrics."""

    def alive(self) -> bool:
        """Whether the kubelet still runs."""
        return True

    def close(self) -> None:
        """Stop and clean up."""
        self.stop()
        shutil.rmtree(self.base, ignore_errors=True)

    # -- looked at from outside, the same for all ----------------------------------------------------------------

    @property
    def kubelet_sock(self) -> Path:
        """Where plugins register."""
        return self.plugin_dir / "kubelet.sock"

    def checkpoint(self) -> dict[str, Any]:
        """``Data`` of the checkpoint; empty when there is none."""
        try:
            return dict(json.loads((self.plugin_dir / "kubelet_internal_checkpoint").read_text())["Data"])
        except FileNotFoundError:
            return {"PodDeviceEntries": None, "RegisteredDevices": {}}

    def healthy(self, resource: str) -> set[str] | None:
        """Healthy ids as the kubelet wrote them down last; None when it doesn't know the resource.

        The file keeps the ids of before a restart until something is written: those don't count.
        """
        ids = (self.checkpoint()["RegisteredDevices"] or {}).get(resource)
        if ids is None:
            return None
        written = (self.plugin_dir / "kubelet_internal_checkpoint").stat().st_mtime_ns
        return set(ids) if written >= self.started_at - CLOCK_STEP else set()

    def pod_resources(self, method: str = "List", root_dir: Path | None = None, **request: Any) -> Any:
        """A PodResources call. Raises grpc.RpcError."""
        kinds = {
            "List": (podresources.ListPodResourcesRequest, podresources.ListPodResourcesResponse),
            "GetAllocatableResources": (
                podresources.AllocatableResourcesRequest,
                podresources.AllocatableResourcesResponse,
            ),
            "Get": (podresources.GetPodResourcesRequest, podresources.GetPodResourcesResponse),
        }
        asks, answers = kinds[method]
        path = (root_dir or self.root_dir) / "pod-resources/kubelet.sock"
        with grpc.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS) as channel:
            call = channel.unary_unary(
                f"/{api.POD_RESOURCES}/{method}", asks.SerializeToString, answers.FromString
            )
            return call(asks(**request), timeout=5)

    def pod_name(self, name: str) -> str:
        """What the kubelet calls a pod of ours."""
        return name

    def held(self, name: str, resource: str) -> set[str]:
        """Ids that a pod holds, as PodResources has it."""
        return {
            i
            for pod in self.pod_resources().pod_resources
            if pod.name == self.pod_name(name)
            for container in pod.containers
            for devices in container.devices
            if devices.resource_name == resource
            for i in devices.device_ids
        }


class EmbeddedNode(Node):
    """The embedded kubelet, in this process."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self.version = behaviour(version).version
        self.name = f"embedded-{version}"
        self.settings = Settings(
            plugin_dir=self.plugin_dir,
            root_dir=self.root_dir,
            version=version,
            dial_seconds=0.6,
            node_status_seconds=0.1,
            registry_seconds=0.05,
        )
        self.kubelet = EmbeddedKubelet(self.settings)

    def use(self, **settings: Any) -> None:
        """Other settings, from the next start on; the node's memory stays."""
        values = {name: getattr(self.settings, name) for name in Settings.__dataclass_fields__} | settings
        self.stop()
        self.kubelet = EmbeddedKubelet(Settings(**values))

    def start(self, *, gate: bool = True, root_dir: Path | None = None) -> None:
        if gate != self.kubelet.settings.gate or root_dir is not None or self.kubelet.panicked.is_set():
            self.use(gate=gate, root_dir=root_dir or self.root_dir)
        self.started_at = time.time_ns()
        self.kubelet.start()

    def stop(self) -> None:
        self.kubelet.stop()

    def kill(self) -> None:
        self.kubelet.kill()

    def alive(self) -> bool:
        return self.kubelet.running

    def run_pod(self, name: str, limits: dict[str, int]) -> PodOutcome:
        try:
            answer = self.kubelet.admit(name, limits)
        except (AdmissionError, KubeletPanicError) as error:
            return PodOutcome(False, str(error))
        arguments = engine_arguments([answer], self.behaviour.cdi)
        return PodOutcome(
            True,
            envs=dict(answer.envs),
            devices=tuple((d.container_path, d.host_path, d.permissions) for d in answer.devices),
            mounts=tuple((m.container_path, m.host_path, m.read_only) for m in answer.mounts),
            annotations=dict(answer.annotations),
            cdi=tuple(d.name for d in answer.cdi_devices if d.name in arguments),
        )

    def remove_pod(self, name: str) -> None:
        self.kubelet.remove_pod(name)

    def restart_container(self, name: str) -> None:
        self.kubelet.start_container(name)

    def registrations_counted(self, resource: str) -> int:
        assert self.kubelet.manager is not None
        return self.kubelet.manager.registrations.get(resource, 0)
