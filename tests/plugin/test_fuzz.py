"""Hostile input: whatever bytes reach an RPC, whatever PodResources answers, the plugin goes on and says why not."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

from embedded_kubelet.wire import CHANNEL_OPTIONS, api, podresources
from embedded_kubelet.wire import deviceplugin as dp
from embedded_kubelet.wire import pluginregistration as registration
from fake_plugin import wait_until
from gpu_device_plugin.podresources import PodResourcesError
from gpu_device_plugin.podresources import ask as real_ask
from gpu_device_plugin.service import Service
from gpu_device_plugin.state import State
from kubelet_nodes import EmbeddedNode
from plugin_process import PluginProcess
from testbed_nvml import standin

GPU = "nvidia.com/gpu"
EXAMPLES = int(os.environ.get("GPUOPS_FUZZ_EXAMPLES", "60"))
OK, INVALID, ILL = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
NO_MESSAGE = grpc.StatusCode.INTERNAL
"""gRPC's own word for bytes that are no message."""
often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Target:
    """A running plugin with seven healthy GPUs and one that is lost, and a line to its socket."""

    def __init__(self, node: EmbeddedNode, plugin: PluginProcess, lost: str) -> None:
        self.node, self.plugin, self.lost = node, plugin, lost
        [path] = plugin.sockets()
        self.path = path
        self.channel = grpc.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS)
        self.ids = sorted(node.healthy(GPU) or ())

    def raw(self, method: str, content: bytes, service: str = api.DEVICE_PLUGIN) -> bytes | grpc.StatusCode:
        """The answer's bytes, or the status."""
        call = self.channel.unary_unary(f"/{service}/{method}")
        try:
            return bytes(call(content, timeout=10))
        except grpc.RpcError as error:
            return error.code()

    def verdict(self, requests: list[list[str]]) -> grpc.StatusCode:
        """What Allocate must say of containers that ask for these ids: the first that can't be met decides."""
        for ids in requests:
            if not ids or set(ids) - {*self.ids, self.lost}:
                return INVALID
            if self.lost in ids:
                return ILL
        return OK if requests else INVALID

    def whole(self) -> None:
        """The process is the same, the kubelet has its seven devices, and an Allocate is answered well."""
        assert self.plugin.alive(), self.plugin.tail()
        assert len(self.node.healthy(GPU) or ()) == 7
        request = dp.AllocateRequest(container_requests=[{"devices_ids": self.ids[:1]}])
        answer = self.raw("Allocate", request.SerializeToString())
        assert isinstance(answer, bytes), answer
        [one] = dp.AllocateResponse.FromString(answer).container_responses
        assert one.envs["NVIDIA_VISIBLE_DEVICES"] == self.ids[0]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    """One plugin for all: what one input breaks the next would see."""
    node = EmbeddedNode("1.36")
    node.start()
    with (
        standin(gpus=8, model="H100") as machine,
        PluginProcess(node.plugin_dir, node.root_dir, machine) as plugin,
    ):
        node.kubelet.wait_for(GPU, healthy=8, seconds=30)
        before = node.healthy(GPU) or set()
        machine.lose(7)
        node.kubelet.wait_for(GPU, healthy=7, unhealthy=1, seconds=30)
        [lost] = before - (node.healthy(GPU) or set())
        yield Target(node, plugin, lost)
    node.close()


names = st.one_of(
    st.sampled_from(
        ["", "GPU-0", "all", "none", "void", "GPU-0::1", "::", "../../etc/passwd", "a,b", "\x00", "🦆"]
    ),
    st.text(max_size=80),
)


def mixed(target: Target) -> st.SearchStrategy[list[str]]:
    """Lists of real ids, the lost GPU's, and others, with repeats."""
    real = st.sampled_from([*target.ids, target.lost])
    return st.lists(real, max_size=4) | st.lists(st.one_of(real, names), max_size=20)


METHODS: dict[str, Any] = {
    "GetDevicePluginOptions": dp.Empty,
    "ListAndWatch": dp.Empty,
    "Allocate": dp.AllocateRequest,
    "GetPreferredAllocation": dp.PreferredAllocationRequest,
    "PreStartContainer": dp.PreStartContainerRequest,
}


