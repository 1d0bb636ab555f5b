"""How well GPUs are joined: a score per pair, made once at a scan."""

from __future__ import annotations

from dataclasses import dataclass, field

from .devices import Snapshot


@dataclass(frozen=True, slots=True)
class Scores:
    """Symmetric pair scores by GPU UUID."""

    positions: dict[str, int] = field(default_factory=dict)
    """UUID -> row."""
    rows: tuple[tuple[int, ...], ...] = ()

    def pair(self, a: str, b: str) -> int:
        """Score of two GPUs by UUID; 0 for unknown ones."""
        raise NotImplementedError


def scores(snapshot: Snapshot) -> Scores:
    """Survives any matrix: missing rows, one-sided links, more GPUs than rows."""
    raise NotImplementedError
