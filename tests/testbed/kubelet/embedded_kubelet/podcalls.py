"""What ``kubelet-pod`` may ask the running kubelet: admit, note what became of a pod, list, remove, show the node."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from typing import Any

from . import engine
from .allocation import AdmissionError
from .kubelet import EmbeddedKubelet
from .pods import Pod, engine_arguments

LABEL = "gpuops.embedded-kubelet.pod"


class PodCalls:
    """The calls over one kubelet."""

    def __init__(self, kubelet: EmbeddedKubelet) -> None:
        self._kubelet = kubelet
        self._lock = threading.Lock()

    def all(self) -> dict[str, Callable[..., Any]]:
        """By name, for the admin socket."""
        return {
            "admit": self.admit,
            "finished": self.finished,
            "list": self.list,
            "remove": self.remove,
            "node": self.node,
        }

    def admit(self, name: str, limits: dict[str, int], image: str, command: list[str]) -> dict[str, Any]:
        """Schedule, prefer, allocate; the answer says how to start the container. Raises AdmissionError."""
        with self._lock:
            self.reconcile()
            name = name or f"{image.rpartition('/')[2].partition(':')[0]}-{secrets.token_hex(3)}"
            old = self._kubelet.pods.get(name)
            if old is not None and old.active:
                raise AdmissionError(f"pod {name} exists already: kubelet-pod rm {name}")
            if old is not None:
                self.remove(name)
            pod = self._kubelet.add_pod(
                name, limits, image=image, command=tuple(command), engine_name=f"k8s_main_{name}"
            )
            return {"name": name, "container": pod.engine_name, "arguments": self._arguments(pod)}

    def _arguments(self, pod: Pod) -> list[str]:
        answered = engine_arguments(self._kubelet.responses_of(pod), self._kubelet.behaviour.cdi)
        return [
            "--name",
            pod.engine_name,
            "--label",
            f"{LABEL}={pod.name}",
            "--hostname",
            pod.name[:63],
            *answered,
        ]

    def finished(self, name: str, status: int) -> None:
        """The container ended, or never began (125 and above)."""
        phase = "Succeeded" if status == 0 else "Failed"
        self._kubelet.pods.change(name, phase=phase, reason="" if status == 0 else f"exit status {status}")

    def list(self) -> list[dict[str, Any]]:
        """One entry a pod: name, phase, reason, image, and the ids it holds by resource."""
        self.reconcile()
        return [
            {
                "name": pod.name,
                "phase": pod.phase,
                "reason": pod.reason,
                "image": pod.image,
                "container": pod.engine_name,
                "devices": {
                    resource: sorted(self._kubelet.ids_of(pod.name, resource)) if pod.active else []
                    for resource in pod.limits
                },
            }
            for pod in self._kubelet.pods.all()
        ]

    def remove(self, name: str) -> None:
        """Stop the container, forget the pod, free its devices. Raises AdmissionError for an unknown one."""
        pod = self._kubelet.pods.get(name)
        if pod is None:
            raise AdmissionError(f"no pod {name}: kubelet-pod ls")
        if pod.engine_name:
            engine.remove(self._kubelet.settings.docker, pod.engine_name)
        self._kubelet.remove_pod(name)

    def node(self) -> dict[str, Any]:
        """The Node's status as published last."""
        return dict(self._kubelet.node_status())

    def reconcile(self) -> None:
        """Notice containers that ended. A pod whose container has not begun yet, or an engine that is silent, stays."""
        for pod in self._kubelet.pods.all():
            if pod.phase != "Running" or not pod.engine_name:
                continue
            state = engine.state_of(pod.engine_name)
            if state is not None and not state[0] and pod.reason == "started":
                self.finished(pod.name, state[1])
            elif state is not None and state[0] and pod.reason != "started":
                self._kubelet.pods.change(pod.name, reason="started")
            elif state is None and pod.reason == "started" and engine.answers():
                self._kubelet.pods.change(pod.name, phase="Failed", reason="its container is gone")
