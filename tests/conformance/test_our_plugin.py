"""K1 to K30 from the kubelet's side: our plugin, as a process, against every kubelet, through each fault of its life.

Times are what benchmarks are for (tests/bench); here a condition has ten seconds to come true, and must.
"""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from socket import create_server
from typing import Any

import grpc
import pytest
from embedded_kubelet.wire import CHANNEL_OPTIONS, api
from embedded_kubelet.wire import deviceplugin as dp
from fake_plugin import never, wait_until
from kubelet_nodes import EmbeddedNode, Node
from plugin_process import SOURCES, PluginProcess, remove_directory
from testbed_nvml import Machine, standin

GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Eight H100 on two NUMA nodes."""
    with standin(gpus=8, model="H100") as machine:
        yield machine


@pytest.fixture
def gpus(machine: Machine) -> Iterator[Machine]:
    """The machine, whole again after each case."""
    yield machine
    for index in range(8):
        machine.restore(index)
    machine.init_ok()


class Shared:
    """The process that lives through the cases, and through everything they do to it."""

    process: PluginProcess | None = None

    def end(self, node: Node) -> None:
        """For cases that bring their own: two plugins must never serve one resource (K6)."""
        if self.process is not None:
            if self.process.alive():
                self.process.stop()
            self.process.close()
            self.process = None
            wait_until(lambda: not stream_up(node, 8), what="the stream of the old process to end")


@pytest.fixture(scope="module")
def shared(shared_node: Node) -> Iterator[Shared]:
    """One for each kubelet."""
    holder = Shared()
    yield holder
    if holder.process is not None:
        holder.process.close()


@pytest.fixture
def alone(node: Node, shared: Shared, gpus: Machine) -> Machine:
    """No plugin runs."""
    shared.end(node)
    return gpus


@pytest.fixture
def plugin(node: Node, gpus: Machine, shared: Shared) -> Iterator[PluginProcess]:
    """Runs, and the kubelet has its eight devices."""
    if shared.process is None:
        shared.process = PluginProcess(node.plugin_dir, node.root_dir, gpus).start()
    process = shared.process
    wait_healthy(node, 8, process)
    yield process
    assert shared.process is not process or process.alive(), process.tail()


@pytest.fixture
def marked(node: Node, shared: Shared, plugin: PluginProcess) -> Iterator[PluginProcess]:
    """A plugin whose GPUs will be ill for good: the next case gets a new one, with a memory of its own."""
    yield plugin
    shared.end(node)


def stream_up(node: Node, number: int) -> bool:
    """Whether that many devices are healthy and the plugin behind them is there, as far as the kubelet shows it.

    The checkpoint alone proves nothing: until a list arrives it has the ids that the plugin before sent.
    """
    if len(node.healthy(GPU) or ()) != number:
        return False
    if not isinstance(node, EmbeddedNode):
        return admitted(node)
    manager = node.kubelet.manager
    endpoint = manager.endpoints.get(GPU) if manager else None
    return endpoint is not None and endpoint.stop_time is None and len(node.kubelet.healthy(GPU)) == number


def admitted(node: Node) -> bool:
    """Whether a pod with a GPU is taken."""
    outcome = node.run_pod("probe", {GPU: 1})
    node.remove_pod("probe")
    return outcome.admitted


def wait_healthy(node: Node, number: int, process: PluginProcess, seconds: float = 10.0) -> None:
    try:
        wait_until(lambda: process.status().get("ready") and stream_up(node, number), seconds)
    except TimeoutError:
        there = node.healthy(GPU)
        raise AssertionError(f"{number} devices wanted, {there} there; the log:\n{process.tail()}") from None


def registered(process: PluginProcess) -> int:
    """How many registrations the plugin's log tells of."""
    return process.log.read_text().count("event=registered")


