"""The state that streams wait on, and what is held back for the kubelet's sake (K17-K21)."""

from __future__ import annotations

import threading
from dataclasses import replace

from gpu_device_plugin.api.deviceplugin_v1beta1_pb2 import ListAndWatchResponse
from gpu_device_plugin.config import Settings
from gpu_device_plugin.devices import Plan, ResourcePlan, Snapshot
from gpu_device_plugin.state import EMPTY_SECONDS, GRACE_SECONDS, LEAVING, State, hold_back, list_message
from hypothesis import given
from hypothesis import strategies as st
from kit import GPU, desk, devices, plan


def publish(state: State, offered: Plan) -> tuple[str, ...]:
    return state.publish(Settings(), Snapshot(), offered, desk)


def decoded(state: State, resource: str = GPU) -> dict[str, str]:
    message = ListAndWatchResponse.FromString(state.world.offers[resource].message)
    return {device.ID: device.health for device in message.devices}


def test_a_list_names_every_device_with_its_health():
    state = State()
    assert publish(state, plan(gpu=devices(3, sick=[1]))) == (GPU,)
    assert decoded(state) == {"GPU-0": "Healthy", "GPU-1": "Unhealthy", "GPU-2": "Healthy"}


def test_no_topology_where_no_numa_node_is_known_k20():
    one, other = devices(2)
    message = ListAndWatchResponse.FromString(
        list_message(ResourcePlan(GPU, (replace(one, numa_node=1), replace(other, numa_node=None))))
    )
    assert [node.ID for node in message.devices[0].topology.nodes] == [1]
    assert not message.devices[1].HasField("topology")


def test_an_equal_plan_gives_no_new_list_k17():
    state = State()
    publish(state, plan(gpu=devices(3)))
    version = state.world.offers[GPU].version
    assert publish(state, plan(gpu=devices(3))) == ()
    assert state.world.offers[GPU].version == version


def test_another_reason_is_no_new_list_but_is_kept_k17():
    state = State()
    publish(state, plan(gpu=devices(2, sick=[0])))
    version = state.world.offers[GPU].version
    other = tuple(replace(device, fault=device.fault and "ECC") for device in devices(2, sick=[0]))
    assert publish(state, plan(gpu=other)) == ()
    assert state.world.offers[GPU].version == version
    assert state.world.offers[GPU].plan.devices[0].fault == "ECC"


def test_a_waiting_stream_gets_the_newest_list_and_none_between():
    state = State()
    publish(state, plan(gpu=devices(2)))
    seen = state.world.offers[GPU].version
    got: list[object] = []
    waiter = threading.Thread(target=lambda: got.append(state.newer(GPU, seen, lambda: False)))
    waiter.start()
    with state.condition:  # both before the waiter can look
        state.condition.notify_all()
    publish(state, plan(gpu=devices(2, sick=[0])))
    waiter.join(5)
    assert got[0] is not None and got[0].message != b""
    assert state.newer(GPU, -1, lambda: False) is state.world.offers[GPU]


def test_a_stream_that_ended_is_let_go():
    state = State()
    publish(state, plan(gpu=devices(1)))
    ended = threading.Event()
    got: list[object] = ["nothing"]

    def wait() -> None:
        got[0] = state.newer(GPU, state.world.offers[GPU].version, ended.is_set)

    waiter = threading.Thread(target=wait)
    waiter.start()
    ended.set()
    state.wake()
    waiter.join(5)
    assert got == [None]


def test_a_resource_that_went_and_came_back_has_a_list_nobody_has_seen():
    state = State()
    publish(state, plan(gpu=devices(1)))
    seen = state.world.offers[GPU].version
    publish(state, Plan())
    publish(state, plan(gpu=devices(1)))
    assert state.world.offers[GPU].version != seen


class Clock:
    """Serves plans one after the other, as the engine does."""

    def __init__(self) -> None:
        self.state = State()
        self.leaving: dict = {}
        self.now = 100.0
        self.again: float | None = None

    def serve(self, wanted: Plan, after: float = 0.0) -> dict[str, dict[str, str | None]]:
        self.now += after
        served, self.leaving, self.again = hold_back(self.state.world.offers, wanted, self.leaving, self.now)
        publish(self.state, served)
        return {
            resource.name: {device.id: device.fault for device in resource.devices}
            for resource in served.resources
        }


def test_a_vanished_id_is_unhealthy_before_it_goes_k19():
    clock = Clock()
    clock.serve(plan(gpu=devices(2)))
    assert clock.serve(plan(gpu=devices(1))) == {GPU: {"GPU-0": None, "GPU-1": LEAVING}}
    assert clock.again is not None and clock.again <= GRACE_SECONDS
    assert clock.serve(plan(gpu=devices(1)), after=GRACE_SECONDS / 2)[GPU]["GPU-1"] == LEAVING
    assert clock.serve(plan(gpu=devices(1)), after=GRACE_SECONDS) == {GPU: {"GPU-0": None}}
    assert clock.again is None


def test_an_id_that_returns_in_time_is_as_if_nothing_happened():
    clock = Clock()
    clock.serve(plan(gpu=devices(2)))
    clock.serve(plan(gpu=devices(1)))
    assert clock.serve(plan(gpu=devices(2)), after=0.1) == {GPU: {"GPU-0": None, "GPU-1": None}}
    assert clock.leaving == {}


def test_a_resource_that_goes_away_shows_an_empty_list_first_k21():
    clock = Clock()
    clock.serve(plan(gpu=devices(1)))
    assert clock.serve(Plan()) == {GPU: {"GPU-0": LEAVING}}
    assert clock.serve(Plan(), after=GRACE_SECONDS) == {GPU: {}}
    assert clock.again == EMPTY_SECONDS
    assert clock.serve(Plan(), after=EMPTY_SECONDS) == {}


def test_an_id_is_never_in_two_resources_k20():
    clock = Clock()
    clock.serve(plan(gpu=devices(1)))
    moved = plan(other=devices(1, resource="nvidia.com/other"))
    assert clock.serve(moved) == {GPU: {"GPU-0": LEAVING}, "nvidia.com/other": {}}
    later = clock.serve(moved, after=GRACE_SECONDS)
    assert later == {GPU: {}, "nvidia.com/other": {"GPU-0": None}}


@given(st.lists(st.lists(st.integers(0, 5), unique=True), min_size=1, max_size=8), st.data())
def test_whatever_comes_and_goes_the_list_ends_at_the_plan_and_no_id_drops_while_healthy(steps, data):
    clock = Clock()
    before: dict[str, str | None] = {}
    for ids in steps:
        wanted = Plan(resources=(ResourcePlan(GPU, tuple(devices(6)[number] for number in sorted(ids))),))
        now = clock.serve(wanted, after=data.draw(st.floats(0, 2)))[GPU]
        for identity, fault in before.items():
            assert identity in now or fault is not None, "dropped while it was Healthy"
        before = now
    clock.serve(wanted, after=GRACE_SECONDS)
    final = clock.serve(wanted, after=GRACE_SECONDS)[GPU]
    assert final == {f"GPU-{number}": None for number in sorted(ids)}
