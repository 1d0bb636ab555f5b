"""Imports without the heavy modules that a library brings along and never uses here.

prometheus-client's exposition imports TLS for pushing, which nothing here does: OpenSSL costs 4.6 MB. While it
is imported, stand-ins take those names; afterwards they, and the standard library's modules that met them, are
forgotten, so that whoever wants the real ones (:mod:`apiserver`) gets fresh and whole ones.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

from .rpc import _Absent


@contextlib.contextmanager
def without_tls() -> Iterator[None]:
    """Inside, ``ssl`` is a stand-in and hashlib makes do without OpenSSL; nothing is changed when ssl is loaded
    already."""
    touched = ("ssl", "_hashlib", "hashlib", "http.client", "urllib.request")
    if any(name in sys.modules for name in touched):
        yield
        return
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    modules["ssl"] = _Absent("ssl")
    modules["_hashlib"] = None  # an ImportError for who asks
    try:
        yield
    finally:
        for name in touched:
            modules.pop(name, None)