def call(process: PluginProcess, method: str, request: Any, response: Any) -> Any:
    """An RPC to the plugin, as a kubelet would make it. Raises grpc.RpcError."""
    [socket] = process.sockets()
    with grpc.insecure_channel(f"unix:{socket}", options=CHANNEL_OPTIONS) as channel:
        stub = channel.unary_unary(
            f"/{api.DEVICE_PLUGIN}/{method}", type(request).SerializeToString, response.FromString
        )
        return stub(request, timeout=5)


# -- registration ------------------------------------------------------------------------------------------------


def test_k01_k05_it_serves_first_registers_by_base_name_and_its_list_arrives(
    node: Node, plugin: PluginProcess
) -> None:
    [socket] = plugin.sockets()
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert node.registrations_counted(GPU) >= 1
    if isinstance(node, EmbeddedNode):
        assert node.kubelet.registrations(GPU)[-1].detail["endpoint"] == socket.name


def test_k01_a_registration_that_no_list_follows_is_made_again(node: Node, alone: Machine) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a real kubelet can't be told to forget a registration")
    if node.behaviour.dials_inside_register:
        pytest.skip("ten seconds; the older kubelets' way, where an answer proves nothing")
    node.kubelet.faults.never_dial = True
    with PluginProcess(node.plugin_dir, node.root_dir, alone) as process:
        before = node.registrations_counted(GPU)
        wait_until(lambda: node.registrations_counted(GPU) > before)
        node.kubelet.faults.never_dial = False
        wait_healthy(node, 8, process, 40)


def test_k02_register_may_take_its_time(node: Node, alone: Machine) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a real kubelet can't be told to be slow")
    if not node.behaviour.dials_inside_register:
        pytest.skip("eleven seconds; the newer kubelets' way, which wait for the plugin inside Register")
    node.kubelet.faults.hang_register = 11.0
    with PluginProcess(node.plugin_dir, node.root_dir, alone) as process:
        try:
            wait_healthy(node, 8, process, 20)
            assert node.registrations_counted(GPU) >= 1
            assert registered(process) == 1
        finally:
            node.kubelet.faults.hang_register = 0.0


def test_k03_options_are_the_same_in_both_places(node: Node, plugin: PluginProcess) -> None:
    options = call(plugin, "GetDevicePluginOptions", dp.Empty(), dp.DevicePluginOptions)
    assert options.get_preferred_allocation_available
    if isinstance(node, EmbeddedNode):
        assert node.kubelet.registrations(GPU)[-1].detail["options"] == options


def test_k04_a_refusal_is_shown_and_tried_again(node: Node, alone: Machine) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a real kubelet can't be told to refuse")
    node.kubelet.faults.refuse_register = "not today"
    with PluginProcess(node.plugin_dir, node.root_dir, alone) as process:
        wait_until(lambda: "not today" in process.tail())
        assert not process.status()["ready"]
        node.kubelet.faults.refuse_register = ""
        wait_healthy(node, 8, process, 20)
        wait_until(lambda: process.status()["ready"])


def test_k08_its_own_counter_tells_refused_registrations_from_accepted_ones(
    node: Node, alone: Machine
) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a real kubelet can't be told to refuse")
    before = node.registrations_counted(GPU)
    node.kubelet.faults.refuse_register = "not today"
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flag = f"--metrics-address=127.0.0.1:{port}"
    with PluginProcess(node.plugin_dir, node.root_dir, alone, flag) as process:
        wait_until(lambda: "not today" in process.tail())
        node.kubelet.faults.refuse_register = ""
        wait_healthy(node, 8, process, 20)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        counted = {
            result: float(line.rsplit(" ", 1)[1])
            for result in ("refused", "accepted")
            for line in text.splitlines()
            if "_registrations_total{" in line and f'"{result}"' in line
        }
        assert counted["accepted"] == 1 and counted["refused"] >= 1
        assert node.registrations_counted(GPU) - before == sum(counted.values())


