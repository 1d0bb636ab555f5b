"""NVML's events in a thread of their own: XIDs and ECC errors reach the health book within milliseconds.

The event set belongs to the scanner's side (it knows the handles) and is waited on here. A monitor that can't
run is told at once: then GPUs are Unhealthy, not silently Healthy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from . import logs
from .health import Event
from .nvml import NvmlSource
from .nvml_library import LOST, TIMEOUT, describe
from .nvml_read import handle_value

log = logs.Log("nvml")

NO_INSTANCE = 0xFFFFFFFF
"""NVML's "no GPU instance, no compute instance"."""
WAIT_MILLISECONDS = 300
"""One wait: how long the next scan may have to wait for this thread, when other GPUs are to be watched."""
XID = 0x8
ECC_DOUBLE = 0x2
MIG_CHANGED = 0x100
PAUSE_SECONDS = 0.5
_DRAIN_LIMIT = 1000


class EventMonitor:
    """Waits for events of every GPU of a source."""

    def __init__(
        self,
        source: NvmlSource,
        on_event: Callable[[Event], None],
        on_rescan: Callable[[], None],
        on_state: Callable[[str | None], None],
    ) -> None:
        """All three are called in the monitor's thread and must return at once: an event; the layout changed or
        a GPU may be lost; why no event can be heard, None when they are heard again."""
        self._source = source
        self._on_event = on_event
        self._on_rescan = on_rescan
        self._on_state = on_state
        self._condition = threading.Condition()
        self._waiting = False
        self._pause = 0
        self._set: Any = None
        self._overlap: list[Event] | None = None
        """What was heard since a new set listens beside the old one."""
        self._uuids: dict[int, str] = {}
        self._generation = -1
        self._stopped = False
        self._failed: str | None = None
        self._thread: threading.Thread | None = None
        source.before_close = self._release

    def watch(self) -> None:
        """After a scan: watches the GPUs that it found. Cheap when they are the same. Never raises.

        The new event set listens before the old one is let go, and what is left in the old one is handed on, so that no
        event falls between them; what both heard is told once.
        """
        source = self._source
        with source.lock:
            handles = source.handles()
            uuids = {handle_value(handle): uuid for uuid, handle in handles.items()}
            if not source.library.is_open or (
                self._set is not None
                and uuids == self._uuids
                and self._generation == source.library.generation
            ):
                return
            api = source.library.api
            self._overlap = []
            try:
                events = api.nvmlEventSetCreate()
            except api.NVMLError as error:
                self._overlap = None
                self._tell(f"NVML can't watch events: {describe(error)}")
                return
            unwatched, lost = self._register(api, events, handles)
            changed = lost or unwatched != source.unwatched
            source.unwatched = unwatched
            self._release()
            heard, self._overlap = self._overlap, None
            self._drain(api, events, uuids, heard)
            with self._condition:
                self._set, self._uuids, self._generation = events, uuids, source.library.generation
                self._condition.notify_all()
        self._tell(None)
        if changed:
            self._on_rescan()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()

    @staticmethod
    def _register(api: Any, events: Any, handles: dict[str, Any]) -> tuple[dict[str, str], bool]:
        """Adds every GPU to the set; UUID -> why of those that can't be watched, and whether one was lost since
        the scan (which only another scan tells)."""
        unwatched, lost = {}, False
        for uuid, handle in handles.items():
            try:
                kinds = api.nvmlDeviceGetSupportedEventTypes(handle)
                if not kinds & XID:
                    raise api.NVMLError(api.NVML_ERROR_NOT_SUPPORTED)
                api.nvmlDeviceRegisterEvents(handle, kinds & (XID | ECC_DOUBLE | MIG_CHANGED), events)
            except api.NVMLError as error:
                if error.value in LOST:
                    lost = True
                    continue
                unwatched[uuid] = (
                    f"its XID events can't be watched ({describe(error)}); "
                    "DP_DISABLE_HEALTHCHECKS=all offers it unwatched"
                )
        return unwatched, lost

    def stop(self) -> None:
        """The thread ends with its present wait; nothing is called any more."""
        self._stopped = True
        with self._condition:
            self._condition.notify_all()

    def _release(self) -> None:
        """Gets the thread out of the library, hands on what the set still holds, frees it. Takes up to one wait."""
        with self._condition:
            self._pause += 1
            self._condition.notify_all()  # it may be pausing after an error
            while self._waiting:
                self._condition.wait()
            events, self._set = self._set, None
            uuids, self._uuids = self._uuids, {}
            self._pause -= 1
            self._condition.notify_all()
        if events is not None and self._source.library.is_open:
            api = self._source.library.api
            self._drain(api, events, uuids)
            try:
                api.nvmlEventSetFree(events)
            except api.NVMLError as error:
                log.debug("event set not freed", error=str(error))

    def _drain(self, api: Any, events: Any, uuids: dict[int, str], heard: list[Event] | None = None) -> None:
        """Tells what the set holds already, but not what was ``heard`` through another set."""
        skip = list(heard or ())
        for _unused in range(_DRAIN_LIMIT):
            try:
                event = self._understand(api.nvmlEventSetWait_v2(events, 0), uuids)
            except api.NVMLError:
                return
            if event in skip:
                skip.remove(event)
            elif event is not None:
                self._hear(event)

    def _tell(self, reason: str | None) -> None:
        if reason != self._failed and not self._stopped:
            self._failed = reason
            self._on_state(reason)

    def _run(self) -> None:
        while not self._stopped:
            with self._condition:
                while (self._set is None or self._pause) and not self._stopped:
                    self._condition.wait()
                if self._stopped:
                    return
                events, uuids = self._set, self._uuids
                api = self._source.library.api
                self._waiting = True
            try:
                self._wait(api, events, uuids)
            finally:
                with self._condition:
                    self._waiting = False
                    self._condition.notify_all()

    def _wait(self, api: Any, events: Any, uuids: dict[int, str]) -> None:
        try:
            data = api.nvmlEventSetWait_v2(events, WAIT_MILLISECONDS)
        except api.NVMLError as error:
            if error.value == TIMEOUT or self._stopped:
                return
            if error.value in LOST:
                self._on_rescan()
            else:
                self._tell(f"NVML's event wait failed: {describe(error)}")
                self._on_rescan()
            with self._condition:
                if not self._pause:  # else the scanner waits for this thread
                    self._condition.wait(PAUSE_SECONDS)
            return
        self._tell(None)
        event = self._understand(data, uuids)
        if event is not None:
            self._hear(event)

    def _hear(self, event: Event) -> None:
        if self._overlap is not None:
            self._overlap.append(event)
        if not self._stopped:
            self._on_event(event)

    def _understand(self, data: Any, uuids: dict[int, str]) -> Event | None:
        """The event; None for a change of the MIG layout, which asks for a scan."""
        if data.eventType & MIG_CHANGED:
            self._on_rescan()
            return None
        gi, ci = int(data.gpuInstanceId), int(data.computeInstanceId)
        return Event(
            gpu_uuid=uuids.get(handle_value(data.device)),
            kind="xid" if data.eventType & XID else "ecc-double",
            xid=int(data.eventData) if data.eventType & XID else 0,
            gpu_instance=None if gi == NO_INSTANCE else gi,
            compute_instance=None if ci == NO_INSTANCE else ci,
        )
