"""What the running plugin says of itself: ``<run_dir>/status.sock`` answers a connection with one JSON document.

``gpu-device-plugin status`` prints it as a table, ``--json`` as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, logs
from .loop import Loop

if TYPE_CHECKING:
    from .daemon import Daemon

log = logs.Log("status")

SOCKET = "status.sock"
_LIMIT = 64 << 20


def report(daemon: Daemon) -> dict[str, Any]:
    """The whole status as JSON values. Times are seconds since the epoch, memory bytes. May block for two seconds."""
    world = daemon.state.world
    holders, stale = daemon.pod_resources().holders()
    ready, reason = daemon.readiness()
    gpus = {gpu.uuid: gpu for gpu in world.snapshot.gpus}
    resources = []
    for name, offer in sorted(world.offers.items()):
        registration = daemon.link.registrations.get(name) if daemon.link is not None else None
        devices = []
        for device in offer.plan.devices:
            holder = holders.get((name, device.id))
            gpu = gpus.get(device.gpu_uuid or "")
            devices.append(
                {
                    "id": device.id,
                    "index": device.index,
                    "uuid": device.uuid,
                    "gpu": device.gpu_uuid,
                    "model": gpu.name if gpu else None,
                    "healthy": device.healthy,
                    "reason": device.fault,
                    "numa_node": device.numa_node,
                    "memory_bytes": device.memory_bytes,
                    "replica": device.replica,
                    "holder": None
                    if holder is None
                    else {"namespace": holder.namespace, "pod": holder.pod, "container": holder.container},
                }
            )
        service = registration.service if registration else None
        resources.append(
            {
                "name": name,
                "shared": offer.plan.shared,
                "phase": registration.phase if registration else "down",
                "problem": (registration.problem if registration else "not registered") or None,
                "socket": service.path if service else None,
                "streams": service.streams if service else 0,
                "registered_at": registration.registered_at if registration else None,
                "listed_at": registration.listed_at if registration else None,
                "devices": devices,
            }
        )
    engine = daemon.engine
    problems = [
        *dict.fromkeys((*engine.plan.errors, *world.snapshot.problems, *engine.plan.problems)),
        *(text for text in (engine.state_problem, engine.cdi_problem) if text),
    ]
    if daemon.config_problem:
        problems.append(
            f"the newest edit of {daemon.settings.config_file} is not in use: {daemon.config_problem}"
        )
    return {
        "version": __version__,
        "pid": os.getpid(),
        "started_at": daemon.counters.started,
        "now": time.time(),
        "ready": ready,
        "reason": reason or None,
        "driver_version": world.snapshot.driver_version,
        "cuda_version": world.snapshot.cuda_version,
        "config": {
            "file": daemon.settings.config_file or None,
            "generation": daemon.config_generation,
            "problem": daemon.config_problem,
        },
        "device_list_strategy": list(daemon.settings.device_list_strategy),
        "holders_known": stale is None,
        "holders_problem": stale,
        "gpus": [
            {
                "index": gpu.index,
                "uuid": gpu.uuid,
                "name": gpu.name,
                "pci_bus_id": gpu.pci_bus_id,
                "memory_bytes": gpu.memory_bytes,
                "numa_node": gpu.numa_node,
                "mig_enabled": gpu.mig_enabled,
                "mig_devices": len(gpu.slices),
                "reason": gpu.fault or engine.book.reason(gpu.uuid),
            }
            for gpu in world.snapshot.gpus
        ],
        "resources": resources,
        "problems": problems,
    }


class StatusServer:
    """Answers on the socket; each answer is made in a thread of its own, since asking the kubelet may take time."""

    def __init__(self, loop: Loop, directory: str, make: Callable[[], dict[str, Any]]) -> None:
        """Raises OSError when the directory can't be made or the socket not bound."""
        self._loop = loop
        self._make = make
        self.path = f"{directory}/{SOCKET}"
        Path(directory).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            Path(self.path).unlink()
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        before = os.umask(0o177)
        try:
            self._listener.bind(self.path)
        except OSError as error:
            raise OSError(error.errno, f"can't listen on {self.path}: {error.strerror}") from error
        finally:
            os.umask(before)
        self._listener.listen(8)
        self._inode = Path(self.path).stat().st_ino
        loop.read(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Takes the socket away, if it is still ours."""
        self._loop.forget(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            if Path(self.path).stat().st_ino == self._inode:
                Path(self.path).unlink()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _unused = self._listener.accept()
            connection.settimeout(5)
            threading.Thread(target=self._answer, args=(connection,), name="status", daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(json.dumps(self._make()).encode() + b"\n")
            except OSError:
                return
            except Exception:
                log.exception("status failed")


class NotRunning(Exception):
    """No plugin answers; the text says where it was looked for."""


def ask(directory: str, seconds: float = 5.0) -> dict[str, Any]:
    """The running plugin's report. Raises :class:`NotRunning`."""
    path = f"{directory}/{SOCKET}"
    data = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(path)
            while chunk := connection.recv(65536):
                data += chunk
                if len(data) > _LIMIT:
                    break
        answer: dict[str, Any] = json.loads(data)
    except (OSError, ValueError) as error:
        raise NotRunning(
            f"no plugin answers on {path} ({error}): is it running, and is run_dir right?"
        ) from error
    return answer


def table(rows: Iterable[Iterable[object]], heads: Iterable[str]) -> list[str]:
    """Columns as wide as they need to be."""
    cells = [tuple(heads), *(tuple(str(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]


def _age(now: float, then: float | None) -> str:
    if then is None:
        return "never"
    seconds = max(0, int(now - then))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def text(answer: Mapping[str, Any]) -> str:
    """The report for people."""
    now = answer["now"]
    lines = [
        f"gpu-device-plugin {answer['version']}, pid {answer['pid']}, started {_age(now, answer['started_at'])}; "
        f"driver {answer['driver_version'] or 'none'}, CUDA {answer['cuda_version'] or 'none'}",
        "ready" if answer["ready"] else f"NOT READY: {answer['reason']}",
        "",
    ]
    rows = []
    for resource in answer["resources"]:
        devices = resource["devices"]
        healthy = sum(device["healthy"] for device in devices)
        held = sum(device["holder"] is not None for device in devices)
        used = str(held) if answer["holders_known"] else "?"
        phase = (
            "registered" if resource["phase"] == "listed" else f"{resource['phase']}: {resource['problem']}"
        )
        rows.append((resource["name"], len(devices), healthy, used, _age(now, resource["listed_at"]), phase))
    lines += table(rows, ("RESOURCE", "DEVICES", "HEALTHY", "HELD", "LISTED", "KUBELET"))
    lines.append("")
    lines += table(_device_rows(answer), ("INDEX", "RESOURCE", "MODEL", "HEALTH", "HELD BY", "UUID"))
    for gpu in answer["gpus"]:
        if not any(
            device["gpu"] == gpu["uuid"] for resource in answer["resources"] for device in resource["devices"]
        ):
            lines.append(f"{gpu['index']}: {gpu['name']} {gpu['uuid']} is not offered")
    sick = {
        device["index"]: device["reason"]
        for resource in answer["resources"]
        for device in resource["devices"]
        if not device["healthy"]
    }
    if sick:
        lines += ["", "unhealthy:", *(f"  {index}: {reason}" for index, reason in sick.items())]
    if answer["problems"]:
        lines += ["", "problems:", *(f"  {problem}" for problem in answer["problems"])]
    if not answer["holders_known"]:
        lines += ["", f"holders unknown: {answer['holders_problem']}"]
    return "\n".join(lines)


def _device_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a GPU or slice; replicas of one are taken together."""
    rows: list[tuple[str, ...]] = []
    for resource in answer["resources"]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for device in resource["devices"]:
            groups.setdefault(device["uuid"], []).append(device)
        for group in groups.values():
            first = group[0]
            name = resource["name"] + (f" x{len(group)}" if first["replica"] is not None else "")
            holders = dict.fromkeys(
                f"{one['holder']['namespace']}/{one['holder']['pod']}" for one in group if one["holder"]
            )
            health = "Healthy" if first["healthy"] else "Unhealthy"
            rows.append(
                (
                    first["index"],
                    name,
                    first["model"] or "-",
                    health,
                    ", ".join(holders) or "-",
                    first["uuid"],
                )
            )
    return rows
