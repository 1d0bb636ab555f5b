"""The gRPC service: what each method answers, over a real socket, without a kubelet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from gpu_device_plugin import cdi, rpc
from gpu_device_plugin.api import DEVICE_PLUGIN, PLUGIN_REGISTRATION
from gpu_device_plugin.api import deviceplugin_v1beta1_pb2 as pb
from gpu_device_plugin.api import pluginregistration_v1_pb2 as registry
from gpu_device_plugin.config import CDI_ANNOTATIONS, CDI_CRI, ENVVAR, Settings
from gpu_device_plugin.devices import Plan, Snapshot
from gpu_device_plugin.prefer import Chooser
from gpu_device_plugin.respond import Responder
from gpu_device_plugin.service import OPTIONS, Call, Service
from gpu_device_plugin.state import Desk, State
from gpu_device_plugin.topology import Scores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import GPU, desk, devices, plan, wait_until


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.opened = self.closed = 0
        self.sent: list[int] = []
        self.verdicts: list[tuple[bool, str]] = []

    def called(self, call: Call) -> None:
        self.calls.append(call)

    def stream_opened(self, service: Service) -> None:
        self.opened += 1

    def stream_closed(self, service: Service) -> None:
        self.closed += 1

    def list_sent(self, service: Service, version: int) -> None:
        self.sent.append(version)

    def registered(self, service: Service, ok: bool, text: str) -> None:
        self.verdicts.append((ok, text))


class Served:
    """One resource served on a socket, and a client."""

    def __init__(self, path: str, count: int = 4) -> None:
        self.state = State()
        self.ear = Ear()
        self.publish(plan(gpu=devices(count)))
        self.service = Service(GPU, path, self.state, self.ear)
        self.service.start(registry=True)
        self.channel = rpc.channel(path)

    def publish(self, offered: Plan, make: Any = desk) -> None:
        self.state.publish(Settings(), Snapshot(), offered, make, basis=object())

    def ask(self, method: str, request: Any, response: Any, timeout: float = 5) -> Any:
        call = self.channel.unary_unary(
            f"/{DEVICE_PLUGIN}/{method}", lambda message: message.SerializeToString(), response.FromString
        )
        return call(request, timeout=timeout)

    def allocate(self, *ids: str) -> pb.ContainerAllocateResponse:
        request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=ids)])
        return self.ask("Allocate", request, pb.AllocateResponse).container_responses[0]

    def refusal(self, *ids: str) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.allocate(*ids)
        return caught.value.code(), caught.value.details()

    def stream(self) -> Any:
        call = self.channel.unary_stream(
            f"/{DEVICE_PLUGIN}/ListAndWatch",
            pb.Empty.SerializeToString,
            pb.ListAndWatchResponse.FromString,
        )
        return call(pb.Empty())

    def close(self) -> None:
        self.channel.close()
        ended = self.service.stop()
        assert ended.wait(5)


@pytest.fixture
def served(place) -> Iterator[Served]:
    one = Served(str(place / "p.sock"))
    yield one
    one.close()


def health(message: Any) -> dict[str, str]:
    return {device.ID: device.health for device in message.devices}


class Counting(Responder):
    """Remembers what it had to work out."""

    def __init__(self, resource: Any, wanted: Settings) -> None:
        super().__init__(resource, wanted, cdi_names=[cdi.qualified(cdi.CLASS, f"GPU-{n}") for n in range(4)])
        self.asked: list[list[str]] = []

    def respond(self, ids: Any, answer_id: str) -> Any:
        self.asked.append(list(ids))
        return super().respond(ids, answer_id)


def counting(**wanted: Any) -> Any:
    return lambda resource: Desk(Counting(resource, Settings(**wanted)), Chooser(resource, Scores()))


def worked_out(served: Served) -> list[list[str]]:
    responder = served.state.world.offers[GPU].desk.responder
    assert isinstance(responder, Counting)
    return responder.asked


def test_the_same_request_is_worked_out_once_and_told_each_time(served):
    served.publish(plan(gpu=devices(4)), counting())
    answers = [served.allocate("GPU-2", "GPU-1") for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0].envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert worked_out(served) == [["GPU-2", "GPU-1"]]
    wait_until(lambda: len(served.ear.calls) == 3)
    assert {(call.method, call.code, call.ids) for call in served.ear.calls} == {
        ("Allocate", "OK", ("GPU-2", "GPU-1"))
    }


def test_a_request_answered_before_is_refused_once_its_gpu_is_ill_or_the_resource_gone(served):
    served.allocate("GPU-1")
    served.publish(plan(gpu=devices(4, sick=[1])))
    assert served.refusal("GPU-1")[0] is grpc.StatusCode.FAILED_PRECONDITION
    served.publish(plan(gpu=devices(4)))
    served.allocate("GPU-1")
    served.publish(plan(gpu=devices(1)))
    assert served.refusal("GPU-1")[0] is grpc.StatusCode.INVALID_ARGUMENT
    served.publish(plan(other=devices(4)))
    assert served.refusal("GPU-1")[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_other_settings_answer_a_request_of_before_by_themselves(served):
    assert served.allocate("GPU-1").devices
    served.publish(plan(gpu=devices(4)), counting(pass_device_specs=False))
    assert not served.allocate("GPU-1").devices


def test_a_refusal_is_not_kept(served):
    for _ in range(2):
        assert served.refusal("GPU-9")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert served.state.world.offers[GPU].desk.answers == {}


def test_no_two_answers_share_the_key_of_their_cdi_annotation(served):
    served.publish(plan(gpu=devices(4)), counting(device_list_strategy=(CDI_ANNOTATIONS,)))
    keys = {key for _ in range(3) for key in served.allocate("GPU-1").annotations}
    assert len(keys) == 3


def test_few_and_short_requests_are_kept(served, monkeypatch):
    monkeypatch.setattr("gpu_device_plugin.service.ANSWERS_KEPT", 3)
    kept = served.state.world.offers[GPU].desk.answers
    for ids in (["GPU-0"], ["GPU-1"], ["GPU-2"]):
        served.allocate(*ids)
    assert len(kept) == 3
    served.allocate("GPU-3")
    assert len(kept) == 1
    served.allocate(*["GPU-3"] * 500)
    assert len(kept) == 1


def test_options_are_the_same_asked_and_registered_k3(served):
    assert served.ask("GetDevicePluginOptions", pb.Empty(), pb.DevicePluginOptions) == OPTIONS
    assert OPTIONS.get_preferred_allocation_available and not OPTIONS.pre_start_required


def test_a_stream_gets_the_list_at_once_and_each_change_once(served):
    stream = served.stream()
    assert health(next(stream)) == {f"GPU-{number}": "Healthy" for number in range(4)}
    served.publish(plan(gpu=devices(4, sick=[2])))
    assert health(next(stream))["GPU-2"] == "Unhealthy"
    served.publish(plan(gpu=devices(4, sick=[2])))
    served.publish(plan(gpu=devices(4)))
    assert health(next(stream))["GPU-2"] == "Healthy"
    wait_until(lambda: len(served.ear.sent) == 3)
    stream.cancel()
    wait_until(lambda: served.ear.closed == 1 and served.service.streams == 0)


def test_two_streams_get_the_same_bytes(served):
    one, other = served.stream(), served.stream()
    assert next(one) == next(other)
    served.publish(plan(gpu=devices(4, sick=[0])))
    assert next(one) == next(other)


def test_a_cancelled_stream_ends_without_a_change_of_the_list(served):
    stream = served.stream()
    next(stream)
    stream.cancel()
    wait_until(lambda: served.ear.closed == 1, 2)
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "stream"], 2)


def test_a_hundred_streams_are_served_and_leave_no_thread(served):
    streams = [served.stream() for _ in range(100)]
    for stream in streams:
        next(stream)
    assert served.service.streams == 100
    assert served.allocate("GPU-0").envs
    for stream in streams:
        stream.cancel()
    wait_until(lambda: served.ear.closed == 100 and served.service.streams == 0)


def test_allocate_answers_with_ids_and_device_nodes_in_index_order_k29(served):
    answer = served.allocate("GPU-2", "GPU-0")
    assert answer.envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-0,GPU-2"
    assert [one.host_path for one in answer.devices] == ["/dev/nvidia0", "/dev/nvidia2"]
    wait_until(lambda: served.ear.calls, what="the call to be told, once its answer is out")
    assert [(call.method, call.code, call.ids) for call in served.ear.calls] == [
        ("Allocate", "OK", ("GPU-2", "GPU-0"))
    ]


def test_an_unknown_id_is_an_invalid_argument_that_names_it(served):
    code, text = served.refusal("GPU-9")
    assert code is grpc.StatusCode.INVALID_ARGUMENT and "GPU-9" in text


def test_an_unhealthy_id_is_a_failed_precondition_that_names_it(served):
    served.publish(plan(gpu=devices(4, sick=[1])))
    code, text = served.refusal("GPU-1")
    assert code is grpc.StatusCode.FAILED_PRECONDITION and "GPU-1" in text


def test_allocate_without_a_container_is_refused_rather_than_answered_with_nothing_k23(served):
    with pytest.raises(grpc.RpcError) as caught:
        served.ask("Allocate", pb.AllocateRequest(), pb.AllocateResponse)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_allocate_of_a_resource_that_went_is_refused(served):
    served.publish(Plan())
    code, text = served.refusal("GPU-0")
    assert code is grpc.StatusCode.FAILED_PRECONDITION and GPU in text


def test_two_containers_get_two_answers(served):
    request = pb.AllocateRequest(
        container_requests=[pb.ContainerAllocateRequest(devices_ids=[f"GPU-{n}"]) for n in (0, 1)]
    )
    answer = served.ask("Allocate", request, pb.AllocateResponse)
    assert [one.envs["NVIDIA_VISIBLE_DEVICES"] for one in answer.container_responses] == ["GPU-0", "GPU-1"]


def test_cdi_names_reach_the_wire(served):
    wanted = Settings(device_list_strategy=(ENVVAR, CDI_CRI))

    def with_cdi(resource):
        names = [cdi.qualified(cdi.CLASS, device.uuid) for device in resource.devices]
        return Desk(Responder(resource, wanted, (), names), Chooser(resource, Scores()))

    served.publish(plan(gpu=devices(4)), with_cdi)
    assert [one.name for one in served.allocate("GPU-1").cdi_devices] == [
        "k8s.device-plugin.nvidia.com/gpu=GPU-1"
    ]


def test_preferred_allocation_never_fails_k24(served):
    class Broken:
        def preferred(self, *_: object) -> list[str]:
            raise RuntimeError("bug")

    request = pb.PreferredAllocationRequest(
        container_requests=[
            pb.ContainerPreferredAllocationRequest(
                available_deviceIDs=["GPU-0", "GPU-1", "GPU-2"],
                must_include_deviceIDs=["GPU-2"],
                allocation_size=2,
            )
        ]
    )
    answer = served.ask("GetPreferredAllocation", request, pb.PreferredAllocationResponse)
    assert len(answer.container_responses[0].deviceIDs) == 2
    assert "GPU-2" in answer.container_responses[0].deviceIDs
    served.publish(plan(gpu=devices(4)), lambda resource: Desk(Responder(resource, Settings()), Broken()))
    answer = served.ask("GetPreferredAllocation", request, pb.PreferredAllocationResponse)
    assert list(answer.container_responses[0].deviceIDs) == []
    wait_until(lambda: [call.code for call in served.ear.calls] == ["OK", "INTERNAL"])


def test_pre_start_is_answered_k26(served):
    assert (
        served.ask("PreStartContainer", pb.PreStartContainerRequest(), pb.PreStartContainerResponse)
        is not None
    )


def test_the_registry_methods_name_resource_endpoint_and_version(served):
    info = served.channel.unary_unary(
        f"/{PLUGIN_REGISTRATION}/GetInfo",
        registry.InfoRequest.SerializeToString,
        registry.PluginInfo.FromString,
    )(registry.InfoRequest(), timeout=5)
    assert (info.type, info.name, info.endpoint) == ("DevicePlugin", GPU, served.service.path)
    assert list(info.supported_versions) == ["v1beta1"]
    served.channel.unary_unary(
        f"/{PLUGIN_REGISTRATION}/NotifyRegistrationStatus",
        registry.RegistrationStatus.SerializeToString,
        registry.RegistrationStatusResponse.FromString,
    )(registry.RegistrationStatus(plugin_registered=False, error="no"), timeout=5)
    assert served.ear.verdicts == [(False, "no")]


def test_stop_ends_streams_and_takes_the_socket_away(place):
    served = Served(str(place / "q.sock"))
    stream = served.stream()
    next(stream)
    ended = served.service.stop()
    with pytest.raises((grpc.RpcError, StopIteration)):
        next(stream)
    assert ended.wait(2)
    assert not (place / "q.sock").exists()
    served.channel.close()


def test_a_socket_that_another_took_is_left_alone(place):
    served = Served(str(place / "r.sock"))
    (place / "r.sock").unlink()
    (place / "r.sock").write_text("not ours")
    assert not served.service.intact()
    served.close()
    assert (place / "r.sock").read_text() == "not ours"


def test_ten_thousand_replicas_are_listed_and_allocated(served):
    many: tuple = tuple(
        replace(device, id=f"{device.uuid}::{number}", replica=number)
        for device in devices(8)
        for number in range(1250)
    )
    served.publish(plan(gpu=many))
    assert len(next(served.stream()).devices) == 10_000
    assert served.allocate("GPU-3::1249").envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-3"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    method=st.sampled_from(["Allocate", "GetPreferredAllocation", "PreStartContainer"]),
)
def test_garbage_on_the_wire_is_answered_with_a_status_and_harms_nobody(served, data, method):
    call = served.channel.unary_unary(f"/{DEVICE_PLUGIN}/{method}")
    try:
        call(data, timeout=5)
    except grpc.RpcError as error:
        assert error.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.FAILED_PRECONDITION,
        )
    assert served.allocate("GPU-0").envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-0"


def test_without_grpcs_insides_calls_still_work(place, monkeypatch):
    monkeypatch.setattr(rpc, "_UNARY", None)
    served = Served(str(place / "s.sock"))
    assert served.allocate("GPU-0").envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-0"
    served.close()
