"""plugins_registry: sockets that appear in a directory are asked what they are (pluginregistration v1)."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import grpc

from .journal import Journal
from .manager import DeviceManager
from .names import is_extended_resource
from .wire import CHANNEL_OPTIONS, api, pluginregistration

KIND = "DevicePlugin"


class PluginWatcher:
    """Looks at the directory once a period, registers what came, deregisters what went."""

    def __init__(self, directory: Path, manager: DeviceManager, journal: Journal, seconds: float) -> None:
        self._directory = directory
        self._manager = manager
        self._journal = journal
        self._seconds = seconds
        self._stop = threading.Event()
        self._known: dict[Path, tuple[int, str | None]] = {}
        """socket -> (change time, resource); the resource is None when its registration failed."""
        self._thread = threading.Thread(target=self._run, name="plugins_registry", daemon=True)

    def start(self) -> None:
        """Make the directory and begin."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; registrations stay."""
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(self._seconds)

    def _look(self) -> None:
        found: dict[Path, int] = {}
        for path in sorted(self._directory.rglob("*")):
            try:
                status = path.stat()
            except OSError:
                continue
            if stat.S_ISSOCK(status.st_mode) and not path.name.startswith("."):
                found[path] = status.st_ctime_ns
        for path, (changed, resource) in list(self._known.items()):
            if found.get(path) != changed:
                del self._known[path]
                if resource is not None:
                    self._journal.add("registry-gone", resource, socket=str(path))
                    self._manager.deregister(resource)
        for path, changed in found.items():
            if path not in self._known:
                resource = self._register(path)
                if resource is not None:  # a failure is tried again in the next round
                    self._known[path] = (changed, resource)

    def _register(self, path: Path) -> str | None:
        with grpc.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS) as channel:
            try:
                info = _call(
                    channel, "GetInfo", pluginregistration.InfoRequest(), pluginregistration.PluginInfo
                )
            except grpc.RpcError as error:
                self._journal.add("registry-unreadable", detail=f"{path}: {error.code().name}")
                return None
            refusal = self._refusal(info)
            if not refusal:
                self._journal.add("registered", info.name, endpoint=info.endpoint or str(path), options=None)
                refusal = self._manager.register_from_registry(info.name, Path(info.endpoint or path))
                if refusal:
                    refusal = f"RegisterPlugin error -- plugin registration failed with err: {refusal}"
            status = pluginregistration.RegistrationStatus(plugin_registered=not refusal, error=refusal)
            try:
                _call(
                    channel, "NotifyRegistrationStatus", status, pluginregistration.RegistrationStatusResponse
                )
            except grpc.RpcError as failure:
                self._journal.add("registry-unnotified", info.name, detail=failure.code().name)
        if refusal:
            self._journal.add("refused", info.name, error=refusal, endpoint=str(path))
            return None
        return str(info.name)

    @staticmethod
    def _refusal(info: Any) -> str:
        if info.type != KIND:
            return f"RegisterPlugin error -- no handler registered for plugin type: {info.type}"
        prefix = "RegisterPlugin error -- plugin validation failed with err: "
        if api.API_VERSION not in info.supported_versions:
            return (
                f"{prefix}manager version, {api.API_VERSION}, is not among plugin supported versions "
                f"{list(info.supported_versions)}"
            )
        if not is_extended_resource(info.name):
            return f'{prefix}invalid name of device plugin socket: the ResourceName "{info.name}" is invalid'
        return ""


def _call(channel: grpc.Channel, method: str, request: Any, response: Any) -> Any:
    call = channel.unary_unary(
        f"/{api.PLUGIN_REGISTRATION}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    return call(request, timeout=1 if method == "GetInfo" else 5, wait_for_ready=True)
