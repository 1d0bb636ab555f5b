"""The device manager: who registered, what they list, what the node offers. One start of a kubelet."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import grpc

from . import checkpoint
from .allocation import Allocation, Inventory, rpc_text
from .endpoint import DialError, Endpoint, EndpointStoppedError
from .journal import Journal
from .names import is_extended_resource
from .settings import Faults, Settings
from .version import Behaviour
from .wire import api, deviceplugin


class DeviceManager(Inventory):
    """One start of a kubelet. A restart makes a new one from the checkpoint."""

    def __init__(self, settings: Settings, behaviour: Behaviour, journal: Journal, faults: Faults) -> None:
        super().__init__(settings, behaviour, journal)
        self._faults = faults
        self._stopped = False
        self.clients: dict[str, Endpoint] = {}
        """From 1.25 on the registration server keeps its own map of plugins; K6 is what comes of that."""
        self.registrations: dict[str, int] = {}
        """The counter of the kubelet's metrics: refused ones count too (K8)."""
        self.fresh = True
        """No checkpoint was found: the node forgets what it offered."""

    # -- start and stop ------------------------------------------------------------------------------------------

    def read_checkpoint(self) -> None:
        """Take over allocations and resource names; capacity stays 0 until the plugins are back (K13)."""
        path = self._settings.plugin_dir / checkpoint.FILE_NAME
        try:
            entries, resources = checkpoint.load(path.read_bytes())
        except FileNotFoundError:
            return
        except ValueError as error:
            self._journal.add("checkpoint-unreadable", detail=str(error))
            return
        self.fresh = False
        for entry in entries:
            response = deviceplugin.ContainerAllocateResponse.FromString(entry.response)
            container = self.pods.setdefault(entry.pod_uid, {}).setdefault(entry.container, {})
            container[entry.resource] = Allocation(entry.resource, entry.device_ids, response)
        self.recount()
        for resource in resources:
            self.healthy[resource] = set()
            self.unhealthy[resource] = set()
            self.endpoints[resource] = Endpoint(resource, None)

    def clean_directory(self) -> None:
        """K9: up to 1.32 every non-directory but the checkpoint goes, from 1.33 on every socket."""
        for path in self._settings.plugin_dir.iterdir():
            try:
                mode = path.stat().st_mode
                if path.name == checkpoint.FILE_NAME or stat.S_ISDIR(mode):
                    continue
                if self._behaviour.deletes_every_file or stat.S_ISSOCK(mode):
                    path.unlink()
            except OSError as error:  # a dangling link can't be looked at, and stays, as in the kubelet
                self._journal.add("cleanup-failed", detail=str(error))

    def stop(self) -> None:
        """Drop every plugin. Nothing is removed (K9)."""
        with self._lock:
            self._stopped = True
            endpoints = [*self.endpoints.values(), *self.clients.values()]
        for endpoint in endpoints:
            endpoint.stop()

    # -- registration --------------------------------------------------------------------------------------------

    def register(self, request: Any) -> str:
        """Registration/Register: "" when answered well, else the error's text (UNKNOWN, K4). Counts first (K8)."""
        resource = request.resource_name
        with self._lock:
            self.registrations[resource] = self.registrations.get(resource, 0) + 1
        error = self._refusal(request.version, resource)
        if error:
            self._journal.add("refused", resource, error=error, endpoint=request.endpoint)
            return error
        self._journal.add("registered", resource, endpoint=request.endpoint, options=request.options)
        if self._faults.never_dial or resource in self._faults.resources_hidden:
            return ""
        socket = self._settings.plugin_dir / request.endpoint.lstrip(
            "/"
        )  # joined like filepath.Join does (K5)
        if self._behaviour.dials_inside_register:
            return self.connect_client(resource, socket)
        threading.Thread(
            target=self._add_endpoint,
            args=(resource, socket, request.options),
            name=f"dial {resource}",
            daemon=True,
        ).start()
        return ""

    def _refusal(self, version: str, resource: str) -> str:
        if self._faults.refuse_register:
            return self._faults.refuse_register
        if version != api.API_VERSION:
            return f'requested API version "{version}" is not supported by kubelet. Supported version is ["v1beta1"]'
        if not is_extended_resource(resource):
            return f'the ResourceName "{resource}" is invalid'
        return ""

    def _add_endpoint(self, resource: str, socket: Path, options: Any) -> None:
        """Up to 1.24: dial after the answer; a failure shows in the log alone (K1)."""
        endpoint = self._dialled(resource, socket)
        if isinstance(endpoint, str):
            return
        endpoint.options = options
        with self._lock:
            if self._stopped:
                endpoint.stop()
                return
            self.endpoints[resource] = endpoint
        self._journal.add("connected", resource, socket=str(socket))
        self._run_endpoint(endpoint)

    def register_from_registry(self, resource: str, socket: Path) -> str:
        """The plugins_registry route: options are asked for in every version."""
        if self._behaviour.dials_inside_register:
            return self.connect_client(resource, socket)
        endpoint = self._dialled(resource, socket)
        if isinstance(endpoint, str):
            return endpoint
        try:
            endpoint.options = endpoint.ask_options()
        except grpc.RpcError as error:
            endpoint.stop()
            return f"failed to get device plugin options: {rpc_text(error)}"
        with self._lock:
            self.endpoints[resource] = endpoint
        self._journal.add("connected", resource, socket=str(socket))
        threading.Thread(target=self._run_endpoint, args=(endpoint,), daemon=True).start()
        return ""

    def deregister(self, resource: str) -> None:
        """The socket in plugins_registry is gone."""
        with self._lock:
            endpoint = self.clients.get(resource) if self._behaviour.dials_inside_register else None
            endpoint = endpoint or self.endpoints.get(resource)
        if endpoint is not None:
            if self._behaviour.dials_inside_register:
                self._disconnect(endpoint)
            else:
                endpoint.stop()

    def connect_client(self, resource: str, socket: Path) -> str:
        """From 1.25: dial, ask for the options, then answer (K1). Returns the error's text or ""."""
        endpoint = Endpoint(resource, socket)
        with self._lock:
            self.clients[resource] = endpoint
        dialled = self._dialled(resource, socket, endpoint)
        if isinstance(dialled, str):
            with self._lock:
                if self.clients.get(resource) is endpoint:
                    del self.clients[resource]
            return dialled
        try:
            endpoint.options = endpoint.ask_options()
        except (grpc.RpcError, EndpointStoppedError) as error:
            with self._lock:
                if self.clients.get(resource) is endpoint:
                    del self.clients[resource]
            endpoint.stop()
            return rpc_text(error)
        with self._lock:
            if self._stopped:
                endpoint.stop()
                return "kubelet is stopping"
            self.endpoints[resource] = endpoint
        self._journal.add("connected", resource, socket=str(socket))
        threading.Thread(
            target=self._run_endpoint, args=(endpoint,), name=f"list {resource}", daemon=True
        ).start()
        return ""

    def _dialled(self, resource: str, socket: Path, endpoint: Endpoint | None = None) -> Endpoint | str:
        endpoint = endpoint or Endpoint(resource, socket)
        if self._faults.dial_delay:
            threading.Event().wait(self._faults.dial_delay)
        try:
            endpoint.connect(self._settings.dial_seconds)
        except DialError as error:
            self._journal.add("dial-failed", resource, error=str(error), socket=str(socket))
            return str(error)
        return endpoint

    # -- lists ---------------------------------------------------------------------------------------------------

    def _run_endpoint(self, endpoint: Endpoint) -> None:
        resource = endpoint.resource
        seen = 0

        def on_list(response: Any) -> bool:
            nonlocal seen
            seen += 1
            self._take_list(resource, response)
            return not self._faults.drop_streams_after or seen < self._faults.drop_streams_after

        reason = endpoint.run(on_list)
        if self._stopped:
            return
        self._journal.add("stream-ended", resource, reason=reason, socket=str(endpoint.socket))
        if not self._behaviour.dials_inside_register:
            endpoint.stop()
            with self._lock:
                if self.endpoints.get(resource) is endpoint:
                    self._mark_unhealthy(resource)
        else:
            with self._lock:
                current = self.clients.get(resource)
            if self._behaviour.old_stream_drops_new:  # K6: whoever is registered now pays for it
                if current is not None:
                    self._disconnect(current)
                if current is not endpoint:
                    endpoint.stop()
            else:
                self._disconnect(endpoint)
        self._journal.add("unhealthy", resource)

    def _disconnect(self, endpoint: Endpoint) -> None:
        resource = endpoint.resource
        if endpoint.connected:  # one that is being dialled has nothing to close yet, and comes through
            endpoint.stop()
        with self._lock:
            if self.clients.get(resource) is endpoint:
                del self.clients[resource]
            elif not self._behaviour.old_stream_drops_new:
                return  # another one serves this resource by now
            self._mark_unhealthy(resource)
            if resource in self.endpoints:
                self.endpoints[resource].mark_stopped()

    def _take_list(self, resource: str, response: Any) -> None:
        """K17: the whole list replaces the last one, and the checkpoint is written. The same id twice counts once."""
        with self._lock:
            if self._stopped:
                return
            self.devices[resource] = {device.ID: device for device in response.devices}
            self.healthy[resource] = {
                i for i, device in self.devices[resource].items() if device.health == api.HEALTHY
            }
            self.unhealthy[resource] = set(self.devices[resource]) - self.healthy[resource]
            healthy, unhealthy = len(self.healthy[resource]), len(self.unhealthy[resource])
        self.write_checkpoint()
        self._journal.add("list", resource, healthy=healthy, unhealthy=unhealthy, message=response)

    def _mark_unhealthy(self, resource: str) -> None:
        self.unhealthy.setdefault(resource, set()).update(self.healthy.get(resource, ()))
        self.healthy[resource] = set()

    # -- what the node offers ------------------------------------------------------------------------------------

    def capacity(self) -> tuple[dict[str, int], dict[str, int], list[str]]:
        """(capacity, allocatable, resources whose grace is over and that are forgotten now) (K14)."""
        grace = self._settings.endpoint_grace_seconds
        deleted = []
        with self._lock:
            for resource in sorted({*self.healthy, *self.unhealthy}):
                endpoint = self.endpoints.get(resource)
                if endpoint is None or endpoint.expired(grace):
                    self.endpoints.pop(resource, None)
                    self.healthy.pop(resource, None)
                    self.unhealthy.pop(resource, None)
                    deleted.append(resource)
            capacity = {r: len(ids) + len(self.unhealthy.get(r, ())) for r, ids in self.healthy.items()}
            allocatable = {r: len(ids) for r, ids in self.healthy.items()}
        if deleted:
            self.write_checkpoint()
        return capacity, allocatable, deleted
