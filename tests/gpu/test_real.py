"""The plugin on real NVML: what it says is what nvidia-smi says, and what it hands out is there."""

from __future__ import annotations

import csv
import http.client
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from gpu_device_plugin.health import Event
from gpu_device_plugin.nvml import NvmlSource
from gpu_device_plugin.nvml_events import EventMonitor
from kit import GPU, PluginProcess, wait_until

pytestmark = pytest.mark.gpu


def smi(*fields: str) -> list[list[str]]:
    """Rows of `nvidia-smi --query-gpu`."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("nvidia-smi is not on the PATH")
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines())]


def events_unsupported(source: NvmlSource) -> bool:
    """Whether no GPU can be watched, as in some virtual machines: `DP_DISABLE_HEALTHCHECKS=all` is for those."""
    return bool(source.unwatched) and set(source.unwatched) == set(source.handles())


def test_a_scan_equals_nvidia_smi(source):
    snapshot = source.scan()
    told = smi("index", "uuid", "name", "memory.total", "pci.bus_id", "driver_version", "compute_cap")
    assert len(snapshot.gpus) == len(told)
    for gpu, (index, uuid, name, memory, bus, driver, capability) in zip(snapshot.gpus, told, strict=True):
        assert (str(gpu.index), gpu.uuid, gpu.name) == (index, uuid, name)
        assert abs(gpu.memory_bytes / 2**20 - float(memory)) < 0.02 * float(memory)
        assert bus.lower().endswith(gpu.pci_bus_id)
        assert gpu.compute_capability == tuple(int(part) for part in capability.split("."))
        assert snapshot.driver_version == driver
        assert gpu.fault is None, "a sick GPU: the other tests mean nothing here"


def test_two_scans_are_equal_and_the_second_is_fast(source):
    first = source.scan()
    began = time.perf_counter()
    assert source.scan() == first
    assert time.perf_counter() - began < 1


def test_each_gpus_device_node_exists_and_is_a_character_device(source):
    for gpu in source.scan().gpus:
        for path in gpu.paths:
            assert Path(path).is_char_device(), path
    assert "/dev/nvidiactl" in source.scan().control_paths


def test_the_matrix_is_symmetric(source):
    links = source.scan().links
    size = len(source.scan().gpus)
    assert len(links) == size
    assert all(links[a][b].ancestor == links[b][a].ancestor for a in range(size) for b in range(size))


def test_probes_see_no_fault_on_a_machine_that_has_none(source):
    source.scan()
    for probe in source.probes():
        assert not probe.lost and probe.unreadable is None


def test_events_register_on_every_gpu(source):
    source.scan()
    heard: list[Event] = []
    states: list[str | None] = []
    monitor = EventMonitor(source, heard.append, lambda: None, states.append)
    monitor.watch()
    if events_unsupported(source):
        monitor.stop()
        pytest.skip(f"this machine's driver offers no events: {next(iter(source.unwatched.values()))}")
    assert source.unwatched == {}
    assert [state for state in states if state] == []
    time.sleep(1.5)  # one whole wait inside NVML without an error
    assert [state for state in states if state] == []
    monitor.stop()


def test_the_program_offers_allocates_and_measures_what_nvidia_smi_shows(source, node):
    source.scan()
    monitor = EventMonitor(source, lambda _event: None, lambda: None, lambda _state: None)
    monitor.watch()
    monitor.stop()
    more = {"DP_DISABLE_HEALTHCHECKS": "all"} if events_unsupported(source) else {}
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    plugin = PluginProcess(node, {**os.environ, **more}, f"--metrics-address=127.0.0.1:{port}")
    try:
        told = smi("uuid", "memory.total", "temperature.gpu")
        node.kubelet.wait_for(GPU, len(told), seconds=60)
        answer = node.kubelet.admit("one", {GPU: 1})
        assert answer.envs["NVIDIA_VISIBLE_DEVICES"] in [row[0] for row in told]
        for device in answer.devices:
            assert Path(device.host_path).is_char_device(), device.host_path
        wait_until(lambda: plugin.status()["ready"])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()

        def value(name: str, uuid: str) -> float:
            (line,) = [line for line in lines if f"_{name}{{" in line and uuid in line]
            return float(line.rsplit(" ", 1)[1])

        for uuid, memory, temperature in told:
            assert abs(value("gpu_memory_total_bytes", uuid) / 2**20 - float(memory)) < 0.02 * float(memory)
            assert abs(value("gpu_temperature_celsius", uuid) - float(temperature)) <= 10
    finally:
        plugin.stop()
