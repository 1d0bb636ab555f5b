"""The stand-in NVML serves nvidia-ml-py as the real library would."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "nvml"))
import build_nvml
import pynvml
from testbed_nvml import Machine, standin
from world import WorldError


@pytest.fixture
def machine():
    with standin(gpus=8, model="H100") as box:
        pynvml.nvmlInit()
        try:
            yield box
        finally:
            pynvml.nvmlShutdown()


def handles():
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


def xids_within(seconds: float, event_set) -> list[tuple[str, int, int, int]]:
    """Events that arrive in time, as (uuid, code, gi, ci)."""
    found = []
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            event = pynvml.nvmlEventSetWait_v2(event_set, int(left * 1000) + 1)
        except pynvml.NVMLError_Timeout:
            break
        found.append(
            (
                pynvml.nvmlDeviceGetUUID(event.device),
                event.eventData,
                event.gpuInstanceId,
                event.computeInstanceId,
            )
        )
        break
    return found


def test_eight_h100_are_listed_with_what_an_inventory_asks(machine: Machine):
    assert pynvml.nvmlSystemGetDriverVersion() == "570.133.20"
    assert pynvml.nvmlSystemGetCudaDriverVersion() == 12080
    gpus = handles()
    assert len(gpus) == 8
    assert len({pynvml.nvmlDeviceGetUUID(gpu) for gpu in gpus}) == 8
    assert [pynvml.nvmlDeviceGetMinorNumber(gpu) for gpu in gpus] == list(range(8))
    first = gpus[0]
    assert pynvml.nvmlDeviceGetName(first) == "NVIDIA H100 80GB HBM3"
    assert pynvml.nvmlDeviceGetMemoryInfo(first).total == 81559 * 1024 * 1024
    assert pynvml.nvmlDeviceGetMemoryInfo(first, version=pynvml.nvmlMemory_v2).reserved == 551 * 1024 * 1024
    assert pynvml.nvmlDeviceGetCudaComputeCapability(first) == (9, 0)
    pci = pynvml.nvmlDeviceGetPciInfo(first)
    assert (pci.busId, pci.pciDeviceId) == ("00000000:18:00.0", 0x233010DE)
    assert pynvml.nvmlDeviceGetTemperature(first, pynvml.NVML_TEMPERATURE_GPU) == 31
    assert pynvml.nvmlDeviceGetUtilizationRates(first).gpu == 0
    assert pynvml.nvmlDeviceGetPowerUsage(first) == 70000


def test_a_gpu_is_found_by_uuid_and_by_pci_address(machine: Machine):
    third = handles()[3]
    uuid = pynvml.nvmlDeviceGetUUID(third)
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == 3
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByPciBusId("0000:5d:00.0")) == 3
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-nobody")


def test_sixteen_gpus_are_the_most():
    with standin(gpus=16, model="V100"):
        pynvml.nvmlInit()
        try:
            assert len(handles()) == 16
        finally:
            pynvml.nvmlShutdown()
    with pytest.raises(ValueError, match="16 at most"), standin(gpus=17):
        pass


def test_an_xid_reaches_every_listener_within_milliseconds(machine: Machine):
    sets = [pynvml.nvmlEventSetCreate() for _ in range(3)]
    for event_set in sets:
        for gpu in handles():
            pynvml.nvmlDeviceRegisterEvents(gpu, pynvml.nvmlEventTypeXidCriticalError, event_set)
    heard: list[tuple[float, tuple]] = []

    def listen(event_set):
        found = xids_within(5, event_set)
        heard.append((time.monotonic(), found[0]))

    threads = [threading.Thread(target=listen, args=(event_set,)) for event_set in sets]
    for thread in threads:
        thread.start()
    machine.xid(3, 79)
    steered = time.monotonic()
    for thread in threads:
        thread.join()
    uuid = pynvml.nvmlDeviceGetUUID(handles()[3])
    assert [event for _, event in heard] == [(uuid, 79, 0xFFFFFFFF, 0xFFFFFFFF)] * 3
    assert max(at for at, _ in heard) - steered < 0.1
    for event_set in sets:
        pynvml.nvmlEventSetFree(event_set)


def test_a_listener_hears_only_what_it_registered_for_and_nothing_from_before(machine: Machine):
    machine.xid(0, 31)
    event_set = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handles()[1], pynvml.nvmlEventTypeXidCriticalError, event_set)
    machine.xid(0, 79)
    machine.ecc(1)
    assert xids_within(0.05, event_set) == []
    machine.xid(1, 48, gi=7, ci=0)
    assert [found[1:] for found in xids_within(5, event_set)] == [(48, 7, 0)]
    pynvml.nvmlEventSetFree(event_set)


def test_a_lost_gpu_is_lost_everywhere_and_the_others_go_on(machine: Machine):
    gpus = handles()
    machine.lose(3)
    assert pynvml.nvmlDeviceGetCount() == 8
    for ask in (pynvml.nvmlDeviceGetName, pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetMemoryInfo):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            ask(gpus[3])
        assert ask(gpus[4])
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetHandleByIndex(3)
    machine.restore(3)
    assert pynvml.nvmlDeviceGetName(gpus[3])


def test_an_init_that_fails_says_why():
    with standin(gpus=1) as machine:
        machine.init_fail(9)
        with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
            pynvml.nvmlInit()
        machine.init_fail(18)
        with pytest.raises(pynvml.NVMLError_LibRmVersionMismatch):
            pynvml.nvmlInit()
        machine.init_ok()
        pynvml.nvmlInit()
        pynvml.nvmlShutdown()


def test_one_function_can_be_made_to_fail_on_one_gpu(machine: Machine):
    machine.update(2, errors={"nvmlDeviceGetMemoryInfo": 999})
    gpus = handles()
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetMemoryInfo(gpus[2])
    assert pynvml.nvmlDeviceGetName(gpus[2])
    assert pynvml.nvmlDeviceGetMemoryInfo(gpus[1])


def test_ecc_errors_count_and_a_pending_row_remap_shows(machine: Machine):
    gpu = handles()[0]
    machine.ecc(0, uncorrected=2, corrected=5, pending=True)
    counter = pynvml.nvmlDeviceGetTotalEccErrors
    assert counter(gpu, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC) == 2
    assert counter(gpu, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_AGGREGATE_ECC) == 5
    assert pynvml.nvmlDeviceGetMemoryErrorCounter(gpu, 1, 0, pynvml.NVML_MEMORY_LOCATION_DRAM) == 2
    assert list(pynvml.nvmlDeviceGetRemappedRows(gpu)) == [0, 1, 1, 0]
    with pytest.raises(pynvml.NVMLError_NotSupported):  # Hopper remaps rows, it retires no pages
        pynvml.nvmlDeviceGetRetiredPagesPendingStatus(gpu)


def test_mig_devices_have_the_names_the_driver_gives_them(machine: Machine):
    machine.mig(0, "3g.40gb", "2g.20gb", "1g.10gb", "1g.10gb")
    gpu = handles()[0]
    assert pynvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    found = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        try:
            device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index)
        except pynvml.NVMLError_NotFound:
            continue
        attributes = pynvml.nvmlDeviceGetAttributes(device)
        found.append((attributes.gpuInstanceSliceCount, pynvml.nvmlDeviceGetName(device).split()[-1]))
        assert pynvml.nvmlDeviceIsMigDeviceHandle(device)
        parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
        assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(gpu)
        gi = pynvml.nvmlDeviceGetGpuInstanceId(device)
        minors = (machine.proc / "driver/nvidia-caps/mig-minors").read_text()
        minor = next(
            line.split()[1] for line in minors.splitlines() if line.startswith(f"gpu0/gi{gi}/access")
        )
        assert (machine.dev / f"nvidia-caps/nvidia-cap{minor}").exists()
        instance = pynvml.nvmlDeviceGetGpuInstanceById(gpu, gi)
        profile = pynvml.nvmlGpuInstanceGetInfo(instance).profileId
        known = {pynvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, kind).id for kind in (0, 1, 2, 3, 4, 7, 9)}
        assert profile in known
    assert found == [(3, "3g.40gb"), (2, "2g.20gb"), (1, "1g.10gb"), (1, "1g.10gb")]
    machine.mig(0, "off")
    assert pynvml.nvmlDeviceGetMigMode(gpu)[0] == 0
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    assert sorted(path.name for path in (machine.dev / "nvidia-caps").iterdir()) == [
        "nvidia-cap1",
        "nvidia-cap2",
    ]


def test_mig_profiles_that_do_not_fit_are_refused(machine: Machine):
    with pytest.raises(WorldError, match="do not fit"):
        machine.mig(0, "3g.40gb", "3g.40gb", "1g.10gb")
    with pytest.raises(WorldError, match=r"no MIG profile '9g.1gb'"):
        machine.mig(0, "9g.1gb")
    with standin(gpus=1, model="T4") as other, pytest.raises(WorldError, match="has no MIG"):
        other.mig(0, "1g.10gb")


def test_dgx_1v_is_wired_as_the_table_says():
    rows = {0: [0, 1, 1, 2, 2, 0, 0, 0], 5: [0, 2, 0, 0, 1, 0, 2, 1], 7: [0, 0, 0, 1, 2, 1, 2, 0]}
    with standin(gpus=8, model="V100"):
        pynvml.nvmlInit()
        try:
            gpus = handles()
            addresses = [pynvml.nvmlDeviceGetPciInfo(gpu).busId for gpu in gpus]
            for number, row in rows.items():
                remote = []
                for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
                    try:
                        if not pynvml.nvmlDeviceGetNvLinkState(gpus[number], link):
                            continue
                    except pynvml.NVMLError_NotSupported:
                        break
                    remote.append(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(gpus[number], link).busId)
                assert [remote.count(address) for address in addresses] == row
            ancestor = pynvml.nvmlDeviceGetTopologyCommonAncestor
            assert [ancestor(gpus[0], gpu) for gpu in gpus[1:]] == [10, 30, 30, 50, 50, 50, 50]
            p2p = pynvml.nvmlDeviceGetP2PStatus
            assert p2p(gpus[0], gpus[4], pynvml.NVML_P2P_CAPS_INDEX_NVLINK) == pynvml.NVML_P2P_STATUS_OK
            assert p2p(gpus[0], gpus[5], pynvml.NVML_P2P_CAPS_INDEX_NVLINK) != pynvml.NVML_P2P_STATUS_OK
        finally:
            pynvml.nvmlShutdown()


def test_nvlinks_of_an_nvswitch_machine_end_at_switches(machine: Machine):
    gpu = handles()[0]
    kinds = [pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(gpu, link) for link in range(18)]
    assert kinds == [pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH] * 18
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetNvLinkState(gpu, 18)


def test_a_program_sees_only_gpus_whose_device_node_it_has(machine: Machine):
    for number in (0, 1, 3, 4, 5, 6):
        (machine.dev / f"nvidia{number}").unlink()
    assert [pynvml.nvmlDeviceGetMinorNumber(gpu) for gpu in handles()] == [2, 7]


def test_gpus_come_and_go_and_a_new_init_shows_them(machine: Machine):
    last = handles()[7]
    machine.remove(7)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetName(last)
    assert not (machine.dev / "nvidia7").exists()
    uuid = machine.add()
    assert pynvml.nvmlDeviceGetCount() == 7
    pynvml.nvmlShutdown()
    pynvml.nvmlInit()
    assert uuid in [pynvml.nvmlDeviceGetUUID(gpu) for gpu in handles()]
    assert (machine.dev / "nvidia8").exists()


def test_processes_are_listed_and_use_memory(machine: Machine):
    gpu = handles()[0]
    before = pynvml.nvmlDeviceGetMemoryInfo(gpu).used
    machine.process(0, pid=4711, memory_mib=2048, name="train.py")
    (found,) = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    assert (found.pid, found.usedGpuMemory) == (4711, 2048 * 1024 * 1024)
    assert pynvml.nvmlSystemGetProcessName(4711) == "train.py"
    assert pynvml.nvmlDeviceGetMemoryInfo(gpu).used - before == 2048 * 1024 * 1024
    machine.end_processes(0)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []


def test_sysfs_and_procfs_agree_with_nvml(machine: Machine):
    devices = machine.sys / "bus/pci/devices"
    gpus = sorted(
        path.name
        for path in devices.iterdir()
        if (path / "vendor").read_text().strip() == "0x10de"
        and (path / "class").read_text().startswith("0x0302")
    )
    assert gpus == [pynvml.nvmlDeviceGetPciInfo(gpu).busId[4:].lower() for gpu in handles()]
    assert [(devices / name / "numa_node").read_text().strip() for name in gpus] == ["0"] * 4 + ["1"] * 4
    text = (machine.proc / "driver/nvidia/gpus" / gpus[2] / "information").read_text()
    assert pynvml.nvmlDeviceGetUUID(handles()[2]) in text


def test_every_function_of_the_header_is_there(machine: Machine):
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", machine.library], capture_output=True, text=True, check=True
    )
    names = {line.split()[2] for line in exported.stdout.splitlines()}
    text = (build_nvml.header() / "nvml.h").read_text()
    declared = set(re.findall(r"DECLDIR\s+(nvml\w+)\s*\(", text))
    assert declared - names == set()


def test_a_state_file_that_is_no_json_leaves_the_last_good_one(machine: Machine):
    machine.state.write_text("{ broken")
    assert pynvml.nvmlDeviceGetCount() == 8


def test_waiting_costs_no_cpu(machine: Machine):
    event_set = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handles()[0], pynvml.nvmlEventTypeXidCriticalError, event_set)
    before = time.process_time()
    assert xids_within(0.5, event_set) == []
    assert time.process_time() - before < 0.05
    pynvml.nvmlEventSetFree(event_set)