def test_k06_a_new_process_never_takes_the_socket_of_a_dead_one(node: Node, plugin: PluginProcess) -> None:
    [old] = plugin.sockets()
    plugin.kill()
    plugin.start()
    wait_healthy(node, 8, plugin)
    assert [path for path in plugin.sockets() if path != old], "the same name again"


def test_k06_two_streams_never_meet_so_nobody_is_dropped(node: Node, plugin: PluginProcess) -> None:
    for _ in range(3):
        [socket] = plugin.sockets()
        count = registered(plugin)
        socket.unlink()
        wait_until(lambda before=count: registered(plugin) > before)
        wait_healthy(node, 8, plugin)
    assert never(lambda: not stream_up(node, 8), 0.5)
    assert node.run_pod("k06", {GPU: 8}).admitted
    node.remove_pod("k06")


def test_k07_a_stream_that_the_kubelet_ends_is_answered_by_a_registration(
    node: Node, plugin: PluginProcess
) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a real kubelet ends a stream only by dying")
    assert node.kubelet.manager is not None
    for _ in range(5):
        count = registered(plugin)
        inode = node.kubelet_sock.stat().st_ino
        node.kubelet.manager.endpoints[GPU].stop()
        wait_until(lambda before=count: registered(plugin) > before)
        wait_healthy(node, 8, plugin)
        assert node.kubelet_sock.stat().st_ino == inode, "no socket changed"


def test_k07_a_stream_that_ends_before_register_is_answered_is_noticed_too(
    node: Node, alone: Machine
) -> None:
    if not isinstance(node, EmbeddedNode) or not node.behaviour.dials_inside_register:
        pytest.skip("only a kubelet that dials inside Register, and that does as it is told")
    faults = node.kubelet.faults
    faults.answer_delay, faults.drop_streams_after = 0.5, 1
    ended = len(node.kubelet.journal.of("stream-ended", GPU))
    with PluginProcess(node.plugin_dir, node.root_dir, alone) as process:
        wait_until(lambda: len(node.kubelet.journal.of("stream-ended", GPU)) > ended)
        faults.answer_delay, faults.drop_streams_after = 0.0, 0
        wait_healthy(node, 8, process)


# -- restart -----------------------------------------------------------------------------------------------------


def test_k09_k10_a_kubelet_that_restarts_gets_its_devices_back(node: Node, plugin: PluginProcess) -> None:
    for end in (node.stop, node.kill, node.stop):
        end()
        node.start()
        wait_healthy(node, 8, plugin)
        assert node.run_pod("k09", {GPU: 2}).admitted
        node.remove_pod("k09")


def test_k09_it_keeps_no_file_but_its_socket_in_the_kubelets_directory(
    node: Node, plugin: PluginProcess
) -> None:
    mine = {p.name for p in node.plugin_dir.iterdir()} - {
        "kubelet.sock",
        "DEPRECATION",
        "kubelet_internal_checkpoint",
    }
    assert {name for name in mine if not stat.S_ISSOCK((node.plugin_dir / name).lstat().st_mode)} <= {
        "sub",
        "note.txt",
    }


def test_k10_its_own_socket_deleted(node: Node, plugin: PluginProcess) -> None:
    [socket] = plugin.sockets()
    count = registered(plugin)
    socket.unlink()
    wait_until(lambda: registered(plugin) > count)
    wait_healthy(node, 8, plugin)
    assert plugin.sockets()


@pytest.mark.parametrize("moment", [0.0, 0.03, 0.06, 0.09])
def test_k10_a_kubelet_that_goes_while_the_old_stream_drains(
    node: Node, plugin: PluginProcess, moment: float
) -> None:
    [socket] = plugin.sockets()
    fell = plugin.log.read_text().count("own socket gone")
    socket.unlink()
    wait_until(lambda: plugin.log.read_text().count("own socket gone") > fell)
    assert never(lambda: not plugin.alive(), moment), (
        "the drain shows nothing to wait for: 20 to 120 ms after the fall"
    )
    node.stop()
    assert never(lambda: not plugin.alive(), 0.3)
    node.start()
    wait_healthy(node, 8, plugin)


