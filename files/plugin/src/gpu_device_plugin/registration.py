"""One resource's place in the kubelet link's cycle, and what it takes to tell one socket from another."""

from __future__ import annotations

import os
import re
import socket
import zlib

from .loop import Timer
from .service import Service

_PATH_LIMIT = 107
"""Bytes of a unix socket's path (sun_path, without its NUL)."""

Identity = tuple[int, int, int]
"""Device, inode, change time in ns: inode numbers come back within 0.2 ms (K9)."""


def identity(path: str) -> Identity | None:
    """Which file this is, None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def accepts(path: str) -> bool:
    """Whether somebody listens on this unix socket right now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:  # its backlog is full: somebody is there
            return True
        except OSError:
            return False
    return True


def socket_name(resource: str, directory: str) -> str:
    """``gpuops-<resource>-<pid><random>.sock``, unique to this process and moment (K6); a hash stands for a resource
    whose name would make the path too long."""
    tail = f"-{os.getpid()}{os.urandom(3).hex()}.sock"
    name = re.sub(r"[^A-Za-z0-9.-]", "_", resource)
    if len(os.fsencode(f"{directory}/gpuops-{name}{tail}")) > _PATH_LIMIT:
        name = f"{zlib.crc32(resource.encode()):08x}"
    return f"gpuops-{name}{tail}"


class Registration:
    """One resource's place in the cycle."""

    def __init__(self, resource: str) -> None:
        self.resource = resource
        self.service: Service | None = None
        self.phase = "down"
        """``down``, ``draining``, ``registering``, ``waiting`` (for the first list), ``listed``."""
        self.problem = "not registered yet"
        self.attempts = 0
        self.short_lives = 0
        """Streams in a row that ended right after they began."""
        self.epoch = 0
        """Rises with each try, so that answers to an older one are known."""
        self.kubelet: Identity | None = None
        self.accepted = False
        self.got_list = False
        self.timer: Timer | None = None
        self.began = 0.0
        self.listed_at: float | None = None
        """Wall clock of the newest list sent."""
        self.registered_at: float | None = None

    def later(self, timer: Timer | None) -> None:
        """Replaces whatever this resource was waiting for."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer
