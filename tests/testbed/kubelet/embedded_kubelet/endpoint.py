"""The kubelet's side of one registered plugin: one connection, one ListAndWatch stream, never dialled again (K7)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from .wire import CHANNEL_OPTIONS, api, deviceplugin


class DialError(Exception):
    """The plugin's socket did not answer in time."""


class EndpointStoppedError(Exception):
    """Asked of a plugin whose stream has ended."""


class Endpoint:
    """A plugin that registered, or (``socket`` None) one that a checkpoint remembers and that has not come back."""

    def __init__(self, resource: str, socket: Path | None) -> None:
        self.resource = resource
        self.socket = socket
        self.options = deviceplugin.DevicePluginOptions()
        self.stop_time: float | None = None if socket else time.monotonic()
        """Monotonic seconds; None while the plugin is there."""
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stream: Any = None

    @property
    def connected(self) -> bool:
        """Whether it was dialled and not closed since."""
        return self._channel is not None

    def connect(self, seconds: float) -> None:
        """Dial until it answers. Raises DialError after ``seconds``."""
        channel = grpc.insecure_channel(f"unix:{self.socket}", options=CHANNEL_OPTIONS)
        ready = grpc.channel_ready_future(channel)
        try:
            ready.result(timeout=seconds)
        except grpc.FutureTimeoutError:
            ready.cancel()
            channel.close()
            raise DialError("failed to dial device plugin: context deadline exceeded") from None
        with self._lock:
            self._channel = channel

    def ask_options(self) -> Any:
        """The DevicePluginOptions, without a deadline like the kubelet's. Raises grpc.RpcError."""
        return self._call(
            "GetDevicePluginOptions", deviceplugin.Empty(), deviceplugin.DevicePluginOptions, None
        )

    def run(self, on_list: Callable[[Any], bool]) -> str:
        """Read lists until the stream ends or ``on_list`` says False; returns why it ended."""
        try:
            with self._lock:
                if self._channel is None or self.stop_time is not None:
                    return "endpoint stopped before its stream began"
                self._stream = self._channel.unary_stream(
                    f"/{api.DEVICE_PLUGIN}/ListAndWatch",
                    request_serializer=deviceplugin.Empty.SerializeToString,
                    response_deserializer=deviceplugin.ListAndWatchResponse.FromString,
                )(deviceplugin.Empty())
            for response in self._stream:
                if not on_list(response):
                    return "ended by a fault that was asked for"
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        except ValueError as error:  # the channel was closed between two reads
            return str(error)
        return "EOF"

    def allocate(self, ids: Sequence[str]) -> Any:
        """The AllocateResponse; without a deadline (K22). Raises EndpointStoppedError, grpc.RpcError."""
        request = deviceplugin.AllocateRequest(container_requests=[{"devices_ids": ids}])
        return self._call("Allocate", request, deviceplugin.AllocateResponse, None)

    def preferred(self, available: Sequence[str], must: Sequence[str], size: int) -> list[str]:
        """GetPreferredAllocation, without a deadline (K22, K25). Raises EndpointStoppedError, grpc.RpcError."""
        request = deviceplugin.PreferredAllocationRequest(
            container_requests=[
                {"available_deviceIDs": available, "must_include_deviceIDs": must, "allocation_size": size}
            ]
        )
        response = self._call(
            "GetPreferredAllocation", request, deviceplugin.PreferredAllocationResponse, None
        )
        return list(response.container_responses[0].deviceIDs) if response.container_responses else []

    def pre_start(self, ids: Sequence[str], seconds: float) -> None:
        """PreStartContainer (K26). Raises EndpointStoppedError, grpc.RpcError."""
        request = deviceplugin.PreStartContainerRequest(devices_ids=ids)
        self._call("PreStartContainer", request, deviceplugin.PreStartContainerResponse, seconds)

    def stop(self) -> None:
        """Close the connection; the grace of K14 starts now."""
        with self._lock:
            if self.stop_time is None:
                self.stop_time = time.monotonic()
            channel, self._channel = self._channel, None
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
        if channel is not None:
            channel.close()

    def mark_stopped(self) -> None:
        """Start the grace of K14 without closing: what 1.25 and later do to a plugin that took another's place."""
        self.stop_time = time.monotonic()

    def expired(self, grace: float) -> bool:
        """Whether the plugin has been gone for longer than ``grace`` seconds."""
        return self.stop_time is not None and time.monotonic() - self.stop_time > grace

    def _call(self, method: str, request: Any, response: Any, seconds: float | None) -> Any:
        with self._lock:
            if self._channel is None or self.stop_time is not None:
                raise EndpointStoppedError(f"endpoint {self.resource} has been stopped")
            call = self._channel.unary_unary(
                f"/{api.DEVICE_PLUGIN}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,
            )
        return call(request, timeout=seconds)