def test_k10_the_plugin_killed(node: Node, plugin: PluginProcess) -> None:
    count = registered(plugin)
    plugin.kill()
    plugin.start()
    wait_until(lambda: registered(plugin) > count)
    wait_healthy(node, 8, plugin)
    wait_until(lambda: node.run_pod("k10", {GPU: 8}).admitted or bool(node.remove_pod("k10")))
    node.remove_pod("k10")


def test_k11_the_directory_replaced(node: Node, plugin: PluginProcess) -> None:
    for _ in range(2):
        node.stop()
        remove_directory(node.plugin_dir)
        node.start()
        wait_healthy(node, 8, plugin)
    assert node.run_pod("k11", {GPU: 1}).admitted
    node.remove_pod("k11")


def test_k11_the_directory_moved_away_while_the_kubelet_is_down(node: Node, plugin: PluginProcess) -> None:
    node.stop()
    aside = node.plugin_dir.with_name("aside")
    node.plugin_dir.rename(aside)
    assert never(lambda: not plugin.alive(), 0.3)
    node.start()
    wait_healthy(node, 8, plugin)
    shutil.rmtree(aside)


def test_k12_a_kubelet_that_starts_after_the_plugin_gets_one_registration(node: Node, alone: Machine) -> None:
    node.stop()
    with PluginProcess(node.plugin_dir, node.root_dir, alone) as process:
        wait_until(process.status)
        wait_until(lambda: process.status().get("resources"))
        node.start()
        wait_healthy(node, 8, process)
        assert never(lambda: node.registrations_counted(GPU) != 1, 0.5)


def test_k13_a_pod_keeps_its_gpus_over_every_restart(node: Node, plugin: PluginProcess) -> None:
    assert node.run_pod("k13", {GPU: 2}).admitted
    held = node.held("k13", GPU)
    node.kill()
    plugin.kill()
    plugin.start()
    node.start()
    wait_healthy(node, 8, plugin)
    assert node.held("k13", GPU) == held
    assert not node.run_pod("k13-more", {GPU: 7}).admitted
    node.remove_pod("k13")
    node.remove_pod("k13-more")


def test_k14_a_dead_plugin_leaves_nothing_allocatable_until_it_is_back(
    node: Node, plugin: PluginProcess
) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a kubelet tells its capacity to an API server alone")
    wait_until(lambda: node.kubelet.node_status()["allocatable"].get(GPU) == 8)
    plugin.kill()
    wait_until(lambda: node.kubelet.node_status()["allocatable"][GPU] == 0)
    assert node.kubelet.node_status()["capacity"][GPU] == 8, "the key and the capacity prove nothing"
    plugin.start()
    wait_healthy(node, 8, plugin)
    wait_until(lambda: node.kubelet.node_status()["allocatable"][GPU] == 8)


def test_k15_the_plugin_directory_is_a_setting_of_its_own(node: Node, plugin: PluginProcess) -> None:
    assert all(path.parent == node.plugin_dir for path in plugin.sockets())


def test_k16_gate_off_and_on_again_needs_no_restart_of_the_plugin(node: Node, plugin: PluginProcess) -> None:
    if node.behaviour.dials_inside_register and node.version >= "1.26":
        pytest.skip("the gate can't be off from 1.26 on")
    node.stop()
    node.start(gate=False)
    wait_until(
        lambda: not plugin.status().get("ready", True), what="the plugin to say that it is not registered"
    )
    node.stop()
    node.start()
    wait_healthy(node, 8, plugin)
    wait_until(lambda: plugin.status().get("ready"))


# -- lists -------------------------------------------------------------------------------------------------------


