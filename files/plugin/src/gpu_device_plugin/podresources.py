"""Who holds what: the kubelet's PodResources API (K27). Never asked inside an Allocate (K22)."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from . import rpc
from .api import POD_RESOURCES

TIMEOUT_SECONDS = 2.0
CACHE_SECONDS = 1.0
"""The kubelet takes 100 calls a second from everybody together."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A container that holds a device."""

    namespace: str
    pod: str
    container: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}/{self.container}"


Holders = Mapping[tuple[str, str], Holder]
"""(resource, device id) -> who holds it."""


class PodResourcesError(Exception):
    """PodResources could not be asked; the text says where and why."""


def ask(directory: str, timeout: float = TIMEOUT_SECONDS) -> Holders:
    """One List. Raises :class:`PodResourcesError`."""
    from .api import podresources_v1_pb2 as pb  # noqa: PLC0415

    socket = f"{directory}/kubelet.sock"
    channel = rpc.channel(socket)
    try:
        call = channel.unary_unary(
            f"/{POD_RESOURCES}/List",
            pb.ListPodResourcesRequest.SerializeToString,
            pb.ListPodResourcesResponse.FromString,
        )
        answer = call(pb.ListPodResourcesRequest(), timeout=timeout)
    except rpc.grpc.RpcError as error:
        raise PodResourcesError(f"{socket}: {error.code().name}: {error.details()}") from error
    except Exception as error:  # an answer that can't be decoded
        raise PodResourcesError(f"{socket}: {type(error).__name__}: {error}") from error
    finally:
        channel.close()
    holders: dict[tuple[str, str], Holder] = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            holder = Holder(pod.namespace, pod.name, container.name)
            for devices in container.devices:
                for identity in devices.device_ids:
                    holders[devices.resource_name, identity] = holder
    return holders


class PodResources:
    """Asks at most once a second, for whoever wants to know."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._at = 0.0
        self._holders: Holders = {}
        self._error: str | None = None

    def holders(self) -> tuple[Holders, str | None]:
        """Who holds what, and why that may be stale or empty (None: it is not)."""
        with self._lock:
            if not self._at or time.monotonic() - self._at > CACHE_SECONDS:
                self._ask()
            return self._holders, self._error

    def ask_now(self) -> tuple[Holders, str | None]:
        """As :meth:`holders`, but never from memory: for who must know it of this moment."""
        with self._lock:
            self._ask()
            return self._holders, self._error

    def _ask(self) -> None:
        try:
            self._holders, self._error = ask(self.directory), None
        except PodResourcesError as error:
            self._holders, self._error = {}, str(error)
        self._at = time.monotonic()
