"""The kubelet link: it registers, notices every way in which that can end, and starts over."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest
from gpu_device_plugin import kubelet as module
from gpu_device_plugin import rpc
from gpu_device_plugin.api import DEVICE_PLUGIN, REGISTRATION
from gpu_device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from gpu_device_plugin.plugindir import dead_mount
from gpu_device_plugin.registration import accepts, identity, socket_name
from gpu_device_plugin.service import Service
from kit import GPU, LinkUnderTest, Node, devices, wait_until

OTHER = "nvidia.com/other"


def listed(link: LinkUnderTest, resource: str = GPU) -> bool:
    return link.phase(resource) == "listed"


def registered_again(node: Node, before: int) -> bool:
    return len(node.kubelet.registrations(GPU)) > before


def test_it_registers_with_a_kubelet_that_is_there(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(8))
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))
    assert link.link.all_listed()


def test_it_registers_once_with_a_kubelet_that_comes_later_k12(node, link):
    link.offer(gpu=devices(8))
    assert link.phase() == "down"
    assert "no kubelet" in link.link.registrations[GPU].problem
    node.kubelet.start()
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))
    assert link.counters.registrations.value(GPU, "accepted") == 1
    assert node.own_sockets() == [os.path.basename(link.link.registrations[GPU].service.path)]


def test_a_socket_that_is_deleted_as_it_is_made_leaves_no_server_behind(node, link, monkeypatch):
    node.kubelet.start()
    start = Service.start
    doomed: list[Service] = []

    def deleted_at_once(self, registry=False):
        server_class = type(rpc.server())

        def bind_then_lose(server):
            original(server)
            if len(doomed) < 3:
                doomed.append(self)
                os.unlink(self.path)

        original = server_class.start
        with monkeypatch.context() as patch:
            patch.setattr(server_class, "start", bind_then_lose)
            start(self, registry)

    def serving() -> int:
        return sum("_serve" in thread.name for thread in threading.enumerate())

    before = serving()
    monkeypatch.setattr(Service, "start", deleted_at_once)
    link.offer(gpu=devices(4))
    node.kubelet.wait_for(GPU, 4)
    assert len(doomed) == 3
    wait_until(lambda: serving() == before + 1, what="the doomed servers' threads to end")


def test_each_resource_has_its_own_registration(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(2), other=devices(3, resource=OTHER))
    node.kubelet.wait_for(GPU, 2)
    node.kubelet.wait_for(OTHER, 3)
    assert len(node.own_sockets()) == 2


@pytest.mark.parametrize("version", ["1.20", "1.28", "1.36"])
def test_it_is_back_after_each_kubelet_restart_k9(place, version):
    node = Node(place, version)
    link = LinkUnderTest(node.settings)
    try:
        node.kubelet.start()
        link.offer(gpu=devices(8))
        node.kubelet.wait_for(GPU, 8)
        for _ in range(5):
            node.kubelet.restart()
            node.kubelet.wait_for(GPU, 8)
        wait_until(lambda: len(node.own_sockets()) == 1, what="old sockets to be gone")
    finally:
        link.close()
        node.kubelet.stop()


def test_a_deleted_own_socket_is_noticed_k10(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(8))
    wait_until(lambda: listed(link))
    before, old = len(node.kubelet.registrations(GPU)), node.own_sockets()[0]
    (node.plugin_dir / old).unlink()
    wait_until(lambda: registered_again(node, before) and listed(link), 3)
    node.kubelet.wait_for(GPU, 8)
    assert node.own_sockets() and node.own_sockets()[0] != old


def test_a_stream_that_the_kubelet_drops_is_noticed_k7(node, link):
    node.kubelet.start()
    node.kubelet.faults.drop_streams_after = 1
    link.offer(gpu=devices(8))
    wait_until(lambda: registered_again(node, 1), 5)
    node.kubelet.faults.drop_streams_after = 0
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))


def test_a_kubelet_that_drops_every_stream_is_not_flooded_with_registrations(node, link):
    node.kubelet.start()
    node.kubelet.faults.drop_streams_after = 1
    link.offer(gpu=devices(8))
    wait_until(lambda: link.counters.streams_closed.value(GPU) >= 3, 5)
    before = link.counters.registrations.value(GPU, "accepted")
    time.sleep(1)
    assert link.counters.registrations.value(GPU, "accepted") - before <= 5


def test_restarts_of_the_kubelet_do_not_count_as_streams_that_it_drops(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(8))
    for _ in range(9):
        node.kubelet.wait_for(GPU, 8)
        node.kubelet.stop()
        node.kubelet.start()
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))
    accepted = link.counters.registrations.value(GPU, "accepted")
    node.kubelet.manager.endpoints[GPU].stop()
    wait_until(lambda: link.counters.registrations.value(GPU, "accepted") > accepted, 1)


def test_a_stream_that_comes_and_goes_while_register_is_under_way_is_no_registration_k7(node, link):
    """The kubelet's answer to Register may be slower than its stream's whole life."""
    calls: list[str] = []

    def register(request, _context):
        calls.append(request.endpoint)
        channel = rpc.channel(str(node.plugin_dir / request.endpoint))
        stream = channel.unary_stream(f"/{DEVICE_PLUGIN}/ListAndWatch")(b"")
        next(stream)
        stream.cancel()
        wait_until(lambda: link.counters.streams_closed.value(GPU) == len(calls))
        return pb.Empty()

    method = grpc.unary_unary_rpc_method_handler(
        register, pb.RegisterRequest.FromString, pb.Empty.SerializeToString
    )
    kubelet = grpc.server(ThreadPoolExecutor(2))
    kubelet.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(REGISTRATION, {"Register": method}),)
    )
    kubelet.add_insecure_port(f"unix:{node.plugin_dir}/kubelet.sock")
    kubelet.start()
    link.offer(gpu=devices(8))
    wait_until(lambda: len(calls) >= 2, 5, "a second registration")
    assert not link.link.all_listed()
    kubelet.stop(0)


def test_a_listed_resource_without_a_stream_is_found_by_the_poll_k10(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(8))
    wait_until(lambda: listed(link))
    before = link.counters.registrations.value(GPU, "accepted")
    link.link._stream_closed = lambda service: None  # the event is missed
    node.kubelet.faults.drop_streams_after = 1
    link.offer(gpu=devices(8, sick=[1]))
    wait_until(lambda: link.counters.registrations.value(GPU, "accepted") > before, 6)


def test_a_directory_made_anew_is_watched_again_k11(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(8))
    wait_until(lambda: listed(link))
    node.kubelet.stop()
    shutil.rmtree(node.plugin_dir)
    node.plugin_dir.mkdir()
    node.kubelet.start()
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))
    before = len(node.kubelet.registrations(GPU))
    (node.plugin_dir / node.own_sockets()[0]).unlink()
    wait_until(lambda: registered_again(node, before), 1.5, "the new directory's own events")


def test_a_directory_replaced_under_a_bound_socket_is_seen_without_the_poll_k11(node, link, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 60)
    node.kubelet.start()
    link.offer(gpu=devices(8))
    wait_until(lambda: listed(link))
    link.run(link.link._poll_timer.cancel)
    node.kubelet.stop()
    shutil.rmtree(node.plugin_dir)
    node.plugin_dir.mkdir()
    node.kubelet.start()
    node.kubelet.wait_for(GPU, 8, seconds=2)


def test_a_directory_that_is_not_there_yet_is_waited_for(place):
    node = Node(place)
    shutil.rmtree(node.plugin_dir)
    link = LinkUnderTest(node.settings)
    try:
        link.offer(gpu=devices(8))
        node.plugin_dir.mkdir()
        node.kubelet.start()
        node.kubelet.wait_for(GPU, 8)
    finally:
        link.close()
        node.kubelet.stop()


def test_a_mount_whose_directory_is_gone_ends_the_process_k11(node, link, monkeypatch):
    monkeypatch.setattr(module, "dead_mount", lambda directory: True)
    wait_until(lambda: link.deaths, 5)
    assert "only a new pod" in link.deaths[0]
    monkeypatch.undo()
    assert not dead_mount(str(node.plugin_dir))


def test_a_refusal_is_told_and_tried_again_k4(node, link):
    node.kubelet.start()
    node.kubelet.faults.refuse_register = "the ResourceName is invalid"
    link.offer(gpu=devices(8))
    wait_until(lambda: link.counters.registrations.value(GPU, "refused") >= 2, 5)
    assert "the ResourceName is invalid" in link.link.registrations[GPU].problem
    assert not link.link.all_listed()
    node.kubelet.faults.refuse_register = ""
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))


def test_register_alone_proves_nothing_k1(node, link, monkeypatch):
    monkeypatch.setattr(module, "FIRST_LIST_SECONDS", (0.3,))
    node.kubelet.start()
    node.kubelet.faults.never_dial = True
    link.offer(gpu=devices(8))
    wait_until(lambda: link.counters.registrations.value(GPU, "accepted") >= 2, 5, "a second registration")
    assert not link.link.all_listed()
    node.kubelet.faults.never_dial = False
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))


def test_a_slow_kubelet_is_given_its_ten_seconds_k2(node, link):
    node.kubelet.start()
    node.kubelet.faults.hang_register = 1.0
    link.offer(gpu=devices(8))
    node.kubelet.wait_for(GPU, 8)
    assert link.counters.registrations.value(GPU, "refused") == 0
    assert module.REGISTER_SECONDS > 10


def test_a_stale_socket_of_a_stopped_kubelet_is_no_kubelet(node, link):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.plugin_dir / "kubelet.sock"))
    link.offer(gpu=devices(8))
    assert "listens" in link.link.registrations[GPU].problem
    assert node.own_sockets() == []
    node.kubelet.start()
    node.kubelet.wait_for(GPU, 8)


def test_sockets_that_a_killed_process_left_are_cleared_away(node, link):
    old, young, foreign = (node.plugin_dir / f"{name}.sock" for name in ("gpuops-a-1", "gpuops-b-2", "other"))
    node.kubelet.start()
    for path in (old, young, foreign):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    link.offer(gpu=devices(8))
    wait_until(lambda: listed(link) and not old.exists())
    assert young.exists() and foreign.exists()


def test_a_resource_that_is_no_longer_offered_loses_its_socket_k21(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(2), other=devices(2, resource=OTHER))
    for resource in (GPU, OTHER):  # each registers in a thread of its own
        node.kubelet.wait_for(resource, 2)
    link.offer(gpu=devices(2))
    wait_until(lambda: len(node.own_sockets()) == 1)
    wait_until(lambda: node.kubelet.healthy(OTHER) == set())
    assert node.kubelet.healthy(GPU) == {"GPU-0", "GPU-1"}


def test_a_change_reaches_the_kubelet_as_one_list_k17(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(8))
    node.kubelet.wait_for(GPU, 8)
    wait_until(lambda: listed(link))
    lists = len(node.kubelet.lists(GPU))
    link.offer(gpu=devices(8, sick=[3]))
    link.offer(gpu=devices(8, sick=[3]))
    node.kubelet.wait_for(GPU, 7, 1)
    wait_until(lambda: len(node.kubelet.lists(GPU)) > lists)
    assert len(node.kubelet.lists(GPU)) == lists + 1


def test_close_takes_the_sockets_away_and_ends_the_streams(node):
    node.kubelet.start()
    link = LinkUnderTest(node.settings)
    link.offer(gpu=devices(8))
    wait_until(lambda: listed(link))
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < 1
    assert node.own_sockets() == []
    wait_until(lambda: node.kubelet.healthy(GPU) == set())


def test_a_dozen_restarts_leave_no_thread_and_no_descriptor(node, link):
    node.kubelet.start()
    link.offer(gpu=devices(8))
    wait_until(lambda: listed(link))

    def fall() -> None:
        before = len(node.kubelet.registrations(GPU))
        (node.plugin_dir / node.own_sockets()[0]).unlink()
        wait_until(lambda: registered_again(node, before) and listed(link), 5)

    for _ in range(3):
        fall()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(12):
        fall()
    wait_until(lambda: threading.active_count() <= threads + 2, 5, "threads to end")
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 6, 5, "descriptors to be closed")


def test_the_plugins_registry_route_registers_and_comes_back(place):
    node = Node(place, registry_seconds=0.05)
    settings = replace(node.settings, registration="plugins-registry")
    (node.kubelet_root / "plugins_registry").mkdir(parents=True)
    link = LinkUnderTest(settings)
    try:
        node.kubelet.start()
        link.offer(gpu=devices(8))
        node.kubelet.wait_for(GPU, 8)
        wait_until(lambda: listed(link))
        assert link.counters.registrations.value(GPU, "accepted") == 1
        node.kubelet.restart()
        node.kubelet.wait_for(GPU, 8)
    finally:
        link.close()
        node.kubelet.stop()


def test_a_name_that_is_too_long_for_a_socket_is_hashed():
    directory = "/var/lib/kubelet/device-plugins"
    assert "nvidia.com_mig-1g.10gb.me" in socket_name("nvidia.com/mig-1g.10gb.me", directory)
    long = socket_name("example.com/" + "x" * 63, directory)
    assert len(f"{directory}/{long}") <= 107
    assert socket_name(GPU, directory) != socket_name(GPU, directory), "K6: unique"


def test_identity_tells_a_socket_made_anew(place):
    path = str(place / "one.sock")
    assert identity(path) is None and not accepts(path)
    with socket.socket(socket.AF_UNIX) as first:
        first.bind(path)
        first.listen()
        before = identity(path)
        assert accepts(path)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as second:
        second.bind(path)
        assert identity(path) != before
        assert not accepts(path)