def test_k17_nothing_is_sent_without_a_change(node: Node, plugin: PluginProcess) -> None:
    if not isinstance(node, EmbeddedNode):
        file = node.plugin_dir / "kubelet_internal_checkpoint"
        before = file.stat().st_mtime_ns
        assert never(lambda: file.stat().st_mtime_ns != before, 1.0)
        return
    count = len(node.kubelet.lists(GPU))
    assert never(lambda: len(node.kubelet.lists(GPU)) != count, 1.0)


def test_k18_more_than_50000_replicas_are_refused_with_the_number(alone: Machine, node: Node) -> None:
    config = {"sharing": {"timeSlicing": {"resources": [{"name": GPU, "replicas": 7500}]}}}
    process = PluginProcess(node.plugin_dir, node.root_dir, alone, config=config)
    with process:
        wait_until(lambda: "60000" in process.tail().replace(",", "") or not process.alive())
        assert "60000" in process.tail().replace(",", "").replace(" ", "")
        assert "50000" in process.tail().replace(",", "").replace(" ", "")
        assert GPU not in {r.get("name") for r in process.status().get("resources", ()) if r.get("devices")}


def test_k18_ten_thousand_replicas_are_listed_and_allocated(alone: Machine, node: Node) -> None:
    config = {"sharing": {"timeSlicing": {"resources": [{"name": GPU, "replicas": 1250}]}}}
    with PluginProcess(node.plugin_dir, node.root_dir, alone, config=config) as process:
        wait_healthy(node, 10_000, process)
        outcome = node.run_pod("k18", {GPU: 100})
        assert outcome.admitted, outcome.reason
        assert len(outcome.envs["NVIDIA_VISIBLE_DEVICES"].split(",")) == 8, "a hundred replicas of eight GPUs"
        node.remove_pod("k18")


def test_k19_a_lost_gpu_stays_in_the_list_unhealthy(node: Node, marked: PluginProcess, gpus: Machine) -> None:
    gpus.lose(3)
    wait_healthy(node, 7, marked)
    if isinstance(node, EmbeddedNode):
        assert sorted(node.kubelet.devices(GPU).values()) == ["Healthy"] * 7 + ["Unhealthy"]
    assert not node.run_pod("k19", {GPU: 8}).admitted
    node.remove_pod("k19")
    assert node.alive()


def test_xid_79_takes_one_gpu_out(node: Node, marked: PluginProcess, gpus: Machine) -> None:
    gpus.xid(5, 79)
    wait_healthy(node, 7, marked)
    [ill] = [d for r in marked.status()["resources"] for d in r["devices"] if not d["healthy"]]
    assert ill["index"] == "5"
    assert "79" in ill["reason"]


def test_k20_no_id_comes_twice(node: Node, plugin: PluginProcess) -> None:
    if not isinstance(node, EmbeddedNode):
        pytest.skip("a kubelet does not tell the list it got")
    ids = [device.ID for device in node.kubelet.lists(GPU)[-1].detail["message"].devices]
    assert len(ids) == len(set(ids)) == 8


def test_k21_a_resource_that_goes_away_leaves_no_capacity(node: Node, alone: Machine) -> None:
    slicing = {"timeSlicing": {"renameByDefault": True, "resources": [{"name": GPU, "replicas": 2}]}}
    with PluginProcess(node.plugin_dir, node.root_dir, alone, config={"sharing": slicing}) as process:
        wait_until(lambda: len(node.healthy(f"{GPU}.shared") or ()) == 16)
        process.configure({})
        wait_healthy(node, 8, process)
        wait_until(lambda: node.healthy(f"{GPU}.shared") == set(), what="an empty list")


# -- allocation --------------------------------------------------------------------------------------------------


def test_k22_allocate_answers_from_memory_while_nvml_hangs(
    node: Node, plugin: PluginProcess, gpus: Machine
) -> None:
    gpus.init_fail(999)
    assert node.run_pod("k22", {GPU: 2}).admitted
    node.remove_pod("k22")


