"""An embedded kubelet: starts, stops, dies and comes back like the real one, in this process."""

from __future__ import annotations

import json
import os
import secrets
import stat
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from .allocation import AdmissionError, KubeletPanicError
from .journal import Event, Journal
from .manager import DeviceManager
from .podresources import PodResources
from .pods import Pod, PodStore
from .registry import PluginWatcher
from .settings import Faults, Settings
from .version import behaviour
from .wire import api, deviceplugin

SOCKET_NAME = "kubelet.sock"


class EmbeddedKubelet:
    """One node's kubelet. The object outlives its kubelet: start, stop, kill and restart it as often as you like.

    What the real one keeps elsewhere (the Node object, the pods) lies in ``<root_dir>/embedded/``.
    """

    def __init__(self, settings: Settings, log: Callable[[Event], None] | None = None) -> None:
        self.settings = settings
        self.behaviour = behaviour(settings.version)
        self.faults = Faults()
        self.journal = Journal(log)
        self.pods = PodStore(settings.root_dir / "embedded" / "pods.json")
        self.manager: DeviceManager | None = None
        """Of the kubelet that runs now, or ran last."""
        self.panicked = threading.Event()
        self._node_file = settings.root_dir / "embedded" / "node.json"
        self._node_lock = threading.Lock()
        self._servers: list[grpc.Server] = []
        self._watcher: PluginWatcher | None = None
        self._running = threading.Event()
        self._status_stop = threading.Event()
        self._status_thread: threading.Thread | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Come up as after boot: read the checkpoint, clean the directory, serve, publish the node's status."""
        if self._running.is_set():
            raise RuntimeError("this kubelet runs already")
        settings = self.settings
        manager = DeviceManager(settings, self.behaviour, self.journal, self.faults)
        manager.active_pods = self.pods.active_uids
        self.manager = manager
        settings.root_dir.mkdir(parents=True, exist_ok=True)
        if settings.gate:
            manager.read_checkpoint()
            if manager.fresh:
                self._reset_extended_resources()
            settings.plugin_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
            manager.clean_directory()
            self._servers.append(
                self._serve(settings.plugin_dir / SOCKET_NAME, self._registration(manager), workers=8)
            )
            self.journal.add("serving")
            # Written when the plugin watcher is set up, in every version; K9 is why nobody else may keep files here.
            (settings.plugin_dir / "DEPRECATION").touch()
            self._watcher = PluginWatcher(
                settings.root_dir / "plugins_registry", manager, self.journal, settings.registry_seconds
            )
            self._watcher.start()
        pod_resources = settings.root_dir / "pod-resources"
        pod_resources.mkdir(parents=True, exist_ok=True, mode=0o750)
        service = PodResources(manager, self.behaviour, lambda: [p for p in self.pods.all() if p.active])
        self._servers.append(self._serve(pod_resources / SOCKET_NAME, service.handler(), workers=4))
        self._running.set()
        self._status_stop = threading.Event()
        self._status_thread = threading.Thread(
            target=self._publish, args=(manager, self._status_stop), name="node status", daemon=True
        )
        self._status_thread.start()
        self.journal.add("kubelet-started")

    def stop(self) -> None:
        """As SIGTERM: streams end, sockets stay behind, dead (K9). Twice is once."""
        if not self._running.is_set():
            return
        self._running.clear()
        self._status_stop.set()
        if self.manager is not None:
            self.manager.stop()
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None
        for ended in [server.stop(None) for server in self._servers]:
            ended.wait(5)
        self._servers.clear()
        if self._status_thread is not None:
            self._status_thread.join(5)
        self.journal.add("kubelet-stopped")

    kill = stop
    """SIGKILL looks the same to everybody else: nothing is cleaned up in either case."""

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    @property
    def running(self) -> bool:
        """Whether it serves."""
        return self._running.is_set()

    @property
    def socket(self) -> Path:
        """kubelet.sock in the plugin directory."""
        return self.settings.plugin_dir / SOCKET_NAME

    def __enter__(self) -> EmbeddedKubelet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- what tests ask ------------------------------------------------------------------------------------------

    def devices(self, resource: str) -> dict[str, str]:
        """id -> ``Healthy``/``Unhealthy`` as the kubelet believes it now."""
        manager = self._manager()
        with self.journal.changed:
            healthy = dict.fromkeys(manager.healthy.get(resource, ()), api.HEALTHY)
            return {**dict.fromkeys(manager.unhealthy.get(resource, ()), api.UNHEALTHY), **healthy}

    def healthy(self, resource: str) -> set[str]:
        """Ids that can be allocated or are."""
        return set(self._manager().healthy.get(resource, ()))

    def lists(self, resource: str | None = None, since: float = 0.0) -> list[Event]:
        """ListAndWatch messages, oldest first; ``detail`` has healthy, unhealthy (counts) and message."""
        return self.journal.of("list", resource, since)

    def registrations(self, resource: str | None = None, since: float = 0.0) -> list[Event]:
        """Registrations that were taken."""
        return self.journal.of("registered", resource, since)

    def wait_for(self, resource: str, healthy: int, unhealthy: int = 0, seconds: float = 10.0) -> float:
        """Wait until the resource has these counts and a live stream; returns when (monotonic seconds).

        Raises TimeoutError with what is there instead.
        """

        def there() -> bool:
            manager = self._manager()
            endpoint = manager.endpoints.get(resource)
            return (
                endpoint is not None
                and endpoint.stop_time is None
                and len(manager.healthy.get(resource, ())) == healthy
                and len(manager.unhealthy.get(resource, ())) == unhealthy
            )

        if not self.journal.wait(there, seconds):
            capacity, allocatable, _ = self._manager().capacity()
            raise TimeoutError(
                f"{resource}: wanted {healthy} healthy and {unhealthy} unhealthy within {seconds} s, "
                f"have capacity {capacity}, allocatable {allocatable}; "
                f"last events: {[(e.kind, e.resource) for e in list(self.journal.events)[-8:]]}"
            )
        lists = self.lists(resource)
        return lists[-1].at if lists else time.monotonic()

    def capacity(self) -> dict[str, int]:
        """What the next node status will say (K14)."""
        return self._manager().capacity()[0]

    def allocatable(self) -> dict[str, int]:
        """What the next node status will say (K14). Check this one, never the key."""
        return self._manager().capacity()[1]

    def admit(self, name: str, limits: Mapping[str, int], container: str = "main") -> Any:
        """Admit a pod and allocate; returns the plugins' merged answer (ContainerAllocateResponse).

        Raises AdmissionError, KubeletPanicError.
        """
        pod = self.add_pod(name, limits, container)
        merged = deviceplugin.ContainerAllocateResponse()
        for response in self._manager().options_of(pod.uid, container):
            merged.MergeFrom(response)
        return merged

    def add_pod(self, name: str, limits: Mapping[str, int], container: str = "main", **fields: Any) -> Pod:
        """Schedule, admit and remember a pod. Raises AdmissionError, KubeletPanicError; the pod is then Failed."""
        manager = self._manager()
        known = self.pods.get(name)
        if known is not None and known.active:
            raise AdmissionError(f"pod {name} exists already")
        self._schedule(limits)
        pod = Pod(name=name, uid=str(uuid.uuid4()), limits=dict(limits), container=container, **fields)
        self.pods.put(pod)
        try:
            if self.settings.gate:
                manager.allocate(pod.uid, container, limits)
                manager.pre_start(pod.uid, container)
        except KubeletPanicError:
            self.pods.change(name, phase="Failed", reason="kubelet died")
            self.panicked.set()
            self.kill()
            raise
        except AdmissionError as error:
            self.pods.change(name, phase="Failed", reason=f"UnexpectedAdmissionError: {error}")
            self.journal.add("rejected", detail=str(error), pod=name)
            raise
        self.pods.change(name, phase="Running")
        return self.pods.get(name) or pod

    def start_container(self, name: str) -> None:
        """Its container died and is started again: no Allocate, but PreStartContainer (K26). Raises AdmissionError."""
        pod = self.pods.get(name)
        if pod is None:
            raise AdmissionError(f"no pod {name}")
        self._manager().pre_start(pod.uid, pod.container)

    def readmit(self, name: str) -> None:
        """After a restart of the kubelet, for a pod whose container does not run (K13). Raises AdmissionError."""
        pod = self.pods.get(name)
        if pod is None:
            raise AdmissionError(f"no pod {name}")
        try:
            self._manager().allocate(pod.uid, pod.container, pod.limits)
        except AdmissionError as error:
            self.pods.change(name, phase="Failed", reason=f"UnexpectedAdmissionError: {error}")
            raise

    def remove_pod(self, name: str) -> None:
        """The pod is gone; its devices are free at the next allocation, and for PodResources at once."""
        pod = self.pods.remove(name)
        if pod is not None and self.manager is not None:
            self.manager.forget(pod.uid)
            if self.settings.gate and self.settings.plugin_dir.is_dir():
                self.manager.write_checkpoint()

    def ids_of(self, name: str, resource: str) -> frozenset[str]:
        """Ids that a pod holds."""
        pod = self.pods.get(name)
        held = self._manager().pods.get(pod.uid, {}) if pod else {}
        return frozenset(
            i for container in held.values() if resource in container for i in container[resource].ids
        )

    def responses_of(self, pod: Pod) -> list[Any]:
        """What the plugins answered for a pod."""
        return self._manager().options_of(pod.uid, pod.container)

    # -- the node object -----------------------------------------------------------------------------------------

    def node_status(self) -> dict[str, dict[str, int]]:
        """``capacity`` and ``allocatable`` as published last; keys stay (K14), also with the gate off (K16)."""
        with self._node_lock:
            try:
                status = json.loads(self._node_file.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                status = {}
            return {"capacity": status.get("capacity", {}), "allocatable": status.get("allocatable", {})}

    def publish_now(self) -> None:
        """One node status update."""
        if not self.settings.gate:
            return  # K16: nobody takes the old numbers away
        capacity, allocatable, deleted = self._manager().capacity()
        status = self.node_status()
        before = json.dumps(status, sort_keys=True)
        for name in deleted:
            capacity.setdefault(name, 0)
            allocatable.setdefault(name, 0)
        status["capacity"].update(capacity)
        status["allocatable"].update(allocatable)
        if json.dumps(status, sort_keys=True) != before:
            self._write_node(status)

    def _publish(self, manager: DeviceManager, stop: threading.Event) -> None:
        while not stop.is_set():
            if self.manager is manager:
                self.publish_now()
            stop.wait(self.settings.node_status_seconds)

    def _reset_extended_resources(self) -> None:
        """No checkpoint: the node was made anew, what it offered is 0 until plugins say otherwise."""
        status = self.node_status()
        self._write_node({part: dict.fromkeys(values, 0) for part, values in status.items()})

    def _write_node(self, status: dict[str, dict[str, int]]) -> None:
        with self._node_lock:
            self._node_file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._node_file.with_suffix(".tmp")
            temporary.write_text(json.dumps(status, indent=1, sort_keys=True))
            temporary.replace(self._node_file)

    def _schedule(self, limits: Mapping[str, int]) -> None:
        """What a scheduler would check: allocatable minus what the pods of the node asked for."""
        offered = self.node_status()["allocatable"]
        if self.settings.gate:
            offered = {**offered, **self.allocatable()}
        asked = self.pods.requested()
        for resource, number in limits.items():
            if number and resource not in offered:
                raise AdmissionError(
                    f"this node does not offer {resource} (it offers: {', '.join(offered) or 'none'})"
                )
            free = offered.get(resource, 0) - asked.get(resource, 0)
            if number > free:
                there = f"{max(free, 0)} free of {offered.get(resource, 0)} allocatable"
                raise AdmissionError(f"Insufficient {resource}: {number} asked, {there}")

    # -- serving -------------------------------------------------------------------------------------------------

    def _manager(self) -> DeviceManager:
        if self.manager is None:
            raise RuntimeError("this kubelet was never started")
        return self.manager

    def _registration(self, manager: DeviceManager) -> grpc.GenericRpcHandler:
        def register(request: Any, context: grpc.ServicerContext) -> Any:
            if self.faults.hang_register:
                self._status_stop.wait(self.faults.hang_register)
            error = manager.register(request)
            if self.faults.answer_delay:
                self._status_stop.wait(self.faults.answer_delay)
            if error:
                context.abort(grpc.StatusCode.UNKNOWN, error)
            return deviceplugin.Empty()

        handler = grpc.unary_unary_rpc_method_handler(
            register,
            request_deserializer=deviceplugin.RegisterRequest.FromString,
            response_serializer=deviceplugin.Empty.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(api.REGISTRATION, {"Register": handler})

    @staticmethod
    def _serve(path: Path, handler: grpc.GenericRpcHandler, workers: int) -> grpc.Server:
        """Serve on a socket that stays behind when the server stops.

        gRPC removes the path it was bound to; the kubelet leaves its own (K9). So bind elsewhere and link it in.
        """
        server = grpc.server(futures.ThreadPoolExecutor(workers, thread_name_prefix=path.parent.name))
        server.add_generic_rpc_handlers((handler,))
        bound = path.with_name(f".{secrets.token_hex(4)}")
        server.add_insecure_port(f"unix:{bound}")
        server.start()
        try:
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        except FileNotFoundError:
            pass
        os.link(bound, path)
        bound.unlink()
        return server