@often
@given(method=st.sampled_from(list(METHODS)), content=st.binary(max_size=2000))
@example("Allocate", b"\xff")
@example("Allocate", dp.AllocateRequest(container_requests=[{}]).SerializeToString())
@example("ListAndWatch", b"\x0a\xff")
@example("PreStartContainer", b"\x0a\x02\xff\xff")
def test_bytes_are_answered_where_they_are_a_message_and_called_none_where_not(
    target: Target, method: str, content: bytes
) -> None:
    try:
        message = METHODS[method].FromString(content)
        expected = OK
    except DecodeError:
        expected = NO_MESSAGE
    if expected is OK and method == "Allocate":
        expected = target.verdict([list(one.devices_ids) for one in message.container_requests])
    if method == "ListAndWatch":
        stream = target.channel.unary_stream(f"/{api.DEVICE_PLUGIN}/{method}")(content, timeout=10)
        try:
            assert len(dp.ListAndWatchResponse.FromString(next(stream)).devices) == 8
            answer = OK
        except grpc.RpcError as error:
            answer = error.code()
        stream.cancel()
    else:
        given = target.raw(method, content)
        answer = OK if isinstance(given, bytes) else given
    assert answer is expected
    target.whole()


@pytest.mark.parametrize(
    ("service", "method"),
    [
        (api.DEVICE_PLUGIN, "Nope"),
        (api.DEVICE_PLUGIN, "../Allocate"),
        ("v1alpha.DevicePlugin", "Allocate"),
        (api.PLUGIN_REGISTRATION, "GetInfo"),
    ],
)
def test_methods_that_are_not_there_are_called_so(target: Target, service: str, method: str) -> None:
    assert target.raw(method, b"", service) is grpc.StatusCode.UNIMPLEMENTED
    target.whole()


@often
@given(data=st.data())
def test_allocate_answers_known_healthy_ids_alone_and_says_what_is_wrong_with_others(
    target: Target, data: Any
) -> None:
    requests = data.draw(st.lists(mixed(target), max_size=4))
    message = dp.AllocateRequest(container_requests=[{"devices_ids": ids} for ids in requests])
    answer = target.raw("Allocate", message.SerializeToString())
    if target.verdict(requests) is OK:
        assert isinstance(answer, bytes)
        responses = dp.AllocateResponse.FromString(answer).container_responses
        assert len(responses) == len(requests) > 0
        for ids, response in zip(requests, responses, strict=True):
            visible = [
                i for i in response.envs["NVIDIA_VISIBLE_DEVICES"].split(",") if i not in ("", "void", "none")
            ]
            assert set(visible) == set(ids)
            assert len(visible) == len(set(visible))
    else:
        assert answer is target.verdict(requests)
    target.whole()


@often
@given(data=st.data())
def test_a_preference_never_fails_and_names_available_ids_alone(target: Target, data: Any) -> None:
    available, must = data.draw(mixed(target)), data.draw(mixed(target))
    size = data.draw(st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 10))
    message = dp.PreferredAllocationRequest(
        container_requests=[
            {"available_deviceIDs": available, "must_include_deviceIDs": must, "allocation_size": size}
        ]
    )
    answer = target.raw("GetPreferredAllocation", message.SerializeToString())
    assert isinstance(answer, bytes), f"{answer}: the pod would fail for good (K24)"
    [response] = dp.PreferredAllocationResponse.FromString(answer).container_responses
    ids = list(response.deviceIDs)
    assert set(ids) <= set(available) & {*target.ids, target.lost}
    assert not ids or (len(ids) == size == len(set(ids)) and set(must) <= set(ids))


@often
@given(data=st.data())
def test_pre_start_container_takes_anything(target: Target, data: Any) -> None:
    message = dp.PreStartContainerRequest(devices_ids=data.draw(mixed(target)))
    assert target.raw("PreStartContainer", message.SerializeToString()) == b""


def test_messages_that_are_too_large_are_refused(target: Target) -> None:
    message = dp.AllocateRequest(container_requests=[{"devices_ids": ["x" * 5_000_000]}])
    assert target.raw("Allocate", message.SerializeToString()) is INVALID, "up to 16 MiB are read"
    message.container_requests[0].devices_ids.append("y" * 12_000_000)
    assert target.raw("Allocate", message.SerializeToString()) is grpc.StatusCode.RESOURCE_EXHAUSTED
    target.whole()


