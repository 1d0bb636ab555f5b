"""One line an event on standard error, ``key=value`` or JSON; the program's only log.

``log.info("registered", resource="nvidia.com/gpu", milliseconds=3)``. Nothing is logged a tick. It rides on
:mod:`logging`, so that what grpc says goes the same way.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

_ROOT = "gpu_device_plugin"
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@%+,*[]()<>;&|~")


class Log:
    """A named log whose calls take the event's fields as keywords."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

    def debug(self, event: str, **fields: Any) -> None:
        """For whoever looks for a fault."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something happened as it should."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something needs a look; the plugin goes on."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something does not work until it is mended."""
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """A fault of ours, with its traceback."""
        self._logger.error(event, extra={"fields": fields}, exc_info=True)

    def _write(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields})


def quote(value: object) -> str:
    """The value as it stands in a ``key=value`` line: bare where that is unambiguous, else as a JSON string."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        value = ",".join(str(item) for item in value)
    text = str(value)
    return text if text and _BARE.issuperset(text) else json.dumps(text, ensure_ascii=False)


class _Formatter(logging.Formatter):
    def __init__(self, style: str) -> None:
        super().__init__()
        self._json = style == "json"

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields: dict[str, Any] = {
            "time": stamp,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._json:
            return json.dumps(fields, ensure_ascii=False, default=str)
        return " ".join(f"{key}={quote(value)}" for key, value in fields.items())


def setup(style: str = "kv", level: str = "info") -> None:
    """Sends everything to standard error in this style ("kv", "json") from this level on. May be called again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(level.upper())
    logging.raiseExceptions = False  # a closed standard error must not become a traceback a line
