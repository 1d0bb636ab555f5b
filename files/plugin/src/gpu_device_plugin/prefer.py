"""Which devices GetPreferredAllocation names.

Whole GPUs, as the peer does it: of all ways to cut the available GPUs into sets of the asked size (and one smaller
rest), the one with the best sum of scores, and of its sets the best. Among equal ones the set that is joined least to
those it leaves behind, so that the best sets stay together; then the lowest indices. Exact up to 8 available GPUs;
above that a search whose work, counted in steps and not in time, is bounded.

Replicas and MIG slices: spread over GPUs (distributed) or filling one first (packed), by what is taken already.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import combinations
from operator import add, sub

from .devices import ResourcePlan
from .topology import Scores

EXACT = 8
"""Up to so many available GPUs every partition is looked at."""
SEED_STEPS = 384
"""Above: how many (seed, growth step) pairs are tried; one costs about 4 us at 64 GPUs."""
FINALISTS = 4
"""How many of the grown sets are improved by swaps and judged by the partition they leave."""
SWAPS = 6
"""Improving swaps a finalist may make."""
BOTH_WAYS = 16
"""Up to so many GPUs what a finalist leaves is cut both ways; above, in the way that was better for all of them."""

Row = tuple[int, ...]


class Chooser:
    """What one resource's answers need, made once a plan so that an answer only looks things up (K22)."""

    def __init__(self, resource: ResourcePlan, scores: Scores, policy: str = "distributed") -> None:
        """``policy``: ``distributed`` or ``packed``, for replicas and slices."""
        self.resource = resource
        self.policy = policy
        self.order = {device.id: number for number, device in enumerate(resource.devices)}
        self.whole = all(
            device.gpu_uuid is not None and device.gpu_instance is None and device.replica is None
            for device in resource.devices
        )
        self.rows: tuple[Row, ...] = ()
        self.total: dict[str, int] = {}
        self.gpu_of: dict[str, str] = {}
        self.on_gpu: dict[str, list[str]] = {}
        if self.whole:
            places = [scores.positions.get(device.uuid) for device in resource.devices]
            self.rows = tuple(
                tuple(0 if a is None or b is None else scores.rows[a][b] for b in places) for a in places
            )
        else:
            for device in resource.devices:
                if device.uuid not in self.total:
                    gpu = device.gpu_uuid or device.uuid
                    self.on_gpu.setdefault(gpu, []).append(device.uuid)
                    self.gpu_of[device.uuid] = gpu
                self.total[device.uuid] = self.total.get(device.uuid, 0) + 1

    def preferred(self, available: Sequence[str], must_include: Sequence[str], size: int) -> list[str]:
        """Ids in index order; [] when there is no good answer. Never raises (K24)."""
        order = self.order
        free = sorted({order[identity] for identity in available if identity in order})
        must = {order[identity] for identity in must_include if identity in order}
        if len(set(must_include)) != len(must) or not must.issubset(free):
            return []
        if not 0 < size <= len(free) or len(must) > size:
            return []
        if size == len(free):
            chosen = free
        elif len(must) == size:
            chosen = sorted(must)
        elif self.whole:
            chosen = best_set(self.rows, tuple(free), frozenset(must), size)
        else:
            chosen = self._spread(free, must, size)
        return [self.resource.devices[number].id for number in chosen]

    def _spread(self, free: list[int], must: set[int], size: int) -> list[int]:
        """Replicas and slices: one at a time from the device, then the GPU, of which the least (or most) is taken."""
        devices = self.resource.devices
        waiting: dict[str, list[int]] = {}
        taken_of = dict(self.total)
        for number in free:
            if number not in must:
                waiting.setdefault(devices[number].uuid, []).append(number)
                taken_of[devices[number].uuid] -= 1
        taken_on: dict[str, int] = {}
        for uuid, taken in taken_of.items():
            gpu = self.gpu_of[uuid]
            taken_on[gpu] = taken_on.get(gpu, 0) + taken
        sign = -1 if self.policy == "packed" else 1
        used = dict.fromkeys(waiting, 0)

        def rank(uuid: str) -> tuple[int, int, int, str]:
            return (
                sign * taken_of[uuid],
                sign * taken_on[self.gpu_of[uuid]],
                waiting[uuid][used[uuid]],
                uuid,
            )

        heap = [rank(uuid) for uuid in waiting]
        heapify(heap)
        chosen = set(must)
        while len(chosen) < size:
            entry = heappop(heap)
            uuid = entry[3]
            if used[uuid] == len(waiting[uuid]) or entry != rank(uuid):
                continue  # outdated: a newer entry of this device is in the heap, or it is used up
            chosen.add(entry[2])
            used[uuid] += 1
            taken_of[uuid] += 1
            taken_on[self.gpu_of[uuid]] += 1
            for beside in self.on_gpu[self.gpu_of[uuid]]:
                if beside in waiting and used[beside] < len(waiting[beside]):
                    heappush(heap, rank(beside))
        return sorted(chosen)


