"""Events and a node condition through the API server, where a service account lets us; never in anybody's way.

One thread with a short queue. What can't be sent is dropped and counted: the list that the kubelet has is what
counts. The standard library's HTTPS is enough for two requests, and only this module pays for it (6 MB).
"""

from __future__ import annotations

import datetime
import json
import os
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import logs
from .counters import Counters

if TYPE_CHECKING:
    from .engine import Engine, HealthChange

log = logs.Log("apiserver")

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
CONDITION = "GPUsHealthy"
COMPONENT = "gpu-device-plugin"
TIMEOUT_SECONDS = 10.0
QUEUE_LENGTH = 100
EVENTS_A_MINUTE = 30
"""A GPU that flaps must not fill etcd."""
HEARTBEAT_SECONDS = 300.0
RETRY_SECONDS = 30.0


class ApiError(Exception):
    """A request that failed; the text names it and says why."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


class Client:
    """Requests as this pod's service account."""

    def __init__(self, base: str, account: str = ACCOUNT) -> None:
        """``base``: ``https://host:port``. Raises OSError when the account's files are not there."""
        self._base = base
        self._token = Path(account) / "token"
        self._token.read_text()
        context = None
        if base.startswith("https:"):
            context = ssl.create_default_context(cafile=str(Path(account) / "ca.crt"))
        handlers: list[Any] = [urllib.request.ProxyHandler({})]
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def send(self, method: str, path: str, body: Any, kind: str = "application/json") -> bytes:
        """One request; the answer's body. Raises :class:`ApiError`. The token is read anew: the kubelet turns it
        over."""
        request = urllib.request.Request(  # noqa: S310 - the API server's own address
            self._base + path,
            data=json.dumps(body).encode(),
            method=method,
            headers={
                "Authorization": f"Bearer {self._token.read_text().strip()}",
                "Content-Type": kind,
                "Accept": "application/json",
            },
        )
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read(300).decode(errors="replace")
            raise ApiError(f"{method} {path}: {error.code} {text}", error.code) from error
        except (OSError, ValueError) as error:
            raise ApiError(f"{method} {path}: {error}") from error


def in_cluster() -> str | None:
    """The API server's address inside a pod, None elsewhere."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        return None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def stamp(seconds: float) -> str:
    """RFC 3339, as the API takes it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def event(node: str, change: HealthChange, now: float) -> dict[str, Any]:
    """An Event of the node about one GPU, slice or host device."""
    sick = change.fault is not None
    text = f"{change.resource} {change.index} ({change.uuid}) is " + (
        f"Unhealthy: {change.fault}" if sick else f"Healthy again; was: {change.before}"
    )
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{node}.{uuid.uuid4().hex[:16]}", "namespace": "default"},
        "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
        "reason": "GPUUnhealthy" if sick else "GPUHealthy",
        "message": text[:1024],
        "type": "Warning" if sick else "Normal",
        "source": {"component": COMPONENT, "host": node},
        "firstTimestamp": stamp(now),
        "lastTimestamp": stamp(now),
        "count": 1,
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the node's condition says."""

    status: str
    """``True``, ``False`` or ``Unknown``, as a condition has it."""
    reason: str
    message: str


def verdict(nvml_problem: str | None, sick: Sequence[str]) -> Verdict:
    """``nvml_problem``: why NVML can't be read now; ``sick``: each sick device with its fault. Nobody knows of any
    GPU while NVML was never read: that is Unknown, and never healthy."""
    text = "; ".join(sick)[:1000]
    if nvml_problem:
        return Verdict("False" if sick else "Unknown", "NVMLUnreadable", nvml_problem[:1000])
    if sick:
        return Verdict("False", "DevicesUnhealthy", text)
    return Verdict("True", "DevicesHealthy", "all devices are healthy")


def condition(verdict: Verdict, since: str, now: float) -> dict[str, Any]:
    """A strategic merge patch of the node's status: one condition, by type. ``since``: RFC 3339."""
    return {
        "status": {
            "conditions": [
                {
                    "type": CONDITION,
                    "status": verdict.status,
                    "reason": verdict.reason,
                    "message": verdict.message,
                    "lastTransitionTime": since,
                    "lastHeartbeatTime": stamp(now),
                }
            ]
        }
    }


