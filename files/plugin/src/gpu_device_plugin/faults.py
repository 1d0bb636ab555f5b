"""How the settings' faults are put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
"""Keys and list positions, from the outermost."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; ``where`` is ``file:line:column``, a flag, or an environment variable."""

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def dotted(path: Path) -> str:
    """``sharing.timeSlicing.resources[0].name``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def shown(value: Any) -> str:
    """The value in a message: never long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def hint(word: str, known: tuple[str, ...]) -> str:
    """What was probably meant, or nothing."""
    import difflib  # noqa: PLC0415 - 2 ms that a start without faults need not take

    near = difflib.get_close_matches(word[:100], known, 1, 0.7)
    return f"; did you mean {near[0]}?" if near else ""


def unknown_value(value: Any, choices: tuple[str, ...]) -> str:
    """What it isn't, and what it may be."""
    return f"{shown(value)} is not one of {', '.join(choices)}{hint(value, choices) if isinstance(value, str) else ''}"
