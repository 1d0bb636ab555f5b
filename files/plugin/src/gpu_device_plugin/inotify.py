"""inotify(7) through ctypes: the few calls that are needed, no package for them."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

MODIFY = 0x002
ATTRIB = 0x004
CLOSE_WRITE = 0x008
MOVED_FROM = 0x040
MOVED_TO = 0x080
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x1000000

ENTRIES = CREATE | DELETE | MOVED_FROM | MOVED_TO
"""Names that come and go in a directory."""
SELF = DELETE_SELF | MOVE_SELF
"""The directory itself goes."""

_HEADER = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event: the watch it belongs to, its mask, and the entry's name ("" for the directory itself)."""

    watch: int
    mask: int
    name: str


class Inotify:
    """An inotify instance. ``fileno()`` becomes readable when :meth:`read` has something."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"inotify_init1: {os.strerror(code)}; raise fs.inotify.max_user_instances")

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._fd

    def watch(self, path: str, mask: int) -> int:
        """Watches a path and returns the watch's number. Raises OSError (ENOENT, ENOSPC ...) naming it."""
        number: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask))
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return number

    def forget(self, watch: int) -> None:
        """Ends a watch; one that is gone already is fine."""
        _libc.inotify_rm_watch(self._fd, ctypes.c_int(watch))

    def read(self) -> list[Event]:
        """What happened since the last call, without blocking."""
        events: list[Event] = []
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return events
            offset = 0
            while offset < len(data):
                watch, mask, _cookie, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size
                name = data[offset : offset + length].rstrip(b"\0")
                offset += length
                events.append(Event(watch, mask, os.fsdecode(name)))

    def close(self) -> None:
        """Ends all watches."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
