"""Preferred allocation: the specification's cases, and brute force beside it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from itertools import combinations, permutations
from typing import Any

import pytest
from gpu_device_plugin.config import Settings, SharedResource, Sharing
from gpu_device_plugin.devices import Device, HostDevice, Link, PcieAncestor, Snapshot
from gpu_device_plugin.prefer import EXACT, Chooser, best_set, preferred
from gpu_device_plugin.resources import plan
from gpu_device_plugin.topology import Scores, scores
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_nodes import cut, dgx1v, gpu, matrix, node, uuid, whole


def prefer(snapshot: Snapshot, available: Any, must: Any, size: int) -> list[int]:
    """By GPU index."""
    found = preferred(
        whole(snapshot), scores(snapshot), [uuid(i) for i in available], [uuid(i) for i in must], size
    )
    return [int(identity[4:12], 16) for identity in found]


@pytest.mark.parametrize(
    ("available", "must", "size", "expected"),
    [
        ((0, 2, 4, 5), (), 2, [4, 5]),
        ((0, 4, 5, 6), (), 2, [5, 6]),
        ((0, 1, 3), (), 2, [0, 3]),
        ((0, 1, 4), (), 2, [0, 4]),
        (range(8), (4,), 2, [4, 7]),
        (range(8), (), 8, list(range(8))),
        (range(8), (4,), 1, [4]),
        (range(8), (4,), 4, [4, 5, 6, 7]),
        (range(8), (), 4, [0, 1, 2, 3]),
        (range(8), (0, 2, 4, 6), 4, [0, 2, 4, 6]),
        (range(1, 8), (0,), 4, []),
        (range(1, 8), (0, 1, 2, 3), 4, []),
        (range(8), (1, 2, 3, 4, 5, 6), 4, []),
        (range(1, 6), (1, 2, 3, 4, 5, 6), 1, []),
        (range(8), (), 9, []),
        (range(8), (), 0, []),
        (range(8), (), -3, []),
        ((), (), 1, []),
        ((1, 1, 1, 0, 0), (), 2, [0, 1]),
    ],
)
def test_the_cases_of_the_dgx_1v(available: Any, must: Any, size: int, expected: list[int]) -> None:
    assert prefer(dgx1v(), available, must, size) == expected


def test_unknown_ids_are_passed_over_when_available_and_give_nothing_when_asked_for() -> None:
    resource, table = whole(dgx1v()), scores(dgx1v())
    assert preferred(resource, table, ["x", uuid(3), "y", uuid(0), uuid(1)], [], 2) == [uuid(0), uuid(3)]
    assert preferred(resource, table, [uuid(0), uuid(1)], ["x"], 2) == []


def islands(count: int, size: int = 8, links: int = 18) -> Snapshot:
    """NVLink inside an island, pairs below a PCIe switch, everything else across the system."""

    def link(a: int, b: int) -> Link:
        if a == b:
            return Link()
        if a // size != b // size:
            return Link(PcieAncestor.SYSTEM)
        return Link(PcieAncestor.SINGLE_SWITCH if a // 2 == b // 2 else PcieAncestor.NUMA_NODE, links)

    gpus = [gpu(index) for index in range(count)]
    return node(*gpus, links=tuple(tuple(link(a, b) for b in range(count)) for a in range(count)))


@pytest.mark.parametrize("count", [16, 32, 64])
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_many_gpus_are_taken_from_one_island(count: int, size: int) -> None:
    chosen = prefer(islands(count), range(count), (), size)
    assert len(chosen) == size
    assert len({index // 8 for index in chosen}) == 1
    if size % 2 == 0:
        assert all((index ^ 1) in chosen for index in chosen)


def test_the_set_is_taken_that_leaves_the_best_sets_behind() -> None:
    broken = [*range(8), 8, 9, 10, 11]
    assert prefer(islands(16), broken, (), 4) == [8, 9, 10, 11]
    assert prefer(islands(8, 4), [0, 1, 2, 3, 4, 5], (), 2) == [4, 5]
    assert prefer(islands(8, 4), [0, 1, 2, 3, 4], (), 1) == [4]
    assert prefer(islands(16), [*range(8), 9], (), 1) == [9]


def test_eight_of_sixteen_with_must_include_fill_its_island() -> None:
    assert prefer(islands(16), range(16), (9,), 8) == list(range(8, 16))
    assert prefer(islands(16), range(16), (1, 9), 2) == [1, 9]
    assert prefer(islands(16), range(16), (1, 9), 3)[:1] != []


def pair_sum(rows: list[list[int]], members: Iterable[int]) -> int:
    return sum(rows[a][b] for a, b in combinations(members, 2))


def best_cut(rows: list[list[int]], members: tuple[int, ...], size: int) -> int:
    """The best sum over all partitions, made one by one."""
    if len(members) <= size:
        return pair_sum(rows, members)
    best = -1
    for width in {size, len(members) % size} - {0}:
        for others in combinations(members[1:], width - 1):
            part = (members[0], *others)
            rest = tuple(member for member in members if member not in part)
            best = max(best, pair_sum(rows, part) + best_cut(rows, rest, size))
    return best


def worth(rows: list[list[int]], free: list[int], chosen: Iterable[int], size: int) -> tuple[int, int, int]:
    """What the module's words rank by: the partition, the set, what it leaves."""
    rest = tuple(member for member in free if member not in set(chosen))
    return pair_sum(rows, chosen) + best_cut(rows, rest, size), pair_sum(rows, chosen), pair_sum(rows, rest)


