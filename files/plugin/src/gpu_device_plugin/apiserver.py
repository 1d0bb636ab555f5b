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

    def send(self, method: str, path: str, body: Any, kind: str = "application/json") -> None:
        """One request. Raises :class:`ApiError`. The token is read anew: the kubelet turns it over."""
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
                answer.read()
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


def condition(sick: Sequence[str], since: float, now: float) -> dict[str, Any]:
    """A strategic merge patch of the node's status: one condition, by type."""
    text = "; ".join(sick) if sick else "all devices are healthy"
    return {
        "status": {
            "conditions": [
                {
                    "type": CONDITION,
                    "status": "False" if sick else "True",
                    "reason": "DevicesUnhealthy" if sick else "DevicesHealthy",
                    "message": text[:1000],
                    "lastTransitionTime": stamp(since),
                    "lastHeartbeatTime": stamp(now),
                }
            ]
        }
    }


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
        self._sick: tuple[str, ...] = ()
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
        self._sick = tuple(sick.values())
        for change in changes:
            if (change.fault is None) == (change.before is None):
                continue
            try:
                self._queue.put_nowait(change)
            except queue.Full:
                self._counters.events_sent.add("dropped")
        if self._base is not None and not changes:
            self._wake()

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
        told: tuple[str, ...] | None = None
        since = time.time()
        next_heartbeat = 0.0
        while not self._stopped:
            try:
                change = self._queue.get(timeout=max(0.1, next_heartbeat - time.monotonic()))
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
                    if self._send(
                        "POST", "/api/v1/namespaces/default/events", event(self._node, change, now)
                    ):
                        self._counters.events_sent.add("sent")
            sick = self._sick
            if sick != told or time.monotonic() >= next_heartbeat:
                if told is None or bool(sick) != bool(told):
                    since = now
                path = f"/api/v1/nodes/{self._node}/status"
                kind = "application/strategic-merge-patch+json"
                if self._send("PATCH", path, condition(sick, since, now), kind):
                    told = sick
                    next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS
                else:
                    next_heartbeat = time.monotonic() + RETRY_SECONDS

    def _send(self, method: str, path: str, body: Any, kind: str = "application/json") -> bool:
        try:
            if self._client is None:
                self._client = Client(self._base or "", self._account)
            self._client.send(method, path, body, kind)
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
            return False
        self._problem = None
        return True
