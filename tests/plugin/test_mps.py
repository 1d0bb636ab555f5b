"""MPS: the control daemon is started, told its limits, watched, taken over, and ended with its resource."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_device_plugin import mps
from gpu_device_plugin import mps_supervisor as module
from gpu_device_plugin.config import Settings
from gpu_device_plugin.devices import Device, ResourcePlan
from gpu_device_plugin.loop import Loop
from gpu_device_plugin.mps_supervisor import MpsSupervisor, find_binary
from kit import GPU, wait_until

STAND_IN = f"""#!{sys.executable}
# nvidia-cuda-mps-control, as far as a supervisor meets it: -d leaves a daemon, words on standard input are commands.
import os, pathlib, signal, sys, time
pipes = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
logs = pathlib.Path(os.environ["CUDA_MPS_LOG_DIRECTORY"])
pid = pipes / "nvidia-cuda-mps-control.pid"
if (logs / "fail").exists():
    sys.exit(1)
if sys.argv[1:] == ["-d"]:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            pid.write_text(str(os.getpid()))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            deadline = time.time() + 60
            while time.time() < deadline and not (pipes / "quit").exists():
                time.sleep(0.02)
        os._exit(0)
    os.wait()
else:
    for line in sys.stdin:
        with open(logs / "commands", "a") as file:
            file.write(line)
        if line.strip() == "quit":
            (pipes / "quit").touch()
