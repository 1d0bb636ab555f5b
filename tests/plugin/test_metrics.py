"""What a scrape and the probes see of a running plugin; PodResources and the occupancy guard."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from gpu_device_plugin import daemon
from gpu_device_plugin.config import Settings
from gpu_device_plugin.daemon import Daemon
from gpu_device_plugin.devices import Gpu, Plan, Snapshot
from gpu_device_plugin.guard import occupied
from gpu_device_plugin.loop import Loop
from gpu_device_plugin.metrics import MetricsServer
from gpu_device_plugin.podresources import Holder, Holders, PodResources, PodResourcesError, ask
from kit import GPU, wait_until

SHARED = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2}]}}\n"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Page:
    """The plugin's HTTP side."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def value(self, name: str, **labels: str) -> float | None:
        """Of one sample; None when there is none with these labels."""
        for line in self.get("/metrics")[1].splitlines():
            found = re.fullmatch(r"gpu_device_plugin_(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name:
                have = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[2] or ""))
                if labels.items() <= have.items():
                    return float(found[3])
        return None

    def ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False


@pytest.fixture
def page() -> Page:
    return Page(free_port())


def test_a_scrape_shows_devices_lists_calls_and_readings(node, machine, start, page):
    node.kubelet.start()
    start(f"--metrics-address=127.0.0.1:{page.port}")
    node.kubelet.wait_for(GPU, 8)
    wait_until(page.ready)
    node.kubelet.admit("train", {GPU: 2})
    machine.xid(5, 79)
    node.kubelet.wait_for(GPU, 7, 1)
    assert page.value("devices", resource=GPU, health="Healthy") == 7
    assert page.value("devices", resource=GPU, health="Unhealthy") == 1
    assert page.value("device_unhealthy", resource=GPU, index="5") == 1
    assert page.value("registered", resource=GPU) == 1
    assert page.value("streams", resource=GPU) == 1
    assert page.value("registrations_total", resource=GPU, result="accepted") == 1
    assert page.value("lists_total", resource=GPU) == 2
    assert page.value("allocations_total", resource=GPU, code="OK") == 1
    assert page.value("allocated_devices_total", resource=GPU) == 2
    assert page.value("xid_events_total", xid="79") == 1
    assert page.value("health_changes_total", resource=GPU, health="Unhealthy") == 1
    assert page.value("rpc_duration_seconds_count", resource=GPU, method="Allocate") == 1
    assert abs(time.time() - (page.value("last_list_time_seconds", resource=GPU) or 0)) < 30
    assert page.value("nvml_up") == page.value("ready") == page.value("config_valid") == 1
    assert page.value("info", version="0.1.0", driver_version="570.133.20", cuda_version="12.8") == 1
    assert page.value("gpu_memory_total_bytes", gpu="0") == machine.read()["gpus"][0]["memory_total"]
    for name in (
        "temperature_celsius",
        "power_watts",
        "utilization_ratio",
        "memory_used_bytes",
        "ecc_double_bit_errors",
    ):
        assert page.value(f"gpu_{name}", gpu="7") is not None, name


def test_a_held_device_is_shown_with_pod_and_container_replicas_too(node, place, start, page):
    node.kubelet.start()
    (place / "config.yaml").write_text(SHARED)
    start(f"--metrics-address=127.0.0.1:{page.port}", f"--config-file={place / 'config.yaml'}")
    node.kubelet.wait_for(GPU, 16)
    wait_until(page.ready)
    node.kubelet.admit("notebook", {GPU: 1}, container="lab")

    def held() -> list[str]:  # holders are asked for once a second
        return [line for line in page.get("/metrics")[1].splitlines() if "device_held{" in line]

    (line,) = wait_until(held)
    assert 'pod="notebook"' in line and 'container="lab"' in line and "::" in line


def test_readyz_says_what_is_missing_and_healthz_is_alive(node, start, page):
    plugin = start(f"--metrics-address=127.0.0.1:{page.port}")
    plugin.wait_logged('event="NVML read"')
    wait_until(lambda: page.get("/healthz")[0] == 200)
    assert page.get("/readyz")[0] == 503
    wait_until(lambda: "no kubelet" in page.get("/readyz")[1])
    node.kubelet.start()
    wait_until(page.ready)
    node.kubelet.stop()
    wait_until(lambda: page.get("/readyz")[0] == 503)
    assert page.get("/healthz") == (200, "ok\n")
    assert page.get("/nothing")[0] == 404


