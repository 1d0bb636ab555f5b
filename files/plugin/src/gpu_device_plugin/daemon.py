"""``gpu-device-plugin run``: everything put together, from the first line of the log to the exit code (over 400 lines:
the parts, what passes between them, and their change while they run)."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, logs, mps, sdnotify, turn
from .config import Settings
from .config_load import ConfigError, load
from .counters import Counters
from .devices import ResourcePlan, Snapshot
from .engine import STUCK_SECONDS, Engine, HealthChange, Scan
from .loop import Loop
from .nvml import NvmlSource
from .nvml_events import EventMonitor
from .resources import plan
from .roots import dev_roots, visible_roots
from .scanner import Scanner
from .state import State
from .status import StatusServer, report
from .watch import FileWatch

if TYPE_CHECKING:
    from .apiserver import Reporter
    from .kubelet import KubeletLink
    from .metrics import MetricsServer
    from .mps_supervisor import MpsSupervisor
    from .podresources import PodResources
    from .service import Call

log = logs.Log("daemon")

STUCK_CHECK_SECONDS = 5.0
HUNG_SECONDS = 10.0
"""A loop this far behind follows nothing any more."""
SETTLED_SECONDS = 3.0
"""After this what was made at the start is there to stay."""


def read_file(path: str) -> bytes:
    """For :func:`config_load.load`."""
    return Path(path).read_bytes()


class Daemon:
    """One run."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], settings: Settings) -> None:
        self._argv = argv
        self._environ = environ
        self.settings = settings
        self.loop = Loop()
        self.state = State()
        self.counters = Counters()
        self.config_generation = 1
        self.config_problem: str | None = None
        """Why the newest edit of the config file is not in use."""
        self.code = 0
        self._ready = False
        self.link: KubeletLink | None = None
        self.metrics: MetricsServer | None = None
        self.mps: MpsSupervisor | None = None
        self._mps_swept = False
        self.reporter: Reporter | None = None
        self._pod_resources: PodResources | None = None
        self._watch: FileWatch | None = None
        self._status: StatusServer | None = None
        self.roots = visible_roots(settings.nvidia_driver_root, settings.container_driver_root)
        self.nvml = NvmlSource(self.roots, dev_roots(settings), state_dir=settings.state_dir)
        self.engine = Engine(
            self.loop,
            settings,
            self.state,
            self.counters,
            rescan=self._rescan,
            published=self._published,
            shared_fault=self._mps_fault,
            driver_root=(*self.roots, "/")[0],
        )
        engine, loop = self.engine, self.loop
        self.monitor = EventMonitor(
            self.nvml,
            on_event=lambda event: loop.call(lambda: engine.on_event(event)),
            on_rescan=self._rescan,
            on_state=lambda reason: loop.call(lambda: engine.on_monitor(reason)),
        )
        self.scanner = Scanner(
            self.nvml,
            self.monitor,
            settings,
            scanned=lambda scan: loop.call(lambda: self._scanned(scan)),
            busy=self._busy,
        )

    def run(self) -> int:
        """Until a signal or a fault that only another process can mend; the exit code."""
        self._signals()
        self.scanner.start()  # while the driver answers, grpc is imported
        for warning in self.settings.warnings:
            log.warning("setting without effect", text=warning)
        try:
            self.link = self._make_link(self.settings)
            self._open_metrics(self.settings)
        except OSError as error:
            self.fail(f"can't start: {error}")
        self._open_status()
        self._open_reporter()
        if self.settings.config_file:
            self._watch = FileWatch(self.loop, self.settings.config_file, self.reload)
        self._watchdog()
        self.loop.every(STUCK_CHECK_SECONDS, self._check_stuck)
        self.loop.after(SETTLED_SECONDS, self._settled)
        self.loop.run()
        self._close()
        return self.code

    def _make_link(self, settings: Settings) -> KubeletLink:
        from .kubelet import KubeletLink  # noqa: PLC0415 - brings grpc, while the scanner waits for the driver

        return KubeletLink(
            self.loop,
            settings.kubelet,
            self.state,
            self.counters,
            fatal=self.fail,
            changed=self._tell_status,
            called=self._called,
            after=self.link,
        )

    def fail(self, why: str) -> None:
        """Ends the run with exit code 1; the service manager or the kubelet starts the next."""
        log.error("giving up", problem=why)
        self.code = 1
        self.loop.stop()

    @staticmethod
    def _settled() -> None:
        """Garbage is collected from now on, but not among what the start made: looking through that would hold up an
        answer for 10 ms now and then."""
        gc.freeze()
        gc.enable()

    # Signals and the service manager

    def _signals(self) -> None:
        signal.set_wakeup_fd(self.loop.wake_fd, warn_on_full_buffer=False)

        def stop(number: int, _frame: Any) -> None:
            def end() -> None:
                log.info("stopping", signal=signal.Signals(number).name)
                self.loop.stop()

            self.loop.call(end)

        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGHUP, lambda _number, _frame: self.loop.call(self.reload))

    def _watchdog(self) -> None:
        seconds = sdnotify.watchdog_seconds(self._environ)
        if seconds is not None:
            self.loop.every(seconds / 2, lambda: sdnotify.notify(self._environ, "WATCHDOG=1"))

    def _close(self) -> None:
        sdnotify.notify(self._environ, "STOPPING=1")
        self.scanner.stop()
        self.monitor.stop()
        if self.link is not None:
            self.link.close()
        for part in (self._watch, self._status, self.metrics, self.reporter, self.mps):
            if part is not None:
                part.close()
        log.info("stopped", code=self.code)

    # What happens

    def _rescan(self) -> None:
        self.scanner.ask()

    def _scanned(self, scan: Scan) -> None:
        first = not self.engine.scanned
        if first and scan.error is not None and self.settings.fail_on_init_error:
            self.fail(f"{scan.error} (failOnInitError=false waits for the driver instead)")
            return
        self.engine.on_scan(scan)

    def _check_stuck(self) -> None:
        began = self.scanner.began
        told = (self.engine.nvml_problem or "").startswith("NVML has not answered")
        if began is not None and time.monotonic() - began > STUCK_SECONDS and not told:
            self.engine.on_stuck(time.monotonic() - began)

    def _published(self, changes: tuple[HealthChange, ...]) -> None:
        if self.mps is None and any(one.shared == "mps" for one in self.engine.plan.resources):
            from .mps_supervisor import MpsSupervisor  # noqa: PLC0415

            self.mps = MpsSupervisor(self.loop, self.settings, self.engine.apply, self.roots)
        self._end_mps_of_before()
        if self.mps is not None:
            self.mps.offer([one for one in self.engine.plan.resources if one.shared == "mps"])
        if self.link is not None:
            self.link.offer(list(self.state.world.offers))
        if self.reporter is not None:
            self.reporter.health(changes, self.engine)
        if not self._ready:
            self._ready = True
            sdnotify.notify(self._environ, "READY=1")
        self._tell_status()

    def _end_mps_of_before(self) -> None:
        """Once: resources may have ceased to be shared by MPS while no plugin ran."""
        if self._mps_swept or self.engine.nvml_problem or not self.state.world.snapshot.gpus:
            return
        self._mps_swept = True
        settings, roots = self.settings, self.roots
        shared = {one.name for one in self.engine.plan.resources if one.shared == "mps"}
        names = mps.left(mps.seen_root(settings), shared)
        if names:
            from .mps_supervisor import end_left_daemons  # noqa: PLC0415

            threading.Thread(target=lambda: end_left_daemons(settings, names, roots), daemon=True).start()

    def _mps_fault(self, resource: ResourcePlan) -> str | None:
        if self.mps is None:
            return "its MPS control daemon is being started"
        return self.mps.problem(resource.name)

    def _tell_status(self) -> None:
        if "NOTIFY_SOCKET" not in self._environ or self.link is None:
            return
        parts = []
        for name, offer in self.state.world.offers.items():
            healthy = sum(1 for device in offer.plan.devices if device.healthy)
            parts.append(f"{name} {healthy}/{len(offer.plan.devices)} healthy")
        ready, why = self.readiness()
        sdnotify.notify(
            self._environ, f"STATUS={'; '.join(parts) or 'no devices'}; {'registered' if ready else why}"
        )

    def _called(self, call: Call) -> None:
        if call.method == "Allocate":
            (log.info if call.code == "OK" else log.warning)(
                "allocated" if call.code == "OK" else "allocation refused",
                resource=call.resource,
                ids=list(call.ids),
                **({"code": call.code, "problem": call.text} if call.code != "OK" else {}),
                milliseconds=call.seconds * 1e3,
            )
        elif call.code != "OK":
            log.error("call failed", resource=call.resource, method=call.method, problem=call.text)

    def readiness(self) -> tuple[bool, str]:  # noqa: PLR0911 - each return is another reason
        """Whether every resource is registered and listed and nothing is wrong with the settings, and if not, why."""
        if not self.engine.scanned:
            return False, "the devices have not been looked at yet"
        if self.engine.nvml_problem and not self.state.world.offers:
            return False, self.engine.nvml_problem
        if self.engine.plan.errors:
            return False, self.engine.plan.errors[0]
        if self.link is None:
            return False, "not started"
        registrations = self.link.registrations
        for name in list(self.state.world.offers):
            registration = registrations.get(name)
            if registration is None:
                return False, f"{name}: not registered yet"
            if registration.phase != "listed":
                return False, f"{name}: {registration.problem or registration.phase}"
        return True, ""

    def liveness(self) -> tuple[bool, str]:
        """Whether the loop, which decides everything, still turns. An NVML call that hangs is no reason: it has a
        thread of its own, its GPUs are Unhealthy meanwhile, and a process that hangs in the driver can't be killed."""
        late = self.loop.late()
        if late > HUNG_SECONDS:
            return False, f"the plugin's loop has not turned for {late:.0f} s: it has to be started again"
        return True, ""

    # Settings

    def reload(self) -> None:
        """Reads the settings again; uses them, or keeps the old ones and says why."""
        try:
            new = load(self._argv, self._environ, read_file)
        except ConfigError as error:
            self._refuse([str(fault) for fault in error.faults])
            return
        if new == self.settings and self.config_problem is None:
            log.info("config file read, nothing changed", file=self.settings.config_file)
            return
        errors = self.engine.try_settings(new)
        if errors:
            self._refuse(list(errors))
            return
        old = self.settings
        try:
            self._replace_parts(old, new)
        except OSError as error:
            self._refuse([f"can't be used: {error}"])
            return
        self.settings = new
        self.config_generation += 1
        self.config_problem = None
        self.counters.config_reloads.add("applied")
        logs.setup(new.log_format, new.log_level)
        for warning in new.warnings:
            if warning not in old.warnings:
                log.warning("setting without effect", text=warning)
        self._restart_parts(old, new)
        self.engine.use_settings(new)
        self.scanner.use_settings(new)
        log.info("config file applied", file=new.config_file, generation=self.config_generation)

    def _refuse(self, faults: list[str]) -> None:
        self.config_problem = "; ".join(faults)
        self.counters.config_reloads.add("refused")
        for fault in faults:
            log.error("config file refused, the old settings stay", problem=fault)

    def _replace_parts(self, old: Settings, new: Settings) -> None:
        """Parts that may not be had: each is made before the one that it replaces is given up. Raises OSError, with all
        of them as they were."""
        link = None
        if self.link is not None and old.kubelet != replace(
            new.kubelet, pod_resources_dir=old.kubelet.pod_resources_dir
        ):
            link = self._make_link(new)
        if old.metrics_address != new.metrics_address:
            try:
                self._open_metrics(new)  # perhaps the same port: the old server has to go first
            except OSError:
                if link is not None:
                    link.close()
                with contextlib.suppress(OSError):
                    self._open_metrics(old)
                raise
        if link is not None and self.link is not None:
            self.link.close()
            self.link = link
            link.offer(list(self.state.world.offers))

    def _restart_parts(self, old: Settings, new: Settings) -> None:
        """Other parts that settings reach only when they are made."""
        if old.kubelet.pod_resources_dir != new.kubelet.pod_resources_dir:
            self._pod_resources = None
        if (old.nvidia_driver_root, old.container_driver_root, old.nvidia_dev_root) != (
            new.nvidia_driver_root,
            new.container_driver_root,
            new.nvidia_dev_root,
        ):
            self.roots = visible_roots(new.nvidia_driver_root, new.container_driver_root)
            self.engine.driver_root = (*self.roots, "/")[0]
            roots, places = self.roots, dev_roots(new)
            threading.Thread(target=lambda: self.nvml.move(roots, places), daemon=True).start()
        if old.run_dir != new.run_dir:
            self._open_status()
        if (old.events, old.node_name) != (new.events, new.node_name):
            self._open_reporter()
        if self.mps is not None and old.mps_root != new.mps_root:
            self.mps.offer([])  # its daemons' pipes are where nobody will look for them
            self.mps = None

    # Parts

    def _open_status(self) -> None:
        if self._status is not None:
            self._status.close()
            self._status = None
        try:
            self._status = StatusServer(self.loop, self.settings.run_dir, lambda: report(self))
        except OSError as error:  # GPUs can be served without
            log.warning("`status` can't be answered", problem=str(error))

    def _open_metrics(self, settings: Settings) -> None:
        if self.metrics is not None:
            self.metrics.close()
            self.metrics = None
        if settings.metrics_address:
            from .metrics import MetricsServer  # noqa: PLC0415 - 8 MB, only where it is asked for

            self.metrics = MetricsServer(settings.metrics_address, self)

    def _open_reporter(self) -> None:
        if self.reporter is not None:
            self.reporter.close()
            self.reporter = None
        if self.settings.events and self.settings.node_name:
            from .apiserver import Reporter  # noqa: PLC0415

            self.reporter = Reporter(self.settings.node_name, self.counters)

    def pod_resources(self) -> PodResources:
        """Who holds what; may block up to two seconds: not in the loop."""
        if self._pod_resources is None:
            from .podresources import PodResources  # noqa: PLC0415

            self._pod_resources = PodResources(self.settings.kubelet.pod_resources_dir)
        return self._pod_resources

    def _busy(self, snapshot: Snapshot) -> Mapping[str, str]:
        from .guard import occupied  # noqa: PLC0415

        return occupied(self.nvml, snapshot, plan(snapshot, self.settings), self.pod_resources())


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Reads the settings and runs. Exit codes: 0 stopped by a signal, 1 could not go on, 2 settings refused."""
    logs.setup()
    try:
        settings = load(argv, environ, read_file)
    except ConfigError as error:
        for fault in error.faults:
            log.error("setting refused", problem=str(fault))
        return 2
    logs.setup(settings.log_format, settings.log_level)
    log.info("starting", version=__version__, pid=os.getpid(), config=settings.config_file or "none")
    turn.wait(settings.run_dir)
    return Daemon(argv, environ, settings).run()