def test_a_hundred_thousand_ids_are_refused_and_the_text_stays_short(target: Target) -> None:
    message = dp.AllocateRequest(container_requests=[{"devices_ids": [f"GPU-{i}" for i in range(100_000)]}])
    call = target.channel.unary_unary(f"/{api.DEVICE_PLUGIN}/Allocate", dp.AllocateRequest.SerializeToString)
    with pytest.raises(grpc.RpcError) as error:
        call(message, timeout=20)
    assert error.value.code() is INVALID
    assert len(error.value.details()) < 4000, "more than a status line can carry"
    target.whole()


def test_streams_that_come_and_go_leave_no_thread_behind(target: Target) -> None:
    before, files = target.plugin.threads(), target.plugin.files()
    for _ in range(100):
        stream = target.channel.unary_stream(f"/{api.DEVICE_PLUGIN}/ListAndWatch")(b"")
        assert len(dp.ListAndWatchResponse.FromString(next(iter(stream))).devices) == 8
        stream.cancel()
    wait_until(lambda: target.plugin.threads() <= before + 4, what="threads of ended streams to go")
    assert target.plugin.files() <= files + 4
    target.whole()


def test_many_streams_at_once_all_get_the_list(target: Target) -> None:
    streams = [target.channel.unary_stream(f"/{api.DEVICE_PLUGIN}/ListAndWatch")(b"") for _ in range(20)]
    for stream in streams:
        assert len(dp.ListAndWatchResponse.FromString(next(iter(stream))).devices) == 8
        stream.cancel()
    target.whole()


@often
@given(content=st.binary(max_size=400))
def test_a_connection_that_speaks_no_grpc_disturbs_nobody(target: Target, content: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(target.path))
        client.sendall(content)
    target.whole()


@often
@given(content=st.binary(max_size=400))
def test_whatever_is_said_to_the_status_socket_its_next_caller_is_answered(
    target: Target, content: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(target.plugin.run_dir / "status.sock"))
        with contextlib.suppress(OSError):  # it answers without listening, and may be gone by then
            client.sendall(content)
    assert target.plugin.status()["pid"] == target.plugin.pid


# -- the plugin watcher's service --------------------------------------------------------------------------------


class Verdicts:
    """Who listens to a service: keeps what the kubelet said of it."""

    def __init__(self) -> None:
        self.heard: list[tuple[bool, str]] = []

    def registered(self, _service: Service, ok: bool, text: str) -> None:
        self.heard.append((ok, text))


@pytest.fixture(scope="module")
def watched() -> Iterator[tuple[grpc.Channel, Verdicts]]:
    """A service with the plugin watcher's methods, and what it hears."""
    path, listener = f"/tmp/gw-{os.getpid()}.sock", Verdicts()
    service = Service(GPU, path, State(), listener)  # type: ignore[arg-type]
    service.start(registry=True)
    with grpc.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS) as channel:
        yield channel, listener
    service.stop().wait(5)


@often
@given(method=st.sampled_from(["GetInfo", "NotifyRegistrationStatus"]), content=st.binary(max_size=300))
@example("NotifyRegistrationStatus", b"\x08\x01")
@example("NotifyRegistrationStatus", b"\x12\x01\xff")
@example("GetInfo", b"\x0a")
def test_the_plugin_watchers_methods_bear_any_bytes(
    watched: tuple[grpc.Channel, Verdicts], method: str, content: bytes
) -> None:
    channel, listener = watched
    listener.heard.clear()
    kind = {"GetInfo": registration.InfoRequest, "NotifyRegistrationStatus": registration.RegistrationStatus}
    try:
        message, expected = kind[method].FromString(content), OK
    except DecodeError:
        message, expected = None, NO_MESSAGE
    try:
        answer = channel.unary_unary(f"/{api.PLUGIN_REGISTRATION}/{method}")(content, timeout=10)
    except grpc.RpcError as error:
        assert error.code() is expected
        assert listener.heard == []
    else:
        assert expected is OK
        if method == "GetInfo":
            assert registration.PluginInfo.FromString(answer).name == GPU
        else:
            assert listener.heard == [(message.plugin_registered, message.error)]


# -- the config file, while the plugin runs ----------------------------------------------------------------------


WORDS = ("config file refused", "config file applied", "config file read, nothing changed")


