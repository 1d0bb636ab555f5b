"""What happened in a kubelet, in order: tests wait on it, the program logs it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

KEPT = 5000
"""Events kept."""


@dataclass(frozen=True, slots=True)
class Event:
    """``at`` is monotonic seconds; ``kind`` registered, refused, dial-failed, list, ..."""

    at: float
    kind: str
    resource: str
    detail: dict[str, Any] = field(default_factory=dict)


class Journal:
    """Append-only, with waiting. One condition guards it; every change of the kubelet's state notifies it."""

    def __init__(self, log: Callable[[Event], None] | None = None) -> None:
        self.changed = threading.Condition()
        self.events: deque[Event] = deque(maxlen=KEPT)
        self._log = log

    def add(self, kind: str, resource: str = "", **detail: Any) -> None:
        """Note an event and wake who waits."""
        event = Event(time.monotonic(), kind, resource, detail)
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()
        if self._log is not None:
            self._log(event)

    def of(self, kind: str, resource: str | None = None, since: float = 0.0) -> list[Event]:
        """Events of a kind, oldest first, not before ``since`` (monotonic seconds)."""
        with self.changed:
            return [
                event
                for event in self.events
                if event.kind == kind
                and event.at >= since
                and (resource is None or event.resource == resource)
            ]

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether ``condition`` came true in time; it is looked at after every event and ten times a second."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return condition()
            with self.changed:
                self.changed.wait(min(left, 0.1))
        return True
