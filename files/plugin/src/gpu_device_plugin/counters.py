"""What happened so far, counted in plain numbers; :mod:`metrics` shows them, the status too.

Written from several threads: each entry is bumped under the interpreter's lock by one dictionary operation, and a
bump that is lost to a race would be worth nothing; still there is a lock, because counting must not be guesswork.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

Labels = tuple[str, ...]

BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)
"""Upper bounds of the RPC histogram, seconds."""


class Counter:
    """Numbers by labels; only rise."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self._values: dict[Labels, float] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, by: float = 1) -> None:
        """One more (or ``by`` more) under these labels."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0) + by

    def items(self) -> Iterator[tuple[Labels, float]]:
        """(labels, value), in the order of the labels."""
        with self._lock:
            values = sorted(self._values.items())
        yield from values

    def value(self, *labels: str) -> float:
        """Now, 0 where nothing was counted."""
        return self._values.get(labels, 0)


class Histogram:
    """Durations by labels, in :data:`BUCKETS`."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self._values: dict[Labels, list[float]] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, seconds: float) -> None:
        """One more of this length."""
        with self._lock:
            row = self._values.setdefault(labels, [0.0] * (len(BUCKETS) + 2))
            for position, bound in enumerate(BUCKETS):
                if seconds <= bound:
                    row[position] += 1
            row[-2] += 1
            row[-1] += seconds

    def items(self) -> Iterator[tuple[Labels, list[tuple[str, float]], float]]:
        """(labels, [(upper bound, cumulative count)], sum in seconds)."""
        with self._lock:
            rows = sorted((labels, list(row)) for labels, row in self._values.items())
        for labels, row in rows:
            bounds = [(str(bound), row[position]) for position, bound in enumerate(BUCKETS)]
            yield labels, [*bounds, ("+Inf", row[-2])], row[-1]


class Counters:
    """All of one run."""

    def __init__(self) -> None:
        self.started = time.time()
        self.registrations = Counter(
            "registrations",
            "Registrations with the kubelet that were tried, by result.",
            "resource",
            "result",
        )
        self.streams_opened = Counter("streams_opened", "ListAndWatch streams that began.", "resource")
        self.streams_closed = Counter("streams_closed", "ListAndWatch streams that ended.", "resource")
        self.lists = Counter("lists", "Device lists that were sent.", "resource")
        self.allocations = Counter("allocations", "Allocate calls, by gRPC status.", "resource", "code")
        self.allocated_devices = Counter(
            "allocated_devices", "Devices handed out by Allocate since start.", "resource"
        )
        self.xids = Counter("xid_events", "XID events, by GPU and XID.", "gpu", "xid")
        self.health_changes = Counter(
            "health_changes", "Devices that changed their health, by new health.", "resource", "health"
        )
        self.config_reloads = Counter("config_reloads", "Edits of the config file, by result.", "result")
        self.scans = Counter("scans", "Scans of the node's devices, by result.", "result")
        self.events_sent = Counter("events_sent", "Kubernetes Events, by result.", "result")
        self.rpc_seconds = Histogram(
            "rpc_duration_seconds", "Time to answer a unary call, inside the plugin.", "resource", "method"
        )

    def all_counters(self) -> tuple[Counter, ...]:
        """In the order of the metrics page."""
        return tuple(value for value in vars(self).values() if isinstance(value, Counter))
