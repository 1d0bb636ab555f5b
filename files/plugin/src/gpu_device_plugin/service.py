"""The gRPC service of one resource on one socket: five methods, answered from the state.

Knows nothing of the kubelet's lifecycle (:mod:`kubelet`) and nothing of GPUs: each offer brings its desk
(:mod:`respond`, :mod:`prefer`). Unary methods run in the thread that reads the completion queue (:mod:`rpc`)
and answer from memory (K22).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import rpc
from .api import API_VERSION, DEVICE_PLUGIN, PLUGIN_REGISTRATION
from .api import deviceplugin_v1beta1_pb2 as pb
from .respond import Answer, RequestError
from .rpc import grpc
from .state import State

STATUS = {
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
    "FAILED_PRECONDITION": grpc.StatusCode.FAILED_PRECONDITION,
}


@dataclass(frozen=True, slots=True)
class Call:
    """One finished unary call, for log and metrics."""

    resource: str
    method: str
    code: str
    seconds: float
    ids: tuple[str, ...] = ()
    text: str = ""


class Listener(Protocol):
    """Hears from the service, in gRPC's threads: must return at once."""

    def called(self, call: Call) -> None:
        """A unary call was answered."""

    def stream_opened(self, service: Service) -> None:
        """The kubelet (or somebody) asked for the list."""

    def list_sent(self, service: Service, version: int) -> None:
        """A list went out whole."""

    def stream_closed(self, service: Service) -> None:
        """A stream ended, whoever ended it (K7)."""

    def registered(self, service: Service, ok: bool, text: str) -> None:
        """Only in plugins-registry mode: the kubelet's verdict."""


ANSWERS_KEPT = 256
"""A desk's; then it begins anew."""
REQUEST_KEPT = 1024
"""Bytes; a longer one is answered, and not kept."""
_ANSWER = itertools.count(int.from_bytes(os.urandom(8), "big"))
"""Unique per answer: goes into the key of the CDI annotation."""


def message(answer: Answer) -> pb.ContainerAllocateResponse:
    """One container's answer on the wire."""
    response = pb.ContainerAllocateResponse(envs=answer.envs, annotations=answer.annotations)
    for mount in answer.mounts:
        response.mounts.add(
            container_path=mount.container_path, host_path=mount.host_path, read_only=mount.read_only
        )
    for device in answer.devices:
        response.devices.add(
            container_path=device.container_path, host_path=device.host_path, permissions=device.permissions
        )
    for name in answer.cdi_devices:
        response.cdi_devices.add(name=name)
    return response


OPTIONS = pb.DevicePluginOptions(pre_start_required=False, get_preferred_allocation_available=True)
"""Said in RegisterRequest and in GetDevicePluginOptions alike (K3)."""


class Service:
    """Serves one resource on one unix socket until :meth:`stop`."""

    def __init__(self, resource: str, path: str, state: State, listener: Listener) -> None:
        self.resource = resource
        self.path = path
        self._state = state
        self._listener = listener
        self._server: Any = None
        self._closing = False
        self._inode: tuple[int, int] | None = None
        self.streams = 0
        """Open ListAndWatch streams."""
        self.sent = 0
        """Lists sent over this socket."""

    def start(self, registry: bool = False) -> None:
        """Listens. With ``registry`` the socket also answers the kubelet's plugin watcher. Raises OSError; what was
        begun by then ends with :meth:`stop`."""
        server = rpc.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(DEVICE_PLUGIN, self._methods()),)
        )
        if registry:
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(PLUGIN_REGISTRATION, self._registry_methods()),)
            )
        try:
            bound = server.add_insecure_port(f"unix:{self.path}")
        except RuntimeError as error:
            raise OSError(f"can't listen on {self.path}: {error}") from error
        if not bound:
            raise OSError(f"can't listen on {self.path}: is the directory there and writable?")
        server.start()
        self._server = (
            server  # before the look at the socket, which may be gone already: its server must be ended too
        )
        status = os.stat(self.path)
        self._inode = (status.st_dev, status.st_ino)

    def intact(self) -> bool:
        """Whether the socket's file is still the one that was bound (K9, K10)."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    def stop(self, grace: float = 0.2) -> Any:
        """Ends every stream, stops listening, removes the socket if it is ours. Returns an event that is set at
        the end."""
        self._closing = True
        if self.intact():
            with contextlib.suppress(OSError):
                Path(self.path).unlink()
        self._state.wake()
        return self._server.stop(grace) if self._server is not None else None

    # The methods

    def _methods(self) -> dict[str, Any]:
        unary = grpc.unary_unary_rpc_method_handler
        return {
            "GetDevicePluginOptions": unary(
                self._options, pb.Empty.FromString, pb.DevicePluginOptions.SerializeToString
            ),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._list_and_watch, pb.Empty.FromString),
            "GetPreferredAllocation": unary(
                self._prefer,
                pb.PreferredAllocationRequest.FromString,
                pb.PreferredAllocationResponse.SerializeToString,
            ),
            "Allocate": unary(
                self._allocate,
                lambda wire: (wire, pb.AllocateRequest.FromString(wire)),
                lambda answer: answer,
            ),
            "PreStartContainer": unary(
                self._pre_start,
                pb.PreStartContainerRequest.FromString,
                pb.PreStartContainerResponse.SerializeToString,
            ),
        }

    def _options(self, _request: pb.Empty, _context: Any) -> pb.DevicePluginOptions:
        return OPTIONS

    def _list_and_watch(self, _request: pb.Empty, context: Any) -> Iterator[bytes]:
        ended = False

        def end() -> None:
            nonlocal ended
            ended = True
            self._state.wake()

        if not context.add_callback(end):  # cancelled before it began
            return
        self.streams += 1
        self._listener.stream_opened(self)
        seen = -1
        try:
            while True:
                offer = self._state.newer(self.resource, seen, lambda: ended or self._closing)
                if offer is None:
                    return
                yield offer.message
                seen = offer.version
                if ended or self._closing:
                    return
                self.sent += 1
                self._listener.list_sent(self, seen)
        finally:
            self.streams -= 1
            self._listener.stream_closed(self)

    def _prefer(self, request: pb.PreferredAllocationRequest, context: Any) -> pb.PreferredAllocationResponse:
        start = time.perf_counter()
        offer = self._state.world.offers.get(self.resource)
        response = pb.PreferredAllocationResponse()
        text = ""
        for one in request.container_requests:
            ids: list[str] = []
            try:
                if offer is not None:
                    ids = offer.desk.chooser.preferred(
                        one.available_deviceIDs, one.must_include_deviceIDs, one.allocation_size
                    )
            except Exception as error:  # noqa: BLE001 - an error here fails the pod for good (K24)
                text = f"{type(error).__name__}: {error}"
            response.container_responses.add(deviceIDs=ids)
        self._done(context, "GetPreferredAllocation", start, code="INTERNAL" if text else "OK", text=text)
        return response

    def _allocate(self, asked: tuple[bytes, pb.AllocateRequest], context: Any) -> bytes:
        """What was asked in the same words before is answered in the same, while the desk is the same; but not with CDI
        annotations, whose keys are never used twice. It saves a third of the whole call's time."""
        start = time.perf_counter()
        wire, request = asked
        offer = self._state.world.offers.get(self.resource)
        answers = offer.desk.answers if offer is not None else {}
        ids = [identity for one in request.container_requests for identity in one.devices_ids]
        answered = answers.get(wire)
        if answered is not None:
            self._done(context, "Allocate", start, ids=ids)
            return answered
        response = pb.AllocateResponse()
        code, text = "OK", ""
        try:
            if offer is None:
                raise RequestError("FAILED_PRECONDITION", f"{self.resource} is no longer offered")
            if not request.container_requests:  # zero responses leak ids in the kubelet (K23): say so instead
                raise RequestError("INVALID_ARGUMENT", "Allocate without a container request")
            for one in request.container_requests:
                answer = offer.desk.responder.respond(one.devices_ids, f"{next(_ANSWER):x}")
                response.container_responses.append(message(answer))
        except RequestError as refusal:
            code, text = refusal.code, refusal.text
        except Exception as error:  # noqa: BLE001 - the pod's owner has to read what it was
            code, text = "INTERNAL", f"{type(error).__name__}: {error}"
        self._done(context, "Allocate", start, code=code, ids=ids, text=text)
        if code != "OK":
            context.abort(STATUS.get(code, grpc.StatusCode.INTERNAL), text)
        answered = response.SerializeToString()
        if len(wire) <= REQUEST_KEPT and not any(one.annotations for one in response.container_responses):
            if len(answers) >= ANSWERS_KEPT:
                answers.clear()
            answers[wire] = answered
        return answered

    def _pre_start(self, request: pb.PreStartContainerRequest, context: Any) -> pb.PreStartContainerResponse:
        self._done(context, "PreStartContainer", time.perf_counter(), ids=request.devices_ids)
        return pb.PreStartContainerResponse()

    def _done(
        self,
        context: Any,
        method: str,
        start: float,
        *,
        code: str = "OK",
        ids: Sequence[str] = (),
        text: str = "",
    ) -> None:
        """Tells the listener once the answer is out: what it wakes must not compete with the answer for the
        interpreter."""
        call = Call(self.resource, method, code, time.perf_counter() - start, tuple(ids), text)
        if not context.add_callback(lambda: self._listener.called(call)):
            self._listener.called(call)

    # pluginregistration v1

    def _registry_methods(self) -> dict[str, Any]:
        from .api import pluginregistration_v1_pb2 as registry  # noqa: PLC0415

        def info(_request: Any, _context: Any) -> Any:
            return registry.PluginInfo(
                type="DevicePlugin",
                name=self.resource,
                endpoint=self.path,
                supported_versions=[API_VERSION],
            )

        def verdict(request: Any, _context: Any) -> Any:
            self._listener.registered(self, request.plugin_registered, request.error)
            return registry.RegistrationStatusResponse()

        unary = grpc.unary_unary_rpc_method_handler
        return {
            "GetInfo": unary(info, registry.InfoRequest.FromString, registry.PluginInfo.SerializeToString),
            "NotifyRegistrationStatus": unary(
                verdict,
                registry.RegistrationStatus.FromString,
                registry.RegistrationStatusResponse.SerializeToString,
            ),
        }