def best_by_brute_force(rows: list[list[int]], free: list[int], must: set[int], size: int) -> list[int]:
    """Straight from the module's words, with no cleverness."""
    sets = [chosen for chosen in combinations(free, size) if must.issubset(chosen)]
    best = max(worth(rows, free, chosen, size) for chosen in sets)
    return list(min(chosen for chosen in sets if worth(rows, free, chosen, size) == best))


MATRICES = st.integers(2, 7).flatmap(
    lambda count: st.lists(
        st.lists(st.sampled_from([0, 10, 50, 110, 210, 1850]), min_size=count, max_size=count),
        min_size=count,
        max_size=count,
    )
)


@settings(max_examples=200, deadline=None)
@given(MATRICES, st.data())
def test_up_to_eight_gpus_the_answer_is_that_of_brute_force(
    cells: list[list[int]], data: st.DataObject
) -> None:
    count = len(cells)
    rows = [[0 if a == b else max(cells[a][b], cells[b][a]) for b in range(count)] for a in range(count)]
    free = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=2)))
    size = data.draw(st.integers(1, len(free) - 1))
    must = data.draw(st.sets(st.sampled_from(free), max_size=size))
    found = best_set([tuple(row) for row in rows], free, frozenset(must), size)
    assert found == best_by_brute_force(rows, free, must, size)


def drawn(count: int, seed: int) -> list[tuple[int, ...]]:
    """A matrix of scores without any order in it."""
    chance = random.Random(seed)
    rows = [[0] * count for _ in range(count)]
    for a, b in combinations(range(count), 2):
        rows[a][b] = rows[b][a] = chance.choice([10, 20, 50, 110, 210])
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_eight_gpus_are_answered_as_by_brute_force(size: int) -> None:
    everyone = list(range(EXACT))
    for seed in range(12):
        rows = drawn(EXACT, seed)
        expected = best_by_brute_force(list(map(list, rows)), everyone, set(), size)
        assert best_set(rows, everyone, frozenset(), size) == expected


def test_of_ten_gpus_without_any_order_most_requests_leave_the_best_sets_behind() -> None:
    everyone = list(range(10))
    best = 0
    for seed in range(40):
        rows = drawn(10, seed)
        size = 2 + seed % 3
        found = best_set(rows, everyone, frozenset(), size)
        cells = list(map(list, rows))
        best += worth(cells, everyone, found, size)[0] == best_cut(cells, tuple(everyone), size)
    assert best >= 28


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 10), st.integers(2, 4), st.randoms(use_true_random=False))
def test_above_eight_gpus_a_tree_of_switches_is_still_answered_as_by_brute_force(
    count: int, size: int, chance: random.Random
) -> None:
    order = list(range(12))
    chance.shuffle(order)
    taken = order[:count]

    def cell(a: int, b: int) -> int:
        return 0 if a == b else 50 if a // 2 == b // 2 else 30 if a // 4 == b // 4 else 10

    rows = [[cell(a, b) for b in taken] for a in taken]
    everyone = list(range(count))
    found = best_set([tuple(row) for row in rows], everyone, frozenset(), size)
    assert worth(rows, everyone, found, size)[0] == best_cut(rows, tuple(everyone), size)


