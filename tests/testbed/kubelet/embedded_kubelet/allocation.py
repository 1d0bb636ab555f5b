"""Devices and who holds them: what is healthy, what is taken, and how a container gets its share (K22 to K26)."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from . import checkpoint
from .endpoint import Endpoint, EndpointStoppedError
from .journal import Journal
from .settings import Settings
from .version import Behaviour


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


class Inventory:
    """The devices of a node and their allocation; it survives in the checkpoint alone (K13)."""

    def __init__(self, settings: Settings, behaviour: Behaviour, journal: Journal) -> None:
        self._settings = settings
        self._behaviour = behaviour
        self._journal = journal
        self._random = random.Random(settings.seed)
        self._lock = threading.RLock()
        self._admission = threading.Lock()
        self.healthy: dict[str, set[str]] = {}
        self.unhealthy: dict[str, set[str]] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        """resource -> id -> deviceplugin.Device of the last list."""
        self.endpoints: dict[str, Endpoint] = {}
        self.allocated: dict[str, set[str]] = {}
        self.pods: dict[str, dict[str, dict[str, Allocation]]] = {}
        """pod uid -> container -> resource."""
        self.active_pods: Callable[[], set[str]] = lambda: set(self.pods)

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
                    f"device plugin PreStartContainer rpc failed with err: {rpc_text(error)}"
                ) from error

    def forget(self, uid: str) -> None:
        """The pod is gone. The plugin hears nothing: there is no Deallocate (K27)."""
        with self._lock:
            self.pods.pop(uid, None)
            self.recount()

    def _free_ended_pods(self) -> None:
        active = self.active_pods()
        with self._lock:
            ended = set(self.pods) - active
            for uid in ended:
                del self.pods[uid]
            if ended:
                self.recount()

    def recount(self) -> None:
        """What is taken, from what each container holds."""
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
                f"device plugin GetPreferredAllocation rpc failed with err: {rpc_text(error)}"
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
                self.recount()
            raise AdmissionError(rpc_text(error)) from error
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


def rpc_text(error: Exception) -> str:
    """As Go prints a status."""
    if isinstance(error, grpc.RpcError):
        code = error.code()
        name = "".join(word.capitalize() for word in code.name.split("_"))
        return f"rpc error: code = {name} desc = {error.details()}"
    return str(error)
