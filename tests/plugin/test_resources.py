"""What a node offers under which settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpu_device_plugin.config import HostDeviceRule, ResourceRule, Settings, SharedResource, Sharing
from gpu_device_plugin.devices import HostDevice, Plan, Snapshot
from gpu_device_plugin.resources import (
    MAX_DEVICES,
    matches,
    mig_resource,
    no_faults,
    pci_address,
    plan,
    refers_to,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_nodes import GIB, cut, gpu, node, uuid


def offered(found: Plan) -> dict[str, list[str]]:
    """Resource -> indices, ``0/2`` for replica 2 of GPU 0."""
    return {
        resource.name: [d.index if d.replica is None else f"{d.index}/{d.replica}" for d in resource.devices]
        for resource in found.resources
    }


def slicing(*entries: SharedResource, by_default: bool = False, fail: bool = False) -> Settings:
    return Settings(time_slicing=Sharing(by_default, fail, entries))


def test_every_gpu_is_offered_whole_with_all_that_is_known_of_it() -> None:
    found = plan(node(gpu(1), gpu(0)), Settings())
    (resource,) = found.resources
    assert (resource.name, resource.shared, found.problems, found.errors) == ("nvidia.com/gpu", None, (), ())
    first, second = resource.devices
    assert (first.id, first.uuid, first.index, second.index) == (uuid(0), uuid(0), "0", "1")
    assert (first.gpu_uuid, first.gpu_index, first.gpu_instance, first.replica) == (uuid(0), 0, None, None)
    assert (first.paths, first.permissions, first.numa_node) == (("/dev/nvidia0",), "rw", 0)
    assert (first.memory_bytes, first.fault, first.healthy) == (80 * GIB, None, True)


def test_gpus_come_in_the_order_of_their_index_not_of_its_text() -> None:
    assert offered(plan(node(*(gpu(index) for index in (10, 2, 1, 11, 0))), Settings())) == {
        "nvidia.com/gpu": ["0", "1", "2", "10", "11"]
    }


def test_a_node_without_gpus_offers_nothing_and_nothing_is_wrong() -> None:
    assert plan(Snapshot(), slicing(SharedResource("nvidia.com/gpu", 2))) == Plan()


def test_what_the_scan_could_not_read_is_passed_on() -> None:
    assert plan(Snapshot(problems=("a", "b", "a")), Settings()).problems == ("a", "b")


def test_the_display_adapter_of_a_dgx_is_left_out() -> None:
    assert offered(plan(node(gpu(0), gpu(1, name="NVIDIA DGX Display")), Settings())) == {
        "nvidia.com/gpu": ["0"]
    }


def test_a_gpu_with_a_fault_stays_listed_with_it_and_the_scan_s_word_comes_first() -> None:
    def book(gpu_uuid: str, gpu_instance: int | None, compute_instance: int | None) -> str | None:
        assert (gpu_instance, compute_instance) == (None, None)
        return "XID 79" if gpu_uuid in (uuid(0), uuid(1)) else None

    found = plan(node(gpu(0, fault="lost"), gpu(1), gpu(2)), Settings(), book)
    assert [device.fault for device in found.resources[0].devices] == ["lost", "XID 79", None]
    assert no_faults(uuid(0), None, None) is None


def test_numa_nodes_below_zero_are_none() -> None:
    found = plan(node(gpu(0, numa_node=-1), gpu(1, numa_node=None), gpu(2, numa_node=1)), Settings())
    assert [device.numa_node for device in found.resources[0].devices] == [None, None, 1]


def test_a_uuid_that_comes_twice_is_offered_once_and_told() -> None:
    found = plan(node(gpu(0), gpu(1, uuid=uuid(0)), gpu(2)), Settings())
    assert offered(found) == {"nvidia.com/gpu": ["0", "2"]}
    assert found.problems == (f"GPU 1 has the UUID {uuid(0)} of GPU 0; it is left out: see `nvidia-smi -L`",)


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (("1",), (), ["1"]),
        ((), ("1",), ["0", "2"]),
        ((uuid(2), "0"), (), ["0", "2"]),
        ((), ("00000000:19:00.0",), ["0", "2"]),
        (("1A:00.0",), (), ["2"]),
        (("A100*",), (), ["2"]),
        (("NVIDIA H*",), ("0",), ["1"]),
        ((), ("*",), []),
    ],
)
def test_gpus_are_chosen_by_index_uuid_address_and_model(
    include: tuple[str, ...], exclude: tuple[str, ...], left: list[str]
) -> None:
    snapshot = node(gpu(0), gpu(1), gpu(2, name="NVIDIA A100-SXM4-40GB"))
    found = plan(snapshot, Settings(include=include, exclude=exclude))
    assert offered(found) == ({"nvidia.com/gpu": left} if left else {})
    assert found.problems == ()


def test_a_filter_that_matches_nothing_is_told_but_not_on_a_node_without_gpus() -> None:
    filters = Settings(include=("0", "H200*"), exclude=("7",))
    found = plan(node(gpu(0)), filters)
    assert found.problems == (
        "devices.include: 'H200*' matches no GPU of this node",
        "devices.exclude: '7' matches no GPU of this node",
    )
    assert plan(Snapshot(), filters).problems == ()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:18:00.0", (0, 0x18, 0, 0)),
        ("00000000:18:00.0", (0, 0x18, 0, 0)),
        ("18:00.0", (0, 0x18, 0, 0)),
        ("1:ff:1F.7", (1, 0xFF, 0x1F, 7)),
        ("18:00", None),
        ("x:18:00.0", None),
        ("1:2:3:4.0", None),
        ("18.0", None),
        ("", None),
    ],
)
def test_pci_addresses_are_read_in_every_usual_form(
    text: str, address: tuple[int, int, int, int] | None
) -> None:
    assert pci_address(text) == address


def test_references_that_look_alike_are_not_mixed_up() -> None:
    assert refers_to("1", gpu(1))
    assert not refers_to("1", gpu(11))
    assert not refers_to(uuid(1), gpu(2))
    assert not refers_to("0000:19:00.0", gpu(0))
    assert not refers_to("H100", gpu(0))
    assert matches("H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert not matches("h100*", "NVIDIA H100 80GB HBM3")


def test_a_resource_a_model_by_the_first_rule_that_matches() -> None:
    rules = (ResourceRule("A100*40GB", "nvidia.com/a100"), ResourceRule("*A100*", "example.com/a100-other"))
    snapshot = node(gpu(0), gpu(1, name="NVIDIA A100-SXM4-40GB"), gpu(2, name="NVIDIA A100-SXM4-80GB"))
    assert offered(plan(snapshot, Settings(gpu_rules=rules))) == {
        "example.com/a100-other": ["2"],
        "nvidia.com/a100": ["1"],
        "nvidia.com/gpu": ["0"],
    }


def test_the_prefix_is_a_setting() -> None:
    found = plan(
        node(gpu(0), cut(1, "1g.10gb")), Settings(resource_prefix="example.com", mig_strategy="mixed")
    )
    assert offered(found) == {"example.com/gpu": ["0"], "example.com/mig-1g.10gb": ["1:0"]}


def test_without_mig_strategy_gpus_with_mig_are_offered_whole_and_told() -> None:
    found = plan(node(cut(0, "1g.10gb"), gpu(1)), Settings())
    assert offered(found) == {"nvidia.com/gpu": ["0", "1"]}
    (problem,) = found.problems
    assert problem.startswith(f"GPU 0 ({uuid(0)}) has MIG enabled but migStrategy is none")


def test_mixed_offers_slices_by_profile_beside_whole_gpus() -> None:
    found = plan(node(cut(0, "1g.10gb", "3g.40gb", "1g.10gb+me"), gpu(1)), Settings(mig_strategy="mixed"))
    assert offered(found) == {
        "nvidia.com/gpu": ["1"],
        "nvidia.com/mig-1g.10gb": ["0:0"],
        "nvidia.com/mig-1g.10gb.me": ["0:2"],
        "nvidia.com/mig-3g.40gb": ["0:1"],
    }
    device = found.resources[1].devices[0]
    assert device.paths == ("/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap0", "/dev/nvidia-caps/nvidia-cap1")
    assert (device.gpu_uuid, device.gpu_index, device.gpu_instance, device.compute_instance) == (
        uuid(0),
        0,
        7,
        0,
    )
    assert (device.memory_bytes, device.numa_node, device.id) == (10 * GIB, 0, device.uuid)
    assert found.problems == ()


def test_slices_come_in_order_of_their_number() -> None:
    found = plan(node(cut(2, *["1g.10gb"] * 12), cut(10, "1g.10gb")), Settings(mig_strategy="mixed"))
    assert offered(found) == {"nvidia.com/mig-1g.10gb": [*(f"2:{number}" for number in range(12)), "10:0"]}


def test_mig_names_hold_nothing_that_the_kubelet_refuses() -> None:
    assert mig_resource("1c.2g.20gb+me.all", "nvidia.com") == "nvidia.com/mig-1c.2g.20gb.me.all"
    assert mig_resource("1g.10gb me/x", "a") == "a/mig-1g.10gb.me.x"


def test_mig_rules_name_slices() -> None:
    rules = (ResourceRule("1g.*", "nvidia.com/small"),)
    found = plan(node(cut(0, "1g.10gb", "3g.40gb")), Settings(mig_strategy="mixed", mig_rules=rules))
    assert offered(found) == {"nvidia.com/mig-3g.40gb": ["0:1"], "nvidia.com/small": ["0:0"]}


def test_mixed_tells_of_a_gpu_with_mig_and_no_slices_and_offers_the_others() -> None:
    found = plan(node(cut(0), cut(1, "1g.10gb")), Settings(mig_strategy="mixed"))
    assert offered(found) == {"nvidia.com/mig-1g.10gb": ["1:0"]}
    (problem,) = found.problems
    assert problem.startswith(f"GPU 0 ({uuid(0)}) has MIG enabled and no slices")
    lost = plan(node(cut(0, fault="lost")), Settings(mig_strategy="mixed"))
    assert lost == Plan()


def test_a_fault_of_the_gpu_hits_its_slices_and_one_of_a_slice_only_that() -> None:
    def book(gpu_uuid: str, gpu_instance: int | None, compute_instance: int | None) -> str | None:
        return "XID 94" if (gpu_uuid, gpu_instance, compute_instance) == (uuid(0), 8, 0) else None

    found = plan(
        node(cut(0, "1g.10gb", "1g.10gb"), cut(1, "1g.10gb", fault="lost")),
        Settings(mig_strategy="mixed"),
        book,
    )
    assert [device.fault for device in found.resources[0].devices] == [None, "XID 94", "lost"]


def test_single_offers_slices_of_one_profile_as_gpus() -> None:
    found = plan(node(cut(0, "1g.10gb", "1g.10gb"), cut(1, "1g.10gb")), Settings(mig_strategy="single"))
    assert offered(found) == {"nvidia.com/gpu": ["0:0", "0:1", "1:0"]}
    assert found.problems == ()
    rules = Settings(mig_strategy="single", mig_rules=(ResourceRule("1g*", "nvidia.com/slice"),))
    assert offered(plan(node(cut(0, "1g.10gb")), rules)) == {"nvidia.com/slice": ["0:0"]}


def test_single_on_a_node_without_mig_offers_whole_gpus() -> None:
    assert offered(plan(node(gpu(0), gpu(1)), Settings(mig_strategy="single"))) == {
        "nvidia.com/gpu": ["0", "1"]
    }


def test_single_offers_nothing_where_gpus_differ_and_names_them() -> None:
    found = plan(
        node(cut(0, "1g.10gb"), gpu(1), cut(2), cut(3, "3g.40gb")),
        Settings(mig_strategy="single"),
    )
    assert found.resources == ()
    assert found.problems == (
        "migStrategy single needs every GPU cut into slices of one profile, but GPU 1 has MIG disabled; GPU 2 has MIG "
        "enabled but no slices; there is more than one profile (1g.10gb on GPU 0, 3g.40gb on GPU 3): no GPU is "
        "offered; change the layout, or set migStrategy to mixed",
    )


def test_in_single_a_gpu_that_cannot_be_read_does_not_take_the_others_with_it() -> None:
    found = plan(node(cut(0, "1g.10gb"), gpu(1, fault="lost")), Settings(mig_strategy="single"))
    assert offered(found) == {"nvidia.com/gpu": ["0:0"]}
    assert found.problems == (f"GPU 1 ({uuid(1)}) is not offered: its slices can't be read (lost)",)
    kept = plan(node(cut(0, "1g.10gb"), cut(1, "1g.10gb", fault="lost")), Settings(mig_strategy="single"))
    assert [device.fault for device in kept.resources[0].devices] == [None, "lost"]


def test_time_slicing_makes_replicas_with_the_peers_ids() -> None:
    found = plan(node(gpu(0), gpu(1)), slicing(SharedResource("nvidia.com/gpu", 3), fail=True))
    (resource,) = found.resources
    assert [device.id for device in resource.devices] == [
        f"{uuid(index)}::{number}" for index in (0, 1) for number in (0, 1, 2)
    ]
    assert (resource.shared, resource.fail_requests_greater_than_one) == ("time-slicing", True)
    first = resource.devices[0]
    assert (first.uuid, first.index, first.replica, first.paths) == (uuid(0), "0", 0, ("/dev/nvidia0",))


def test_a_fault_hits_every_replica() -> None:
    found = plan(node(gpu(0, fault="lost"), gpu(1)), slicing(SharedResource("nvidia.com/gpu", 2)))
    assert [device.fault for device in found.resources[0].devices] == ["lost", "lost", None, None]


def test_shared_devices_are_renamed_by_default_by_name_or_not_at_all() -> None:
    entry = SharedResource("nvidia.com/gpu", 2)
    snapshot = node(gpu(0))
    assert list(offered(plan(snapshot, slicing(entry)))) == ["nvidia.com/gpu"]
    assert list(offered(plan(snapshot, slicing(entry, by_default=True)))) == ["nvidia.com/gpu.shared"]
    named = replace(entry, rename="example.com/part")
    assert list(offered(plan(snapshot, slicing(named, by_default=True)))) == ["example.com/part"]


@pytest.mark.parametrize(
    ("devices", "shared"),
    [
        ("all", ["0", "1", "2"]),
        (2, ["0", "1"]),
        ((2, "0"), ["0", "2"]),
        ((uuid(1),), ["1"]),
        (("1", 1), ["1"]),
    ],
)
def test_only_the_devices_that_are_named_are_shared(
    devices: str | int | tuple[str | int, ...], shared: list[str]
) -> None:
    found = plan(
        node(gpu(0), gpu(1), gpu(2)), slicing(SharedResource("nvidia.com/gpu", 2, "nvidia.com/part", devices))
    )
    left = [index for index in ("0", "1", "2") if index not in shared]
    expected = {"nvidia.com/part": [f"{index}/{number}" for index in shared for number in (0, 1)]}
    assert offered(found) == expected | ({"nvidia.com/gpu": left} if left else {})
    assert found.errors == ()
    by_name = {resource.name: resource.shared for resource in found.resources}
    assert by_name["nvidia.com/part"] == "time-slicing"
    assert by_name.get("nvidia.com/gpu") is None


def test_shared_and_whole_devices_may_stand_in_one_list() -> None:
    found = plan(node(gpu(0), gpu(1)), slicing(SharedResource("nvidia.com/gpu", 2, devices=1)))
    assert offered(found) == {"nvidia.com/gpu": ["0/0", "0/1", "1"]}


def test_two_entries_of_one_resource_share_different_devices() -> None:
    entries = (
        SharedResource("nvidia.com/gpu", 2, "nvidia.com/half", (0,)),
        SharedResource("nvidia.com/gpu", 4, "nvidia.com/quarter"),
    )
    assert offered(plan(node(gpu(0), gpu(1)), slicing(*entries))) == {
        "nvidia.com/half": ["0/0", "0/1"],
        "nvidia.com/quarter": ["1/0", "1/1", "1/2", "1/3"],
    }


def test_a_slice_is_shared_by_its_index() -> None:
    entry = SharedResource("nvidia.com/mig-1g.10gb", 2, devices=("0:1",))
    found = plan(node(cut(0, "1g.10gb", "1g.10gb")), replace(slicing(entry), mig_strategy="mixed"))
    assert offered(found) == {"nvidia.com/mig-1g.10gb": ["0:0", "0:1/0", "0:1/1"]}


def test_entries_that_match_nothing_are_errors_with_their_place() -> None:
    entries = (
        SharedResource("nvidia.com/mig-1g.10gb", 2, where="c.yaml:7:5"),
        SharedResource("nvidia.com/gpu", 2, devices=5, where="c.yaml:9:5"),
        SharedResource("nvidia.com/gpu", 2, devices=("4", 0)),
    )
    found = plan(node(gpu(0), gpu(1)), slicing(*entries))
    assert found.errors == (
        "c.yaml:7:5: sharing entry nvidia.com/mig-1g.10gb matches no resource; here are: nvidia.com/gpu",
        "c.yaml:9:5: sharing entry nvidia.com/gpu asks for 5 devices; there are 2",
        "sharing entry nvidia.com/gpu: no device 4 in this resource",
        "sharing entry nvidia.com/gpu: device 0 is in an entry above too",
    )
    assert offered(found) == {"nvidia.com/gpu": ["0/0", "0/1", "1/0", "1/1"]}


def test_when_nothing_is_offered_the_error_says_so() -> None:
    found = plan(node(gpu(0)), replace(slicing(SharedResource("nvidia.com/gpu", 2)), exclude=("0",)))
    assert found.errors == ("sharing entry nvidia.com/gpu matches no resource; here are: none",)


def mps(*entries: SharedResource, **changes: object) -> Settings:
    return Settings(mps=Sharing(False, True, entries), **changes)  # type: ignore[arg-type]


def test_mps_shares_gpus_and_says_so() -> None:
    found = plan(node(gpu(0)), mps(SharedResource("nvidia.com/gpu", 48)))
    (resource,) = found.resources
    assert (len(resource.devices), resource.shared, resource.fail_requests_greater_than_one) == (
        48,
        "mps",
        True,
    )
    assert found.errors == ()


def test_mps_gives_no_gpu_more_clients_than_it_serves() -> None:
    snapshot = node(gpu(0, compute_capability=(6, 1), name="Tesla P100"), gpu(1))
    found = plan(snapshot, mps(SharedResource("nvidia.com/gpu", 20, where="c:1:1")))
    replicas = offered(found)["nvidia.com/gpu"]
    assert [sum(entry.startswith(f"{index}/") for entry in replicas) for index in "01"] == [16, 20]
    assert found.errors == (
        "c:1:1: sharing entry nvidia.com/gpu: GPU 0 (Tesla P100) serves at most 16 MPS clients, not 20; it is offered "
        "16 times",
    )


def test_mps_leaves_slices_unshared_and_says_so() -> None:
    found = plan(node(cut(0, "1g.10gb")), mps(SharedResource("nvidia.com/gpu", 2), mig_strategy="single"))
    assert offered(found) == {"nvidia.com/gpu": ["0:0"]}
    assert found.resources[0].shared is None
    assert found.errors == ("sharing entry nvidia.com/gpu: MPS can't share MIG slices; 0:0 stays unshared",)


def test_time_slicing_and_mps_may_share_different_resources() -> None:
    settings = Settings(
        gpu_rules=(ResourceRule("A100*", "nvidia.com/a100"),),
        time_slicing=Sharing(resources=(SharedResource("nvidia.com/gpu", 2),)),
        mps=Sharing(fail_requests_greater_than_one=True, resources=(SharedResource("nvidia.com/a100", 2),)),
    )
    found = plan(node(gpu(0), gpu(1, name="NVIDIA A100-SXM4-40GB")), settings)
    assert {resource.name: resource.shared for resource in found.resources} == {
        "nvidia.com/a100": "mps",
        "nvidia.com/gpu": "time-slicing",
    }


def test_host_devices_are_offered_beside_gpus_with_their_counts() -> None:
    devices = (
        HostDevice(
            "example.com/ib", "ib1", ("/dev/infiniband/uverbs1", "/dev/infiniband/umad1"), "rwm", 1, 2
        ),
        HostDevice("example.com/ib", "ib0", ("/dev/infiniband/uverbs0",), numa_node=-1),
        HostDevice("example.com/fpga", "xdma0", ("/dev/xdma0",), fault="not readable"),
    )
    found = plan(node(gpu(0), host_devices=devices), Settings())
    assert offered(found) == {
        "example.com/fpga": ["xdma0"],
        "example.com/ib": ["ib0", "ib1/0", "ib1/1"],
        "nvidia.com/gpu": ["0"],
    }
    fpga, ib = found.resources[0].devices[0], found.resources[1]
    assert fpga.fault == "not readable"
    assert (ib.devices[0].numa_node, ib.devices[0].gpu_uuid, ib.shared) == (None, None, None)
    assert (ib.devices[1].id, ib.devices[1].uuid, ib.devices[1].permissions) == ("ib1::0", "ib1", "rwm")
    assert ib.devices[1].paths == ("/dev/infiniband/uverbs1", "/dev/infiniband/umad1")
    assert HostDeviceRule("a/b", ("/dev/x",)) == HostDeviceRule("a/b", ("/dev/x",), where="c:1:1")


def test_no_id_is_offered_twice_whatever_the_sources_say() -> None:
    devices = (HostDevice("example.com/a", "x", ("/dev/x",)), HostDevice("example.com/b", "x", ("/dev/x",)))
    found = plan(Snapshot(host_devices=devices), Settings())
    assert offered(found) == {"example.com/a": ["x"]}
    assert found.problems == (
        "example.com/b: the id x is offered by example.com/a already; it is left out here",
    )


def test_names_that_the_kubelet_refuses_are_errors_not_registrations() -> None:
    found = plan(node(gpu(0), gpu(1, name="B")), Settings(gpu_rules=(ResourceRule("B", "kubernetes.io/b"),)))
    assert offered(found) == {"nvidia.com/gpu": ["0"]}
    assert found.errors == (
        "resource kubernetes.io/b is not offered: 'kubernetes.io': kubernetes.io is kept for Kubernetes itself",
    )


def test_ten_thousand_replicas_are_offered_and_sixty_thousand_refused() -> None:
    eight = node(*map(gpu, range(8)))
    assert len(plan(eight, slicing(SharedResource("nvidia.com/gpu", 1250))).resources[0].devices) == 10_000
    assert (
        len(plan(eight, slicing(SharedResource("nvidia.com/gpu", MAX_DEVICES // 8))).resources[0].devices)
        == MAX_DEVICES
    )
    found = plan(eight, slicing(SharedResource("nvidia.com/gpu", 7500)))
    assert found.resources == ()
    assert found.errors == (
        "resource nvidia.com/gpu is not offered: 60000 devices are more than the 50000 that fit into one message to "
        "the kubelet; lower its replicas",
    )
    many = HostDevice("example.com/x", "x", ("/dev/x",), replicas=10**9)
    assert plan(Snapshot(host_devices=(many,)), Settings()).resources == ()


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_node_under_any_settings_gives_a_plan_in_order_without_an_id_twice(data: st.DataObject) -> None:
    profiles = st.sampled_from(["1g.10gb", "2g.20gb", "1g.10gb+me", "odd/one"])
    indices = data.draw(st.lists(st.integers(0, 12), max_size=5))
    gpus = []
    for index in indices:
        fault = data.draw(st.sampled_from([None, "lost"]))
        if data.draw(st.booleans()):
            gpus.append(cut(index, *data.draw(st.lists(profiles, max_size=3)), fault=fault))
        else:
            gpus.append(
                gpu(index, fault=fault, compute_capability=data.draw(st.sampled_from([None, (6, 0), (9, 0)])))
            )
    names = st.sampled_from(["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/x"])
    selections = st.sampled_from(["all", 1, 3, (0,), ("0:0", 1), ("GPU-x",)])
    renames = st.sampled_from([None, "nvidia.com/gpu", "bad"])
    entries = st.lists(
        st.builds(SharedResource, names, st.integers(2, 50), renames, selections), max_size=3
    ).map(tuple)
    sharing = st.none() | st.builds(Sharing, st.booleans(), st.booleans(), entries)
    chosen = Settings(
        mig_strategy=data.draw(st.sampled_from(["none", "single", "mixed"])),
        time_slicing=data.draw(sharing),
        mps=data.draw(sharing),
        include=data.draw(st.sampled_from([(), ("0", "3"), ("*",)])),
    )
    found = plan(node(*gpus), chosen)
    ids = [device.id for resource in found.resources for device in resource.devices]
    assert len(ids) == len(set(ids))
    assert [resource.name for resource in found.resources] == sorted(
        resource.name for resource in found.resources
    )
    for resource in found.resources:
        order = [(*map(int, device.index.split(":")), device.replica or 0) for device in resource.devices]
        assert order == sorted(order)
        assert all(device.resource == resource.name for device in resource.devices)
    assert plan(node(*gpus), chosen) == found
