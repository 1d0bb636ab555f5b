"""NVML as a source of devices: one look at every GPU, its slices, its links and its health.

One bad GPU never takes the others with it: whatever can't be read of it becomes its ``fault``, and what was
known of it before stays. What never changes is read once per GPU, so a look at eight GPUs that repeats costs
under a millisecond.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from . import features, logs
from .devices import Gpu, Link, Snapshot, SourceError
from .health import Probe
from .nvml_library import GONE, LOST, NOT_SUPPORTED, Library, describe
from .nvml_memory import Memory
from .nvml_read import (
    attempt,
    bound_to_driver,
    bus_id,
    cuda_version,
    display_nodes,
    links,
    mig_slices,
    numa_node,
    proc_gpus,
    recovery_action,
    text_of,
)
from .roots import dev_root

log = logs.Log("nvml")

CONTROL_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
_REOPEN_SECONDS = (10.0, 30.0, 60.0, 300.0)
"""While a GPU is lost NVML is opened anew now and then: only that shows that it is back."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a GPU: the record, and what it can't do, so that it isn't asked again."""

    gpu: Gpu
    handle: Any
    generation: int
    mig: bool
    lacks: frozenset[str] = frozenset()


class NvmlSource:
    """Scans by NVML. All methods may be called from any thread; one at a time does the work."""

    def __init__(
        self,
        roots: tuple[str, ...] = (),
        dev_roots: tuple[str, ...] = ("",),
        sysfs: str = "/sys",
        proc: str = "/proc",
        state_dir: str | None = None,
    ) -> None:
        """``roots``: driver roots as this process sees them; ``dev_roots``: where /dev's parent may be seen;
        ``state_dir``: where GPUs are remembered over restarts."""
        self.library = Library(roots)
        self.lock = threading.RLock()
        self._dev_roots = dev_roots
        self._sysfs = sysfs
        self._proc = proc
        self._memory = Memory(state_dir)
        self._known: dict[str, _Known] = {
            gpu.uuid: _Known(gpu=gpu, handle=None, generation=-1, mig=False) for gpu in self._memory.load()
        }
        self._links: tuple[tuple[str, ...], int, tuple[tuple[Link, ...], ...]] = ((), 0, ())
        self._bound: frozenset[str] = frozenset()
        self._probes: tuple[Probe, ...] = ()
        self._readable: frozenset[str] = frozenset()
        self._reopen_at = 0.0
        self._reopens = 0
        self.unwatched: dict[str, str] = {}
        """UUID -> why its events can't be watched; the monitor writes it, the scan makes it a fault."""
        self.before_close: Callable[[], None] = lambda: None
        """The event monitor leaves the library here."""

    def scan(self) -> Snapshot:
        """Looks at everything once. Raises :class:`SourceError` when NVML can't be opened."""
        with self.lock:
            self._reopen_if_needed()
            self.library.open()
            api = self.library.api
            try:
                return self._scan(api)
            except api.NVMLError as error:
                code = error.value
                if code in GONE:
                    self.close()
                raise SourceError(f"NVML does not answer: {describe(error)}") from error

    def probes(self) -> tuple[Probe, ...]:
        """What the last scan showed of each GPU's health."""
        return self._probes

    def handles(self) -> dict[str, Any]:
        """UUID -> NVML handle of every GPU that the last scan could read."""
        with self.lock:
            return {
                uuid: known.handle
                for uuid, known in self._known.items()
                if known.generation == self.library.generation and uuid in self._readable
            }

    def close(self) -> None:
        """Leaves NVML; the next scan opens it again. What is known of the GPUs is kept."""
        self.before_close()
        with self.lock:
            self.library.close()

    def move(self, roots: tuple[str, ...], dev_roots: tuple[str, ...]) -> None:
        """From the next scan on the driver is looked for elsewhere."""
        with self.lock:
            self.close()
            self.library = Library(roots)
            self._dev_roots = dev_roots
            self._known.clear()
            self._links = ((), 0, ())

    # One look

    def _scan(self, api: Any) -> Snapshot:
        problems: list[str] = []
        listed = proc_gpus(self._proc)
        found: dict[str, Gpu] = {}
        broken: dict[int, str] = {}
        for index in range(api.nvmlDeviceGetCount()):
            try:
                gpu = self._gpu(api, index, listed)
            except api.NVMLError as error:
                if error.value in GONE:
                    raise
                broken[index] = describe(error)
                continue
            if gpu is not None:
                found[gpu.uuid] = gpu
        self._add_broken(found, broken, listed, problems)
        self._add_vanished(found)
        buses = {gpu.pci_bus_id for gpu in found.values()}
        for bus, entry in listed.items():
            if bus not in buses and not broken and "DGX Display" not in entry.get("model", ""):
                problems.append(
                    f"the driver holds a GPU at {bus} that NVML does not list: "
                    f"is /dev/nvidia{entry.get('minor', 'N')} there?"
                )
        gpus = tuple(sorted(found.values(), key=lambda gpu: (gpu.index, gpu.uuid)))
        gpus, self._probes = self._probe_all(api, gpus)
        for gpu in gpus:
            before = self._known.get(gpu.uuid)
            if before is not None:
                self._known[gpu.uuid] = replace(before, gpu=replace(gpu, fault=None))
        self._readable = frozenset(gpu.uuid for gpu in gpus if gpu.fault is None)
        if any(gpu.fault for gpu in gpus):
            self._plan_reopening()
        else:
            self._reopens, self._reopen_at = 0, 0.0
        self._memory.keep(gpus)
        self._bound = bound_to_driver(self._sysfs)
        gpus = tuple(
            replace(gpu, fault=self.unwatched[gpu.uuid])
            if gpu.fault is None and gpu.uuid in self.unwatched
            else gpu
            for gpu in gpus
        )
        nodes_below = dev_root(self._dev_roots)
        return Snapshot(
            gpus=gpus,
            links=self._matrix(api, gpus),
            control_paths=tuple(path for path in CONTROL_NODES if os.path.exists(nodes_below + path)),
            display_nodes=display_nodes(self._sysfs, (gpu.pci_bus_id for gpu in gpus), nodes_below),
            feature_nodes=features.find(self._dev_roots),
            driver_version=text_of(api, api.nvmlSystemGetDriverVersion),
            cuda_version=cuda_version(api),
            problems=(
                *problems,
                *(f"GPU {gpu.index} ({gpu.uuid}): {gpu.fault}" for gpu in gpus if gpu.fault),
            ),
        )

    def _gpu(self, api: Any, index: int, listed: dict[str, dict[str, str]]) -> Gpu | None:
        """One GPU, None for what is no GPU to offer. Raises NVMLError when it can't even be named."""
        handle = api.nvmlDeviceGetHandleByIndex(index)
        uuid: str = api.nvmlDeviceGetUUID(handle)
        known = self._known.get(uuid)
        if known is None or known.generation != self.library.generation:
            known = self._meet(api, handle, uuid, index, listed)
            if known is None:
                return None
            self._known[uuid] = known
        gpu = replace(known.gpu, index=index, fault=None)
        if not known.mig:
            return gpu
        try:
            enabled = api.nvmlDeviceGetMigMode(handle)[0] == 1
            return replace(
                gpu,
                mig_enabled=enabled,
                slices=mig_slices(api, handle, gpu.minor, self._proc) if enabled else (),
            )
        except api.NVMLError as error:
            return replace(gpu, fault=f"its MIG layout can't be read: {describe(error)}")

    def _meet(
        self, api: Any, handle: Any, uuid: str, index: int, listed: dict[str, dict[str, str]]
    ) -> _Known | None:
        """Everything of a GPU that stays as it is."""
        name = text_of(api, api.nvmlDeviceGetName, handle) or "NVIDIA GPU"
        if "DGX Display" in name:
            return None
        pci = attempt(api, api.nvmlDeviceGetPciInfo, handle)
        bus = bus_id(pci.busId) if pci is not None else ""
        minor = attempt(api, api.nvmlDeviceGetMinorNumber, handle)
        if minor is None:
            minor = int(listed.get(bus, {}).get("minor", index))
        memory = attempt(api, api.nvmlDeviceGetMemoryInfo, handle)
        capability = attempt(api, api.nvmlDeviceGetCudaComputeCapability, handle)
        gpu = Gpu(
            index=index,
            uuid=uuid,
            minor=minor,
            name=name,
            memory_bytes=int(memory.total) if memory is not None else 0,
            pci_bus_id=bus,
            numa_node=numa_node(self._sysfs, bus),
            compute_capability=(int(capability[0]), int(capability[1])) if capability else None,
            paths=(f"/dev/nvidia{minor}",),
        )
        mig = attempt(api, api.nvmlDeviceGetMigMode, handle) is not None
        return _Known(gpu=gpu, handle=handle, generation=self.library.generation, mig=mig)

    def _add_broken(
        self,
        found: dict[str, Gpu],
        broken: dict[int, str],
        listed: dict[str, dict[str, str]],
        problems: list[str],
    ) -> None:
        """GPUs that NVML counts but can't name: known from before, or from the driver's /proc files."""
        for index, reason in broken.items():
            before = next(
                (k.gpu for k in self._known.values() if k.gpu.index == index and k.gpu.uuid not in found),
                None,
            )
            if before is None:
                taken = {gpu.pci_bus_id for gpu in found.values()}
                before = next(
                    (
                        Gpu(
                            index=index,
                            uuid=entry["uuid"],
                            minor=int(entry.get("minor", index)),
                            name=entry.get("model", "NVIDIA GPU"),
                            pci_bus_id=bus,
                            numa_node=numa_node(self._sysfs, bus),
                            paths=(f"/dev/nvidia{entry.get('minor', index)}",),
                        )
                        for bus, entry in sorted(listed.items())
                        if bus not in taken and "?" not in entry.get("uuid", "?")
                    ),
                    None,
                )
            if before is None:
                problems.append(
                    f"GPU {index} can't be read, nor its UUID: {reason}; it is not listed, the others are"
                )
            else:
                found[before.uuid] = replace(before, index=index, fault=reason)

    def _add_vanished(self, found: dict[str, Gpu]) -> None:
        """GPUs that NVML no longer counts: lost while their PCI device still belongs to the driver, else taken
        away."""
        for uuid, known in list(self._known.items()):
            if uuid in found:
                continue
            bus = known.gpu.pci_bus_id
            if bus and bus in bound_to_driver(self._sysfs):
                found[uuid] = replace(
                    known.gpu,
                    fault="NVML no longer lists it though its PCI device is there; reset it or reboot",
                )
            else:
                del self._known[uuid]

    # Health

    def _probe_all(self, api: Any, gpus: tuple[Gpu, ...]) -> tuple[tuple[Gpu, ...], tuple[Probe, ...]]:
        result: list[Gpu] = []
        probes: list[Probe] = []
        for gpu in gpus:
            probe = self._probe(api, gpu)
            probes.append(probe)
            if gpu.fault is None and probe.lost:
                result.append(replace(gpu, fault="the GPU is lost: drain the node and reset it or reboot"))
            elif gpu.fault is None and probe.unreadable:
                result.append(replace(gpu, fault=probe.unreadable))
            else:
                result.append(gpu)
        return tuple(result), tuple(probes)

    def _probe(self, api: Any, gpu: Gpu) -> Probe:
        known = self._known.get(gpu.uuid)
        if gpu.fault is not None or known is None:
            lost = "lost" in (gpu.fault or "").lower() or "no longer lists" in (gpu.fault or "")
            return Probe(gpu.uuid, lost=lost, unreadable=None if lost else gpu.fault)
        handle = known.handle
        lacks = set(known.lacks)
        lost, unreadable = False, None

        def ask(what: str, call: Callable[[], Any]) -> Any:
            nonlocal lost, unreadable
            if what in lacks or lost:
                return None
            try:
                return call()
            except api.NVMLError as error:
                if error.value in LOST:
                    lost = True
                elif error.value in NOT_SUPPORTED:
                    lacks.add(what)
                elif error.value in GONE:
                    raise
                else:
                    unreadable = f"{what} can't be read: {describe(error)}"
                return None

        ecc = ask("ECC", lambda: api.nvmlDeviceGetTotalEccErrors(handle, 1, 0))
        rows = ask("row remapping", lambda: api.nvmlDeviceGetRemappedRows(handle))
        pages = None
        if "row remapping" in lacks:
            pages = ask("page retirement", lambda: api.nvmlDeviceGetRetiredPagesPendingStatus(handle))
        if "ECC" in lacks:  # a GPU without ECC must still be asked something, else its loss would go unseen
            ask("temperature", lambda: api.nvmlDeviceGetTemperature(handle, 0))
        action = ask("recovery action", lambda: recovery_action(api, handle))
        if lacks != known.lacks:
            self._known[gpu.uuid] = replace(known, lacks=frozenset(lacks))
        return Probe(
            gpu.uuid,
            lost=lost,
            unreadable=unreadable,
            ecc_double_bit=None if ecc is None else int(ecc),
            remap_pending=bool(rows[2]) if rows else pages == 1,
            remap_failed=bool(rows[3]) if rows else False,
            recovery_action=action,
        )

    def _matrix(self, api: Any, gpus: tuple[Gpu, ...]) -> tuple[tuple[Link, ...], ...]:
        """Made again only when other GPUs are there."""
        uuids = tuple(gpu.uuid for gpu in gpus)
        if self._links[:2] != (uuids, self.library.generation):
            handles = [self._known[gpu.uuid].handle if gpu.fault is None else None for gpu in gpus]
            matrix = links(api, gpus, handles)
            if any(gpu.fault for gpu in gpus):
                return matrix
            self._links = (uuids, self.library.generation, matrix)
        return self._links[2]

    # Opening again

    def _plan_reopening(self) -> None:
        if not self._reopen_at:
            step = _REOPEN_SECONDS[min(self._reopens, len(_REOPEN_SECONDS) - 1)]
            self._reopen_at = time.monotonic() + step

    def _reopen_if_needed(self) -> None:
        """NVML lists the GPUs of the moment it was opened: open it anew when the driver holds others now, or
        when a lost one may be back."""
        if not self.library.is_open:
            return
        others = self._bound != bound_to_driver(self._sysfs)
        again = bool(self._reopen_at) and time.monotonic() >= self._reopen_at
        if others or again:
            log.info("opening NVML anew", why="the driver holds other GPUs" if others else "a GPU was lost")
            self._reopens += 1
            self._reopen_at = 0.0
            self.close()
