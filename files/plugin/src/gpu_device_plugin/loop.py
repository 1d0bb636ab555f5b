"""The one thread that decides: descriptors, timers, and calls handed in by other threads.

Everything that changes state runs here, one thing after the other, so nothing else needs a lock. asyncio would do the
same for 7.5 MB and 19 ms at every start (:mod:`rpc`). Callbacks must not block.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import time
from collections import deque
from collections.abc import Callable

from . import logs

log = logs.Log("loop")


class Timer:
    """A call to come; :meth:`cancel` takes it back."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """The call will not be made."""
        self.call = None


class Loop:
    """Run by one thread; only :meth:`call` and :meth:`stop` may be used from others."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._calls: deque[Callable[[], None]] = deque()
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._reader, selectors.EVENT_READ, self._drain)
        self._stopped = False
        self.now = time.monotonic
        self._due: float | None = self.now()

    @property
    def wake_fd(self) -> int:
        """A byte written here wakes the loop: for ``signal.set_wakeup_fd``."""
        return self._writer

    def call(self, function: Callable[[], None]) -> None:
        """From any thread: runs ``function`` in the loop, soon, in the order of the calls."""
        self._calls.append(function)
        self._wake()

    def after(self, seconds: float, function: Callable[[], None]) -> Timer:
        """Runs ``function`` in the loop once, ``seconds`` from now."""
        timer = Timer(self.now() + seconds, function)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def every(self, seconds: float, function: Callable[[], None]) -> None:
        """Runs ``function`` in the loop for ever, ``seconds`` between an end and the next start."""

        def again() -> None:
            try:
                function()
            finally:
                self.after(seconds, again)

        self.after(seconds, again)

    def read(self, descriptor: int, function: Callable[[], None]) -> None:
        """Runs ``function`` whenever the descriptor is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, function)

    def forget(self, descriptor: int) -> None:
        """Ends :meth:`read`."""
        self._selector.unregister(descriptor)

    def stop(self) -> None:
        """From any thread: :meth:`run` returns after the callback that runs now."""
        self._stopped = True
        self._wake()

    def late(self) -> float:
        """From any thread: by how many seconds the loop is behind, because a callback does not return or calls never
        end. 0 while it waits for something to do."""
        due = self._due
        return max(0.0, self.now() - due) if due is not None else 0.0

    def run(self) -> None:
        """Until :meth:`stop`. A callback that raises is logged, and the loop goes on."""
        while not self._stopped:
            patience = self._patience()
            self._due = self.now() + patience if patience is not None else None
            ready = self._selector.select(patience)
            self._due = self.now()
            for key, _events in ready:
                self._guarded(key.data)
            while self._calls and not self._stopped:
                self._guarded(self._calls.popleft())
            now = self.now()
            while self._timers and self._timers[0][0] <= now and not self._stopped:
                timer = heapq.heappop(self._timers)[2]
                if timer.call is not None:
                    self._guarded(timer.call)

    def close(self) -> None:
        """Frees the descriptors; the loop is not used again."""
        self._selector.close()
        os.close(self._reader)
        os.close(self._writer)

    def _patience(self) -> float | None:
        if self._calls:
            return 0.0
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self.now()) if self._timers else None

    def _drain(self) -> None:
        try:
            while os.read(self._reader, 4096):
                pass
        except BlockingIOError:
            return

    def _wake(self) -> None:
        try:
            os.write(self._writer, b"\0")
        except OSError:  # full: it wakes anyway; closed: nobody is left to wake
            return

    def _guarded(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:
            log.exception("internal fault", where=getattr(function, "__qualname__", repr(function)))
