"""A directory watched by name, not by inode: it may be removed and made again, or not be there yet (K11)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from . import inotify, logs
from .loop import Loop

log = logs.Log("kubelet")


def dead_mount(directory: str) -> bool:
    """Whether the directory was removed under a mount of it, as a pod sees it (K11): only a new pod helps."""
    try:
        return os.stat(directory).st_nlink == 0
    except OSError:
        return False


class DirectoryWatch:
    """Tells in the loop what is made and what goes in a directory, whichever has that path at the moment."""

    def __init__(
        self,
        loop: Loop,
        directory: str,
        *,
        made: Callable[[str], None],
        gone: Callable[[str], None],
        unsure: Callable[[], None],
    ) -> None:
        """``made`` and ``gone`` get an entry's name; ``unsure`` means: look yourself (another directory, lost
        events)."""
        self._loop = loop
        self._directory = directory
        self._above, self._name = os.path.split(directory.rstrip("/"))
        self._made = made
        self._gone = gone
        self._unsure = unsure
        self._inotify = inotify.Inotify()
        self._watch: int | None = None
        self._watched: tuple[int, int] | None = None
        self._parent: int | None = None
        loop.read(self._inotify.fileno(), self._read)
        self.arm()

    def arm(self) -> None:
        """Watches the directory that is there now, or the one above it until it is. Cheap when nothing changed."""
        try:
            status = os.stat(self._directory)
            now = (status.st_dev, status.st_ino)
        except OSError:
            now = None
        if self._parent is None:
            # Always: a directory in which we have a socket bound never tells of its own end (the socket holds it).
            with contextlib.suppress(OSError):
                self._parent = self._inotify.watch(self._above, inotify.ENTRIES | inotify.SELF)
        if now is not None and now == self._watched:
            return
        if self._watch is not None:
            self._inotify.forget(self._watch)
        self._watch = self._watched = None
        mask = inotify.ENTRIES | inotify.SELF
        try:
            if now is not None:
                self._watch = self._inotify.watch(self._directory, mask | inotify.ONLYDIR)
                self._watched = now
        except OSError as error:
            log.debug("can't watch, polling", path=self._directory, error=str(error))

    def close(self) -> None:
        """Ends the watch."""
        self._loop.forget(self._inotify.fileno())
        self._inotify.close()

    def _read(self) -> None:
        unsure = False
        made: list[str] = []
        for event in self._inotify.read():
            if event.mask & inotify.OVERFLOW:
                unsure = True
            elif event.watch == self._parent:
                if event.mask & (inotify.SELF | inotify.IGNORED):
                    self._parent = None
                    unsure = True
                unsure = unsure or event.name == self._name
            elif event.watch != self._watch:
                continue  # of a directory that is no longer the one
            elif event.mask & (inotify.SELF | inotify.IGNORED):
                self._watch = self._watched = None
                unsure = True
            elif event.mask & (inotify.CREATE | inotify.MOVED_TO):
                made.append(event.name)
            elif event.mask & (inotify.DELETE | inotify.MOVED_FROM):
                self._gone(event.name)
        if unsure:
            self.arm()
            self._unsure()
        for name in made:
            self._made(name)
