"""Looks at the node in a thread of its own, since a sick GPU can hang NVML for seconds: now and then, and when
asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from . import logs
from .config import Settings
from .devices import Snapshot, SourceError
from .engine import Scan
from .hostdev import HostDeviceSource
from .nvml import NvmlSource
from .nvml_events import EventMonitor

log = logs.Log("scanner")

RETRY_SECONDS = 0.9
"""Between looks while there is no driver or a GPU is lost: what comes back is in the list within a second."""


class Scanner:
    """Runs the sources; hands each result to ``scanned``."""

    def __init__(
        self,
        nvml: NvmlSource,
        monitor: EventMonitor,
        settings: Settings,
        scanned: Callable[[Scan], None],
        busy: Callable[[Snapshot], Mapping[str, str]] | None = None,
    ) -> None:
        """``scanned`` and ``busy`` (the occupancy guard) are called in the scanner's thread."""
        self._nvml = nvml
        self._monitor = monitor
        self._scanned = scanned
        self._busy = busy
        self._condition = threading.Condition()
        self._asked = True
        self._stopped = False
        self.began: float | None = None
        """Monotonic seconds since when a look is under way, None while none is."""
        self._settings = settings
        self._host = HostDeviceSource(settings.host_devices)
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)

    def start(self) -> None:
        """The first look begins."""
        self._thread.start()

    def use_settings(self, settings: Settings) -> None:
        """From any thread: other settings from the next look on, which begins now."""
        with self._condition:
            if settings.host_devices != self._settings.host_devices:
                self._host = HostDeviceSource(settings.host_devices)
            self._settings = settings
        self.ask()

    def ask(self) -> None:
        """From any thread: look again now."""
        with self._condition:
            self._asked = True
            self._condition.notify_all()

    def stop(self) -> None:
        """No further look begins."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def _run(self) -> None:
        while True:
            with self._condition:
                if self._stopped:
                    return
                self._asked = False
                settings, host = self._settings, self._host
            self.began = time.monotonic()
            scan = self._look(settings, host)
            self.began = None
            self._scanned(scan)
            if scan.error is None and settings.health.disable != "all":
                self._monitor.watch()
            patience = settings.rescan_seconds
            if scan.error is not None or scan.busy or any(not probe.answers for probe in scan.probes):
                patience = min(patience, RETRY_SECONDS)
            with self._condition:
                if not self._asked and not self._stopped:
                    self._condition.wait(patience)

    def _look(self, settings: Settings, host: HostDeviceSource) -> Scan:
        snapshot, error = Snapshot(), None
        try:
            snapshot = self._nvml.scan()
        except SourceError as failure:
            error = str(failure)
        except Exception as failure:  # a driver that answers nonsense must not end the thread
            log.exception("scan failed")
            error = f"NVML answered what can't be understood: {type(failure).__name__}: {failure}"
        if settings.host_devices:
            there = host.scan()
            snapshot = replace(
                snapshot,
                host_devices=there.host_devices,
                problems=(*snapshot.problems, *there.problems),
            )
        busy: Mapping[str, str] = {}
        if error is None and settings.occupancy_guard and self._busy is not None:
            busy = self._busy(snapshot)
        probes = self._nvml.probes() if error is None else ()
        return Scan(snapshot=snapshot, probes=probes, error=error, busy=busy)
