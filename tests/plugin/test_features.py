"""IMEX channels, GDRCopy, GPUDirect Storage, MOFED: what of them is on the node, and what the settings make of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from gpu_device_plugin.config import Settings, SharedResource, Sharing
from gpu_device_plugin.features import (
    GDRCOPY,
    GDS,
    IMEX,
    MOFED,
    Feature,
    Node,
    asked,
    find,
    find_storage_files,
    given,
    missing,
    required_fault,
)
from gpu_device_plugin.resources import plan
from gpu_device_plugin.roots import below, dev_root, dev_roots, visible_roots
from kit import GPU, wait_until
from plain_nodes import cut, gpu, node

CHANNEL = "/dev/nvidia-caps-imex-channels/channel"
ALL = Settings(imex_channel_ids=(7, 0), gdrcopy_enabled=True, gds_enabled=True, mofed_enabled=True)
EVERYTHING = tuple(
    Node(path)
    for path in (
        f"{CHANNEL}0", f"{CHANNEL}7", f"{CHANNEL}70", "/dev/gdrdrv", "/dev/infiniband/rdma_cm",
        "/dev/infiniband/uverbs0", "/dev/nvidia-fs0", "/dev/nvidia-fs1",
    )
)  # fmt: skip


def device(path: Path) -> None:
    """A character device node, /dev/null's twin."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("device nodes can't be made here")


def test_nodes_are_found_by_kind_below_the_first_root_that_has_some(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (f"{CHANNEL}10", f"{CHANNEL}2", "/dev/infiniband/uverbs0"):
        device(Path(f"{first}{path}"))
    for path in (f"{CHANNEL}0", "/dev/gdrdrv", "/dev/infiniband/rdma_cm"):
        device(Path(f"{second}{path}"))
    (first / "dev/nvidia-fs0").touch()  # no device
    (first / "dev/nvidia-fs1").symlink_to("nowhere")
    assert find((str(first), str(second))) == tuple(
        Node(path) for path in (f"{CHANNEL}10", f"{CHANNEL}2", "/dev/gdrdrv", "/dev/infiniband/uverbs0")
    )
    assert find((str(tmp_path / "[n]"),)) == ()


def test_a_node_that_only_this_process_sees_is_on_the_node_where_its_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_device_plugin.features.PATTERNS", {GDRCOPY: ("/dev/null",)})
    assert find((str(tmp_path), "")) == (Node("/dev/null", in_device_root=False),)
    settings = Settings(gdrcopy_enabled=True, nvidia_driver_root="/run/nvidia/driver")
    assert given(settings, (Node("/dev/null", in_device_root=False),)) == (
        Feature(GDRCOPY, "all", (("/dev/null", "/dev/null"),)),
    )


def test_nothing_is_given_that_is_not_asked_for() -> None:
    assert list(asked(Settings())) == []
    assert given(Settings(), EVERYTHING) == ()
    assert missing(Settings(device_list_strategy=("cdi-cri",)), ()) == ()
    assert required_fault(Settings(imex_required=True), ()) is None


def test_what_is_asked_for_and_there_is_given_with_its_own_nodes() -> None:
    def same(*paths: str) -> tuple[tuple[str, str], ...]:
        return tuple((path, path) for path in paths)

    assert given(ALL, EVERYTHING, ("/etc/cufile.json",)) == (
        Feature(IMEX, "7", same(f"{CHANNEL}7")),
        Feature(IMEX, "0", same(f"{CHANNEL}0")),
        Feature(GDRCOPY, "all", same("/dev/gdrdrv")),
        Feature(GDS, "all", same("/dev/nvidia-fs0", "/dev/nvidia-fs1"), same("/etc/cufile.json")),
        Feature(MOFED, "all", same("/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0")),
    )


def test_roots_stand_before_paths_on_the_node() -> None:
    settings = Settings(gds_enabled=True, nvidia_driver_root="/run/nvidia/driver", nvidia_dev_root="/host")
    [feature] = given(settings, (Node("/dev/nvidia-fs0"),), ("/run/udev",))
    assert feature.nodes == (("/dev/nvidia-fs0", "/host/dev/nvidia-fs0"),)
    assert feature.mounts == (("/run/udev", "/run/nvidia/driver/run/udev"),)


def test_what_is_asked_for_and_not_there_is_told_with_the_next_step() -> None:
    channel, gdrcopy, gds, mofed = missing(
        Settings(
            imex_channel_ids=(3,),
            gdrcopy_enabled=True,
            gds_enabled=True,
            mofed_enabled=True,
            device_list_strategy=("cdi-annotations",),
        ),
        (),
    )
    assert channel.startswith(
        f"imex.channelIDs: {CHANNEL}3 is not there, so containers get none: load the driver"
    )
    assert gdrcopy == "gdrcopyEnabled: /dev/gdrdrv is not there, so containers get none: load gdrdrv"
    assert gds == "gdsEnabled: /dev/nvidia-fs* is not there, so containers get none: load nvidia-fs"
    assert mofed.startswith("mofedEnabled: /dev/infiniband/uverbs* or /dev/infiniband/rdma_cm is not there")
    assert missing(ALL, EVERYTHING) == ()


def test_what_the_runtime_finds_by_itself_is_not_missed() -> None:
    settings = Settings(imex_channel_ids=(0,), gdrcopy_enabled=True, gds_enabled=True, mofed_enabled=True)
    assert [text.split(":")[0] for text in missing(settings, ())] == ["imex.channelIDs"]


def test_a_required_channel_that_is_not_there_keeps_every_gpu_and_slice_back() -> None:
    settings = Settings(imex_channel_ids=(0, 7), imex_required=True, mig_strategy="mixed")
    there = (Node(f"{CHANNEL}0"),)
    lacking = plan(
        node(gpu(0, fault="GPU is lost"), gpu(1), cut(2, "1g.10gb"), feature_nodes=there), settings
    )
    why = "IMEX channel 7 is required and not there"
    assert {d.index: d.fault for r in lacking.resources for d in r.devices} == {
        "0": "GPU is lost", "1": why, "2:0": why,
    }  # fmt: skip
    assert [error.split(";")[0] for error in lacking.errors] == [f"imex.required: {why}"]
    assert lacking.problems == ()
    whole = plan(node(gpu(0), feature_nodes=(*there, Node(f"{CHANNEL}7"))), settings)
    assert (whole.resources[0].devices[0].fault, whole.errors) == (None, ())
    assert plan(node(feature_nodes=()), settings).errors == ()


def test_a_wanted_channel_that_is_not_there_is_a_problem_and_no_more() -> None:
    offered = plan(node(gpu(0)), Settings(imex_channel_ids=(0,)))
    assert offered.resources[0].devices[0].healthy
    assert offered.errors == ()
    assert offered.problems[0].startswith("imex.channelIDs:")


def test_replicas_are_kept_back_too() -> None:
    sharing = Sharing(resources=(SharedResource(GPU, 2),))
    settings = Settings(imex_channel_ids=(0,), imex_required=True, time_slicing=sharing)
    assert not any(device.healthy for device in plan(node(gpu(0)), settings).resources[0].devices)


def test_files_of_gpudirect_storage_are_looked_for_below_the_driver_root(tmp_path: Path) -> None:
    assert find_storage_files(str(tmp_path)) == ()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/cufile.json").touch()
    assert find_storage_files(str(tmp_path)) == ("/etc/cufile.json",)
    (tmp_path / "run/udev").mkdir(parents=True)
    assert find_storage_files(str(tmp_path)) == ("/run/udev", "/etc/cufile.json")


def test_device_nodes_are_looked_for_where_they_can_be_seen(tmp_path: Path) -> None:
    mounted, own = tmp_path / "driver-root", tmp_path / "own"
    settings = Settings(container_driver_root=str(mounted), nvidia_dev_root=f"{own}/")
    assert dev_roots(settings) == (str(own), "")
    mounted.mkdir()
    roots = dev_roots(settings)
    assert roots == (str(mounted), str(own), "")
    assert dev_root(roots) == str(mounted), "the first, while the driver has not come"
    (own / "dev").mkdir(parents=True)
    (own / "dev/nvidiactl").touch()
    assert dev_root(roots) == str(own)
    assert dev_roots(Settings(container_driver_root="/nonexistent")) == ("",)


@pytest.fixture
def channel(machine) -> Path:  # type: ignore[no-untyped-def]
    """Where the node's channel 0 is, or will be."""
    return Path(f"{machine.root}{CHANNEL}0")


def test_the_driver_is_looked_for_where_it_is_mounted_then_at_its_own_root(tmp_path: Path) -> None:
    assert visible_roots("/", "/nonexistent") == ()
    assert visible_roots("/run/nvidia/driver", str(tmp_path)) == (str(tmp_path), "/run/nvidia/driver")
    assert below("/", "/dev/x") == below("", "dev/x") == "/dev/x"


def test_an_edit_of_the_directory_takes_the_specifications_along(node, start, place):  # type: ignore[no-untyped-def]
    node.kubelet.start()
    config = place / "config.yaml"
    text = "plugin: {{deviceListStrategy: cdi-cri}}\ncdi: {{specDir: {}}}\n"
    config.write_text(text.format(place / "one"))
    start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    name = "k8s.device-plugin.nvidia.com-gpu.json"
    assert os.listdir(place / "one") == [name]
    config.write_text(text.format(place / "two"))
    wait_until((place / "two" / name).exists)
    assert os.listdir(place / "one") == []


def test_the_program_gives_gpus_out_once_the_required_channel_is_there(node, machine, start, channel, place):  # type: ignore[no-untyped-def]
    node.kubelet.start()
    plugin = start(
        f"--nvidia-dev-root={machine.root}",
        "--imex-channel-ids=0",
        "--imex-required",
        "--rescan-seconds=0.1",
        "--device-list-strategy=envvar,cdi-cri",
        f"--cdi-spec-dir={place / 'cdi'}",
    )
    plugin.wait_logged("device unhealthy", "IMEX channel 0 is required and not there")
    assert node.kubelet.healthy(GPU) == frozenset()
    assert plugin.status()["reason"].startswith("imex.required: IMEX channel 0")
    device(channel)
    node.kubelet.wait_for(GPU, 8)
    answer = node.kubelet.admit("client", {GPU: 1})
    assert answer.envs["NVIDIA_IMEX_CHANNELS"] == "0"
    assert f"{CHANNEL}0" in [spec.container_path for spec in answer.devices]
    assert "k8s.device-plugin.nvidia.com/imex-channel=0" in [one.name for one in answer.cdi_devices]
    assert (place / "cdi/k8s.device-plugin.nvidia.com-imex-channel.json").exists()
    channel.unlink()
    wait_until(lambda: not (place / "cdi/k8s.device-plugin.nvidia.com-imex-channel.json").exists())
    wait_until(lambda: node.kubelet.healthy(GPU) == frozenset())
