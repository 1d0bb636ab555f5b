"""MPS: limits, paths, commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_device_plugin import mps
from gpu_device_plugin.config import Settings, SharedResource, Sharing
from gpu_device_plugin.devices import ResourcePlan
from gpu_device_plugin.resources import plan
from plain_nodes import GIB, gpu, node


def resource(*gpus: object, replicas: int = 4) -> ResourcePlan:
    sharing = Sharing(resources=(SharedResource("nvidia.com/gpu", replicas),))
    return plan(node(*gpus), Settings(mps=sharing)).resources[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "clients"),
    [((7, 0), 48), ((7, 5), 48), ((9, 0), 48), ((6, 1), 16), ((3, 5), 16), (None, 16)],
)
def test_clients_are_48_from_volta_on_and_16_before(capability: tuple[int, int] | None, clients: int) -> None:
    assert mps.max_clients(capability) == clients


def test_memory_and_threads_are_divided_by_the_replicas() -> None:
    shared = resource(gpu(0), gpu(1, memory_bytes=10 * GIB + 5), replicas=3)
    assert mps.memory_limits(shared.devices) == {"0": "27306M", "1": "3413M"}
    assert mps.thread_percentage(shared.devices) == 33
    assert mps.control_commands(shared) == (
        "set_default_device_pinned_mem_limit 0 27306M",
        "set_default_device_pinned_mem_limit 1 3413M",
        "set_default_active_thread_percentage 33",
    )


def test_the_gpu_with_most_replicas_decides_the_threads() -> None:
    shared = resource(gpu(0, compute_capability=(6, 0)), gpu(1), replicas=40)
    assert mps.thread_percentage(shared.devices) == 2
    assert mps.memory_limits(shared.devices) == {"0": "5120M", "1": "2048M"}


def test_a_gpu_whose_memory_is_unknown_gets_no_limit_and_unshared_ones_none_at_all() -> None:
    assert mps.memory_limits(resource(gpu(0, memory_bytes=0)).devices) == {}
    unshared = plan(node(gpu(0)), Settings()).resources[0]
    assert mps.memory_limits(unshared.devices) == {}
    assert mps.thread_percentage(unshared.devices) is None
    assert mps.control_commands(unshared) == ()
    assert mps.thread_percentage(()) is None


def test_paths_are_the_peers() -> None:
    shared = resource(gpu(0))
    assert mps.daemon_environment("/mps/", shared) == {
        "CUDA_MPS_PIPE_DIRECTORY": "/mps/nvidia.com/gpu/pipe",
        "CUDA_MPS_LOG_DIRECTORY": "/mps/nvidia.com/gpu/log",
    }
    assert mps.client_environment(shared) == {"CUDA_MPS_PIPE_DIRECTORY": "/mps/nvidia.com/gpu/pipe"}
    assert mps.client_mounts(Settings(), shared) == (
        ("/mps/nvidia.com/gpu/pipe", "/run/nvidia/mps/nvidia.com/gpu/pipe"),
        ("/dev/shm", "/run/nvidia/mps/shm"),
    )
    assert mps.shm_directory("/mps") == "/mps/shm"


def test_what_was_started_for_resources_that_are_shared_no_more_is_known_by_name(tmp_path: Path) -> None:
    for name in ("nvidia.com/gpu", "nvidia.com/gpu.shared"):
        file = Path(mps.exclusive_file(f"{tmp_path}/", name))
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "nvidia.com/never-started").mkdir()
    assert mps.left(str(tmp_path), ()) == ("nvidia.com/gpu", "nvidia.com/gpu.shared")
    assert mps.left(str(tmp_path), {"nvidia.com/gpu"}) == ("nvidia.com/gpu.shared",)


def test_the_root_is_the_mounted_one_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mps, "CONTAINER_ROOT", str(tmp_path))
    assert mps.seen_root(Settings()) == str(tmp_path)
    monkeypatch.setattr(mps, "CONTAINER_ROOT", str(tmp_path / "none"))
    assert mps.seen_root(Settings(mps_root="/run/m")) == "/run/m"