def best_set(rows: Sequence[Row], free: Sequence[int], must: frozenset[int], size: int) -> list[int]:
    """``size`` of ``free`` (sorted, more than ``size``) that hold ``must``, as the module says; numbers are rows."""
    local = [[rows[a][b] for b in free] for a in free]
    inside = [position for position, number in enumerate(free) if number in must]
    found = (_exact if len(free) <= EXACT else _search)(local, inside, size)
    return [free[position] for position in found]


def _exact(rows: list[list[int]], must: list[int], size: int) -> tuple[int, ...]:
    """Every set and the best partition of what it leaves, by bit masks over at most EXACT GPUs."""
    count = len(rows)
    score = [0] * (1 << count)
    for mask in range(1, 1 << count):
        low = (mask & -mask).bit_length() - 1
        rest = mask & (mask - 1)
        row = rows[low]
        score[mask] = score[rest] + sum(row[other] for other in range(low + 1, count) if rest >> other & 1)
    known: dict[int, int] = {}

    def partition(mask: int) -> int:
        """The best sum of scores over cuts into sets of ``size`` and one rest."""
        members = mask.bit_count()
        if members <= size:
            return score[mask]
        if mask not in known:
            bits = [bit for bit in range(count) if mask >> bit & 1]
            best = -1
            for of in {size, members % size} - {0}:
                for others in combinations(bits[1:], of - 1):
                    part = sum(1 << other for other in others) | 1 << bits[0]
                    best = max(best, score[part] + partition(mask ^ part))
            known[mask] = best
        return known[mask]

    everything = (1 << count) - 1
    best_key: tuple[int, int, int] | None = None
    best: tuple[int, ...] = ()
    open_to = [position for position in range(count) if position not in must]
    for others in combinations(open_to, size - len(must)):
        chosen = tuple(sorted((*must, *others)))
        mask = sum(1 << position for position in chosen)
        rest = everything ^ mask
        key = (score[mask] + partition(rest), score[mask], score[rest])
        if best_key is None or key > best_key or (key == best_key and chosen < best):
            best_key, best = key, chosen
    return best


