"""Small files of our own: written whole or not at all, and the boot they belong to."""

from __future__ import annotations

import os
from pathlib import Path


def boot_id() -> str:
    """Of this boot of the machine; what is fatal holds until it changes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_atomically(path: Path, text: str, mode: int = 0o600) -> None:
    """The whole file or none of it. Raises OSError. No fsync: a crash of the machine makes the boot id another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(text)
    temporary.replace(path)
