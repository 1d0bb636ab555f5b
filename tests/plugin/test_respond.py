"""What Allocate answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpu_device_plugin.cdi import qualified as named
from gpu_device_plugin.config import DEVICE_LIST_STRATEGIES, Settings, SharedResource, Sharing
from gpu_device_plugin.devices import HostDevice, Snapshot
from gpu_device_plugin.features import GDRCOPY, GDS, IMEX, Feature
from gpu_device_plugin.resources import plan
from gpu_device_plugin.respond import Answer, DeviceSpec, Mount, RequestError, Responder
from hypothesis import given
from hypothesis import strategies as st
from plain_nodes import cut, gpu, node, uuid

CONTROL = ("/dev/nvidiactl", "/dev/nvidia-uvm")
BARE = Settings(pass_device_specs=False)


def responder(
    snapshot: Snapshot, settings: Settings, cdi: tuple[str, ...] = (), resource: int = 0
) -> Responder:
    return Responder(plan(snapshot, settings).resources[resource], settings, CONTROL, cdi)


def two(settings: Settings, cdi: tuple[str, ...] = ()) -> Answer:
    """GPUs 1 and 0 asked for, in this order."""
    return responder(node(gpu(0), gpu(1), gpu(2)), settings, cdi).respond([uuid(1), uuid(0)], "a1")


def refused(call: Responder, *ids: str) -> tuple[str, str]:
    with pytest.raises(RequestError) as raised:
        call.respond(list(ids), "a1")
    assert str(raised.value) == raised.value.text
    return raised.value.code, raised.value.text


def test_envvar_names_the_devices_in_index_order() -> None:
    assert two(BARE) == Answer(envs={"NVIDIA_VISIBLE_DEVICES": f"{uuid(0)},{uuid(1)}"})


def test_by_index_the_runtime_is_told_indices() -> None:
    assert two(replace(BARE, device_id_strategy="index")).envs == {"NVIDIA_VISIBLE_DEVICES": "0,1"}
    slices = responder(
        node(cut(0, "1g.10gb", "1g.10gb")), replace(BARE, mig_strategy="single", device_id_strategy="index")
    )
    assert slices.respond([slices.resource.devices[1].id], "a").envs == {"NVIDIA_VISIBLE_DEVICES": "0:1"}


def test_volume_mounts_name_each_device_by_a_mount() -> None:
    root = "/var/run/nvidia-container-devices"
    expected = Answer(
        envs={"NVIDIA_VISIBLE_DEVICES": root},
        mounts=(Mount(f"{root}/{uuid(0)}", "/dev/null"), Mount(f"{root}/{uuid(1)}", "/dev/null")),
    )
    assert two(replace(BARE, device_list_strategy=("volume-mounts",))) == expected
    assert two(replace(BARE, device_list_strategy=("envvar", "volume-mounts"))) == expected


def test_cdi_annotations_and_cdi_cri_answer_qualified_names() -> None:
    names = tuple(f"k8s.device-plugin.nvidia.com/gpu={uuid(number)}" for number in range(3))
    qualified = names[:2]
    key = "cdi.k8s.io/nvidia-device-plugin_a1"
    assert two(replace(BARE, device_list_strategy=("cdi-annotations",)), names) == Answer(
        annotations={key: ",".join(qualified)}
    )
    assert two(replace(BARE, device_list_strategy=("cdi-cri",)), names) == Answer(cdi_devices=qualified)
    own = replace(BARE, device_list_strategy=("cdi-annotations",), cdi_annotation_prefix="example.com/")
    assert list(two(own, names).annotations) == ["example.com/nvidia-device-plugin_a1"]


def test_no_cdi_name_is_answered_that_the_specification_does_not_hold() -> None:
    settings = replace(BARE, device_list_strategy=("envvar", "cdi-cri"))
    code, text = refused(responder(node(gpu(0)), settings, ("other",)), uuid(0))
    assert code == "FAILED_PRECONDITION"
    assert text.startswith(
        f"nvidia.com/gpu: the CDI specification in /var/run/cdi does not hold device {uuid(0)};"
    )


def test_device_specs_hold_control_nodes_then_own_ones_each_once() -> None:
    assert two(Settings()).devices == tuple(
        DeviceSpec(path, path, "rw") for path in (*CONTROL, "/dev/nvidia0", "/dev/nvidia1")
    )
    slices = responder(node(cut(0, "1g.10gb", "1g.10gb")), Settings(mig_strategy="single"))
    answer = slices.respond([device.id for device in slices.resource.devices], "a")
    assert [spec.host_path for spec in answer.devices] == [
        *CONTROL,
        "/dev/nvidia0",
        *(f"/dev/nvidia-caps/nvidia-cap{number}" for number in range(4)),
    ]


@pytest.mark.parametrize(
    ("changes", "host"),
    [
        ({}, "/dev/nvidia0"),
        ({"nvidia_driver_root": "/run/nvidia/driver"}, "/run/nvidia/driver/dev/nvidia0"),
        ({"nvidia_driver_root": "/run/nvidia/driver/", "nvidia_dev_root": "/"}, "/dev/nvidia0"),
        ({"nvidia_dev_root": "/root/dev/.."}, "/root/dev/nvidia0"),
    ],
)
def test_device_specs_are_looked_for_below_the_device_root(changes: dict[str, str], host: str) -> None:
    spec = two(replace(Settings(), **changes)).devices[2]  # type: ignore[arg-type]
    assert spec == DeviceSpec("/dev/nvidia0", host.replace("/root/dev/nvidia0", "/root/dev/nvidia0"))


def test_driver_mounts_bring_the_driver_and_the_nodes_for_hosts_without_a_runtime() -> None:
    answer = two(replace(BARE, device_list_strategy=("driver-mounts",)))
    assert answer.envs == {}
    assert answer.mounts == (Mount("/usr/local/nvidia", "/home/kubernetes/bin/nvidia", True),)
    assert [spec.container_path for spec in answer.devices] == [*CONTROL, "/dev/nvidia0", "/dev/nvidia1"]
    own = replace(
        BARE,
        device_list_strategy=("driver-mounts",),
        driver_mounts_host_path="/opt/h",
        driver_mounts_container_path="/opt/c",
    )
    assert two(own).mounts == (Mount("/opt/c", "/opt/h", True),)


def test_all_strategies_together_add_up() -> None:
    answer = two(
        Settings(device_list_strategy=DEVICE_LIST_STRATEGIES), (named("gpu", uuid(0)), named("gpu", uuid(1)))
    )
    assert list(answer.envs) == ["NVIDIA_VISIBLE_DEVICES"]
    assert len(answer.mounts) == 3
    assert len(answer.devices) == 4
    assert len(answer.annotations) == 1
    assert len(answer.cdi_devices) == 2


def test_gds_gdrcopy_and_mofed_are_asked_for_by_variables() -> None:
    settings = replace(
        BARE,
        device_list_strategy=("driver-mounts",),
        gds_enabled=True,
        gdrcopy_enabled=True,
        mofed_enabled=True,
    )
    assert two(settings).envs == {
        "NVIDIA_GDRCOPY": "enabled",
        "NVIDIA_GDS": "enabled",
        "NVIDIA_MOFED": "enabled",
    }
    assert two(replace(BARE, gds_enabled=True)).envs["NVIDIA_GDS"] == "enabled"


CHANNEL = "/dev/nvidia-caps-imex-channels/channel"
FEATURES = (
    Feature(IMEX, "0", ((f"{CHANNEL}0", f"/root{CHANNEL}0"),)),
    Feature(IMEX, "7", ((f"{CHANNEL}7", f"{CHANNEL}7"),)),
    Feature(GDRCOPY, "all", (("/dev/gdrdrv", "/dev/gdrdrv"),)),
    Feature(
        GDS, "all", (("/dev/nvidia-fs0", "/dev/nvidia-fs0"),), (("/etc/cufile.json", "/d/etc/cufile.json"),)
    ),
)
GPU_NAME = named("gpu", uuid(0))


def featured(settings: Settings, cdi: tuple[str, ...] = ()) -> Answer:
    """One GPU of a node that has two IMEX channels, GDRCopy and GPUDirect Storage."""
    resource = plan(node(gpu(0)), settings).resources[0]
    return Responder(resource, settings, (), cdi, FEATURES).respond([uuid(0)], "a")


def test_imex_channels_are_asked_for_as_gpus_are() -> None:
    root = "/var/run/nvidia-container-devices"
    assert featured(BARE).envs == {"NVIDIA_VISIBLE_DEVICES": uuid(0), "NVIDIA_IMEX_CHANNELS": "0,7"}
    assert featured(replace(BARE, device_list_strategy=("volume-mounts",))) == Answer(
        envs={"NVIDIA_VISIBLE_DEVICES": root},
        mounts=tuple(Mount(f"{root}/{mark}", "/dev/null") for mark in (uuid(0), "imex/0", "imex/7")),
    )
    assert "NVIDIA_IMEX_CHANNELS" not in two(BARE).envs


def test_device_specs_hold_the_channels_and_nothing_else_that_the_runtime_brings() -> None:
    assert featured(Settings()).devices == (
        DeviceSpec("/dev/nvidia0", "/dev/nvidia0"),
        DeviceSpec(f"{CHANNEL}0", f"/root{CHANNEL}0"),
        DeviceSpec(f"{CHANNEL}7", f"{CHANNEL}7"),
    )


def test_cdi_names_every_feature_that_was_written_and_no_other() -> None:
    written = (named(IMEX, "0"), GPU_NAME, named(GDS, "all"))
    settings = replace(BARE, device_list_strategy=("cdi-cri", "cdi-annotations"))
    answer = featured(settings, written)
    assert answer.cdi_devices == (GPU_NAME, named(IMEX, "0"), named(GDS, "all"))
    assert list(answer.annotations.values()) == [",".join(answer.cdi_devices)]
    assert answer.envs == {}


def test_without_a_runtime_the_nodes_and_files_of_features_are_brought_too() -> None:
    answer = featured(replace(BARE, device_list_strategy=("driver-mounts",)))
    assert [(spec.container_path, spec.host_path) for spec in answer.devices] == [
        ("/dev/nvidia0", "/dev/nvidia0"),
        *(pair for feature in FEATURES for pair in feature.nodes),
    ]
    assert answer.mounts[1:] == (Mount("/etc/cufile.json", "/d/etc/cufile.json", True),)


def sharing(kind: str, fail: bool = False) -> Settings:
    entries = (SharedResource("nvidia.com/gpu", 2, devices=(0,)),)
    return replace(BARE, **{kind: Sharing(False, fail, entries)})  # type: ignore[arg-type]


def test_replicas_are_answered_with_their_gpu_once() -> None:
    call = responder(node(gpu(0), gpu(1)), sharing("time_slicing"))
    answer = call.respond([f"{uuid(0)}::1", f"{uuid(0)}::0", uuid(1)], "a")
    assert answer == Answer(envs={"NVIDIA_VISIBLE_DEVICES": f"{uuid(0)},{uuid(1)}"})


def test_mps_clients_get_its_pipe_and_shared_memory() -> None:
    call = responder(node(gpu(0), gpu(1)), sharing("mps"))
    answer = call.respond([f"{uuid(0)}::1"], "a")
    assert answer.envs == {
        "NVIDIA_VISIBLE_DEVICES": uuid(0),
        "CUDA_MPS_PIPE_DIRECTORY": "/mps/nvidia.com/gpu/pipe",
    }
    assert answer.mounts == (
        Mount("/mps/nvidia.com/gpu/pipe", "/run/nvidia/mps/nvidia.com/gpu/pipe"),
        Mount("/dev/shm", "/run/nvidia/mps/shm"),
    )
    assert call.respond([uuid(1)], "a").mounts == ()


def test_more_than_one_replica_is_refused_when_asked_so_but_not_more_than_one_whole_gpu() -> None:
    call = responder(node(gpu(0), gpu(1), gpu(2)), sharing("time_slicing", fail=True))
    assert refused(call, f"{uuid(0)}::0", f"{uuid(0)}::1") == (
        "INVALID_ARGUMENT",
        "nvidia.com/gpu: maximum request size for shared resources is 1; found 2",
    )
    assert refused(call, f"{uuid(0)}::0", uuid(1))[0] == "INVALID_ARGUMENT"
    assert call.respond([f"{uuid(0)}::1"], "a").envs
    assert call.respond([uuid(1), uuid(2)], "a").envs


def test_unknown_and_unhealthy_ids_are_refused_by_name() -> None:
    call = responder(node(gpu(0, fault="GPU is lost"), gpu(1)), BARE)
    assert refused(call, uuid(1), "GPU-x") == ("INVALID_ARGUMENT", "nvidia.com/gpu: unknown device GPU-x")
    assert refused(call, uuid(1), uuid(0)) == (
        "FAILED_PRECONDITION",
        f"nvidia.com/gpu: unhealthy device {uuid(0)} (GPU is lost)",
    )
    assert refused(call) == ("INVALID_ARGUMENT", "nvidia.com/gpu: the request names no device")
    assert refused(call, "a", "b", "c", "d" * 999, "e") == (
        "INVALID_ARGUMENT",
        "nvidia.com/gpu: unknown device a, b, c and 2 more",
    )
    assert len(refused(call, "d" * 999)[1]) < 300


def test_host_devices_are_answered_with_their_files_and_nothing_of_gpus() -> None:
    found = (
        HostDevice("example.com/ib", "ib0", ("/dev/infiniband/uverbs0", "/dev/umad0"), "rwm", replicas=2),
    )
    settings = Settings(
        device_list_strategy=DEVICE_LIST_STRATEGIES, gds_enabled=True, nvidia_driver_root="/run/nvidia/driver"
    )
    call = responder(node(host_devices=found), settings)
    assert call.respond(["ib0::1", "ib0::0"], "a") == Answer(
        devices=(
            DeviceSpec("/dev/infiniband/uverbs0", "/dev/infiniband/uverbs0", "rwm"),
            DeviceSpec("/dev/umad0", "/dev/umad0", "rwm"),
        )
    )


@given(st.lists(st.text(max_size=5) | st.sampled_from([uuid(0), uuid(1), f"{uuid(0)}::0"]), max_size=5))
def test_any_request_is_answered_or_refused_with_a_status(ids: list[str]) -> None:
    call = responder(node(gpu(0), gpu(1, fault="x")), Settings())
    try:
        assert call.respond(ids, "a").envs["NVIDIA_VISIBLE_DEVICES"] == uuid(0)
    except RequestError as error:
        assert error.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
