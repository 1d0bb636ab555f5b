"""Pair scores from any matrix."""

from __future__ import annotations

from gpu_device_plugin.devices import Link, PcieAncestor
from gpu_device_plugin.topology import score, scores
from plain_nodes import dgx1v, gpu, matrix, node, uuid


def test_a_pair_scores_its_common_ancestor_and_a_hundred_for_each_nvlink() -> None:
    assert [score(Link(ancestor)) for ancestor in PcieAncestor] == [0, 10, 20, 30, 40, 50, 60]
    assert score(Link(PcieAncestor.SINGLE_SWITCH, 2)) == 250
    assert score(Link(PcieAncestor.SYSTEM, -1)) == 10


def test_the_dgx_1v_scores_as_the_peer_scores_it() -> None:
    table = scores(dgx1v())
    assert table.pair(uuid(0), uuid(4)) == table.pair(uuid(4), uuid(0)) == 210
    assert table.pair(uuid(4), uuid(5)) == 150
    assert table.pair(uuid(2), uuid(3)) == 250
    assert table.pair(uuid(0), uuid(7)) == 10
    assert table.pair(uuid(0), uuid(0)) == 0


def test_of_a_one_sided_link_the_better_side_counts() -> None:
    assert scores(matrix([[0, 3], [1, 0]])).rows == ((0, 300), (300, 0))


def test_missing_rows_and_cells_count_nothing_and_unknown_gpus_too() -> None:
    links = ((Link(), Link(PcieAncestor.SYSTEM, 1)),)
    table = scores(node(gpu(0), gpu(1), gpu(2), links=links))
    assert table.rows == ((0, 110, 0), (110, 0, 0), (0, 0, 0))
    assert table.pair(uuid(0), "GPU-of-another-node") == 0
    assert scores(node(gpu(0), gpu(1))).rows == ((0, 0), (0, 0))
    assert scores(node(links=links)).rows == ()


def test_a_uuid_that_comes_twice_keeps_its_first_row() -> None:
    assert scores(node(gpu(0), gpu(1, uuid=uuid(0)))).positions == {uuid(0): 0}
