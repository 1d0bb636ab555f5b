"""The way from ``kubelet-pod`` to the kubelet: a unix socket, one JSON line each way."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SOCKET = Path("embedded") / "admin.sock"
"""Below the root directory."""


class AdminError(Exception):
    """The kubelet refused, or is not there; the text says which and the next step."""


class AdminServer:
    """Calls a function by name for each line that comes."""

    def __init__(self, path: Path, calls: Mapping[str, Callable[..., Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                request = json.loads(self.rfile.readline() or b"{}")
                try:
                    answer = {"result": calls[request["call"]](**request.get("arguments", {}))}
                except Exception as error:  # noqa: BLE001  every refusal goes back to who asked
                    answer = {"error": str(error)}
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="admin", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close; the socket stays behind, dead."""
        self._server.shutdown()
        self._server.server_close()


def call(root_dir: Path, name: str, /, **arguments: Any) -> Any:
    """Ask the kubelet. Raises AdminError."""
    path = root_dir / SOCKET
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError as error:
            raise AdminError(
                f"no embedded kubelet answers at {path} ({error.strerror}): is kubelet.service running? "
                "systemctl status kubelet"
            ) from error
        connection.sendall(json.dumps({"call": name, "arguments": arguments}).encode() + b"\n")
        line = connection.makefile().readline()
    if not line:
        raise AdminError("the kubelet died while it was asked: journalctl -u kubelet")
    answer = json.loads(line)
    if "error" in answer:
        raise AdminError(answer["error"])
    return answer["result"]
