"""Hostile input: whatever bytes reach an RPC, whatever PodResources answers, the plugin goes on and says why not."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "conformance"))

from embedded_kubelet.wire import CHANNEL_OPTIONS, api, podresources
from embedded_kubelet.wire import deviceplugin as dp
from fake_plugin import wait_until
from gpu_device_plugin.podresources import PodResourcesError
from gpu_device_plugin.podresources import ask as real_ask
from kubelet_nodes import EmbeddedNode
from plugin_process import PluginProcess
from testbed_nvml import standin

GPU = "nvidia.com/gpu"
EXAMPLES = int(os.environ.get("GPUOPS_FUZZ_EXAMPLES", "60"))
REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INTERNAL,  # gRPC's own word for bytes that are no message
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # more than 4 MiB
    grpc.StatusCode.CANCELLED,
}
often = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Target:
    """A running plugin, with a line to its socket."""

    def __init__(self, node: EmbeddedNode, plugin: PluginProcess) -> None:
        self.node, self.plugin = node, plugin
        [path] = plugin.sockets()
        self.path = path
        self.channel = grpc.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS)
        self.ids = sorted(node.healthy(GPU) or ())

    def raw(self, method: str, content: bytes) -> bytes | grpc.StatusCode:
        """The answer's bytes, or the status."""
        call = self.channel.unary_unary(f"/{api.DEVICE_PLUGIN}/{method}")
        try:
            return bytes(call(content, timeout=10))
        except grpc.RpcError as error:
            return error.code()

    def whole(self) -> None:
        """The process is the same, the kubelet has its eight devices, and an Allocate is answered well."""
        assert self.plugin.alive(), self.plugin.tail()
        assert len(self.node.healthy(GPU) or ()) == 8
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
        yield Target(node, plugin)
    node.close()


names = st.one_of(
    st.sampled_from(
        ["", "GPU-0", "all", "none", "void", "GPU-0::1", "::", "../../etc/passwd", "a,b", "\x00", "🦆"]
    ),
    st.text(max_size=80),
)


def mixed(target: Target) -> st.SearchStrategy[list[str]]:
    """Lists of real ids and of others, with repeats."""
    return st.lists(st.one_of(st.sampled_from(target.ids), names), max_size=20)


@often
@given(
    method=st.sampled_from(
        [
            "GetDevicePluginOptions",
            "Allocate",
            "GetPreferredAllocation",
            "PreStartContainer",
            "Nope",
            "../Allocate",
        ]
    ),
    content=st.binary(max_size=2000),
)
def test_bytes_that_are_no_message_are_refused_or_answered(
    target: Target, method: str, content: bytes
) -> None:
    answer = target.raw(method, content)
    assert isinstance(answer, bytes) or answer in REFUSALS | {grpc.StatusCode.UNKNOWN}
    target.whole()


@often
@given(data=st.data())
def test_allocate_answers_known_ids_alone(target: Target, data: Any) -> None:
    requests = data.draw(st.lists(mixed(target), max_size=4))
    message = dp.AllocateRequest(container_requests=[{"devices_ids": ids} for ids in requests])
    answer = target.raw("Allocate", message.SerializeToString())
    if isinstance(answer, bytes):
        responses = dp.AllocateResponse.FromString(answer).container_responses
        assert len(responses) == len(requests) > 0
        for ids, response in zip(requests, responses, strict=True):
            visible = [
                i for i in response.envs["NVIDIA_VISIBLE_DEVICES"].split(",") if i not in ("", "void", "none")
            ]
            assert set(visible) == set(ids)
            assert len(visible) == len(set(visible))
    else:
        assert answer in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}
        assert not requests or any(not ids or set(ids) - set(target.ids) for ids in requests)
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
    assert set(ids) <= set(available) & set(target.ids)
    assert not ids or (len(ids) == size == len(set(ids)) and set(must) <= set(ids))


@often
@given(data=st.data())
def test_pre_start_container_takes_anything(target: Target, data: Any) -> None:
    message = dp.PreStartContainerRequest(devices_ids=data.draw(mixed(target)))
    assert target.raw("PreStartContainer", message.SerializeToString()) == b""


def test_messages_over_4_mib_are_refused(target: Target) -> None:
    message = dp.AllocateRequest(container_requests=[{"devices_ids": ["x" * 5_000_000]}])
    assert target.raw("Allocate", message.SerializeToString()) in REFUSALS
    target.whole()


def test_a_hundred_thousand_ids_are_refused_and_the_text_stays_short(target: Target) -> None:
    message = dp.AllocateRequest(container_requests=[{"devices_ids": [f"GPU-{i}" for i in range(100_000)]}])
    call = target.channel.unary_unary(f"/{api.DEVICE_PLUGIN}/Allocate", dp.AllocateRequest.SerializeToString)
    with pytest.raises(grpc.RpcError) as error:
        call(message, timeout=20)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
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
        target.node.kubelet.wait_for(GPU, healthy=8)