def test_k23_one_response_for_one_container(node: Node, plugin: PluginProcess) -> None:
    ids = sorted(node.healthy(GPU) or ())
    answer = call(
        plugin,
        "Allocate",
        dp.AllocateRequest(container_requests=[{"devices_ids": ids[:2]}]),
        dp.AllocateResponse,
    )
    assert len(answer.container_responses) == 1
    assert set(answer.container_responses[0].envs["NVIDIA_VISIBLE_DEVICES"].split(",")) == set(ids[:2])


@pytest.mark.parametrize(
    ("available", "must", "size"),
    [
        (["nope"], [], 1),
        ([], ["nope"], 1),
        ([], [], 0),
        ([], [], -5),
        ([], [], 2**31 - 1),
        (["a", "a"], ["a", "b"], 1),
    ],
)
def test_k24_a_preference_never_fails(
    node: Node, plugin: PluginProcess, available: list[str], must: list[str], size: int
) -> None:
    request = dp.PreferredAllocationRequest(
        container_requests=[
            {
                "available_deviceIDs": available or sorted(node.healthy(GPU) or ()),
                "must_include_deviceIDs": must,
                "allocation_size": size,
            }
        ]
    )
    answer = call(plugin, "GetPreferredAllocation", request, dp.PreferredAllocationResponse)
    assert len(answer.container_responses) <= 1


def test_k24_unknown_and_unhealthy_ids_are_refused_by_name(
    node: Node, marked: PluginProcess, gpus: Machine
) -> None:
    with pytest.raises(grpc.RpcError, match="GPU-nope") as unknown:
        call(
            marked,
            "Allocate",
            dp.AllocateRequest(container_requests=[{"devices_ids": ["GPU-nope"]}]),
            dp.AllocateResponse,
        )
    assert unknown.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    before = node.healthy(GPU) or set()
    gpus.xid(2, 79)
    wait_healthy(node, 7, marked)
    [ill] = before - (node.healthy(GPU) or set())
    with pytest.raises(grpc.RpcError, match=ill) as unhealthy:
        call(
            marked,
            "Allocate",
            dp.AllocateRequest(container_requests=[{"devices_ids": [ill]}]),
            dp.AllocateResponse,
        )
    assert unhealthy.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_k25_a_preference_is_followed(node: Node, plugin: PluginProcess) -> None:
    ids = sorted(node.healthy(GPU) or ())
    request = dp.PreferredAllocationRequest(
        container_requests=[
            {"available_deviceIDs": ids, "must_include_deviceIDs": [ids[3]], "allocation_size": 4}
        ]
    )
    [answer] = call(
        plugin, "GetPreferredAllocation", request, dp.PreferredAllocationResponse
    ).container_responses
    assert ids[3] in answer.deviceIDs
    assert len(set(answer.deviceIDs)) == 4


def test_k26_pre_start_container_is_answered_though_not_asked_for(node: Node, plugin: PluginProcess) -> None:
    call(
        plugin,
        "PreStartContainer",
        dp.PreStartContainerRequest(devices_ids=sorted(node.healthy(GPU) or ())),
        dp.PreStartContainerResponse,
    )


def test_k27_status_names_who_holds_a_gpu(node: Node, plugin: PluginProcess) -> None:
    assert node.run_pod("k27", {GPU: 1}).admitted
    [held] = node.held("k27", GPU)

    def holder() -> Any:
        devices = [d for r in plugin.status().get("resources", ()) for d in r["devices"]]
        return next((d["holder"] for d in devices if d["id"] == held), None)

    assert node.pod_name("k27") in str(wait_until(holder, 15, "a holder in the status"))
    node.remove_pod("k27")


