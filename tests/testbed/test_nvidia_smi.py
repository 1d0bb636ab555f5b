"""The stand-in nvidia-smi says what tools read from the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "nvml"))
from testbed_nvml import Machine, standin


@pytest.fixture
def machine():
    with standin(gpus=8, model="H100") as box:
        yield box


def smi(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(machine.library.parent / "nvidia-smi"), *words]
    return subprocess.run(command, env=machine.environ(), capture_output=True, text=True, check=False)


def test_a_list_names_gpus_and_their_mig_devices(machine: Machine):
    machine.mig(1, "3g.40gb")
    lines = smi(machine, "-L").stdout.splitlines()
    assert lines[0].startswith("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-")
    assert lines[2].startswith("  MIG 3g.40gb      Device  0: (UUID: MIG-")
    assert len(lines) == 9


def test_a_query_answers_as_csv_with_and_without_header_and_units(machine: Machine):
    assert smi(machine, "--query-gpu=index,memory.total", "--format=csv", "-i", "3").stdout == (
        "index, memory.total [MiB]\n3, 81559 MiB\n"
    )
    plain = smi(
        machine, "--query-gpu=index,memory.total,compute_cap", "--format=csv,noheader,nounits", "-i", "0"
    )
    assert plain.stdout == "0, 81559, 9.0\n"


def test_an_unknown_field_is_an_error(machine: Machine):
    done = smi(machine, "--query-gpu=colour", "--format=csv")
    assert (done.returncode, done.stdout.strip()) == (2, 'Field "colour" is not a valid field to query.')


def test_xml_holds_what_an_inventory_reads(machine: Machine):
    machine.process(2, 4711, 2048, "train.py")
    machine.mig(0, "1g.10gb", "1g.10gb")
    log = ElementTree.fromstring(smi(machine, "-q", "-x").stdout)
    assert log.findtext("driver_version") == "570.133.20"
    assert log.findtext("cuda_version") == "12.8"
    assert log.findtext("attached_gpus") == "8"
    gpus = log.findall("gpu")
    assert [gpu.findtext("minor_number") for gpu in gpus] == [str(n) for n in range(8)]
    assert gpus[0].get("id") == "00000000:18:00.0"
    assert gpus[0].findtext("mig_mode/current_mig") == "Enabled"
    assert len(gpus[0].findall("mig_devices/mig_device")) == 2
    assert gpus[1].findtext("product_name") == "NVIDIA H100 80GB HBM3"
    assert gpus[1].findtext("fb_memory_usage/total") == "81559 MiB"
    assert gpus[1].findtext("temperature/gpu_temp") == "32 C"
    assert gpus[2].findtext("processes/process_info/pid") == "4711"
    assert gpus[2].findtext("processes/process_info/process_name") == "train.py"


def test_the_table_has_a_row_a_gpu(machine: Machine):
    text = smi(machine).stdout
    assert text.count("NVIDIA H100 80GB HBM3") == 8
    assert "Driver Version: 570.133.20" in text
    assert "No running processes found" in text
    framed = [line for line in text.splitlines() if line.startswith(("|", "+"))]
    assert {len(line) for line in framed} == {91}


def test_a_driver_that_is_not_loaded_ends_it_with_9(machine: Machine):
    machine.init_fail(9)
    done = smi(machine)
    assert done.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in done.stdout


def test_a_machine_without_gpus_ends_it_with_6():
    with standin(gpus=0) as machine:
        done = smi(machine, "-L")
        assert (done.returncode, done.stdout.strip()) == (6, "No devices were found")


def test_a_lost_gpu_is_named_and_the_others_are_listed(machine: Machine):
    machine.lose(3)
    done = smi(machine, "-L")
    assert done.returncode == 15
    assert "GPU3: GPU is lost" in done.stdout
    assert sum(line.startswith("GPU ") for line in done.stdout.splitlines()) == 7


def test_the_topology_of_a_dgx_1v_shows_its_links():
    with standin(gpus=8, model="V100") as machine:
        rows = [line.split("\t") for line in smi(machine, "topo", "-m").stdout.splitlines()]
        assert [cell.strip() for cell in rows[1]] == [
            "GPU0",
            "X",
            "NV1",
            "NV1",
            "NV2",
            "NV2",
            "SYS",
            "SYS",
            "SYS",
        ]
