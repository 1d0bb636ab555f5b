"""The device manager: who registered, what is there, who holds it. Its state survives in the checkpoint alone (K13)."""

from __future__ import annotations

import random
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from . import checkpoint
from .endpoint import DialError, Endpoint, EndpointStoppedError
from .journal import Journal
from .names import is_extended_resource
from .settings import Faults, Settings
from .version import Behaviour
from .wire import api, deviceplugin


class AdmissionError(Exception):
    """A pod is refused for good; the text is the kubelet's (UnexpectedAdmissionError)."""


class KubeletPanicError(Exception):
    """The kubelet of this version would have died here (K19)."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one container got of one resource."""

    resource: str
    device_ids: Mapping[int, tuple[str, ...]]
    response: Any
    """deviceplugin.ContainerAllocateResponse"""

    @property
    def ids(self) -> frozenset[str]:
        """All ids, whatever their NUMA node."""
        return frozenset(i for ids in self.device_ids.values() for i in ids)


class DeviceManager:
    """One start of a kubelet. A restart makes a new one from the checkpoint."""

    def __init__(self, settings: Settings, behaviour: Behaviour, journal: Journal, faults: Faults) -> None:
        self._settings = settings
        self._behaviour = behaviour
        self._journal = journal
        self._faults = faults
        self._random = random.Random(settings.seed)
        self._lock = threading.RLock()
        self._admission = threading.Lock()
        self._stopped = False
        self.healthy: dict[str, set[str]] = {}
        self.unhealthy: dict[str, set[str]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.endpoints: dict[str, Endpoint] = {}
        self.clients: dict[str, Endpoint] = {}
        """From 1.25 on the registration server keeps its own map of plugins; K6 is what comes of that."""
        self.allocated: dict[str, set[str]] = {}
        self.pods: dict[str, dict[str, dict[str, Allocation]]] = {}
        """pod uid -> container -> resource."""
        self.registrations: dict[str, int] = {}
        """The counter of the kubelet's metrics: refused ones count too (K8)."""
        self.active_pods: Callable[[], set[str]] = lambda: set(self.pods)
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
        self._recount()
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

    def register(self, request: Any, alive: Callable[[], bool] = lambda: True) -> str:
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
            return f"failed to get device plugin options: {_rpc_text(error)}"
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
            return _rpc_text(error)
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

    def write_checkpoint(self) -> None:
        """Allocations and healthy ids. A directory that went away is no reason to die."""
        with self._lock:
            entries = [
                checkpoint.Entry(uid, container, a.resource, a.device_ids, a.response.SerializeToString())
                for uid, containers in self.pods.items()
                for container, resources in containers.items()
                for a in resources.values()
            ]
            registered = {resource: sorted(ids) for resource, ids in self.healthy.items()}
            try:
                checkpoint.write(self._settings.plugin_dir, checkpoint.dump(entries, registered))
            except OSError as error:
                self._journal.add("checkpoint-unwritten", detail=str(error))

    # -- allocation ----------------------------------------------------------------------------------------------

    def is_device_resource(self, resource: str) -> bool:
        """Whether it is offered by a plugin now, or was allocated once."""
        with self._lock:
            return resource in self.healthy or resource in self.allocated

    def allocate(self, uid: str, container: str, limits: Mapping[str, int]) -> None:
        """Give a container its devices. One at a time on the whole node (K22).

        Raises AdmissionError, and KubeletPanicError where this version would die (K19).
        """
        with self._admission:
            changed = False
            for resource, number in limits.items():
                if not self.is_device_resource(resource):
                    continue
                self._free_ended_pods()
                ids = self._choose(uid, container, resource, number)
                if ids:
                    self._ask_allocate(uid, container, resource, ids)
                    changed = True
            if changed:
                self.write_checkpoint()

    def options_of(self, uid: str, container: str) -> list[Any]:
        """The plugin's answers for that container, resources in sorted order."""
        with self._lock:
            resources = self.pods.get(uid, {}).get(container, {})
            return [resources[name].response for name in sorted(resources)]

    def pre_start(self, uid: str, container: str) -> None:
        """Before each start of a container (K26). Raises AdmissionError."""
        with self._lock:
            held = [(self.endpoints.get(r), a) for r, a in self.pods.get(uid, {}).get(container, {}).items()]
        for endpoint, allocation in held:
            if endpoint is None:
                raise AdmissionError(
                    f"endpoint not found in cache for a registered resource: {allocation.resource}"
                )
            if not endpoint.options.pre_start_required:
                continue
            try:
                endpoint.pre_start(self._shuffled(allocation.ids), self._settings.pre_start_seconds)
            except (grpc.RpcError, EndpointStoppedError) as error:
                raise AdmissionError(
                    f"device plugin PreStartContainer rpc failed with err: {_rpc_text(error)}"
                ) from error

    def forget(self, uid: str) -> None:
        """The pod is gone. The plugin hears nothing: there is no Deallocate (K27)."""
        with self._lock:
            self.pods.pop(uid, None)
            self._recount()

    def _free_ended_pods(self) -> None:
        active = self.active_pods()
        with self._lock:
            ended = set(self.pods) - active
            for uid in ended:
                del self.pods[uid]
            if ended:
                self._recount()

    def _recount(self) -> None:
        allocated: dict[str, set[str]] = {}
        for containers in self.pods.values():
            for resources in containers.values():
                for allocation in resources.values():
                    allocated.setdefault(allocation.resource, set()).update(allocation.ids)
        self.allocated = allocated

    def _choose(self, uid: str, container: str, resource: str, number: int) -> list[str]:
        """The ids for a request, marked as taken; [] when the container has them already."""
        with self._lock:
            held = self.pods.get(uid, {}).get(container, {}).get(resource)
            if held is not None and len(held.ids) != number:
                raise AdmissionError(
                    f'pod "{uid}" container "{container}" changed request for resource "{resource}" '
                    f"from {len(held.ids)} to {number}"
                )
            if number == 0 or held is not None:
                if held is not None and self._behaviour.rejects_unready:
                    self._require_ready(resource, held)
                return []
            if resource not in self.healthy:
                raise AdmissionError(f"can't allocate unregistered device {resource}")
            free = self.healthy[resource] - self.allocated.setdefault(resource, set())
            if len(free) < number:
                raise AdmissionError(
                    f"requested number of devices unavailable for {resource}. "
                    f"Requested: {number}, Available: {len(free)}"
                )
            aligned = self._aligned(resource, free, number)
        chosen: list[str] = []
        if aligned:
            if number < len(aligned):
                preferred = self._preferred(resource, aligned, [], number)
                self._take(chosen, [i for i in preferred if i in aligned], number)
            self._take(chosen, self._shuffled(aligned), number)
        if len(chosen) < number:
            preferred = self._preferred(resource, free, chosen, number)
            self._take(chosen, [i for i in preferred if i in free], number)  # too many: cut at random (K25)
        self._take(chosen, self._shuffled(free), number)  # too few: filled at random (K25)
        with self._lock:
            self.allocated.setdefault(resource, set()).update(chosen)
        return chosen

    def _require_ready(self, resource: str, held: Allocation) -> None:
        """K13, from 1.28 on, for a pod that is admitted again without running containers."""
        if resource not in self.healthy:
            raise AdmissionError(f"cannot allocate unregistered device {resource}")
        if not self.healthy[resource]:
            raise AdmissionError(f"no healthy devices present; cannot allocate unhealthy devices {resource}")
        if not held.ids <= self.healthy[resource]:
            raise AdmissionError(
                f"previously allocated devices are no longer healthy; cannot allocate {resource}"
            )

    def _take(self, chosen: list[str], candidates: Sequence[str], number: int) -> None:
        candidates = [i for i in dict.fromkeys(candidates) if i not in chosen]
        if len(chosen) + len(candidates) > number:
            self._random.shuffle(candidates)
        chosen.extend(candidates[: number - len(chosen)])

    def _aligned(self, resource: str, free: set[str], number: int) -> set[str]:
        """Free ids of one NUMA node that can hold the whole request, when the topology manager is on (K20)."""
        if self._settings.topology_policy == "none":
            return set()
        for node in self._settings.numa_nodes:
            here = {
                i for i in free if any(node == n.ID for n in self.devices.get(resource, {})[i].topology.nodes)
            }
            if len(here) >= number:
                return here
        return set()

    def _preferred(self, resource: str, available: set[str], must: Sequence[str], number: int) -> list[str]:
        with self._lock:
            endpoint = self.endpoints.get(resource)
        if endpoint is None:
            raise AdmissionError(f"endpoint not found in cache for a registered resource: {resource}")
        if not endpoint.options.get_preferred_allocation_available:
            return []
        try:
            answer = endpoint.preferred(self._shuffled(available), self._shuffled(must), number)
        except (grpc.RpcError, EndpointStoppedError) as error:
            raise AdmissionError(
                f"device plugin GetPreferredAllocation rpc failed with err: {_rpc_text(error)}"
            ) from error
        self._journal.add("preferred", resource, available=len(available), size=number, answer=answer)
        return answer

    def _ask_allocate(self, uid: str, container: str, resource: str, ids: list[str]) -> None:
        with self._lock:
            endpoint = self.endpoints.get(resource)
        try:
            if endpoint is None:
                raise EndpointStoppedError(f"unknown Device Plugin {resource}")
            sent = self._shuffled(ids)
            response = endpoint.allocate(sent)
        except (grpc.RpcError, EndpointStoppedError) as error:
            with self._lock:
                self._recount()
            raise AdmissionError(_rpc_text(error)) from error
        self._journal.add("allocated", resource, pod=uid, ids=sent, response=response)
        if not response.container_responses:  # K23: the pod is refused and the ids stay taken
            raise AdmissionError(f"no containers return in allocation response {response}")
        with self._lock:
            by_node = self._by_node(resource, ids)
            self.pods.setdefault(uid, {}).setdefault(container, {})[resource] = Allocation(
                resource, by_node, response.container_responses[0]
            )

    def _by_node(self, resource: str, ids: Sequence[str]) -> dict[int, tuple[str, ...]]:
        nowhere = 0 if self._behaviour.no_topology_is_numa_0 else -1
        nodes: dict[int, list[str]] = {}
        for i in ids:
            device = self.devices.get(resource, {}).get(i)
            if device is None and self._behaviour.panics_on_vanished:
                self._journal.add("panic", resource, device=i)
                raise KubeletPanicError(
                    "panic: runtime error: invalid memory address or nil pointer dereference"
                )
            for node in [n.ID for n in device.topology.nodes] if device is not None else []:
                nodes.setdefault(node, []).append(i)
            if device is None or not device.topology.nodes:
                nodes.setdefault(nowhere, []).append(i)
        return {node: tuple(nodes[node]) for node in nodes}

    def _shuffled(self, ids: Any) -> list[str]:
        """K29: Go's maps have no order."""
        ordered = sorted(ids)
        self._random.shuffle(ordered)
        return ordered


def _rpc_text(error: Exception) -> str:
    """As Go prints a status."""
    if isinstance(error, grpc.RpcError):
        code = error.code()
        name = "".join(word.capitalize() for word in code.name.split("_"))
        return f"rpc error: code = {name} desc = {error.details()}"
    return str(error)
