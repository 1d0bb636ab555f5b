"""From scans, events and settings to the state that is served: the only place that changes it, in the loop's thread.

    scan + health book + settings -> plan -> held back where the kubelet needs time -> published

Everything it calls for that is pure; what it writes (the health book, the CDI specification) is small and atomic.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import cdi, features, logs
from .config import CDI_ANNOTATIONS, CDI_CRI, Settings
from .counters import Counters
from .devices import Device, Plan, ResourcePlan, Snapshot
from .files import boot_id, write_atomically
from .health import Event, HealthBook, Probe, load_book
from .loop import Loop, Timer
from .prefer import Chooser
from .resources import FaultLookup, plan
from .respond import Responder
from .state import LEAVING, Desk, Leaving, State, hold_back
from .topology import scores

log = logs.Log("engine")

HEALTH_FILE = "health.json"
STUCK_SECONDS = 30.0
"""A scan that takes longer than this: NVML does not answer."""


_DUE_SECONDS = 0.5
"""No more often than this for a GPU whose quiet time is over but whose probe is not clean."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look gave."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    probes: tuple[Probe, ...] = ()
    error: str | None = None
    """Why NVML as a whole could not be read."""
    busy: Mapping[str, str] = field(default_factory=dict)
    """Occupancy guard: UUID -> why it must not be given out though it is free."""


@dataclass(frozen=True, slots=True)
class HealthChange:
    """One GPU, slice or host device of a resource changed its health."""

    resource: str
    uuid: str
    index: str
    fault: str | None
    before: str | None
    devices: int
    """How many list entries (replicas) it stands for."""


