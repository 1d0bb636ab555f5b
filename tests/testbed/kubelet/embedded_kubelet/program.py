"""``python -m embedded_kubelet kubelet``: the kubelet as a program."""

from __future__ import annotations

import http.server
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from .configuration import FatalError, Run, read_run, version_to_imitate

EXIT_PANIC = 2


def main(arguments: Sequence[str]) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    if "--version" in arguments or "--version=true" in arguments:
        print(f"Kubernetes v{_full(version_to_imitate())}")
        return 0
    try:
        run = read_run(arguments)
    except FatalError as error:
        kind = "F" if error.status == 255 else "E"
        print(f'{_stamp(kind)} server.go] "command failed" err="{error}"', file=sys.stderr)
        return error.status
    for warning in run.warnings:
        _log("W", warning)
    return Program(run).run()


class Program:
    """One run."""

    def __init__(self, run: Run) -> None:
        # Loaded here: --version and refusals must not wait for gRPC.
        from .kubelet import EmbeddedKubelet  # noqa: PLC0415

        self._run = run
        self._stop = threading.Event()
        self.kubelet = EmbeddedKubelet(run.settings, log=_log_event)

    def run(self) -> int:
        """Serve; returns the exit status."""
        from .admin import SOCKET, AdminServer  # noqa: PLC0415
        from .podcalls import PodCalls  # noqa: PLC0415

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        settings = self._run.settings
        _log(
            "I", f"Starting embedded kubelet, version v{self.kubelet.behaviour.version}, gate {settings.gate}"
        )
        self.kubelet.start()
        calls = PodCalls(self.kubelet)
        calls.reconcile()
        admin = AdminServer(settings.root_dir / SOCKET, calls.all())
        servers = [self._http(*self._run.healthz)] if self._run.healthz[1] else []
        if self._run.read_only_port:
            servers.append(self._http("0.0.0.0", self._run.read_only_port))
        _notify_ready()
        while not self._stop.wait(1.0) and not self.kubelet.panicked.is_set():
            calls.reconcile()
        if self.kubelet.panicked.is_set():
            # As a Go program dies: at once, nothing cleaned up.
            print(
                "panic: runtime error: invalid memory address or nil pointer dereference",
                file=sys.stderr,
                flush=True,
            )
            os._exit(EXIT_PANIC)
        for server in servers:
            server.shutdown()
        admin.stop()
        self.kubelet.stop()
        _log("I", "stopped")
        return 0

    def _http(self, address: str, port: int) -> Any:
        kubelet = self.kubelet

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/healthz"):
                    status, body = 200, "ok"
                elif self.path == "/metrics" and kubelet.manager is not None:
                    status, body = 200, _metrics(kubelet.manager.registrations)
                else:
                    status, body = 404, "404 page not found"
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                """Nothing: healthz is asked all the time."""

        server = http.server.ThreadingHTTPServer((address, port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.2,), name=f"http {port}", daemon=True).start()
        return server


def _metrics(registrations: dict[str, int]) -> str:
    name = "kubelet_device_plugin_registration_total"
    head = f"# HELP {name} Cumulative number of device plugin registrations.\n# TYPE {name} counter\n"
    return head + "".join(f'{name}{{resource_name="{r}"}} {n}\n' for r, n in sorted(registrations.items()))


def _notify_ready() -> None:
    """READY=1 to systemd, for a unit that asks for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.connect("\0" + address[1:] if address.startswith("@") else address)
            notify.sendall(b"READY=1")


def _log_event(event: Any) -> None:
    detail = " ".join(
        f"{key}={value!r}"
        for key, value in event.detail.items()
        if key not in ("message", "response", "options")
    )
    _log("I", " ".join(filter(None, (event.kind, event.resource, detail))))


def _log(kind: str, text: str) -> None:
    print(f"{_stamp(kind)} kubelet.go] {text}", file=sys.stderr, flush=True)


def _stamp(kind: str) -> str:
    return f"{kind}{time.strftime('%m%d %H:%M:%S')}.{time.time_ns() // 1000 % 1_000_000:06d} {os.getpid()}"


def _full(version: str) -> str:
    from .version import behaviour  # noqa: PLC0415

    return behaviour(version).version
