"""Which devices GetPreferredAllocation names."""

from __future__ import annotations

from collections.abc import Sequence

from .devices import ResourcePlan
from .topology import Scores


class Chooser:
    """What one resource's answers need, made once a plan so that an answer only looks things up (K22)."""

    def __init__(self, resource: ResourcePlan, scores: Scores, policy: str = "distributed") -> None:
        self.resource = resource

    def preferred(self, available: Sequence[str], must_include: Sequence[str], size: int) -> list[str]:
        """Ids in index order; [] when there is no good answer. Never raises (K24)."""
        raise NotImplementedError


def preferred(
    resource: ResourcePlan,
    scores: Scores,
    available: Sequence[str],
    must_include: Sequence[str],
    size: int,
    policy: str = "distributed",
) -> list[str]:
    """The same in one call."""
    return Chooser(resource, scores, policy).preferred(available, must_include, size)