def written(node: bytes) -> tuple[str, str] | None:
    """(status, lastTransitionTime) of the condition as a Node has it already."""
    try:
        for one in json.loads(node)["status"]["conditions"]:
            if one["type"] == CONDITION:
                return str(one["status"]), str(one["lastTransitionTime"])
    except (ValueError, KeyError, TypeError):
        return None
    return None


class Reporter:
    """Tells the API server; :meth:`health` returns at once."""

    def __init__(
        self, node: str, counters: Counters, base: str | None = None, account: str = ACCOUNT
    ) -> None:
        """``base`` defaults to the cluster's own address."""
        self._node = node
        self._counters = counters
        self._base = base or in_cluster()
        self._account = account
        self._queue: queue.Queue[HealthChange | None] = queue.Queue(QUEUE_LENGTH)
        self._verdict: Verdict | None = None
        """None until the devices have been looked at: a plugin that starts knows nothing to tell."""
        self._stopped = False
        self._client: Client | None = None
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="apiserver", daemon=True)
        if self._base is None:
            log.warning("no Events are sent: this is no pod (KUBERNETES_SERVICE_HOST is not set)")
        else:
            self._thread.start()

    def health(self, changes: Sequence[HealthChange], engine: Engine) -> None:
        """What changed, and (from the engine's plan) what is sick now."""
        sick: dict[str, str] = {}
        for resource in engine.plan.resources:
            for device in resource.devices:
                if device.fault is not None:
                    sick.setdefault(device.uuid, f"{device.index} ({device.uuid}): {device.fault}")
        before, self._verdict = self._verdict, verdict(engine.nvml_problem, tuple(sick.values()))
        for change in changes:
            if (change.fault is None) == (change.before is None):
                continue
            try:
                self._queue.put_nowait(change)
            except queue.Full:
                self._counters.events_sent.add("dropped")
        if self._base is not None and self._verdict != before:
            self._wake()  # a reason may be another where nobody became sick or well

    def close(self) -> None:
        """Sends nothing more."""
        self._stopped = True
        self._wake()

    def _wake(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return

    def _run(self) -> None:
        sent_at: list[float] = []
        told: Verdict | None = None
        since = ""
        next_heartbeat = 0.0
        while not self._stopped:
            patience = None if self._verdict is None else max(0.1, next_heartbeat - time.monotonic())
            try:
                change = self._queue.get(timeout=patience)
            except queue.Empty:
                change = None
            if self._stopped:
                return
            now = time.time()
            if change is not None:
                sent_at = [one for one in sent_at if one > now - 60]
                if len(sent_at) >= EVENTS_A_MINUTE:
                    self._counters.events_sent.add("dropped")
                else:
                    sent_at.append(now)
                    body = event(self._node, change, now)
                    if self._send("POST", "/api/v1/namespaces/default/events", body) is not None:
                        self._counters.events_sent.add("sent")
            current = self._verdict
            if current is None or (current == told and time.monotonic() < next_heartbeat):
                continue
            next_heartbeat = time.monotonic() + RETRY_SECONDS
            if told is None:
                # Of a plugin before this one: its time of transition stays when nothing has changed since. An empty
                # patch answers with the Node and needs no right to read it.
                last = written(self._patch({}) or b"")
                since = last[1] if last is not None and last[0] == current.status else stamp(now)
            elif current.status != told.status:
                since = stamp(now)
            if self._patch(condition(current, since, now)) is not None:
                told = current
                next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS

    def _patch(self, body: Any) -> bytes | None:
        """The Node afterwards; None: it could not be patched."""
        kind = "application/strategic-merge-patch+json"
        return self._send("PATCH", f"/api/v1/nodes/{self._node}/status", body, kind)

    def _send(self, method: str, path: str, body: Any, kind: str = "application/json") -> bytes | None:
        try:
            if self._client is None:
                self._client = Client(self._base or "", self._account)
            answer = self._client.send(method, path, body, kind)
        except (ApiError, OSError) as error:
            self._counters.events_sent.add("failed")
            if str(error) != self._problem:
                self._problem = str(error)
                advice = (
                    " (the service account needs events: create and nodes/status: patch)"
                    if getattr(error, "code", 0) in (401, 403)
                    else ""
                )
                log.warning("API server", problem=f"{error}{advice}")
            return None
        self._problem = None
        return answer
