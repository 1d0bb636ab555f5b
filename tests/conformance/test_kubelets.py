"""K1 to K30 from a plugin's side of the wire, against every kubelet: the embedded one may not drift from the real one.

A scripted plugin talks to each kubelet and expects the same. What only a version does is asked of `node.behaviour`, the
table that the embedded kubelet itself follows, so that the real one checks the table as well.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from embedded_kubelet.wire import api, pluginregistration
from embedded_kubelet.wire import deviceplugin as dp
from fake_plugin import FakePlugin, never, wait_until
from kubelet_nodes import EmbeddedNode, Node

IDS = [f"gpu-{number}" for number in range(4)]


def listed(node: Node, resource: str, ids: list[str] | set[str]) -> bool:
    """Whether the kubelet wrote down exactly these as healthy."""
    return node.healthy(resource) == set(ids)


def wait_listed(node: Node, resource: str, ids: list[str] | set[str]) -> None:
    wait_until(
        lambda: listed(node, resource, ids), what=f"{resource} to be {ids}, is {node.healthy(resource)}"
    )


def admitted(node: Node, resource: str, number: int = 1) -> bool:
    """Whether a pod that asks for so many is taken now; it is removed again."""
    name = f"probe-{time.monotonic_ns() % 10**9}"
    try:
        return node.run_pod(name, {resource: number}).admitted
    finally:
        node.remove_pod(name)


# -- registration ------------------------------------------------------------------------------------------------


def test_k01_new_kubelets_dial_and_ask_before_they_answer_old_ones_after(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).serve() as plugin:
        assert plugin.register() is None
        asked_by_then = bool(plugin.requests("GetDevicePluginOptions"))
        wait_until(lambda: plugin.streams, what="ListAndWatch")
        assert asked_by_then == node.behaviour.dials_inside_register


def test_k01_a_registration_without_a_socket_fails_in_new_kubelets_alone(node: Node, resource: str) -> None:
    plugin = FakePlugin(node.plugin_dir, resource, IDS)
    error = plugin.register()
    if node.behaviour.dials_inside_register:
        assert error is not None
        assert error.code() == grpc.StatusCode.UNKNOWN
        assert "failed to dial device plugin" in error.details()
    else:
        assert error is None


def test_k03_options_come_from_the_request_or_from_the_plugin(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS, preferred=True).serve() as plugin:
        assert plugin.register(options=dp.DevicePluginOptions()) is None
        wait_listed(node, resource, IDS)
        node.run_pod("k03", {resource: 1})
        node.remove_pod("k03")
        assert bool(plugin.requests("GetPreferredAllocation")) != node.behaviour.options_from_request
        assert plugin.allocated


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("example.com/gpu", "v1alpha1"),
        ("example.com/gpu", ""),
        ("gpu", "v1beta1"),
        ("kubernetes.io/gpu", "v1beta1"),
        ("x.kubernetes.io/gpu", "v1beta1"),
        ("requests.example.com/gpu", "v1beta1"),
        ("example.com/-gpu", "v1beta1"),
        ("example.com/" + "g" * 64, "v1beta1"),
        ("Example.com/gpu", "v1beta1"),
        ("a/b/c", "v1beta1"),
        ("", "v1beta1"),
    ],
)
def test_k04_refused_registrations_come_back_as_unknown(node: Node, name: str, version: str) -> None:
    error = FakePlugin(node.plugin_dir, name, IDS, socket="k04.sock").register(version=version)
    assert error is not None
    assert error.code() == grpc.StatusCode.UNKNOWN
    assert ("not supported by kubelet" if version != "v1beta1" else "is invalid") in error.details()


def test_k04_a_name_of_63_characters_is_taken(node: Node) -> None:
    resource = "example.com/" + "g" * 63
    with FakePlugin(node.plugin_dir, resource, IDS, socket="k04b.sock").come():
        wait_listed(node, resource, IDS)


def test_k05_the_endpoint_is_joined_to_the_directory(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).serve() as plugin:
        plugin.register(endpoint=str(plugin.path))
        assert never(lambda: plugin.streams, 0.5), "a full path was dialled as it is"
        assert plugin.register() is None
        wait_until(lambda: plugin.streams, 15, "ListAndWatch by base name")


def test_k06_the_newest_of_two_gets_the_allocates_and_both_lists_count(node: Node, resource: str) -> None:
    with (
        FakePlugin(node.plugin_dir, resource, ["a", "b"], "k06-old.sock").come() as old,
        FakePlugin(node.plugin_dir, resource, ["c", "d"], "k06-new.sock") as new,
    ):
        wait_listed(node, resource, ["a", "b"])
        new.come()
        wait_listed(node, resource, ["c", "d"])
        node.run_pod("k06", {resource: 1})
        node.remove_pod("k06")
        assert (len(old.allocated), len(new.allocated)) == (0, 1)
        old.set(["e"])
        wait_listed(node, resource, ["e"])


def test_k06_the_end_of_the_old_stream_drops_the_new_one_in_kubelets_from_1_25_to_1_36(
    node: Node, resource: str
) -> None:
    with (
        FakePlugin(node.plugin_dir, resource, IDS, "k06-1.sock").come() as old,
        FakePlugin(node.plugin_dir, resource, IDS, "k06-2.sock") as new,
    ):
        new.come()
        wait_listed(node, resource, IDS)
        old.stop()
        if node.behaviour.old_stream_drops_new:
            wait_until(lambda: new.streams == 0, what="the new stream to be dropped")
            assert never(lambda: new.streams, 0.5), "it was dialled again"
        else:
            assert never(lambda: new.streams == 0, 0.5)
            assert admitted(node, resource)


def test_k07_when_a_stream_ends_all_devices_are_unhealthy_and_nobody_dials_again(
    node: Node, resource: str
) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        assert admitted(node, resource)
        plugin.end_streams()
        wait_until(lambda: plugin.streams == 0)
        wait_until(lambda: not admitted(node, resource), what="pods to be refused")
        assert never(lambda: plugin.streams, 0.5), "it was dialled again"
        assert plugin.register() is None
        wait_until(lambda: plugin.streams)
        wait_until(lambda: admitted(node, resource), what="pods to be taken again")


def test_k08_the_counter_counts_refused_registrations_too(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).serve() as plugin:
        plugin.register(version="v0")
        plugin.register(version="v0")
        plugin.register()
        assert node.registrations_counted(resource) == 3


# -- restart -----------------------------------------------------------------------------------------------------


def test_k09_a_stopping_kubelet_leaves_its_socket_dead(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come():
        wait_listed(node, resource, IDS)
    for end in (node.stop, node.kill):
        end()
        assert stat.S_ISSOCK(node.kubelet_sock.stat().st_mode)
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
            client.connect(str(node.kubelet_sock))
        assert (node.plugin_dir / "kubelet_internal_checkpoint").exists()
        node.start()


def test_k09_at_start_files_go_or_sockets_alone(node: Node, resource: str) -> None:
    directory = node.plugin_dir
    (directory / "sub").mkdir(exist_ok=True)
    (directory / "sub" / "inner").write_text("stays")
    (directory / "note.txt").write_text("goes, up to 1.32")
    plugin = FakePlugin(directory, resource, IDS).serve()
    inner = FakePlugin(directory / "sub", resource, IDS, "inner.sock").serve()
    node.stop()
    node.start()
    assert not plugin.path.exists()
    assert inner.path.exists()
    assert (directory / "sub" / "inner").exists()
    assert (directory / "note.txt").exists() != node.behaviour.deletes_every_file
    plugin.stop()
    inner.stop()


def test_k12_a_plugin_that_was_there_first_can_register_once_the_socket_is_there(
    node: Node, resource: str
) -> None:
    node.stop()
    before = node.kubelet_sock.stat()
    node.start()
    after = node.kubelet_sock.stat()
    assert (before.st_ino, before.st_ctime_ns) != (after.st_ino, after.st_ctime_ns)
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        assert node.registrations_counted(resource) == 1
        assert plugin.streams_seen == 1


def test_k13_allocations_come_from_the_checkpoint_and_capacity_waits_for_the_plugin(
    node: Node, resource: str
) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        assert node.run_pod("k13", {resource: 2}).admitted
        held = node.held("k13", resource)
        assert len(held) == 2
        node.stop()
        node.start()
        wait_until(lambda: node.held("k13", resource) == held, what="the allocation from the checkpoint")
        assert len(plugin.allocated) == 1, "allocated again"
        assert not admitted(node, resource), "capacity is 0 until the plugin is back"
        plugin.stop()
        plugin.come()
        wait_listed(node, resource, IDS)
        assert admitted(node, resource, 2)
        assert not admitted(node, resource, 3), "the pod of before still holds its two"
        node.remove_pod("k13")


def test_k13_pods_without_running_containers_are_refused_from_1_28_on(node: Node, resource: str) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a static pod's container runs on here; a reboot would be needed")
    with FakePlugin(node.plugin_dir, resource, IDS).come():
        wait_listed(node, resource, IDS)
        assert node.run_pod("k13b", {resource: 1}).admitted
        node.stop()
        node.start()
        if node.behaviour.rejects_unready:
            with pytest.raises(Exception, match="no healthy devices present"):
                node.kubelet.readmit("k13b")
        else:
            node.kubelet.readmit("k13b")
        node.remove_pod("k13b")


def test_k14_capacity_outlives_a_dead_plugin_allocatable_does_not_and_the_key_stays(
    node: Node, resource: str
) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a kubelet tells capacity to an API server alone")
    node.use(endpoint_grace_seconds=0.6)
    node.start()
    with FakePlugin(node.plugin_dir, resource, IDS).come():
        wait_until(lambda: node.kubelet.node_status()["allocatable"].get(resource) == 4)
    wait_until(lambda: node.kubelet.node_status()["allocatable"][resource] == 0)
    assert node.kubelet.node_status()["capacity"][resource] == 4
    wait_until(lambda: node.kubelet.node_status()["capacity"][resource] == 0)
    assert resource in node.kubelet.node_status()["allocatable"]
    node.use(endpoint_grace_seconds=300.0)


def test_k15_the_plugin_directory_does_not_follow_the_root_directory(node: Node, tmp_path: Path) -> None:
    root = node.base / "root"
    if not isinstance(node, EmbeddedNode):
        root = Path(f"/tmp/gr-{os.getpid()}")
    node.stop()
    node.start(root_dir=root)
    try:
        assert (root / "pod-resources/kubelet.sock").exists()
        assert (root / "plugins_registry").is_dir()
        assert not (root / "device-plugins/kubelet.sock").exists()
        with FakePlugin(node.plugin_dir, "example.com/k15", IDS).come():
            wait_listed(node, "example.com/k15", IDS)
            node.pod_resources(root_dir=root)
    finally:
        node.stop()
        node.start(root_dir=node.root_dir if isinstance(node, EmbeddedNode) else None)
        shutil.rmtree(root, ignore_errors=True)


def test_k16_with_the_gate_off_a_used_node_goes_on_advertising_and_pods_run_without_devices(
    node: Node, resource: str
) -> None:
    if node.behaviour.dials_inside_register and node.version >= "1.26":
        pytest.skip("the gate can't be off from 1.26 on")
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        if isinstance(node, EmbeddedNode):
            wait_until(lambda: node.kubelet.node_status()["allocatable"].get(resource) == 4)
        node.stop()
        wait_until(lambda: plugin.streams == 0, what="the stream to end")
        sockets = {path.name for path in node.plugin_dir.iterdir()}
        node.start(gate=False)
        try:
            assert {path.name for path in node.plugin_dir.iterdir()} == sockets, "everything stays"
            assert never(lambda: plugin.streams, 0.3)
            outcome = node.run_pod("k16", {resource: 2})
            assert outcome.admitted
            assert "IDS" not in outcome.envs
            assert not plugin.allocated
            if isinstance(node, EmbeddedNode):
                assert node.kubelet.node_status()["allocatable"][resource] == 4
            node.remove_pod("k16")
        finally:
            node.stop()
            node.start()


def test_k16_with_the_gate_off_a_fresh_node_has_no_directory(node: Node) -> None:
    if node.behaviour.dials_inside_register and node.version >= "1.26":
        pytest.skip("the gate can't be off from 1.26 on")
    node.stop()
    aside = node.plugin_dir.with_name("aside")
    node.plugin_dir.rename(aside)
    node.start(gate=False)
    try:
        assert never(node.plugin_dir.exists, 0.3)
    finally:
        node.stop()
        aside.rename(node.plugin_dir)
        node.start()


# -- lists -------------------------------------------------------------------------------------------------------


def test_k17_a_list_replaces_the_last_one_and_costs_a_checkpoint(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        plugin.set({"a": api.HEALTHY, "b": api.UNHEALTHY})
        wait_listed(node, resource, {"a"})
        file = node.plugin_dir / "kubelet_internal_checkpoint"
        before = file.stat().st_mtime_ns, file.stat().st_ino
        plugin.set({"a": api.HEALTHY, "b": api.UNHEALTHY})
        wait_until(lambda: (file.stat().st_mtime_ns, file.stat().st_ino) != before, what="a checkpoint write")


def test_k18_a_message_of_4_mib_passes_and_one_byte_more_ends_the_stream(node: Node, resource: str) -> None:
    limit = 4 * 1024 * 1024

    def message(size: int) -> Any:
        many = dp.ListAndWatchResponse(devices=[dp.Device(ID="x" * 200, health="Healthy")])
        many.devices[0].ID = "x" * (200 + size - many.ByteSize())
        many.devices[0].ID = "x" * (len(many.devices[0].ID) + size - many.ByteSize())
        assert many.ByteSize() == size
        return many

    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        plugin.send(message(limit))
        wait_until(lambda: len(node.healthy(resource) or ()) == 1, what="the big list")
        assert plugin.streams == 1
        plugin.send(message(limit + 1))
        wait_until(lambda: plugin.streams == 0, what="the stream to end")


def test_k19_unhealthy_during_allocate_is_safe(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)

        def answer(ids: list[str], _context: grpc.ServicerContext) -> Any:
            plugin.set(dict.fromkeys(IDS, api.UNHEALTHY))
            wait_listed(node, resource, set())
            return dp.AllocateResponse(container_responses=[{}])

        plugin.answer_allocate = answer
        assert node.run_pod("k19", {resource: 1}).admitted
        node.remove_pod("k19")
        assert node.alive()


def test_k19_a_device_that_leaves_the_list_during_allocate_kills_1_36(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)

        def answer(ids: list[str], _context: grpc.ServicerContext) -> Any:
            plugin.set([])
            wait_listed(node, resource, set())
            return dp.AllocateResponse(container_responses=[{}])

        plugin.answer_allocate = answer
        if node.behaviour.panics_on_vanished and not isinstance(node, EmbeddedNode):
            pytest.skip("would kill the kubelet in the middle of the suite")
        outcome = node.run_pod("k19b", {resource: 1})
        assert outcome.admitted != node.behaviour.panics_on_vanished
        assert node.alive() != node.behaviour.panics_on_vanished
        if not node.alive():
            node.start()
        node.remove_pod("k19b")


def test_k20_an_id_that_comes_twice_counts_once(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, ["a", "a", "b"]).come():
        wait_listed(node, resource, ["a", "b"])
        assert not admitted(node, resource, 3)


def test_k20_a_numa_node_that_the_machine_lacks_never_aligns(node: Node, resource: str) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("the topology manager of a real kubelet needs a machine with several NUMA nodes")
    node.use(topology_policy="single-numa-node", numa_nodes=(0, 1))
    node.start()
    devices = [
        dp.Device(ID=f"n{n}-{i}", health="Healthy", topology={"nodes": [{"ID": n}]})
        for n in (1, 7)
        for i in "ab"
    ]
    with FakePlugin(node.plugin_dir, resource).come() as plugin:
        plugin.send(dp.ListAndWatchResponse(devices=devices))
        wait_until(lambda: len(node.healthy(resource) or ()) == 4)
        node.run_pod("k20", {resource: 2})
        assert {i[:2] for i in node.held("k20", resource)} == {"n1"}
        node.remove_pod("k20")
    node.use(topology_policy="none", numa_nodes=(0,))


def test_k21_an_empty_list_and_the_end_leave_nothing(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        plugin.set([])
        wait_listed(node, resource, [])
        plugin.stop()
        assert listed(node, resource, [])
        if isinstance(node, EmbeddedNode):
            wait_until(lambda: node.kubelet.capacity()[resource] == 0)


# -- allocation --------------------------------------------------------------------------------------------------


def test_k22_an_allocate_that_hangs_holds_up_every_pod(node: Node, resource: str) -> None:
    if not isinstance(node, EmbeddedNode):
        # What an earlier case's pod asks for once more, outside the kubelet's loop, kills kubelet 1.20 beside an
        # Allocate that hangs (docs/plugin-lifecycle.md). A kubelet that has just begun knows of none.
        node.stop()
        node.start()
    go = threading.Event()
    done: list[bool] = []

    def answer(ids: list[str], _context: grpc.ServicerContext) -> Any:
        go.wait(10)
        return dp.AllocateResponse(container_responses=[{}])

    with (
        FakePlugin(node.plugin_dir, resource, IDS).come() as slow,
        FakePlugin(node.plugin_dir, f"{resource}-other", ["o"]).come() as other,
    ):
        wait_listed(node, resource, IDS)
        wait_listed(node, other.resource, ["o"])
        slow.answer_allocate = answer
        first = threading.Thread(target=lambda: done.append(node.run_pod("k22-1", {resource: 1}).admitted))
        first.start()
        wait_until(lambda: slow.allocated)
        second = threading.Thread(
            target=lambda: done.append(node.run_pod("k22-2", {other.resource: 1}).admitted)
        )
        second.start()
        assert never(lambda: other.allocated, 0.7), "the second pod was admitted beside it"
        go.set()
        first.join(20)
        second.join(20)
        assert done == [True, True]
    node.remove_pod("k22-1")
    node.remove_pod("k22-2")


def test_k23_one_container_a_call_and_no_answer_refuses_the_pod(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        plugin.answer_allocate = lambda _ids, _context: dp.AllocateResponse()
        outcome = node.run_pod("k23", {resource: 3})
        assert not outcome.admitted
        assert "no containers return in allocation response" in outcome.reason
        assert [len(request.container_requests) for request in plugin.requests("Allocate")] == [1]
        leaked = node.run_pod("k23-2", {resource: 2})
        assert not leaked.admitted, "the three ids were given back"
        node.remove_pod("k23")
        node.remove_pod("k23-2")


def test_k24_errors_refuse_the_pod_for_good_and_an_empty_preference_does_not(
    node: Node, resource: str
) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS, preferred=True).come() as plugin:
        wait_listed(node, resource, IDS)
        plugin.answer_preferred = lambda _r, context: context.abort(grpc.StatusCode.INTERNAL, "no preference")
        refused = node.run_pod("k24-1", {resource: 2})
        assert not refused.admitted
        assert "GetPreferredAllocation rpc failed" in refused.reason
        plugin.answer_preferred = lambda _r, _c: ()
        plugin.answer_allocate = lambda _ids, context: context.abort(
            grpc.StatusCode.FAILED_PRECONDITION, "gpu-1 ill"
        )
        refused = node.run_pod("k24-2", {resource: 2})
        assert not refused.admitted
        assert "FailedPrecondition desc = gpu-1 ill" in refused.reason
        plugin.answer_allocate = plugin._plain_answer
        assert node.run_pod("k24-3", {resource: 2}).admitted
        for number in (1, 2, 3):
            node.remove_pod(f"k24-{number}")


@pytest.mark.parametrize(
    ("preference", "size"),
    [(["gpu-1", "gpu-2"], 2), (["gpu-3"], 2), (["gpu-0", "gpu-1", "gpu-2"], 2), (["nope"], 1)],
)
def test_k25_preferences_are_filled_up_and_cut(
    node: Node, resource: str, preference: list[str], size: int
) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS, preferred=True).come() as plugin:
        wait_listed(node, resource, IDS)
        plugin.answer_preferred = lambda _r, _c: preference
        assert node.run_pod("k25", {resource: size}).admitted
        [request] = plugin.requests("GetPreferredAllocation")
        asked = request.container_requests[0]
        assert set(asked.available_deviceIDs) == set(IDS)
        assert (list(asked.must_include_deviceIDs), asked.allocation_size) == ([], size)
        got, wanted = set(plugin.allocated[0]), set(preference) & set(IDS)
        assert len(got) == size
        assert got <= wanted or wanted <= got
        node.remove_pod("k25")


def test_k25_only_free_healthy_ids_are_available(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS, preferred=True).come() as plugin:
        plugin.set({**dict.fromkeys(IDS, api.HEALTHY), "gpu-3": api.UNHEALTHY})
        wait_listed(node, resource, IDS[:3])
        assert node.run_pod("k25-1", {resource: 1}).admitted
        taken = set(plugin.allocated[0])
        assert node.run_pod("k25-2", {resource: 1}).admitted
        asked = plugin.requests("GetPreferredAllocation")[-1].container_requests[0]
        assert set(asked.available_deviceIDs) == set(IDS[:3]) - taken
        node.remove_pod("k25-1")
        node.remove_pod("k25-2")


def test_k26_a_container_that_restarts_gets_pre_start_but_no_allocate(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS, pre_start=True).come() as plugin:
        wait_listed(node, resource, IDS)
        assert node.run_pod("k26", {resource: 2}).admitted
        assert len(plugin.requests("PreStartContainer")) == 1
        node.restart_container("k26")
        wait_until(lambda: len(plugin.requests("PreStartContainer")) == 2)
        assert len(plugin.allocated) == 1
        assert [set(r.devices_ids) for r in plugin.requests("PreStartContainer")] == [
            set(plugin.allocated[0])
        ] * 2
        node.remove_pod("k26")


def test_k27_pod_resources_says_who_holds_what(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        assert node.held("k27", resource) == set()
        assert node.run_pod("k27", {resource: 2}).admitted
        assert node.held("k27", resource) == set(plugin.allocated[0])
        plugin.set({**dict.fromkeys(IDS, api.UNHEALTHY), "gpu-0": api.HEALTHY})
        wait_listed(node, resource, {"gpu-0"})
        if node.behaviour.allocatable_resources:
            devices = node.pod_resources("GetAllocatableResources").devices
            assert {i for d in devices if d.resource_name == resource for i in d.device_ids} == {"gpu-0"}
        else:
            with pytest.raises(grpc.RpcError) as error:
                node.pod_resources("GetAllocatableResources")
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
        if node.behaviour.get_pod:
            pod = node.pod_resources(
                "Get", pod_name=node.pod_name("k27"), pod_namespace="default"
            ).pod_resources
            assert {i for c in pod.containers for d in c.devices for i in d.device_ids} == set(
                plugin.allocated[0]
            )
        node.remove_pod("k27")
        wait_until(lambda: node.held("k27", resource) == set())


def test_k27_a_hundred_calls_a_second_and_no_more_from_1_27_on(node: Node) -> None:
    refused = 0
    for _ in range(300):
        try:
            node.pod_resources()
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            refused += 1
        if refused:
            break
    assert bool(refused) == node.behaviour.rate_limit
    if refused:
        time.sleep(0.2)  # in which twenty become free; a poll would take each at once
        assert all(_lists(node) for _ in range(5)), "calls are answered again"


def _lists(node: Node) -> bool:
    try:
        node.pod_resources()
    except grpc.RpcError:
        return False
    return True


def test_k28_all_parts_of_an_answer_reach_the_container_and_cdi_only_new_ones(
    node: Node, resource: str
) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        plugin.answer_allocate = lambda _ids, _context: dp.AllocateResponse(
            container_responses=[
                {
                    "envs": {"A": "1", "B": "2"},
                    "mounts": [{"container_path": "/in", "host_path": "/proc/self", "read_only": True}],
                    "devices": [{"container_path": "/dev/x", "host_path": "/dev/null", "permissions": "rw"}],
                    "annotations": {"example.com/a": "b"},
                    "cdi_devices": [{"name": "example.com/gpu=0"}],
                }
            ]
        )
        outcome = node.run_pod("k28", {resource: 1})
        assert outcome.admitted
        assert {"A": "1", "B": "2"}.items() <= outcome.envs.items()
        assert ("/in", "/proc/self", True) in outcome.mounts
        assert outcome.devices == (("/dev/x", "/dev/null", "rw"),)
        assert outcome.annotations.get("example.com/a") == "b"
        assert outcome.cdi == (("example.com/gpu=0",) if node.behaviour.cdi else ())
        node.remove_pod("k28")


def test_k29_ids_come_in_no_order(node: Node, resource: str) -> None:
    ids = [f"id-{number:02}" for number in range(24)]
    with FakePlugin(node.plugin_dir, resource, ids, preferred=True).come() as plugin:
        wait_listed(node, resource, ids)
        assert node.run_pod("k29", {resource: 20}).admitted
        asked = list(plugin.requests("GetPreferredAllocation")[0].container_requests[0].available_deviceIDs)
        assert (asked, plugin.allocated[0]) != (sorted(asked), sorted(plugin.allocated[0]))
        node.remove_pod("k29")


# -- the checkpoint, and the other way to register -------------------------------------------------------------------


def test_k30_the_checkpoint_has_the_shape_that_readers_know(node: Node, resource: str) -> None:
    with FakePlugin(node.plugin_dir, resource, IDS).come() as plugin:
        wait_listed(node, resource, IDS)
        assert node.run_pod("checkpoint", {resource: 2}).admitted
        entry = wait_until(
            lambda: next(
                (e for e in node.checkpoint()["PodDeviceEntries"] or () if e["ResourceName"] == resource),
                None,
            )
        )
        assert set(entry) == {"PodUID", "ContainerName", "ResourceName", "DeviceIDs", "AllocResp"}
        assert entry["ContainerName"] == "main"
        [(node_id, ids)] = entry["DeviceIDs"].items()
        assert node_id == ("0" if node.behaviour.no_topology_is_numa_0 else "-1")
        assert set(ids) == set(plugin.allocated[0])
        node.remove_pod("checkpoint")


class Registry:
    """A socket in plugins_registry."""

    def __init__(self, node: Node, info: Any) -> None:
        self.path = node.root_dir / "plugins_registry" / "fake.sock"
        self.told: list[Any] = []
        handlers = {
            "GetInfo": grpc.unary_unary_rpc_method_handler(
                lambda _r, _c: info,
                pluginregistration.InfoRequest.FromString,
                pluginregistration.PluginInfo.SerializeToString,
            ),
            "NotifyRegistrationStatus": grpc.unary_unary_rpc_method_handler(
                self._told,
                pluginregistration.RegistrationStatus.FromString,
                pluginregistration.RegistrationStatusResponse.SerializeToString,
            ),
        }
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(api.PLUGIN_REGISTRATION, handlers),)
        )
        self.server.add_insecure_port(f"unix:{self.path}")
        self.server.start()

    def _told(self, request: Any, _context: grpc.ServicerContext) -> Any:
        self.told.append(request)
        return pluginregistration.RegistrationStatusResponse()

    def stop(self) -> None:
        self.server.stop(None).wait(5)
        self.path.unlink(missing_ok=True)


def test_a_socket_in_plugins_registry_is_asked_registered_and_dropped(node: Node, resource: str) -> None:
    plugin = FakePlugin(node.plugin_dir, resource, IDS).serve()
    registry = Registry(
        node,
        pluginregistration.PluginInfo(
            type="DevicePlugin",
            name=resource,
            endpoint=_inside(node, plugin.path),
            supported_versions=["v1beta1"],
        ),
    )
    wait_until(lambda: plugin.streams, 15, "ListAndWatch")
    wait_until(lambda: registry.told)
    assert registry.told[0].plugin_registered
    wait_listed(node, resource, IDS)
    assert plugin.requests("GetDevicePluginOptions"), "options are asked for in every version on this way"
    registry.stop()
    wait_until(lambda: not plugin.streams, 15, "the stream to be dropped with the socket")
    plugin.stop()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"name": "gpu"}, "invalid"),
        ({"supported_versions": ["v9"]}, "not among plugin supported versions"),
        ({"type": "Toaster"}, "no handler registered"),
    ],
)
def test_plugins_registry_says_why_it_refuses(
    node: Node, resource: str, change: dict[str, Any], text: str
) -> None:
    info = {"type": "DevicePlugin", "name": resource, "supported_versions": ["v1beta1"], **change}
    registry = Registry(node, pluginregistration.PluginInfo(**info))
    try:
        wait_until(lambda: registry.told, 15, "NotifyRegistrationStatus")
        assert not registry.told[0].plugin_registered
        assert text in registry.told[0].error
    finally:
        registry.stop()


def _inside(node: Node, path: Path) -> str:
    """A path as the kubelet sees it: a real one has our root directory at /var/lib/kubelet."""
    if isinstance(node, EmbeddedNode):
        return str(path)
    return f"/var/lib/kubelet/{path.relative_to(node.root_dir)}"