class _Search:
    """Growing and swapping over many GPUs. A set's worth is its score, and its bonds to the others as tie-break: both
    in one number, ``weight * score - bonds``."""

    def __init__(self, rows: list[list[int]], size: int) -> None:
        self.rows = rows
        self.size = size
        self.bonds = [sum(row) for row in rows]
        self.loose = [-bond for bond in self.bonds]
        self.weight = 2 * sum(self.bonds) + 1
        self.heavy = [[self.weight * cell for cell in row] for row in rows]
        self.never = -self.weight * (sum(self.bonds) + 1)
        self.ways: tuple[bool, ...] = (False, True)
        """How rests are cut: from the most and from the least joined GPU on."""

    def pull(self, members: Sequence[int], worth: list[int] | None = None) -> list[int]:
        """For every GPU: what it would add to the set, weighted, less its bonds to all (or above ``worth``)."""
        worth = self.loose if worth is None else worth
        for member in members:
            worth = list(map(add, worth, self.heavy[member]))
        return worth

    def grow(self, members: Sequence[int], size: int, open_: list[int] | None = None) -> list[int]:
        """``members`` and the best next one, until there are ``size``. ``open_``: :attr:`loose`, with :attr:`never` for
        whom is not to be taken; what a set could add never lifts that above another's."""
        chosen = list(members)
        if len(chosen) == size:
            return chosen
        worth = self.pull(chosen, open_)
        if worth is self.loose or worth is open_:
            worth = worth.copy()
        for position in chosen:
            worth[position] = self.never
        while True:
            best = worth.index(max(worth))
            chosen.append(best)
            if len(chosen) == size:
                return chosen
            worth = list(map(add, worth, self.heavy[best]))
            worth[best] = self.never

    def score(self, members: Sequence[int]) -> int:
        """Sum over pairs."""
        return sum(self.rows[a][b] for a, b in combinations(members, 2))

    def key(self, members: Sequence[int]) -> tuple[int, int]:
        """Score, and minus the bonds to those left behind."""
        score = self.score(members)
        return score, 2 * score - sum(self.bonds[member] for member in members)

    def improve(self, members: list[int], must: Sequence[int]) -> list[int]:
        """Exchanges one for one as long as it pays, at most SWAPS times."""
        chosen = list(members)
        movable = [position for position in chosen if position not in must]
        for _unused in range(SWAPS):
            inside = set(chosen)
            worth = self.pull(chosen)
            outside = [position for position in range(len(self.rows)) if position not in inside]
            gain, leaves, comes = max(
                max((worth[b] - worth[a] - row[b], a, b) for b in outside)
                for a in movable
                for row in (self.heavy[a],)
            )
            if gain <= 0:
                break
            chosen[chosen.index(leaves)] = comes
            movable[movable.index(leaves)] = comes
        return chosen

    def partition(self, members: Sequence[int], *, loosest: bool) -> list[list[int]]:
        """A cut of what ``members`` leave into sets, each grown from the GPU that is joined least (``loosest``) or most
        to the others that are left."""
        left = list(range(len(self.rows)))
        open_ = self.loose.copy()
        inner = list(self.bonds)
        parts: list[list[int]] = []
        part = list(members)
        while True:
            for position in part:
                open_[position] = self.never
                inner = list(map(sub, inner, self.rows[position]))
                left.remove(position)
            if len(left) <= self.size:
                return [*parts, left]
            seed = (min if loosest else max)(left, key=inner.__getitem__)
            part = self.grow([seed], self.size, open_)
            parts.append(part)

    def left_behind(self, members: Sequence[int]) -> int:
        """What the better cut of the others is worth."""
        return max(sum(map(self.score, self.partition(members, loosest=loosest))) for loosest in self.ways)


def _search(rows: list[list[int]], must: list[int], size: int) -> list[int]:
    """The same aim over more GPUs than can be tried: sets grown from many seeds, the best improved, each judged by the
    partition that it leaves."""
    search = _Search(rows, size)
    if size == 1:
        return [search.bonds.index(min(search.bonds))]
    grown: dict[tuple[int, ...], tuple[int, int]] = {}

    def consider(members: Sequence[int]) -> None:
        chosen = tuple(sorted(members))
        if chosen not in grown:
            grown[chosen] = search.key(chosen)

    seeds = [position for position in range(len(rows)) if position not in must]
    most = max(2, SEED_STEPS // max(1, size - len(must)))
    if len(seeds) > most:  # the least and the most joined ones, and some between
        seeds.sort(key=search.bonds.__getitem__)
        seeds = [seeds[number * (len(seeds) - 1) // (most - 1)] for number in range(most)]
    for seed in seeds:
        consider(search.grow([*must, seed], size))
    cuts = {loosest: search.partition((), loosest=loosest) for loosest in search.ways}
    if len(rows) > BOTH_WAYS:
        search.ways = (max(search.ways, key=lambda loosest: sum(map(search.score, cuts[loosest]))),)
    for part in (*cuts[False], *cuts[True]):
        if len(part) == size and set(must).issubset(part):
            consider(part)
    finalists = sorted(grown, key=lambda members: (*(-worth for worth in grown[members]), members))[
        :FINALISTS
    ]
    best_key: tuple[int, int, int] | None = None
    best: list[int] = []
    for members in finalists:
        chosen = sorted(search.improve(list(members), must))
        own, apart = search.key(chosen)
        key = (own + search.left_behind(chosen), own, apart)
        if best_key is None or key > best_key or (key == best_key and chosen < best):
            best_key, best = key, chosen
    return best


def preferred(  # noqa: PLR0917 - as Chooser takes them
    resource: ResourcePlan,
    scores: Scores,
    available: Sequence[str],
    must_include: Sequence[str],
    size: int,
    policy: str = "distributed",
) -> list[str]:
    """One answer without keeping a :class:`Chooser`."""
    return Chooser(resource, scores, policy).preferred(available, must_include, size)
