"""The stand-in's world: the state file, and the device nodes, sysfs and procfs files that go with it.

`World` keeps them together under three roots (`/dev`, `/sys`, `/proc` on a test node, a temporary directory in a
test). Verbs change the state under a lock and write it atomically; programs that listen hear of it at once.
gpu_verbs.py is their command line. Standard library only, because it runs on test nodes too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import models
from mig_layout import MigError, capability_minors, mig_minors, place

XID, DOUBLE_BIT, SINGLE_BIT, MIG_CHANGE = 0x8, 0x2, 0x1, 0x100  # nvmlEventType*
KEPT_EVENTS = 256
CONTROL_NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


class WorldError(Exception):
    """A verb that makes no sense: says what and why."""


class World:
    """GPUs of one (pretended) machine.

    `state` is the state file's path; `dev`, `sys` and `proc` are the roots of the three file systems.
    """

    def __init__(self, state: Path, dev: Path, sys_root: Path, proc: Path) -> None:
        self.state, self.dev, self.sys, self.proc = Path(state), Path(dev), Path(sys_root), Path(proc)

    # -- the state file ------------------------------------------------------------------------------------------

    def read(self) -> dict:
        """The state now."""
        return json.loads(self.state.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def edit(self, *, files: bool = True) -> Iterator[dict]:
        """The state to change in place; written atomically at the end, files beside it brought in line."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with open(self.state.parent / ".lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read() if self.state.exists() else {}
            yield state
            if files:
                self._files(state)
            fresh = self.state.parent / f".state.{os.getpid()}"
            fresh.write_text(json.dumps(state, indent=1), encoding="utf-8")
            fresh.chmod(0o644)
            fresh.rename(self.state)

    def start(
        self, machine: list[str], seed: str = "testbed", numa_nodes: int = 2, **settings: object
    ) -> None:
        """A machine from nothing; `settings` are keys of the state (driver_version, hotplug, ...)."""
        with self.edit() as state:
            state.clear()
            state.update(models.make_state(machine, seed, numa_nodes))
            state["dev_root"] = str(self.dev)
            state.update(settings)

    def pci_only(self, machine: list[str], seed: str = "testbed", numa_nodes: int = 2) -> None:
        """A machine whose driver is not installed: its GPUs are on the PCI bus and nowhere else."""
        self._pci(models.make_state(machine, seed, numa_nodes), bound=False)

    # -- verbs ---------------------------------------------------------------------------------------------------

    def gpu(self, state: dict, which: int | str) -> dict:
        """A GPU by index, UUID or PCI address."""
        for position, gpu in enumerate(state["gpus"]):
            if str(which) in (str(position), gpu["uuid"], models.bus_id(gpu)):
                return gpu
        raise WorldError(
            f"no GPU {which!r}: this machine has {len(state['gpus'])} (0 to {len(state['gpus']) - 1})"
        )

    def _event(
        self, state: dict, gpu: dict, kind: int, data: int, gi: int | None = None, ci: int | None = None
    ) -> None:
        last = state["events"][-1]["seq"] if state["events"] else 0
        event = {"seq": last + 1, "gpu": gpu["uuid"], "type": kind, "data": data}
        if gi is not None:
            event["gi"] = gi
        if ci is not None:
            event["ci"] = ci
        state["events"] = [*state["events"], event][-KEPT_EVENTS:]

    def xid(self, which: int | str, code: int, gi: int | None = None, ci: int | None = None) -> None:
        """An XID critical error, on a MIG instance when `gi` and `ci` say so."""
        with self.edit(files=False) as state:
            self._event(state, self.gpu(state, which), XID, code, gi, ci)

    def lose(self, which: int | str) -> None:
        """The GPU falls off the bus: NVML answers GPU_IS_LOST for it. (No XID: steer that beside it.)"""
        with self.edit(files=False) as state:
            self.gpu(state, which)["lost"] = True

    def restore(self, which: int | str) -> None:
        """The GPU as it was at the start, as after a reset: not lost, no errors, counters at zero."""
        with self.edit(files=False) as state:
            gpu = self.gpu(state, which)
            gpu.update(
                lost=False,
                errors={},
                ecc={},
                remapped_rows={"corrected": 0, "uncorrected": 0, "pending": False, "failed": False},
                retired_pages={"single_bit": 0, "double_bit": 0, "pending": False},
            )

    def ecc(
        self, which: int | str, *, uncorrected: int = 1, corrected: int = 0, place: str = "dram", pending: bool = False,
        failed: bool = False,
    ) -> None:  # fmt: skip
        """More ECC errors (volatile and aggregate) in `place`; optionally a row remap pending or failed.

        Uncorrected ones also raise the double bit event, corrected ones the single bit event.
        """
        with self.edit(files=False) as state:
            gpu = self.gpu(state, which)
            for life in ("volatile", "aggregate"):
                for kind, count in (("corrected", corrected), ("uncorrected", uncorrected)):
                    counters = gpu["ecc"].setdefault(life, {}).setdefault(kind, {})
                    counters[place] = counters.get(place, 0) + count
            rows = gpu["remapped_rows"]
            rows["pending"] = rows["pending"] or pending
            rows["failed"] = rows["failed"] or failed
            rows["uncorrected"] += int(pending)
            gpu["retired_pages"]["pending"] = gpu["retired_pages"]["pending"] or pending
            if uncorrected:
                self._event(state, gpu, DOUBLE_BIT, 0)
            if corrected:
                self._event(state, gpu, SINGLE_BIT, 0)

    def init_fail(self, code: int = 9) -> None:
        """nvmlInit answers `code` from now on (9 driver not loaded, 18 driver/library mismatch, 999 unknown)."""
        with self.edit(files=False) as state:
            state["init_error"] = code

    def init_ok(self) -> None:
        """nvmlInit works again."""
        self.init_fail(0)

    def mig(self, which: int | str, *profiles: str) -> None:
        """MIG mode on with these instances (none: on and empty); "off" alone switches it off."""
        with self.edit() as state:
            gpu = self.gpu(state, which)
            if not gpu["mig"]["capable"]:
                raise WorldError(f"GPU {which} ({gpu['name']}) has no MIG")
            off = list(profiles) == ["off"]
            try:
                devices = [] if off else place(gpu, profiles)
            except MigError as error:
                raise WorldError(str(error)) from error
            gpu["mig"].update(enabled=not off, devices=devices)
            self._event(state, gpu, MIG_CHANGE, 0)

    def remove(self, which: int | str) -> None:
        """The GPU leaves the machine: no device node, no PCI function; open handles are lost."""
        with self.edit() as state:
            gpu = self.gpu(state, which)
            position = state["gpus"].index(gpu)
            state["gpus"].remove(gpu)
            state["topology"] = [row[:position] + row[position + 1 :] for row in state["topology"]]
            del state["topology"][position]

    def add(self, model: str | None = None) -> str:
        """One more GPU, at the end; its UUID. Programs see it at their next nvmlInit (hotplug "live": at once)."""
        with self.edit() as state:
            if len(state["gpus"]) >= models.MAX_GPUS:
                raise WorldError(f"this machine has {models.MAX_GPUS} GPUs already")
            key = model or (state["gpus"][-1]["model"] if state["gpus"] else "H100")
            if key not in models.MODELS:
                raise WorldError(f"unknown GPU model {key!r}: one of {', '.join(models.MODELS)}")
            serial = state["serials"]
            node = state["gpus"][-1]["numa_node"] if state["gpus"] else 0
            gpu = models.make_gpu(key, state["seed"], serial, node)
            state["serials"] = serial + 1
            state["gpus"].append(gpu)
            gpu["nvlinks"] = models.nvlinks(state["gpus"], len(state["gpus"]) - 1)
            for row in state["topology"]:
                row.append(models.SYSTEM)
            state["topology"].append([models.SYSTEM] * (len(state["gpus"]) - 1) + [0])
            return gpu["uuid"]

    def process(
        self, which: int | str, pid: int, memory_mib: int = 1024, name: str = "python3",
        gi: int | None = None, ci: int | None = None,
    ) -> None:  # fmt: skip
        """A compute process on the GPU (or on one of its MIG instances)."""
        with self.edit(files=False) as state:
            entry = {"pid": pid, "memory": memory_mib * models.MIB, "name": name, "kind": "compute"}
            if gi is not None:
                entry.update(gi=gi, ci=ci or 0)
            self.gpu(state, which)["processes"].append(entry)

    def end_processes(self, which: int | str) -> None:
        """No process holds the GPU any more."""
        with self.edit(files=False) as state:
            self.gpu(state, which)["processes"] = []

    def update(self, which: int | str, **fields: object) -> None:
        """Set keys of a GPU as they are: update(0, temperature=93, errors={"nvmlDeviceGetMemoryInfo": 999})."""
        with self.edit() as state:
            self.gpu(state, which).update(fields)

    # -- files beside the state ----------------------------------------------------------------------------------

    def _files(self, state: dict) -> None:
        self._device_nodes(state)
        self._pci(state)
        self._procfs(state)

    def _device_nodes(self, state: dict) -> None:
        wanted = {f"nvidia{gpu['minor']}" for gpu in state["gpus"]} | set(CONTROL_NODES)
        wanted |= {f"nvidia-caps/nvidia-cap{minor}" for minor in capability_minors(state)}
        if not state["gpus"]:
            wanted = set()
        for present in [*self.dev.glob("nvidia*"), *self.dev.glob("nvidia-caps/*")]:
            if not present.is_dir() and str(present.relative_to(self.dev)) not in wanted:
                present.unlink(missing_ok=True)
        for name in wanted:
            make_node(self.dev / name)

    def _pci(self, state: dict, *, bound: bool = True) -> None:
        devices = self.sys / "bus/pci/devices"
        wanted = {models.bus_id(gpu): gpu_function(gpu, bound) for gpu in state["gpus"]}
        wanted["0000:00:00.0"] = {"vendor": 0x8086, "device": 0x09A2, "class": 0x060000, "numa_node": 0}
        wanted["0000:01:00.0"] = {"vendor": 0x15B3, "device": 0x1021, "class": 0x020700, "numa_node": 0}
        if any(link.get("type") == "switch" for gpu in state["gpus"] for link in gpu["nvlinks"]):
            for bus in models.NVSWITCH_BUSES:
                wanted[f"0000:{bus:02x}:00.0"] = {
                    "vendor": 0x10DE,
                    "device": 0x22A3,
                    "class": 0x068000,
                    "numa_node": 0,
                }
        devices.mkdir(parents=True, exist_ok=True)
        for present in devices.iterdir():
            if present.name not in wanted:
                shutil.rmtree(present)
        for address, function in wanted.items():
            write_function(devices / address, function)

    def _procfs(self, state: dict) -> None:
        driver = self.proc / "driver"
        gpus = driver / "nvidia/gpus"
        wanted = {models.bus_id(gpu): gpu for gpu in state["gpus"]}
        gpus.mkdir(parents=True, exist_ok=True)
        for present in gpus.iterdir():
            if present.name not in wanted:
                shutil.rmtree(present)
        for address, gpu in wanted.items():
            write(gpus / address / "information", information(gpu, state))
        version = state["driver_version"]
        write(
            driver / "nvidia/version",
            f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (stand-in)\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
        )
        write(
            driver / "nvidia/params",
            "ModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 0\nDeviceFileMode: 438\n",
        )
        write(driver / "nvidia-caps/mig-minors", mig_minors(state))