def test_a_config_file_that_turns_to_anything_is_refused_or_used_and_the_devices_stay(node, start, place):  # type: ignore[no-untyped-def]
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    plugin = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, healthy=8)
    contents = [
        b"", b"\xff\xfe\x00", b"[" * 99, b"flags: {migStrategy: [", b"- 1", b"version: v2", b"a: &a [*a]", b"\0" * 100,
        b"sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 60000}]}}",
        b"flags: {migStrategy: single}\nresources: 7", b"!!python/object/apply:os.abort []", bytes(range(256)),
    ]  # fmt: skip
    for content in contents:
        config.write_bytes(content)
        before = len(plugin.log)
        plugin.signal(signal.SIGHUP)
        wait_until(
            lambda seen=before: any(word in line for line in plugin.log[seen:] for word in WORDS),
            what=f"a word on {content[:20]!r}",
        )
        assert len(node.kubelet.healthy(GPU)) == 8
    config.write_text("version: v1\nsharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}]}}")
    node.kubelet.wait_for(GPU, healthy=16)
    assert plugin.process.poll() is None


# -- PodResources ------------------------------------------------------------------------------------------------


class LyingKubelet:
    """Answers PodResources/List with whatever bytes a test says."""

    def __init__(self, path: Path) -> None:
        self.content: bytes | grpc.StatusCode = b""
        path.unlink(missing_ok=True)
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(self._list)
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(api.POD_RESOURCES, {"List": handler}),)
        )
        self.server.add_insecure_port(f"unix:{path}")
        self.server.start()

    def _list(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        if isinstance(self.content, grpc.StatusCode):
            context.abort(self.content, "not for you")
        return bytes(self.content)


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[[bytes | grpc.StatusCode], Any]]:
    """`podresources.ask` against a kubelet that answers this."""
    directory = Path("/tmp") / f"gf-{os.getpid()}"
    directory.mkdir()
    kubelet = LyingKubelet(directory / "kubelet.sock")

    def asked(content: bytes | grpc.StatusCode) -> Any:
        kubelet.content = content
        return real_ask(str(directory))

    yield asked
    kubelet.server.stop(None)
    shutil.rmtree(directory)


@often
@given(content=st.binary(max_size=600))
def test_pod_resources_in_garbage_is_an_error_in_words_or_an_answer(
    ask: Callable[[bytes | grpc.StatusCode], Any], content: bytes
) -> None:
    try:
        holders = ask(content)
    except PodResourcesError as error:
        assert "kubelet.sock" in str(error)
    else:
        assert all(isinstance(resource, str) and isinstance(i, str) for resource, i in holders)


@often
@given(data=st.data())
def test_pod_resources_with_odd_pods_names_the_last_holder(
    ask: Callable[[bytes | grpc.StatusCode], Any], data: Any
) -> None:
    text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
    entries = data.draw(st.lists(st.tuples(text, text, text, text, st.lists(text, max_size=3)), max_size=5))
    answer = podresources.ListPodResourcesResponse()
    expected = {}
    for namespace, pod, container, resource, ids in entries:
        answer.pod_resources.add(
            name=pod,
            namespace=namespace,
            containers=[{"name": container, "devices": [{"resource_name": resource, "device_ids": ids}]}],
        )
        expected.update({(resource, i): f"{namespace}/{pod}/{container}" for i in ids})
    assert {key: str(holder) for key, holder in ask(answer.SerializeToString()).items()} == expected


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_pod_resources_that_refuses_is_named(
    ask: Callable[[bytes | grpc.StatusCode], Any], code: grpc.StatusCode
) -> None:
    with pytest.raises(PodResourcesError, match=code.name):
        ask(code)


def test_the_plugin_lives_on_while_pod_resources_lies(target: Target) -> None:
    path = target.node.root_dir / "pod-resources/kubelet.sock"
    path.unlink()
    kubelet = LyingKubelet(path)
    try:
        for content in (b"\xff" * 100, b"\n\x7f", grpc.StatusCode.UNAVAILABLE, b""):
            kubelet.content = content
            wait_until(target.plugin.status)
            target.whole()
    finally:
        kubelet.server.stop(None).wait(5)
        target.node.stop()
        target.node.start()
        target.node.kubelet.wait_for(GPU, healthy=7, unhealthy=1)
