"""Host device files: patterns, groups, counts, and files that come and go."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from gpu_device_plugin.config import HostDeviceRule
from gpu_device_plugin.hostdev import HostDeviceSource, natural


def node(path: Path) -> None:
    """A character device that exists everywhere (1:3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


@pytest.fixture
def dev(place: Path) -> Path:
    for number in (0, 1, 10, 2):
        node(place / f"dev/infiniband/uverbs{number}")
        node(place / f"dev/infiniband/issm{number}")
    node(place / "dev/infiniband/rdma_cm")
    node(place / "dev/dri/renderD128")
    (place / "dev/dri/by-path").mkdir()
    (place / "dev/dri/notes").write_text("no device")
    return place


def scan(root: Path, *rules: HostDeviceRule):
    return HostDeviceSource(rules, root=str(root), sysfs=str(root / "sys")).scan()


def test_each_matching_device_file_is_a_device_in_natural_order(dev):
    found = scan(dev, HostDeviceRule("example.com/ib", ("/dev/infiniband/uverbs*",))).host_devices
    assert [one.id for one in found] == [
        "infiniband-uverbs0",
        "infiniband-uverbs1",
        "infiniband-uverbs2",
        "infiniband-uverbs10",
    ]
    assert found[0].paths == ("/dev/infiniband/uverbs0",)
    assert all(one.replicas == 1 and one.permissions == "rw" and one.fault is None for one in found)


def test_files_that_are_no_devices_are_left_out(dev):
    assert [one.id for one in scan(dev, HostDeviceRule("example.com/dri", ("/dev/dri/*",))).host_devices] == [
        "dri-renderD128"
    ]


def test_a_group_joins_what_shares_a_number_and_what_has_none(dev):
    rule = HostDeviceRule(
        "example.com/hca",
        ("/dev/infiniband/uverbs*", "/dev/infiniband/issm*", "/dev/infiniband/rdma_cm"),
        group=True,
        count=4,
        permissions="rwm",
    )
    found = scan(dev, rule).host_devices
    assert found[3].paths == (
        "/dev/infiniband/uverbs10",
        "/dev/infiniband/issm10",
        "/dev/infiniband/rdma_cm",
    )
    assert {(one.replicas, one.permissions) for one in found} == {(4, "rwm")}


def test_a_rule_that_matches_nothing_is_a_problem_that_names_it(dev):
    rule = HostDeviceRule("example.com/fpga", ("/dev/xdma*",), where="config.yaml:7")
    snapshot = scan(dev, rule)
    assert snapshot.host_devices == ()
    assert snapshot.problems == ("example.com/fpga: no device file matches /dev/xdma* (config.yaml:7)",)


def test_a_file_that_goes_stays_listed_as_unhealthy_and_heals_k19(dev):
    source = HostDeviceSource([HostDeviceRule("example.com/ib", ("/dev/infiniband/uverbs*",))], root=str(dev))
    assert [one.fault for one in source.scan().host_devices] == [None] * 4
    (dev / "dev/infiniband/uverbs1").unlink()
    for _ in range(2):
        faults = {one.id: one.fault for one in source.scan().host_devices if one.fault}
        assert faults == {"infiniband-uverbs1": "/dev/infiniband/uverbs1 is gone"}
    node(dev / "dev/infiniband/uverbs1")
    assert [one.fault for one in source.scan().host_devices] == [None] * 4


def test_a_file_that_comes_is_found(dev):
    source = HostDeviceSource([HostDeviceRule("example.com/ib", ("/dev/infiniband/uverbs*",))], root=str(dev))
    source.scan()
    node(dev / "dev/infiniband/uverbs3")
    assert len(source.scan().host_devices) == 5


def test_the_numa_node_comes_from_sysfs(dev):
    folder = dev / "sys/dev/char/1:3/device"
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text("1\n")
    assert scan(dev, HostDeviceRule("example.com/dri", ("/dev/dri/*",))).host_devices[0].numa_node == 1
    (folder / "numa_node").write_text("-1\n")
    assert scan(dev, HostDeviceRule("example.com/dri", ("/dev/dri/*",))).host_devices[0].numa_node is None


def test_natural_order():
    assert sorted(["a10", "a9", "a"], key=natural) == ["a", "a9", "a10"]
