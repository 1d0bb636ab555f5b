"""sd_notify(3): tells systemd that the service runs, how it does, and that it is alive. Nothing happens without
systemd."""

from __future__ import annotations

import socket
from collections.abc import Mapping


def notify(environ: Mapping[str, str], message: str) -> None:
    """Sends ``READY=1``, ``STATUS=...``, ``WATCHDOG=1`` ... Never raises: a notice is not worth a failure."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        ) as to:
            to.sendto(message.encode(), address)
    except OSError:
        return


def watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """WatchdogSec of the unit, None where none is set."""
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
