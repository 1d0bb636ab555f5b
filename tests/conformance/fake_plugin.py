"""A device plugin that does what a test tells it, and writes down what the kubelet asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from embedded_kubelet.wire import CHANNEL_OPTIONS, api
from embedded_kubelet.wire import deviceplugin as dp


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """The condition's first true value. Raises TimeoutError."""
    waiter = threading.Event()
    for _ in range(int(seconds * 100)):
        value = condition()
        if value:
            return value
        waiter.wait(0.01)
    raise TimeoutError(f"not within {seconds} s: {what or condition}")


def never(condition: Callable[[], Any], seconds: float = 1.0) -> bool:
    """Whether the condition stays false all that time."""
    waiter = threading.Event()
    for _ in range(int(seconds * 100)):
        if condition():
            return False
        waiter.wait(0.01)
    return True


class FakePlugin:
    """One plugin process's worth: a socket, its streams, its answers."""

    def __init__(
        self,
        plugin_dir: Path,
        resource: str,
        devices: Mapping[str, str] | Sequence[str] = (),
        socket: str = "",
        *,
        preferred: bool = False,
        pre_start: bool = False,
    ) -> None:
        self.plugin_dir = plugin_dir
        self.resource = resource
        self.socket = socket or f"{resource.replace('/', '_')[:40]}.sock"
        self.options = dp.DevicePluginOptions(
            get_preferred_allocation_available=preferred, pre_start_required=pre_start
        )
        self.asked: list[tuple[str, Any]] = []
        """(method, request), in order."""
        self.answer_allocate: Callable[[list[str], grpc.ServicerContext], Any] = self._plain_answer
        self.answer_preferred: Callable[[Any, grpc.ServicerContext], Sequence[str]] = lambda _r, _c: ()
        self._changed = threading.Condition()
        self._list: dp.ListAndWatchResponse = dp.ListAndWatchResponse()
        self._version = 0
        self._generation = 0
        self.streams = 0
        """Open now."""
        self.streams_seen = 0
        self.server: grpc.Server | None = None
        self.set(devices)

    @property
    def path(self) -> Path:
        """Of the socket."""
        return self.plugin_dir / self.socket

    # -- serving -------------------------------------------------------------------------------------------------

    def serve(self) -> FakePlugin:
        """Listen."""
        unary = {
            "GetDevicePluginOptions": (self._get_options, dp.Empty),
            "GetPreferredAllocation": (self._get_preferred, dp.PreferredAllocationRequest),
            "Allocate": (self._allocate, dp.AllocateRequest),
            "PreStartContainer": (self._pre_start, dp.PreStartContainerRequest),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                function, request.FromString, lambda answer: answer.SerializeToString()
            )
            for name, (function, request) in unary.items()
        }
        handlers["ListAndWatch"] = grpc.unary_stream_rpc_method_handler(
            self._list_and_watch, dp.Empty.FromString, lambda answer: answer.SerializeToString()
        )
        self.server = grpc.server(
            futures.ThreadPoolExecutor(16), options=[("grpc.max_send_message_length", 64 << 20)]
        )
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(api.DEVICE_PLUGIN, handlers),)
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.server.add_insecure_port(f"unix:{self.path}")
        self.server.start()
        return self

    def register(
        self,
        *,
        version: str = "v1beta1",
        endpoint: str | None = None,
        options: Any = None,
        seconds: float = 15.0,
    ) -> grpc.RpcError | None:
        """Register; the error, or None."""
        request = dp.RegisterRequest(
            version=version,
            endpoint=self.socket if endpoint is None else endpoint,
            resource_name=self.resource,
            options=self.options if options is None else options,
        )
        with grpc.insecure_channel(
            f"unix:{self.plugin_dir / 'kubelet.sock'}", options=CHANNEL_OPTIONS
        ) as channel:
            call = channel.unary_unary(
                f"/{api.REGISTRATION}/Register", dp.RegisterRequest.SerializeToString, dp.Empty.FromString
            )
            try:
                call(request, timeout=seconds, wait_for_ready=True)
            except grpc.RpcError as error:
                return error
        return None

    def come(self) -> FakePlugin:
        """Serve, register, and wait for the first ListAndWatch."""
        if self.server is None:
            self.serve()
        before = self.streams_seen
        error = self.register()
        assert error is None, error
        wait_until(lambda: self.streams_seen > before, what="a first ListAndWatch")
        return self

    def stop(self) -> None:
        """Die: connections drop."""
        self.end_streams()
        if self.server is not None:
            self.server.stop(None).wait(5)
            self.server = None

    def __enter__(self) -> FakePlugin:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- the list ------------------------------------------------------------------------------------------------

    def set(self, devices: Mapping[str, str] | Sequence[str]) -> None:
        """A new list for every stream. A sequence of ids means Healthy, in that order and with its duplicates."""
        pairs = devices.items() if isinstance(devices, Mapping) else [(i, api.HEALTHY) for i in devices]
        self.send(dp.ListAndWatchResponse(devices=[dp.Device(ID=i, health=health) for i, health in pairs]))

    def send(self, message: Any) -> None:
        """This very message."""
        with self._changed:
            self._list = message
            self._version += 1
            self._changed.notify_all()

    def end_streams(self) -> None:
        """End every ListAndWatch in good order."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    # -- what was asked ------------------------------------------------------------------------------------------

    def requests(self, method: str) -> list[Any]:
        """Of a method, in order."""
        return [request for name, request in list(self.asked) if name == method]

    @property
    def allocated(self) -> list[list[str]]:
        """Ids of each Allocate, in the order they were sent."""
        return [list(request.container_requests[0].devices_ids) for request in self.requests("Allocate")]

    # -- handlers ------------------------------------------------------------------------------------------------

    def _get_options(self, request: Any, _context: grpc.ServicerContext) -> Any:
        self.asked.append(("GetDevicePluginOptions", request))
        return self.options

    def _list_and_watch(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(("ListAndWatch", request))
        with self._changed:
            self.streams += 1
            self.streams_seen += 1
            generation, sent = self._generation, -1

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        context.add_callback(wake)
        try:
            while True:
                with self._changed:
                    while context.is_active() and generation == self._generation and sent == self._version:
                        self._changed.wait(1)
                    if not context.is_active() or generation != self._generation:
                        return
                    sent, message = self._version, self._list
                yield message
        finally:
            with self._changed:
                self.streams -= 1

    def _allocate(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(("Allocate", request))
        return self.answer_allocate(list(request.container_requests[0].devices_ids), context)

    def _get_preferred(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(("GetPreferredAllocation", request))
        ids = self.answer_preferred(request.container_requests[0], context)
        return dp.PreferredAllocationResponse(container_responses=[{"deviceIDs": ids}])

    def _pre_start(self, request: Any, _context: grpc.ServicerContext) -> Any:
        self.asked.append(("PreStartContainer", request))
        return dp.PreStartContainerResponse()

    def _plain_answer(self, ids: list[str], _context: grpc.ServicerContext) -> Any:
        return dp.AllocateResponse(container_responses=[{"envs": {"IDS": ",".join(sorted(ids))}}])
