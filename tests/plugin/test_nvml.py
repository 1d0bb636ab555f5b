"""The NVML source against the stand-in library: what it finds, and how it bears GPUs and drivers that fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest
from gpu_device_plugin.devices import PcieAncestor, SourceError
from gpu_device_plugin.health import Event
from gpu_device_plugin.nvml import NvmlSource
from gpu_device_plugin.nvml_events import EventMonitor
from gpu_device_plugin.nvml_library import describe, locate
from gpu_device_plugin.nvml_memory import Memory
from gpu_device_plugin.nvml_read import bus_id
from kit import wait_until
from testbed_nvml import Machine, standin


def source_of(machine: Machine) -> NvmlSource:
    return NvmlSource(dev_roots=(str(machine.root),), sysfs=str(machine.sys), proc=str(machine.proc))


@pytest.fixture
def source(machine: Machine) -> Iterator[NvmlSource]:
    one = source_of(machine)
    yield one
    one.close()


def faults(source: NvmlSource) -> dict[int, str]:
    return {gpu.index: gpu.fault for gpu in source.scan().gpus if gpu.fault}


def test_a_scan_finds_every_gpu_with_its_facts(source):
    snapshot = source.scan()
    assert [gpu.index for gpu in snapshot.gpus] == list(range(8))
    first = snapshot.gpus[0]
    assert first.name == "NVIDIA H100 80GB HBM3"
    assert first.uuid.startswith("GPU-")
    assert first.memory_bytes > 79 << 30
    assert first.compute_capability == (9, 0)
    assert first.paths == ("/dev/nvidia0",)
    assert len(first.pci_bus_id) == len("0000:18:00.0")
    assert snapshot.problems == ()
    assert snapshot.driver_version == "570.133.20"
    assert snapshot.cuda_version == "12.8"


def test_numa_nodes_come_from_sysfs_and_minus_one_is_none_k20(source, machine):
    snapshot = source.scan()
    assert {gpu.numa_node for gpu in snapshot.gpus} == {0, 1}
    bus = snapshot.gpus[0].pci_bus_id
    (machine.sys / "bus/pci/devices" / bus / "numa_node").write_text("-1\n")
    source.close()  # facts that stay as they are, are read again after this
    assert source.scan().gpus[0].numa_node is None


def test_control_nodes_are_those_that_exist(source, machine):
    assert "/dev/nvidia-modeset" in source.scan().control_paths
    (machine.dev / "nvidia-modeset").unlink()
    assert source.scan().control_paths == ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


def test_two_scans_of_an_unchanged_node_are_equal(source):
    assert source.scan() == source.scan()


def test_nvlinks_and_pcie_ancestors_make_a_symmetric_matrix():
    with standin(gpus=8, model="V100") as machine:
        source = source_of(machine)
        links = source.scan().links
        source.close()
    assert len(links) == 8 and all(len(row) == 8 for row in links)
    assert any(link.nvlinks for row in links for link in row)
    assert {link.ancestor for row in links for link in row} > {PcieAncestor.SYSTEM}
    assert all(links[a][b] == links[b][a] for a in range(8) for b in range(8))


def test_a_lost_gpu_stays_listed_with_its_fault_and_the_others_are_well(source, machine):
    before = source.scan()
    machine.lose(5)
    after = source.scan()
    assert [gpu.uuid for gpu in after.gpus] == [gpu.uuid for gpu in before.gpus]
    assert {gpu.index for gpu in after.gpus if gpu.fault} == {5}
    assert "lost" in (after.gpus[5].fault or "").lower()
    assert [probe.lost for probe in source.probes()] == [index == 5 for index in range(8)]
    machine.restore(5)
    source._reopen_at = time.monotonic()
    wait_until(lambda: not faults(source), 5)


def test_a_gpu_that_is_lost_before_the_first_scan_is_listed_from_proc(machine):
    machine.lose(2)
    source = source_of(machine)
    snapshot = source.scan()
    source.close()
    assert len(snapshot.gpus) == 8
    assert [gpu.index for gpu in snapshot.gpus if gpu.fault] == [2]


def test_what_is_remembered_of_gpus_is_of_this_boot_and_survives_nonsense(machine, place):
    machine.mig(0, "3g.40gb")
    source = NvmlSource(state_dir=str(place))
    before = source.scan().gpus
    source.close()
    assert Memory(str(place)).load() == before
    file = place / "gpus.json"
    text = file.read_text()
    for broken in ("", "{", "[]", '{"boot_id": 1}', text.replace('"index"', '"idx"')):
        file.write_text(broken)
        assert Memory(str(place)).load() == ()
    content = json.loads(text)
    file.write_text(json.dumps({**content, "boot_id": "another"}))
    assert Memory(str(place)).load() == ()
    assert Memory(None).load() == ()


@pytest.mark.parametrize(
    "call",
    ["nvmlDeviceGetMemoryInfo", "nvmlDeviceGetName", "nvmlDeviceGetMinorNumber", "nvmlDeviceGetPciInfo_v3"],
)
def test_one_unreadable_fact_of_one_gpu_costs_no_other_gpu(machine, call):
    machine.update(3, errors={call: 999})
    source = source_of(machine)
    snapshot = source.scan()
    source.close()
    assert len(snapshot.gpus) == 8
    assert [gpu.uuid for gpu in snapshot.gpus if gpu.fault] in ([], [snapshot.gpus[3].uuid])


def test_a_gpu_that_leaves_the_bus_leaves_the_list(source, machine):
    source.scan()
    machine.remove(7)
    assert len(source.scan().gpus) == 7
    assert len(source.scan().gpus) == 7


def test_a_gpu_that_the_driver_still_holds_is_lost_not_gone(source, machine, monkeypatch):
    snapshot = source.scan()
    bound = frozenset(gpu.pci_bus_id for gpu in snapshot.gpus)
    machine.remove(7)
    monkeypatch.setattr("gpu_device_plugin.nvml.bound_to_driver", lambda sysfs: bound)
    after = source.scan()
    assert len(after.gpus) == 8
    assert "reset it or reboot" in (after.gpus[7].fault or "")


def test_a_gpu_that_is_added_is_found(source, machine):
    source.scan()
    machine.add()
    assert len(source.scan().gpus) == 9


def test_mig_slices_carry_their_capability_nodes(source, machine):
    source.scan()
    machine.mig(2, "3g.40gb", "1g.10gb")
    gpu = source.scan().gpus[2]
    assert gpu.mig_enabled
    assert sorted(one.profile for one in gpu.slices) == ["1g.10gb", "3g.40gb"]
    assert [one.index for one in gpu.slices] == [0, 1]
    for one in gpu.slices:
        assert one.uuid.startswith("MIG-")
        assert len(one.capability_paths) == 2
        for path in one.capability_paths:
            assert (machine.root / path.lstrip("/")).exists()
        assert 0 < one.memory_bytes < gpu.memory_bytes
    assert len({one.gpu_instance for one in gpu.slices}) == 2


def test_a_mig_layout_that_changes_is_seen(source, machine):
    machine.mig(0, "7g.80gb")
    assert [one.profile for one in source.scan().gpus[0].slices] == ["7g.80gb"]
    machine.mig(0, "1g.10gb", "1g.10gb")
    assert [one.profile for one in source.scan().gpus[0].slices] == ["1g.10gb", "1g.10gb"]


def test_ecc_errors_show_in_the_probe(source, machine):
    source.scan()
    machine.ecc(1)
    source.scan()
    assert (source.probes()[1].ecc_double_bit or 0) > 0
    assert source.probes()[0].ecc_double_bit == 0


def test_no_driver_is_an_error_that_says_what_to_do(machine):
    machine.init_fail(9)
    source = source_of(machine)
    with pytest.raises(SourceError, match="modprobe nvidia"):
        source.scan()
    machine.init_ok()
    assert len(source.scan().gpus) == 8, "a driver that comes late is adopted"
    source.close()


def test_a_missing_library_is_an_error_that_names_it(place):
    (place / "usr/lib64").mkdir(parents=True)
    (place / "usr/lib64/libnvidia-ml.so.1").write_text("no library")
    source = NvmlSource(roots=(str(place),))
    with pytest.raises(SourceError, match="nvidiaDriverRoot"):
        source.scan()


def test_the_library_is_found_below_the_driver_root(place):
    library = place / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    assert locate((str(place),)) == str(library)
    assert locate(("/nonexistent",)) is None


def test_display_nodes_are_those_of_the_gpus_that_are_there(source, machine):
    bus = source.scan().gpus[2].pci_bus_id
    for name in ("card1", "renderD128", "card9", "controlD64"):
        (machine.sys / "bus/pci/devices" / bus / "drm" / name).mkdir(parents=True)
    (machine.dev / "dri").mkdir()
    for name in ("card1", "renderD128", "controlD64"):
        (machine.dev / "dri" / name).touch()
    assert source.scan().display_nodes == ((bus, "/dev/dri/card1"), (bus, "/dev/dri/renderD128"))


def test_a_driver_that_went_is_told_and_taken_up_again(source, machine):
    source.scan()
    source.close()
    machine.init_fail(18)
    with pytest.raises(SourceError, match="upgraded"):
        source.scan()
    machine.init_ok()
    assert len(source.scan().gpus) == 8


def test_bus_ids_are_written_as_sysfs_writes_them():
    assert bus_id(b"00000000:1B:00.0") == "0000:1b:00.0"
    assert bus_id("00010000:81:00.0") == "10000:81:00.0"


def test_errors_carry_the_next_step():
    class Fake(Exception):
        value = 15

    assert "reset" in describe(Fake("GPU is lost"))
    assert describe(ValueError("x")) == "x"


class Heard:
    """Listens to a machine's events."""

    def __init__(self, source: NvmlSource) -> None:
        self.events: list[tuple[float, Event]] = []
        self.rescans = 0
        self.states: list[str | None] = []
        self.monitor = EventMonitor(source, self.event, self.rescan, self.states.append)
        source.scan()
        self.monitor.watch()

    def event(self, event: Event) -> None:
        self.events.append((time.monotonic(), event))

    def rescan(self) -> None:
        self.rescans += 1

    def next(self) -> Event:
        wait_until(lambda: self.events, 5, "an event")
        return self.events.pop(0)[1]


