"""How well GPUs are joined: a score per pair, made once at a scan."""

from __future__ import annotations

from dataclasses import dataclass, field

from .devices import Link, Snapshot

NVLINK_SCORE = 100
"""A direct NVLink, beside PcieAncestor's value of 10 to 60: the peer's weights."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Symmetric pair scores by GPU UUID."""

    positions: dict[str, int] = field(default_factory=dict)
    """UUID -> row."""
    rows: tuple[tuple[int, ...], ...] = ()

    def pair(self, a: str, b: str) -> int:
        """Score of two GPUs by UUID; 0 for unknown ones and for a GPU with itself."""
        row, column = self.positions.get(a), self.positions.get(b)
        return 0 if row is None or column is None else self.rows[row][column]


def score(link: Link) -> int:
    """Common ancestor's value + 100 for each NVLink."""
    return int(link.ancestor) + NVLINK_SCORE * max(0, link.nvlinks)


def scores(snapshot: Snapshot) -> Scores:
    """Survives any matrix: missing rows and cells count 0, of one-sided links the better side counts."""

    def cell(row: int, column: int) -> int:
        if row < len(snapshot.links) and column < len(snapshot.links[row]):
            return score(snapshot.links[row][column])
        return 0

    count = len(snapshot.gpus)
    rows = tuple(
        tuple(0 if row == column else max(cell(row, column), cell(column, row)) for column in range(count))
        for row in range(count)
    )
    positions: dict[str, int] = {}
    for row, gpu in enumerate(snapshot.gpus):
        positions.setdefault(gpu.uuid, row)
    return Scores(positions, rows)
