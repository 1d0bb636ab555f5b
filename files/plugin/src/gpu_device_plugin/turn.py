"""One plugin serves at a time: a new one waits until the one before has ended (K6), by a lock on ``run_dir``.

A pod that is made anew may start while the old one ends. The kernel lets go of the lock with the process that holds
it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from . import logs

log = logs.Log("turn")

PATIENCE_SECONDS = 10.0
"""Longer than a kubelet takes to kill. A process that hangs in the driver outlives even that; it serves nobody."""
_POLL_SECONDS = 0.02


def wait(run_dir: str, seconds: float = PATIENCE_SECONDS) -> int | None:
    """Takes the turn, and holds it by the descriptor that is returned, until this process ends. None where it could
    not be had: without a place for the lock, or after ``seconds``."""
    try:
        os.makedirs(run_dir, exist_ok=True)
        descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        log.warning("another plugin on this node would not be noticed", problem=str(error))
        return None
    began = time.monotonic()
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            waited = time.monotonic() - began
            if waited > _POLL_SECONDS:
                log.info("the plugin before has ended", waited_seconds=round(waited, 2))
            return descriptor
        if time.monotonic() - began > seconds:
            log.error(
                "another plugin runs on this node and does not end; two of them break each other",
                lock=run_dir,
                waited_seconds=seconds,
            )
            os.close(descriptor)
            return None
        time.sleep(_POLL_SECONDS)
