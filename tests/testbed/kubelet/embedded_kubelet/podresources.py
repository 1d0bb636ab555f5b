"""PodResources v1: who holds what (K27)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from .manager import DeviceManager
from .version import Behaviour
from .wire import api, podresources

CALLS_PER_SECOND = 100
BURST = 10


class RateLimit:
    """A token bucket, as the kubelet has it since 1.27."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._rate, self._burst = per_second, burst
        self._tokens, self._at = float(burst), time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more call is allowed now."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class PodResources:
    """The three calls over a device manager and the pods of the node."""

    def __init__(self, manager: DeviceManager, behaviour: Behaviour, pods: Callable[[], list[Any]]) -> None:
        self._manager = manager
        self._behaviour = behaviour
        self._pods = pods
        self._limit = RateLimit(CALLS_PER_SECOND, BURST) if behaviour.rate_limit else None

    def handler(self) -> grpc.GenericRpcHandler:
        """All of it, for a server."""
        methods: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                method,
                request_deserializer=request.FromString,
                response_serializer=lambda answer: answer.SerializeToString(),
            )
            for name, method, request, served in (
                ("List", self._list, podresources.ListPodResourcesRequest, True),
                (
                    "GetAllocatableResources",
                    self._allocatable,
                    podresources.AllocatableResourcesRequest,
                    self._behaviour.allocatable_resources,
                ),
                ("Get", self._get, podresources.GetPodResourcesRequest, self._behaviour.get_pod),
            )
            if served
        }
        return grpc.method_handlers_generic_handler(api.POD_RESOURCES, methods)

    def _list(self, _request: Any, context: grpc.ServicerContext) -> Any:
        self._check_rate(context)
        return podresources.ListPodResourcesResponse(pod_resources=[self._pod(pod) for pod in self._pods()])

    def _get(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._check_rate(context)
        for pod in self._pods():
            if (pod.name, pod.namespace) == (request.pod_name, request.pod_namespace):
                return podresources.GetPodResourcesResponse(pod_resources=self._pod(pod))
        context.abort(
            grpc.StatusCode.UNKNOWN, f"pod {request.pod_name} in namespace {request.pod_namespace} not found"
        )
        raise AssertionError("abort raises")

    def _allocatable(self, _request: Any, context: grpc.ServicerContext) -> Any:
        self._check_rate(context)
        answer = podresources.AllocatableResourcesResponse()
        for resource, healthy in sorted(self._manager.healthy.items()):
            known = self._manager.devices.get(resource, {})
            for i in sorted(healthy):
                entry = answer.devices.add(resource_name=resource, device_ids=[i])
                for node in known[i].topology.nodes if i in known else ():
                    entry.topology.nodes.add(ID=node.ID)
        return answer

    def _pod(self, pod: Any) -> Any:
        held = self._manager.pods.get(pod.uid, {})
        answer = podresources.PodResources(name=pod.name, namespace=pod.namespace)
        for name in pod.containers:
            container = answer.containers.add(name=name)
            for allocation in held.get(name, {}).values():
                for node, ids in allocation.device_ids.items():
                    devices = container.devices.add(resource_name=allocation.resource, device_ids=ids)
                    if node >= 0:
                        devices.topology.nodes.add(ID=node)
        return answer

    def _check_rate(self, context: grpc.ServicerContext) -> None:
        if self._limit is not None and not self._limit.take():
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "rejected by rate limit")