@pytest.fixture
def heard(source: NvmlSource) -> Iterator[Heard]:
    one = Heard(source)
    yield one
    one.monitor.stop()


def test_an_xid_is_heard_with_its_gpu_within_milliseconds(heard, source, machine):
    uuids = [gpu.uuid for gpu in source.scan().gpus]
    began = time.monotonic()
    machine.xid(3, 79)
    assert heard.next() == Event(uuids[3], "xid", 79)
    assert time.monotonic() - began < 1


def test_an_xid_of_a_slice_names_its_instances(heard, machine):
    machine.mig(2, "1g.10gb", "1g.10gb")
    machine.xid(2, 94, gi=1, ci=0)
    event = heard.next()
    assert (event.xid, event.gpu_instance, event.compute_instance) == (94, 1, 0)


def test_a_lost_gpu_asks_for_a_scan_and_does_not_spin(heard, source, machine):
    machine.lose(1)
    wait_until(lambda: heard.rescans, 5)
    source.scan()
    heard.monitor.watch()  # as the scanner does: the lost one is no longer watched
    settled = heard.rescans
    machine.xid(0, 79)
    assert heard.next().xid == 79
    assert heard.rescans <= settled + 1


def test_a_gpu_whose_events_cannot_be_watched_is_unhealthy_not_silently_healthy(source, machine):
    machine.update(4, errors={"nvmlDeviceRegisterEvents": 3})
    heard = Heard(source)
    try:
        assert "DP_DISABLE_HEALTHCHECKS" in faults(source)[4]
        assert list(faults(source)) == [4]
        assert heard.rescans == 1, "the new fault has to be published"
    finally:
        heard.monitor.stop()


def test_no_event_is_lost_or_told_twice_while_the_set_of_watched_gpus_changes(source, machine):
    heard = Heard(source)
    try:
        sent = []
        for round_ in range(3):
            machine.xid(0, 31)
            machine.lose(1 + round_)
            machine.xid(0, 43)
            source.scan()
            watching = threading.Thread(target=heard.monitor.watch)
            watching.start()
            machine.xid(0, 45)
            watching.join(10)
            machine.xid(0, 13)
            sent += [31, 43, 45, 13]
        wait_until(lambda: len(heard.events) >= len(sent), 5)
        time.sleep(0.1)
        assert sorted(event.xid for _at, event in heard.events) == sorted(sent)
    finally:
        heard.monitor.stop()


def test_nvml_can_be_closed_and_opened_while_events_are_waited_for(heard, source, machine):
    for code in (79, 48, 31):
        source.close()
        source.scan()
        heard.monitor.watch()
        machine.xid(0, code)
        assert heard.next().xid == code
    assert sum(thread.name == "events" for thread in threading.enumerate()) == 1