class Hanging:
    """A daemon of which only the loop and the probes are there."""

    liveness = Daemon.liveness

    def __init__(self) -> None:
        self.loop = Loop()

    def readiness(self) -> tuple[bool, str]:
        return True, ""


def test_healthz_tells_of_a_loop_that_hangs_and_that_it_turns_again(page, monkeypatch):
    monkeypatch.setattr(daemon, "HUNG_SECONDS", 0.3)
    one, go_on = Hanging(), threading.Event()
    server = MetricsServer(f"127.0.0.1:{page.port}", one)
    thread = threading.Thread(target=one.loop.run, daemon=True)
    thread.start()
    try:
        time.sleep(0.5)  # a loop with nothing to do is well
        assert page.get("/healthz") == (200, "ok\n")
        one.loop.call(go_on.wait)
        wait_until(lambda: page.get("/healthz")[0] == 503)
        assert "has not turned for" in page.get("/healthz")[1]
        go_on.set()
        wait_until(lambda: page.get("/healthz")[0] == 200)
        one.loop.call(again := lambda: one.loop.call(again))  # never hangs, and never comes to its timers
        wait_until(lambda: page.get("/healthz")[0] == 503)
    finally:
        go_on.set()
        one.loop.stop()
        thread.join(5)
        server.close()


def test_an_nvml_call_that_hangs_is_no_reason_to_start_the_plugin_again(place, monkeypatch):
    monkeypatch.setattr(daemon, "HUNG_SECONDS", 0.3)
    monkeypatch.setattr(daemon, "STUCK_SECONDS", 0.1)
    go_on = threading.Event()
    settings = Settings(state_dir=str(place), run_dir=str(place), fail_on_init_error=False)
    one = Daemon([], {}, settings)
    monkeypatch.setattr(one.nvml, "scan", lambda: go_on.wait() and Snapshot())
    one.loop.every(0.05, one._check_stuck)
    thread = threading.Thread(target=one.loop.run, daemon=True)
    one.scanner.start()
    thread.start()
    try:
        wait_until(lambda: "NVML has not answered" in one.readiness()[1])
        time.sleep(0.5)
        assert one.liveness() == (True, "")
    finally:
        one.scanner.stop()
        go_on.set()
        one.loop.stop()
        thread.join(5)


def test_metrics_come_and_go_with_the_config_file(node, place, start, page):
    node.kubelet.start()
    config = place / "config.yaml"
    config.write_text("version: v1\n")
    start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    config.write_text(f"version: v1\nmetrics: {{address: '127.0.0.1:{page.port}'}}\n")
    wait_until(page.ready, 5)
    assert page.value("config_generation") == 2
    config.write_text(f"version: v1\nnonsense: 1\nmetrics: {{address: '127.0.0.1:{page.port}'}}\n")
    wait_until(lambda: "not in use" in page.get("/readyz")[1] and "nonsense" in page.get("/readyz")[1], 5)
    assert page.get("/readyz")[0] == 200  # the old settings serve
    config.write_text("version: v1\n")
    wait_until(lambda: not page.ready(), 5)