"""


def shared(replicas: int = 2, memory: int = 80 << 30) -> ResourcePlan:
    devices = tuple(
        Device(
            id=f"GPU-{gpu}::{replica}",
            resource=GPU,
            uuid=f"GPU-{gpu}",
            index=str(gpu),
            gpu_uuid=f"GPU-{gpu}",
            gpu_index=gpu,
            replica=replica,
            memory_bytes=memory,
        )
        for gpu in range(2)
        for replica in range(replicas)
    )
    return ResourcePlan(GPU, devices, shared="mps")


class Supervised:
    """A supervisor over the stand-in, with a loop."""

    def __init__(self, place: Path) -> None:
        self.root = place / "mps"
        self.logs = self.root / GPU / "log"
        self.pipes = self.root / GPU / "pipe"
        self.changes = 0
        self.loop = Loop()
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.supervisor = self.make()
        self.thread.start()

    def make(self) -> MpsSupervisor:
        def changed() -> None:
            self.changes += 1

        return MpsSupervisor(self.loop, Settings(mps_root=str(self.root)), changed)

    def offer(self, *resources: ResourcePlan) -> None:
        self.loop.call(lambda: self.supervisor.offer(resources))

    def commands(self) -> list[str]:
        file = self.logs / "commands"
        return file.read_text().splitlines() if file.exists() else []

    def pid(self) -> int:
        return int((self.pipes / "nvidia-cuda-mps-control.pid").read_text())

    def well(self) -> bool:
        return self.supervisor.problem(GPU) is None

    @staticmethod
    def keepers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "mps"]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def supervised(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervised]:
    binary = place / "bin/nvidia-cuda-mps-control"
    binary.parent.mkdir()
    binary.write_text(STAND_IN)
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    nvidia_smi = binary.with_name("nvidia-smi")
    nvidia_smi.write_text(f'#!/bin/sh\n[ ! -e {place}/smi-fails ] || {{ echo "Insufficient Permissions"; exit 4; }}\n'
                          f'echo "$2 $4" >> {place}/modes\n')  # fmt: skip
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{binary.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "BACKOFF_SECONDS", (0.05, 0.1))
    one = Supervised(place)
    yield one
    one.offer()
    wait_until(lambda: not (one.pipes / "nvidia-cuda-mps-control.pid").exists() or not alive(one.pid()))
    wait_until(lambda: not one.keepers(), what="the daemon's keeper, which puts compute modes back, to end")
    one.loop.stop()
    one.thread.join(5)


def test_a_daemon_is_started_with_its_limits_and_then_the_resource_is_well(supervised):
    assert "being started" in (supervised.supervisor.problem(GPU) or "")
    supervised.offer(shared())
    wait_until(supervised.well)
    assert supervised.commands() == [
        "set_default_device_pinned_mem_limit 0 40960M",
        "set_default_device_pinned_mem_limit 1 40960M",
        "set_default_active_thread_percentage 50",
    ]
    assert supervised.changes == 1
    assert (supervised.root / "shm").resolve() == Path("/dev/shm")


def test_a_daemon_that_dies_is_told_and_started_again(supervised):
    supervised.offer(shared())
    wait_until(supervised.well)
    first = supervised.pid()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: supervised.changes >= 2)
    wait_until(lambda: supervised.well() and supervised.pid() != first)


def test_a_daemon_that_cannot_start_is_told_with_its_log(supervised):
    supervised.logs.mkdir(parents=True)
    (supervised.logs / "fail").touch()
    supervised.offer(shared())
    wait_until(lambda: "control.log" in (supervised.supervisor.problem(GPU) or ""))
    (supervised.logs / "fail").unlink()
    wait_until(supervised.well)


def test_a_plugin_that_restarts_takes_the_daemon_over_since_jobs_run_through_it(supervised):
    supervised.offer(shared())
    wait_until(supervised.well)
    first = supervised.pid()
    supervised.supervisor.close()
    supervised.supervisor = supervised.make()
    supervised.offer(shared())
    wait_until(supervised.well)
    assert supervised.pid() == first and alive(first)


def in_a_pod(supervised, monkeypatch):
    """As in a pod, where the MPS root is mounted at /mps."""
    monkeypatch.setattr(mps, "CONTAINER_ROOT", str(supervised.root))
    supervised.root.mkdir()
    supervised.supervisor = supervised.make()


def test_in_a_pod_the_daemon_ends_with_the_plugin_and_the_gpus_are_put_back_before_it_is_gone(
    supervised, place, monkeypatch
):
    in_a_pod(supervised, monkeypatch)
    supervised.offer(shared())
    wait_until(supervised.well)
    daemon = supervised.pid()
    supervised.supervisor.close()  # what follows it is the process's end
    assert sorted((place / "modes").read_text().splitlines()[2:]) == ["GPU-0 DEFAULT", "GPU-1 DEFAULT"]
    assert not (supervised.root / GPU / "exclusive").exists()
    wait_until(lambda: not alive(daemon))


def test_in_a_pod_a_daemon_that_waits_for_its_clients_does_not_keep_the_gpus_exclusive(
    supervised, place, monkeypatch
):
    in_a_pod(supervised, monkeypatch)
    supervised.offer(shared())
    wait_until(supervised.well)
    (supervised.logs / "fail").touch()  # the daemon takes no more commands
    supervised.supervisor.close()
    assert sorted((place / "modes").read_text().splitlines()[2:]) == ["GPU-0 DEFAULT", "GPU-1 DEFAULT"]
    (supervised.logs / "fail").unlink()
    os.kill(supervised.pid(), signal.SIGKILL)  # as the container's end does


def test_other_limits_reach_the_same_daemon(supervised):
    supervised.offer(shared())
    wait_until(supervised.well)
    first = supervised.pid()
    supervised.offer(shared(replicas=4))
    wait_until(lambda: "set_default_active_thread_percentage 25" in supervised.commands())
    wait_until(supervised.well)
    assert supervised.pid() == first


def test_a_resource_that_is_no_longer_shared_ends_its_daemon(supervised):
    supervised.offer(shared())
    wait_until(supervised.well)
    first = supervised.pid()
    supervised.offer()
    wait_until(lambda: not alive(first))
    assert supervised.commands()[-1] == "quit"


def test_gpus_are_exclusive_to_mps_while_its_daemon_runs_and_free_afterwards(supervised, place):
    supervised.offer(shared())
    wait_until(supervised.well)
    exclusive = ["GPU-0 EXCLUSIVE_PROCESS", "GPU-1 EXCLUSIVE_PROCESS"]
    assert (place / "modes").read_text().splitlines() == exclusive
    supervised.offer()
    wait_until(
        lambda: (place / "modes").read_text().splitlines() == [*exclusive, "GPU-0 DEFAULT", "GPU-1 DEFAULT"]
    )


def test_a_compute_mode_that_cannot_be_set_is_told_and_tried_again(supervised, place):
    (place / "smi-fails").touch()
    supervised.offer(shared())
    wait_until(lambda: "Insufficient Permissions" in (supervised.supervisor.problem(GPU) or ""))
    (place / "smi-fails").unlink()
    wait_until(supervised.well)


def test_what_an_earlier_process_left_is_ended_when_mps_is_no_longer_asked_for(
    node, supervised, start, place
):
    supervised.offer(shared())
    wait_until(supervised.well)
    supervised.loop.call(supervised.supervisor.close)
    pid = supervised.pid()
    start(f"--mps-root={place / 'mps'}", PATH=os.environ["PATH"])
    wait_until(lambda: not alive(pid))
    back = ["GPU-0 DEFAULT", "GPU-1 DEFAULT"]
    wait_until(lambda: (place / "modes").read_text().splitlines()[-2:] == back)
    wait_until(lambda: not list(place.glob("mps/*/*/exclusive")))


def test_a_mode_that_can_not_be_put_back_is_remembered(supervised, place):
    supervised.offer(shared())
    wait_until(supervised.well)
    (place / "smi-fails").touch()
    supervised.offer()
    wait_until(lambda: not supervised.keepers())
    assert (supervised.root / GPU / "exclusive").read_text() == "GPU-0\nGPU-1\n"
    (place / "smi-fails").unlink()
    assert mps.left(str(supervised.root), {GPU}) == ()
    module.end_left_daemons(
        Settings(mps_root=str(supervised.root)), mps.left(str(supervised.root), {"a.b/c"})
    )
    assert (place / "modes").read_text().splitlines()[-1] == "GPU-1 DEFAULT"
    assert not (supervised.root / GPU / "exclusive").exists()


def test_a_pid_file_that_names_another_process_by_now_is_no_daemon(supervised):
    supervised.pipes.mkdir(parents=True)
    (supervised.pipes / "nvidia-cuda-mps-control.pid").write_text(f"{os.getpid()}\n")
    supervised.offer(shared())
    wait_until(supervised.well)
    assert alive(supervised.pid())
    assert supervised.pid() != os.getpid()


def test_shared_memory_that_nvidias_daemon_left_is_told_with_the_next_step(supervised, place):
    left = place / "mps/shm"
    left.mkdir(parents=True)
    supervised.offer(shared())
    wait_until(lambda: f"umount {left}" in (supervised.supervisor.problem(GPU) or ""))
    left.rmdir()
    wait_until(supervised.well)
    assert left.samefile("/dev/shm")


def test_a_missing_binary_is_told_with_the_next_step(place, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    one = Supervised(place)
    one.offer(shared())
    wait_until(lambda: "install the driver's MPS tools" in (one.supervisor.problem(GPU) or ""))
    one.offer()
    wait_until(lambda: not one.keepers())
    one.loop.stop()


def test_the_binary_is_found_below_a_driver_root(place, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    binary = place / "usr/bin/nvidia-cuda-mps-control"
    binary.parent.mkdir(parents=True)
    binary.touch(mode=0o755)
    assert find_binary((str(place),)) == str(binary)
    assert find_binary(()) is None


def test_the_program_offers_mps_replicas_once_the_daemon_answers(node, supervised, start, place):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text(
        f"version: v1\nflags: {{mpsRoot: {place / 'mps'}}}\n"
        "sharing: {mps: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n"
    )
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    plugin = start(f"--config-file={config}", PATH=path)
    node.kubelet.wait_for(GPU, 16)
    answer = node.kubelet.admit("client", {GPU: 1})
    assert answer.envs["CUDA_MPS_PIPE_DIRECTORY"] == f"/mps/{GPU}/pipe"
    assert f"/mps/{GPU}/pipe" in [mount.container_path for mount in answer.mounts]
    pid = supervised.pid()
    plugin.stop()
    assert alive(pid), "a job may run through it"
    plugin = start(f"--config-file={config}", PATH=path)
    plugin.wait_logged("taken over")
    config.write_text("version: v1\n")
    wait_until(lambda: not alive(pid), 10, "the daemon to end with its resource")
    wait_until(lambda: len(node.kubelet.healthy(GPU)) == 8)