@settings(max_examples=60, deadline=None)
@given(st.integers(EXACT + 1, 20), st.randoms(use_true_random=False), st.data())
def test_above_eight_gpus_the_set_is_no_worse_than_the_greedy_one(
    count: int, chance: random.Random, data: st.DataObject
) -> None:
    rows = [[0] * count for _ in range(count)]
    for a, b in combinations(range(count), 2):
        rows[a][b] = rows[b][a] = chance.choice([10, 20, 50, 110, 210])
    size = data.draw(st.integers(1, count - 1))
    must = data.draw(st.sets(st.integers(0, count - 1), max_size=size - 1))
    found = best_set([tuple(row) for row in rows], list(range(count)), frozenset(must), size)
    assert len(set(found)) == size
    assert found == sorted(found)
    assert must.issubset(found)
    if not must and size > 1:
        average = sum(map(sum, rows)) / (count * (count - 1))
        assert sum(rows[a][b] for a, b in combinations(found, 2)) >= average * size * (size - 1) / 2


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_matrix_and_no_request_makes_it_raise(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    cells = st.builds(Link, st.sampled_from(PcieAncestor), st.integers(-2, 20))
    links = data.draw(st.lists(st.lists(cells, max_size=14).map(tuple), max_size=14).map(tuple))
    snapshot = node(*(gpu(index) for index in range(count)), links=links)
    identities = st.integers(0, 14).map(uuid) | st.text(max_size=3)
    available = data.draw(st.lists(identities, max_size=20))
    must = data.draw(st.lists(identities, max_size=3))
    size = data.draw(st.integers(-1, 15))
    found = preferred(whole(snapshot), scores(snapshot), available, must, size)
    assert found == [] or (len(found) == size and set(must) <= set(found) <= set(available))


def test_gpus_without_a_row_in_the_matrix_are_answered_too() -> None:
    assert preferred(whole(dgx1v()), Scores(), [uuid(3), uuid(1), uuid(2)], [], 2) == [uuid(1), uuid(2)]


def steps(call: Any) -> int:
    """Lines run: a measure of work that is the same on every machine."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "snapshot", [islands(64), islands(64, 64), matrix([[(a * b) % 5 for b in range(64)] for a in range(64)])]
)
def test_the_work_is_bounded_for_every_size_of_64(snapshot: Snapshot) -> None:
    chooser = Chooser(whole(snapshot), scores(snapshot))
    identities = [uuid(index) for index in range(64)]
    assert (
        max(steps(lambda size=size: chooser.preferred(identities, [], size)) for size in (1, 2, 3, 8, 31, 62))
        < 120_000
    )


def shared(gpus: int, replicas: int) -> list[Device]:
    sharing = Sharing(resources=(SharedResource("nvidia.com/gpu", replicas),))
    return list(plan(node(*map(gpu, range(gpus))), Settings(time_slicing=sharing)).resources[0].devices)


def spread(
    gpus: int, replicas: int, size: int, policy: str, taken: tuple[int, ...] = (), must: tuple[int, ...] = ()
) -> list[int]:
    """How many replicas of each GPU are chosen; ``taken``: how many of each are gone already."""
    sharing = Sharing(resources=(SharedResource("nvidia.com/gpu", replicas),))
    resource = plan(node(*map(gpu, range(gpus))), Settings(time_slicing=sharing)).resources[0]
    gone = dict(enumerate(taken))
    free = [d.id for d in resource.devices if (d.replica or 0) >= gone.get(d.gpu_index or 0, 0)]
    asked = [resource.devices[number].id for number in must]
    found = Chooser(resource, Scores(), policy).preferred(free, asked, size)
    assert len(set(found)) == len(found) == size
    assert set(asked) <= set(found) <= set(free)
    chosen = [device.gpu_index for device in resource.devices if device.id in found]
    return [chosen.count(index) for index in range(gpus)]


@pytest.mark.parametrize(
    ("gpus", "replicas", "size", "policy", "expected"),
    [
        (2, 4, 2, "distributed", [1, 1]),
        (3, 2, 3, "distributed", [1, 1, 1]),
        (2, 4, 4, "distributed", [2, 2]),
        (2, 4, 2, "packed", [2, 0]),
        (2, 4, 5, "packed", [4, 1]),
    ],
)
def test_the_cases_of_shared_gpus(
    gpus: int, replicas: int, size: int, policy: str, expected: list[int]
) -> None:
    assert spread(gpus, replicas, size, policy) == expected


def test_what_is_taken_already_counts() -> None:
    assert spread(2, 4, 1, "distributed", taken=(1, 0)) == [0, 1]
    assert spread(2, 4, 3, "distributed", taken=(2, 0)) == [1, 2]
    assert spread(3, 4, 2, "packed", taken=(0, 3, 1)) == [0, 1, 1]
    assert spread(2, 4, 2, "distributed", must=(0,)) == [1, 1]
    assert spread(2, 4, 2, "packed", must=(4,)) == [0, 2]


def test_mig_slices_are_spread_over_or_packed_into_gpus() -> None:
    snapshot = node(cut(0, "1g.10gb", "1g.10gb", "1g.10gb"), cut(1, "1g.10gb", "1g.10gb", "1g.10gb"))
    resource = plan(snapshot, Settings(mig_strategy="mixed")).resources[0]
    ids = [device.id for device in resource.devices]

    def chosen(policy: str, free: list[str], size: int) -> list[str]:
        found = Chooser(resource, Scores(), policy).preferred(free, [], size)
        return [device.index for device in resource.devices if device.id in found]

    assert chosen("distributed", ids, 2) == ["0:0", "1:0"]
    assert chosen("distributed", ids, 4) == ["0:0", "0:1", "1:0", "1:1"]
    assert chosen("packed", ids, 2) == ["0:0", "0:1"]
    assert chosen("distributed", [*ids[1:]], 1) == ["1:0"]
    assert chosen("packed", [*ids[:3], *ids[4:]], 2) == ["1:1", "1:2"]


def test_replicas_of_slices_go_to_the_emptiest_slice_first_and_then_to_the_emptiest_gpu() -> None:
    snapshot = node(cut(0, "1g.10gb", "1g.10gb"), cut(1, "1g.10gb", "1g.10gb"))
    sharing = Sharing(resources=(SharedResource("nvidia.com/mig-1g.10gb", 2),))
    resource = plan(snapshot, Settings(mig_strategy="mixed", time_slicing=sharing)).resources[0]
    ids = [device.id for device in resource.devices]

    def chosen(policy: str, free: list[str], size: int) -> list[str]:
        found = Chooser(resource, Scores(), policy).preferred(free, [], size)
        return [f"{device.index}/{device.replica}" for device in resource.devices if device.id in found]

    assert chosen("distributed", ids, 2) == ["0:0/0", "1:0/0"]
    assert chosen("distributed", ids, 4) == ["0:0/0", "0:1/0", "1:0/0", "1:1/0"]
    assert chosen("distributed", ids[1:], 1) == ["1:0/0"]
    assert chosen("distributed", ids[1:], 2) == ["0:1/0", "1:0/0"]
    assert chosen("packed", ids, 3) == ["0:0/0", "0:0/1", "0:1/0"]
    assert chosen("packed", ids[:5] + ids[6:], 2) == ["1:0/0", "1:1/0"]


def test_host_devices_are_spread_over_their_files() -> None:
    found = [HostDevice("example.com/fpga", name, (f"/dev/{name}",), replicas=2) for name in ("a", "b")]
    resource = plan(node(host_devices=tuple(found)), Settings()).resources[0]
    chooser = Chooser(resource, Scores())
    assert chooser.preferred([d.id for d in resource.devices], [], 2) == ["a::0", "b::0"]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(["distributed", "packed"]), st.data())
def test_shared_gpus_are_as_even_or_as_packed_as_can_be(
    gpus: int, replicas: int, policy: str, data: st.DataObject
) -> None:
    devices = shared(gpus, replicas + 1)
    resource = plan(
        node(*map(gpu, range(gpus))),
        Settings(time_slicing=Sharing(resources=(SharedResource("nvidia.com/gpu", replicas + 1),))),
    ).resources[0]
    free = data.draw(st.lists(st.sampled_from(devices), unique_by=lambda device: device.id, min_size=2))
    size = data.draw(st.integers(1, len(free)))
    must = [
        device.id
        for device in data.draw(st.lists(st.sampled_from(free), unique_by=lambda d: d.id, max_size=size))
    ]
    assume(len(must) <= size)
    found = Chooser(resource, Scores(), policy).preferred([device.id for device in free], must, size)
    assert len(found) == size
    assert set(must) <= set(found)
    by_gpu = {g: [d for d in devices if d.gpu_index == g] for g in range(gpus)}
    free_ids = {device.id for device in free}
    after = {g: sum(d.id in found or d.id not in free_ids for d in ds) for g, ds in by_gpu.items()}
    moved = {g: [d for d in ds if d.id in found and d.id not in must] for g, ds in by_gpu.items()}
    left = {g: [d for d in ds if d.id in free_ids and d.id not in found] for g, ds in by_gpu.items()}
    for source, target in permutations(range(gpus), 2):
        if moved[source] and left[target]:  # one of source's could have come from target instead
            if policy == "distributed":
                assert after[source] <= after[target] + 1
            else:
                assert not left[source] or after[source] >= after[target]


def test_ten_thousand_replicas_are_answered_from_a_heap() -> None:
    resource = plan(
        node(*map(gpu, range(8))),
        Settings(time_slicing=Sharing(resources=(SharedResource("nvidia.com/gpu", 1250),))),
    ).resources[0]
    chooser = Chooser(resource, Scores())
    ids = [device.id for device in resource.devices]
    assert len(chooser.preferred(ids, [], 5000)) == 5000
    one = chooser.preferred(ids, [], 1)
    assert one == [f"{uuid(0)}::0"]
