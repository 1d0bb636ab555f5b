"""The container engine, as far as pods need it: what ``docker run`` is told, and whether a container still runs."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from pathlib import Path
from urllib.parse import quote

SOCKET = Path("/var/run/docker.sock")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def state_of(container: str) -> tuple[bool, int] | None:
    """(running, exit status) of a container; None when there is none of that name or the engine doesn't answer."""
    host = os.environ.get("DOCKER_HOST", "")
    path = Path(host.removeprefix("unix://")) if host.startswith("unix://") else SOCKET
    connection = _UnixConnection(path)
    try:
        connection.request("GET", f"/containers/{quote(container, safe='')}/json")
        response = connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            return None
        state = json.loads(content)["State"]
        return bool(state["Running"] or state.get("Restarting")), int(state["ExitCode"])
    except OSError:
        return None
    finally:
        connection.close()


def answers() -> bool:
    """Whether the engine's socket takes connections."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(SOCKET))
        except OSError:
            return False
    return True


def remove(docker: str, container: str) -> None:
    """Stop and remove a container, if it is there."""
    subprocess.run([docker, "rm", "--force", "--volumes", container], capture_output=True, check=False)