class Engine:
    """Decides what is offered. Every method runs in the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        state: State,
        counters: Counters,
        *,
        rescan: Callable[[], None],
        published: Callable[[tuple[HealthChange, ...]], None],
        shared_fault: Callable[[ResourcePlan], str | None] = lambda resource: None,
        driver_root: str = "/",
    ) -> None:
        """``rescan`` asks for a look soon; ``published`` hears after each change; ``shared_fault`` says why an
        MPS resource can't serve; ``driver_root`` is where this process sees the driver (for CDI)."""
        self._loop = loop
        self.settings = settings
        self._state = state
        self._counters = counters
        self._rescan = rescan
        self._published = published
        self._shared_fault = shared_fault
        self.driver_root = driver_root
        self.scan = Scan()
        self.scanned = False
        """Whether any scan has come back."""
        self.nvml_problem: str | None = "not looked yet"
        """Why NVML can't be read right now."""
        self.plan = Plan()
        self.book = self._load_book()
        self._saved = ""
        self._leaving: Leaving = {}
        self._again: Timer | None = None
        self._due: Timer | None = None
        self._cdi_names: frozenset[str] = frozenset()
        self._cdi_dir = ""
        self._features: tuple[features.Feature, ...] = ()
        self.cdi_problem: str | None = None
        self._driver_files: tuple[object, cdi.DriverFiles] = (None, cdi.DriverFiles())
        self._health: dict[tuple[str, str], str | None] = {}
        self.state_problem: str | None = None

    # What comes in

    def on_scan(self, scan: Scan) -> None:
        """A look has come back."""
        self.scanned = True
        self._counters.scans.add("failed" if scan.error else "ok")
        if scan.error is not None:
            if scan.error != self.nvml_problem:
                log.error("NVML can't be read", problem=scan.error)
            fault = f"NVML can't be read: {scan.error}"
            scan = replace(
                scan,
                snapshot=replace(
                    self.scan.snapshot,
                    gpus=tuple(replace(gpu, fault=fault) for gpu in self.scan.snapshot.gpus),
                    host_devices=scan.snapshot.host_devices,
                    problems=(*scan.snapshot.problems, scan.error),
                ),
            )
        elif self.nvml_problem:
            log.info(
                "NVML read",
                gpus=len(scan.snapshot.gpus),
                driver=scan.snapshot.driver_version or "none",
                cuda=scan.snapshot.cuda_version or "none",
            )
        self.nvml_problem = scan.error
        for problem in scan.snapshot.problems:
            if problem not in self.scan.snapshot.problems and problem != scan.error:
                log.warning("problem", text=problem)
        changed = scan.snapshot != self.scan.snapshot or scan.busy != self.scan.busy
        self.scan = scan
        book = self.book.probe(scan.probes, time.monotonic(), time.time()) if scan.probes else self.book
        if changed or book != self.book or not self._state.world.version:
            self._use(book)
            self.apply()
        else:
            self._use(book)

    def on_event(self, event: Event) -> None:
        """NVML told of an XID or an ECC error."""
        gpu = next((gpu for gpu in self.scan.snapshot.gpus if gpu.uuid == event.gpu_uuid), None)
        if event.kind == "xid":
            self._counters.xids.add(event.gpu_uuid or "unknown", str(event.xid))
        log.warning(
            "GPU event",
            kind=event.kind,
            xid=event.xid,
            gpu=gpu.index if gpu else "unknown",
            uuid=event.gpu_uuid or "unknown",
            gpu_instance="" if event.gpu_instance is None else event.gpu_instance,
            compute_instance="" if event.compute_instance is None else event.compute_instance,
        )
        book = self.book.observe(event, time.monotonic(), time.time())
        if book != self.book:
            self._use(book)
            self.apply()
            self._rescan()

    def on_monitor(self, reason: str | None) -> None:
        """The event monitor can't hear (reason), or hears again (None)."""
        book = self.book.monitor_works() if reason is None else self.book.monitor_failed(reason, time.time())
        if reason is not None and self.book.watch_events:
            log.error("health can't be watched", problem=reason)
        if book != self.book:
            self._use(book)
            self.apply()

    def on_stuck(self, seconds: float) -> None:
        """A scan hangs inside the driver: nothing that was known of the GPUs can be trusted."""
        self.on_scan(
            Scan(
                snapshot=replace(self.scan.snapshot, gpus=(), problems=()),
                error=f"NVML has not answered for {seconds:.0f} s: look for hung tasks in the kernel log",
            )
        )

    def try_settings(self, settings: Settings) -> tuple[str, ...]:
        """What this node could not honour of these settings and could of the present ones; () means they may be
        used."""
        new = plan(self.scan.snapshot, settings, self._faults()).errors
        return tuple(error for error in new if error not in self.plan.errors)

    def use_settings(self, settings: Settings) -> None:
        """Goes over to other settings at once."""
        self.settings = settings
        self.book = self.book.with_settings(settings.health)
        self.apply()

    # What goes out

    def apply(self) -> None:
        """Plans anew and publishes what changed."""
        if not self.scanned:
            return
        settings = self.settings
        wanted = plan(self.scan.snapshot, settings, self._faults())
        for error in wanted.errors:
            if error not in self.plan.errors:
                log.error("setting can't be honoured", problem=error)
        for problem in wanted.problems:
            if problem not in self.plan.problems:
                log.warning("problem", text=problem)
        wanted = self._with_shared_faults(wanted)
        self.plan = wanted
        self._write_cdi(wanted)
        served, self._leaving, again = hold_back(
            self._state.world.offers, wanted, self._leaving, time.monotonic()
        )
        matrix = scores(self.scan.snapshot)
        control, given = self.scan.snapshot.control_paths, self._features

        def desk(resource: ResourcePlan) -> Desk:
            return Desk(
                Responder(resource, settings, control, self._cdi_names, given),
                Chooser(resource, matrix, settings.shared_devices_allocation_policy),
            )

        basis = (settings, control, self._cdi_names, given, matrix)
        self._state.publish(settings, self.scan.snapshot, served, desk, basis)
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if again is not None:
            self._again = self._loop.after(max(again, 0.001), self.apply)
        self._published(self._changes(served))

    def _faults(self) -> FaultLookup:
        book, busy = self.book, self.scan.busy

        def fault(uuid: str, gpu_instance: int | None, compute_instance: int | None) -> str | None:
            return book.reason(uuid, gpu_instance, compute_instance)

        def guarded(uuid: str, gpu_instance: int | None, compute_instance: int | None) -> str | None:
            return book.reason(uuid, gpu_instance, compute_instance) or busy.get(uuid)

        return guarded if busy else fault

    def _with_shared_faults(self, wanted: Plan) -> Plan:
        resources = []
        for resource in wanted.resources:
            fault = self._shared_fault(resource) if resource.shared == "mps" else None
            if fault is not None:
                devices = tuple(
                    device if device.fault else replace(device, fault=fault) for device in resource.devices
                )
                resources.append(replace(resource, devices=devices))
            else:
                resources.append(resource)
        return replace(wanted, resources=tuple(resources))

    def _write_cdi(self, wanted: Plan) -> None:
        """The specifications before any answer names something in them."""
        settings = self.settings
        nodes = self.scan.snapshot.feature_nodes
        storage = features.find_storage_files(self.driver_root) if settings.gds_enabled else ()
        self._features = features.given(settings, nodes, storage)
        if not {CDI_ANNOTATIONS, CDI_CRI} & set(settings.device_list_strategy):
            self._cdi_names, self.cdi_problem = frozenset(), None
            return
        basis = (self.driver_root, self.scan.snapshot.driver_version)
        if self._driver_files[0] != basis:
            self._driver_files = (basis, cdi.find_driver_files(*basis))
        gpus = cdi.build(wanted, self.scan.snapshot, settings, self._driver_files[1])
        specifications = (gpus, *cdi.build_features(self._features))
        try:
            if self._cdi_dir not in ("", settings.cdi_spec_dir):
                cdi.remove(self._cdi_dir)  # two directories with the same devices would contradict each other
            self._cdi_dir = settings.cdi_spec_dir
            for specification in specifications:
                cdi.write(settings.cdi_spec_dir, specification)
        except OSError as error:
            problem = f"can't write the CDI specifications into {settings.cdi_spec_dir}: {error.strerror}"
            if problem != self.cdi_problem:
                log.error("CDI", problem=problem)
            self._cdi_names, self.cdi_problem = frozenset(), problem
            return
        self._cdi_names, self.cdi_problem = frozenset().union(*map(cdi.names, specifications)), None

    def _changes(self, served: Plan) -> tuple[HealthChange, ...]:
        """Who became healthy or unhealthy since the last publication, replicas taken together; logged and counted."""
        now: dict[tuple[str, str], str | None] = {}
        first: dict[tuple[str, str], tuple[Device, int]] = {}
        for resource in served.resources:
            for device in resource.devices:
                key = (resource.name, device.uuid)
                if device.fault == LEAVING and key in now:
                    continue  # fewer replicas are no illness (who leaves comes last in the list)
                now[key] = device.fault
                first[key] = (first[key][0], first[key][1] + 1) if key in first else (device, 1)
        changes = []
        for key, fault in now.items():
            before = self._health.get(key)
            known = key in self._health
            if (known and fault == before) or (not known and fault is None):
                continue
            device, count = first[key]
            changes.append(HealthChange(key[0], device.uuid, device.index, fault, before, count))
        self._health = now
        for change in changes:
            if (change.fault is None) != (change.before is None):
                health = "Healthy" if change.fault is None else "Unhealthy"
                self._counters.health_changes.add(change.resource, health, by=change.devices)
            (log.info if change.fault is None else log.warning)(
                "device healthy" if change.fault is None else "device unhealthy",
                resource=change.resource,
                index=change.index,
                uuid=change.uuid,
                reason=change.fault or f"over: {change.before}",
            )
        return tuple(changes)

    # The health book's memory

    def _use(self, book: HealthBook) -> None:
        changed = book.troubles != self.book.troubles
        self.book = book
        if changed:
            self._save_book()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        due = book.next_due()
        if due is not None:
            self._due = self._loop.after(max(_DUE_SECONDS, due - time.monotonic()), self._rescan)

    def _load_book(self) -> HealthBook:
        path = Path(self.settings.state_dir) / HEALTH_FILE
        try:
            text: str | None = path.read_text()
        except (OSError, UnicodeDecodeError):
            text = None
        return load_book(text, self.settings.health, boot_id(), time.monotonic())

    def _save_book(self) -> None:
        text = self.book.to_json(time.monotonic())
        if text == self._saved:
            return
        try:
            write_atomically(Path(self.settings.state_dir) / HEALTH_FILE, text)
            self._saved, self.state_problem = text, None
        except OSError as error:
            problem = f"fatal faults can't be remembered in {self.settings.state_dir}: {error.strerror}"
            if problem != self.state_problem:
                log.error("state", problem=problem)
            self.state_problem = problem