def test_an_address_that_is_taken_ends_it_with_1_and_names_it(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        plugin = start(f"--metrics-address=127.0.0.1:{port}")
        assert plugin.wait() == 1
        assert plugin.logged("level=error", f"127.0.0.1:{port}")


def test_it_ends_within_a_second_with_metrics_on(node, start, page):
    node.kubelet.start()
    plugin = start(f"--metrics-address=127.0.0.1:{page.port}")
    node.kubelet.wait_for(GPU, 8)
    wait_until(page.ready)
    began = time.monotonic()
    plugin.signal(signal.SIGTERM)
    assert plugin.wait() == 0
    assert time.monotonic() - began < 1.5


def test_holders_are_known_by_resource_and_id(node, start):
    node.kubelet.start()
    start()
    node.kubelet.wait_for(GPU, 8)
    node.kubelet.admit("a", {GPU: 1})
    node.kubelet.admit("b", {GPU: 2})
    holders = ask(node.settings.pod_resources_dir)
    assert sorted(holder.pod for holder in holders.values()) == ["a", "b", "b"]
    assert {resource for resource, _id in holders} == {GPU}


def test_a_kubelet_that_does_not_answer_is_an_error_that_names_the_socket(place):
    with pytest.raises(PodResourcesError, match=r"kubelet\.sock"):
        ask(str(place), timeout=0.5)
    holders, problem = PodResources(str(place)).holders()
    assert holders == {} and "kubelet.sock" in (problem or "")


def test_pod_resources_are_asked_at_most_once_a_second(place, monkeypatch):
    asked = []
    monkeypatch.setattr("gpu_device_plugin.podresources.ask", lambda directory: asked.append(directory) or {})
    pods = PodResources(str(place))
    for _ in range(5):
        pods.holders()
    assert len(asked) == 1


def test_the_guard_keeps_back_a_free_gpu_on_which_something_runs(node, machine, place, start):
    node.kubelet.start()
    (place / "config.yaml").write_text("version: v1\noccupancyGuard: true\n")
    machine.process(4, 4242)
    start("--rescan-seconds=1", f"--config-file={place / 'config.yaml'}")
    node.kubelet.wait_for(GPU, 7, 1)
    machine.end_processes(4)
    node.kubelet.wait_for(GPU, 8)
    response = node.kubelet.admit("train", {GPU: 8})
    assert response.envs["NVIDIA_VISIBLE_DEVICES"].count("GPU-") == 8
    machine.process(4, 4343)  # the pod's own
    time.sleep(2.5)
    assert len(node.kubelet.healthy(GPU)) == 8


def test_the_guard_knows_a_gpu_in_use_from_the_first_look_and_after_a_change_of_its_ids(
    node, machine, place, start
):
    config = place / "config.yaml"
    config.write_text("version: v1\noccupancyGuard: true\n")
    node.kubelet.start()
    first = start(f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    node.kubelet.admit("train", {GPU: 8})
    machine.process(4, 4242)
    first.stop()
    again = start("--rescan-seconds=1", f"--config-file={config}")
    node.kubelet.wait_for(GPU, 8)
    edited = place / "edited.yaml"
    edited.write_text(f"{SHARED}occupancyGuard: true\n")
    edited.rename(config)  # the pod's ids are no longer among those on offer
    node.kubelet.wait_for(GPU, 16)
    time.sleep(1.5)
    assert again.logged("device unhealthy", "no container holds it") == []


class OneGpu:
    """NVML of one GPU, whose processes are ``pids`` at each look."""

    def __init__(self, *pids: set[int]) -> None:
        self.lock = threading.RLock()
        self.looks = list(pids)
        self.library = SimpleNamespace(api=self)
        self.NVMLError = OSError

    def handles(self) -> dict[str, str]:
        return {"GPU-0": "GPU-0"}

    def nvmlDeviceGetComputeRunningProcesses(self, _handle: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.looks.pop(0)]


class Kubelet:
    """PodResources; the cached answer is of before the pod came."""

    def __init__(self, *held: str) -> None:
        self.now = {(GPU, identity): Holder("default", "train", "main") for identity in held}

    def holders(self) -> tuple[Holders, str | None]:
        return {}, None

    def ask_now(self) -> tuple[Holders, str | None]:
        return self.now, None


ONE = Snapshot(gpus=(Gpu(index=0, uuid="GPU-0", minor=0, name="H100"),))


def test_a_pod_that_starts_while_the_guard_looks_is_no_thief():
    assert occupied(OneGpu({7}, {7}), ONE, Plan(), Kubelet("GPU-0")) == {}
    assert occupied(OneGpu({7}, {7}), ONE, Plan(), Kubelet("GPU-0::1")) == {}


def test_a_pod_that_ends_while_the_guard_looks_is_no_thief():
    assert occupied(OneGpu({7}, set()), ONE, Plan(), Kubelet()) == {}
    assert occupied(OneGpu({7}, {8}), ONE, Plan(), Kubelet()) == {}  # and the next one's has begun


def test_a_process_that_runs_all_the_while_on_a_free_gpu_is_told_by_its_pid():
    assert "pid 7)" in occupied(OneGpu({7, 9}, {7}), ONE, Plan(), Kubelet("GPU-1"))["GPU-0"]


def test_a_kubelet_that_is_asked_now_is_not_answered_from_memory(place, monkeypatch):
    asked = []
    monkeypatch.setattr("gpu_device_plugin.podresources.ask", lambda directory: asked.append(directory) or {})
    pods = PodResources(str(place))
    for _ in range(3):
        pods.ask_now()
    assert len(asked) == 3
