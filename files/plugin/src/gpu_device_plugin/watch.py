"""Tells when a file's content changed: edited in place, replaced, or reached by a symlink that was turned.

A ConfigMap in a pod is ``config.yaml -> ..data/config.yaml`` with ``..data`` a link that is replaced by rename, so the
watched thing is the directory that holds the name, and every directory on the way to the file that it leads to.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from . import inotify
from .loop import Loop, Timer

SETTLE_SECONDS = 0.05
"""Editors write in several steps."""
POLL_SECONDS = 0.9
"""For file systems that tell nothing; an edit is seen within a second in any case."""

_LIMIT = 1 << 20
"""Bytes; what comes after is not looked at."""


class FileWatch:
    """Calls ``changed`` in the loop when the file reads differently than when it was last read."""

    def __init__(self, loop: Loop, path: str, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._path = os.path.abspath(path)
        self._changed = changed
        self._inotify = inotify.Inotify()
        self._watches: dict[int, str] = {}
        self._timer: Timer | None = None
        self._closed = False
        self._mark = self._stat()
        self._content = self._read()
        loop.read(self._inotify.fileno(), self._on_inotify)
        self._arm()
        self._poll_timer = loop.after(POLL_SECONDS, self._poll)

    def close(self) -> None:
        """Ends the watch."""
        self._closed = True
        self._poll_timer.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.forget(self._inotify.fileno())
        self._inotify.close()

    def _directories(self) -> set[str]:
        """Each directory in which a name on the way to the content is looked up last."""
        folders = {os.path.dirname(self._path)}
        path = self._path
        for _unused in range(8):
            try:
                target = os.readlink(path)
            except OSError:
                break
            path = os.path.normpath(os.path.join(os.path.dirname(path), target))
            folders.add(os.path.dirname(path))
        folders.add(os.path.dirname(os.path.realpath(self._path)))
        return folders

    def _arm(self) -> None:
        wanted = self._directories()
        for watch, folder in list(self._watches.items()):
            if folder not in wanted:
                self._inotify.forget(watch)
                del self._watches[watch]
        for folder in wanted - set(self._watches.values()):
            try:
                mask = inotify.ENTRIES | inotify.CLOSE_WRITE | inotify.MODIFY | inotify.SELF
                self._watches[self._inotify.watch(folder, mask)] = folder
            except OSError:
                continue  # the poll sees it

    def _on_inotify(self) -> None:
        for event in self._inotify.read():
            if event.mask & inotify.IGNORED:
                self._watches.pop(event.watch, None)
        if self._timer is None:
            self._timer = self._loop.after(SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._timer = None
        if self._closed:
            return
        self._arm()
        self._compare()

    def _poll(self) -> None:
        self._poll_timer = self._loop.after(POLL_SECONDS, self._poll)
        if self._stat() != self._mark:
            self._arm()
            self._compare()

    def _compare(self) -> None:
        self._mark = self._stat()
        content = self._read()
        if content != self._content:
            self._content = content
            self._changed()

    def _stat(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _read(self) -> bytes | None:
        """The content itself: a digest would cost OpenSSL's 3.6 MB to save a few hundred bytes."""
        try:
            with open(self._path, "rb") as file:
                return file.read(_LIMIT)
        except OSError:
            return None