def test_k28_cdi_names_reach_new_kubelets_and_device_nodes_every_one(node: Node, alone: Machine) -> None:
    flag = "--device-list-strategy=envvar,cdi-cri"
    with PluginProcess(node.plugin_dir, node.root_dir, alone, flag) as process:
        wait_healthy(node, 8, process)
        outcome = node.run_pod("cdi", {GPU: 1})
        assert outcome.admitted, outcome.reason
        [uuid] = node.held("cdi", GPU)
        assert outcome.cdi == ((f"k8s.device-plugin.nvidia.com/gpu={uuid}",) if node.behaviour.cdi else ())
        # A kubelet that ignores the names silently must not leave the container without its GPU.
        assert outcome.envs["NVIDIA_VISIBLE_DEVICES"] == uuid
        assert any(host.endswith("nvidiactl") for _inside, host, _permissions in outcome.devices)
        node.remove_pod("cdi")


def test_k29_answers_are_in_index_order_whatever_the_request(node: Node, plugin: PluginProcess) -> None:
    devices = [d for r in plugin.status()["resources"] for d in r["devices"]]
    by_index = [d["id"] for d in sorted(devices, key=lambda d: int(d["index"]))]
    request = dp.AllocateRequest(container_requests=[{"devices_ids": by_index[::-1]}])
    [answer] = call(plugin, "Allocate", request, dp.AllocateResponse).container_responses
    assert answer.envs["NVIDIA_VISIBLE_DEVICES"].split(",") == by_index


# -- the other way to register, and the end -------------------------------------------------------------------------


def test_k30_the_checkpoint_tells_without_grpc_which_gpus_are_healthy_and_who_holds_them(
    node: Node, plugin: PluginProcess
) -> None:
    outcome = node.run_pod("holder", {GPU: 2})
    assert outcome.admitted, outcome.reason

    def entry() -> Any:
        entries = node.checkpoint()["PodDeviceEntries"] or ()
        return next((one for one in entries if one["ResourceName"] == GPU), None)

    found = wait_until(entry)
    ids = {identity for some in found["DeviceIDs"].values() for identity in some}
    assert len(ids) == 2 and ids <= set(node.checkpoint()["RegisteredDevices"][GPU])
    assert len(node.checkpoint()["RegisteredDevices"][GPU]) == 8
    answer = dp.ContainerAllocateResponse.FromString(base64.b64decode(found["AllocResp"]))
    assert set(answer.envs["NVIDIA_VISIBLE_DEVICES"].split(",")) == ids
    node.remove_pod("holder")


def test_it_can_register_through_plugins_registry(node: Node, alone: Machine) -> None:
    process = PluginProcess(node.plugin_dir, node.root_dir, alone, "--kubelet-registration=plugins-registry")
    if not isinstance(node, EmbeddedNode):
        pytest.skip("this real kubelet sees its directory under another path than the plugin")
    with process:
        wait_healthy(node, 8, process, 15)
        node.stop()
        node.start()
        wait_healthy(node, 8, process, 15)
        assert process.stop() == 0


def test_a_signal_ends_streams_removes_its_sockets_and_exits_0(node: Node, plugin: PluginProcess) -> None:
    assert plugin.sockets()
    assert plugin.stop() == 0
    assert plugin.sockets() == []
    wait_until(lambda: not node.run_pod("end", {GPU: 1}).admitted or bool(node.remove_pod("end")))
    node.remove_pod("end")
    plugin.start()
    wait_healthy(node, 8, plugin)


def test_status_is_a_table_for_people_and_json_for_programs(node: Node, plugin: PluginProcess) -> None:
    run = [sys.executable, "-m", "gpu_device_plugin", "status", f"--run-dir={plugin.run_dir}"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    wait_until(lambda: plugin.status().get("ready"))
    table = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    assert table.returncode == 0, table.stderr
    assert GPU in table.stdout
    assert "H100" in table.stdout
    program = subprocess.run([*run, "--json"], env=environment, capture_output=True, text=True, check=True)
    assert '"ready": true' in program.stdout