def gpu_function(gpu: dict, bound: bool) -> dict:
    """What sysfs says of the GPU's PCI function."""
    pci = gpu["pci"]
    return {
        "vendor": 0x10DE,
        "device": pci["device_id"],
        "class": pci["class"],
        "subsystem_vendor": pci["subsystem_id"] & 0xFFFF,
        "subsystem_device": pci["subsystem_id"] >> 16,
        "numa_node": gpu["numa_node"],
        **({"driver": "nvidia"} if bound else {}),
    }


def write_function(directory: Path, function: dict) -> None:
    """One directory of /sys/bus/pci/devices."""
    for name, value in function.items():
        if name == "numa_node":
            write(directory / name, f"{value}\n")
        elif name == "driver":
            directory.mkdir(parents=True, exist_ok=True)
            if not (directory / name).is_symlink():
                (directory / name).symlink_to(f"../../../../bus/pci/drivers/{value}")
        else:
            write(directory / name, f"0x{value:0{6 if name == 'class' else 4}x}\n")
    write(directory / "enable", "1\n")
    write(directory / "revision", "0xa1\n")


def information(gpu: dict, state: dict) -> str:
    """The text of /proc/driver/nvidia/gpus/<address>/information."""
    return (
        f"Model: \t\t {gpu['name']}\n"
        f"IRQ:   \t\t {100 + gpu['minor']}\n"
        f"GPU UUID: \t {gpu['uuid']}\n"
        f"Video BIOS: \t {gpu['vbios']}\n"
        "Bus Type: \t PCIe\n"
        "DMA Size: \t 52 bits\n"
        "DMA Mask: \t 0xfffffffffffff\n"
        f"Bus Location: \t {models.bus_id(gpu)}\n"
        f"Device Minor: \t {gpu['minor']}\n"
        f"GPU Firmware: \t {state['driver_version']}\n"
        "GPU Excluded:\t No\n"
    )


def write(path: Path, text: str) -> None:
    """Write when it differs: rewriting would wake whoever watches."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_node(path: Path) -> None:
    """A character device that exists everywhere (1:3, /dev/null); a plain file where mknod is refused."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.chmod(0o666)
    except PermissionError:
        path.touch()


def here() -> World:
    """The world of the machine this runs on (a test node)."""
    state = os.environ.get("NVML_STANDIN_STATE") or "/run/nvml-standin/state.json"
    return World(Path(state), Path("/dev"), Path("/sys"), Path("/proc"))
