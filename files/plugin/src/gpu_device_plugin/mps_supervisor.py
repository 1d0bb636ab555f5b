"""Keeps an MPS control daemon running for every resource that is shared by MPS.

A daemon outlives the plugin: jobs run through it, so a plugin that restarts finds it by its pid file, asks whether it
answers, and takes it over. It is ended only when its resource is no longer offered, and in a pod at the plugin's end,
since nothing outlives a container: then there is time to put the GPUs' compute mode back. While a daemon does not
answer, the resource's devices are Unhealthy. One thread a resource; the loop only hears of changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import logs, mps
from .config import Settings
from .devices import ResourcePlan
from .loop import Loop
from .roots import PROGRAM_FOLDERS

log = logs.Log("mps")

BINARY = "nvidia-cuda-mps-control"
NVIDIA_SMI = "nvidia-smi"
SHM = "/dev/shm"  # noqa: S108 - the host's, which the daemon uses
EXCLUSIVE, DEFAULT = "EXCLUSIVE_PROCESS", "DEFAULT"
"""Compute modes, nvidia-smi(1). Exclusive: only the MPS server opens the GPU, so no client can pass it by."""
ANSWER_SECONDS = 10.0
"""How long a command to the daemon, or its start, may take."""
CLOSE_SECONDS = 20.0
"""How long the end of a plugin in a pod may take; the pod's terminationGracePeriodSeconds is more."""
POLL_SECONDS = 1.0
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0)


class MpsError(Exception):
    """What keeps a daemon from running, and the next step."""


def find_binary(roots: Sequence[str], name: str = BINARY) -> str | None:
    """A program of the driver (the control binary): in PATH, else below a driver root as this process sees it."""
    found = shutil.which(name)
    if found:
        return found
    for root in roots:
        for folder in PROGRAM_FOLDERS:
            path = Path(root) / folder / name
            if os.access(path, os.X_OK):
                return str(path)
    return None


def needed(program: str | None, name: str) -> str:
    """The program as it was found. Raises :class:`MpsError` where it was not."""
    if program is None:
        raise MpsError(f"{name} is neither in PATH nor below the driver root: install the driver's MPS tools")
    return program


def told(command: Sequence[str], said: str = "", **how: Any) -> str:
    """Runs a program of the driver to its end within ANSWER_SECONDS; what it printed, both streams together. ``said``
    goes to its standard input, ``how`` to subprocess.run. Raises :class:`MpsError`, also where its exit code is not
    0."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **how}
    options |= {"input": said} if said else {"stdin": subprocess.DEVNULL}
    try:
        done = subprocess.run(command, timeout=ANSWER_SECONDS, text=True, check=False, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MpsError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        last = (done.stdout or "").strip()[-300:]
        raise MpsError(f"{' '.join(command)} exited {done.returncode}{f': {last}' if last else ''}")
    return done.stdout or ""


class ControlDaemon:
    """One daemon, for one resource."""

    def __init__(self, resource: ResourcePlan, root: str, binary: str | None, nvidia_smi: str | None) -> None:
        self.resource = resource
        self._nvidia_smi = nvidia_smi
        self._root = root
        self._binary = binary
        self._pipes = mps.pipe_directory(root, resource.name)
        self._exclusive = Path(mps.exclusive_file(root, resource.name))
        self._environment = {**os.environ, **mps.daemon_environment(root, resource)}

    def pid(self) -> int | None:
        """Of the daemon that runs, None where none does: a zombie does not run, and a process of another name has got
        the number of one that is dead."""
        try:
            pid = int((Path(self._pipes) / f"{BINARY}.pid").read_text().split()[0])
            named, _unused, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except (OSError, ValueError, IndexError):
            return None
        name = named.partition("(")[2]  # at most 15 characters of it
        return pid if name and BINARY.startswith(name) and rest.split()[0] not in "ZX" else None

    def tell(self, *commands: str) -> str:
        """Sends commands, returns what was answered. Raises :class:`MpsError`."""
        lines = "".join(f"{command}\n" for command in commands)
        return told([needed(self._binary, BINARY)], lines, env=self._environment)

    def start(self) -> bool:
        """Makes it run with this resource's limits; whether it had to be started. Raises :class:`MpsError`."""
        started = self.pid() is None
        if started:
            self._launch()
        self.tell(*mps.control_commands(self.resource))
        return started

    def _launch(self) -> None:
        """Compute mode, the daemon, its pid file. What it prints goes nowhere: it would hold a pipe open for ever."""
        command = [needed(self._binary, BINARY), "-d"]
        self._make_directories()
        gpus = sorted({device.gpu_uuid for device in self.resource.devices if device.gpu_uuid})
        try:
            self._exclusive.write_text("".join(f"{uuid}\n" for uuid in gpus))
        except OSError as error:
            raise MpsError(f"can't write {self._exclusive}: {error.strerror}") from error
        self._compute_mode(EXCLUSIVE, gpus)
        silent: dict[str, Any] = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "start_new_session": True,
        }
        try:
            told(command, env=self._environment, **silent)
        except MpsError as error:
            logs_at = mps.log_directory(self._root, self.resource.name)
            raise MpsError(f"{error}: see {logs_at}/control.log") from error
        until = time.monotonic() + ANSWER_SECONDS
        while self.pid() is None:
            if time.monotonic() > until:
                raise MpsError(f"{command[0]} -d left no daemon behind within {ANSWER_SECONDS:.0f} s")
            time.sleep(0.02)

    def quit(self) -> None:
        """Ends it, and puts the GPUs' compute mode back; clients that still run are told by MPS. What fails is logged,
        and is tried again by :func:`end_left_daemons` of the next start."""
        try:
            if self.pid() is not None:
                self.tell("quit")
            self._compute_mode(DEFAULT, self._exclusive.read_text().split())
            self._exclusive.unlink()
        except FileNotFoundError:
            pass
        except (MpsError, OSError) as error:
            log.error("MPS control daemon not ended", resource=self.resource.name, problem=str(error))

    def end_with_container(self) -> None:
        """The container ends and the daemon with it, whatever its clients do: first the compute mode, while there is
        time, then the daemon. What fails is logged, and is tried again by the next plugin of this node."""
        try:
            gpus = self._exclusive.read_text().split()
            with ThreadPoolExecutor(max(1, len(gpus))) as pool:  # nvidia-smi takes a second or two for each
                list(pool.map(lambda uuid: self._compute_mode(DEFAULT, [uuid]), gpus))
            self._exclusive.unlink()
            if self.pid() is not None:
                self.tell("quit")
        except FileNotFoundError:
            pass
        except (MpsError, OSError) as error:
            log.error("MPS not ended in order", resource=self.resource.name, problem=str(error))

    def _compute_mode(self, mode: str, gpus: Sequence[str]) -> None:
        """As the peer does. Raises :class:`MpsError`."""
        program = needed(self._nvidia_smi, NVIDIA_SMI)
        for uuid in gpus:
            told([program, "-i", uuid, "-c", mode])

    def _make_directories(self) -> None:
        try:
            for directory in (self._pipes, mps.log_directory(self._root, self.resource.name)):
                Path(directory).mkdir(parents=True, exist_ok=True)
            Path(self._pipes).chmod(0o777)  # clients run as any user
            shm = Path(mps.shm_directory(self._root))
            if not shm.exists():
                # Clients get this mounted over /dev/shm; on the host it must be the one that the daemon uses.
                shm.symlink_to(SHM)
            elif self._root != mps.CONTAINER_ROOT and not shm.samefile(SHM):
                raise MpsError(
                    f"{shm} is not the node's {SHM}, so clients could not reach the daemon: take NVIDIA's "
                    f"mps-control-daemon off the node, end its clients, then umount {shm} and remove it"
                )
        except OSError as error:
            raise MpsError(f"can't make the MPS directories: {error}") from error


def end_left_daemons(settings: Settings, names: Sequence[str], roots: Sequence[str] = ()) -> None:
    """Ends what an earlier process left running for these resources (:func:`mps.left`). May take seconds."""
    binary, nvidia_smi = find_binary(roots), find_binary(roots, NVIDIA_SMI)
    for name in names:
        log.info("ending what MPS left", resource=name)
        ControlDaemon(ResourcePlan(name), mps.seen_root(settings), binary, nvidia_smi).quit()


class _Stop(threading.Event):
    """Ends a keeper's thread."""

    keep_daemon = False
    """The daemon itself goes on."""
    container_ends = False
    """The daemon is about to be killed."""


class MpsSupervisor:
    """All daemons of this node. Methods run in the loop's thread."""

    def __init__(
        self, loop: Loop, settings: Settings, changed: Callable[[], None], roots: Sequence[str] = ()
    ) -> None:
        """``changed`` is called in the loop whenever :meth:`problem` answers differently."""
        self._loop = loop
        self._root = mps.seen_root(settings)
        self._binary = find_binary(roots)
        self._nvidia_smi = find_binary(roots, NVIDIA_SMI)
        self._changed = changed
        self._problems: dict[str, str | None] = {}
        self._stops: dict[str, _Stop] = {}
        self._keepers: dict[str, threading.Thread] = {}
        self._signs: dict[str, object] = {}

    def problem(self, resource: str) -> str | None:
        """Why the resource can't be used right now; None while its daemon answers."""
        return self._problems.get(resource, "its MPS control daemon is being started")

    def offer(self, resources: Sequence[ResourcePlan]) -> None:
        """Runs a daemon for each of these, ends those of others, and tells new limits."""
        wanted = {resource.name: resource for resource in resources if resource.devices}
        for name in [name for name in self._stops if name not in wanted]:
            self._stops.pop(name).set()
            self._problems.pop(name, None)
            self._signs.pop(name, None)
        for name, resource in wanted.items():
            sign = tuple((device.id, device.memory_bytes) for device in resource.devices)
            if self._signs.get(name) == sign:
                continue
            if name in self._stops:  # other limits: the daemon stays, the thread that keeps it is another
                self._stops[name].keep_daemon = True
                self._stops[name].set()
            self._signs[name] = sign
            stop = self._stops[name] = _Stop()
            daemon = ControlDaemon(resource, self._root, self._binary, self._nvidia_smi)
            keeper = threading.Thread(target=self._keep, args=(daemon, stop), name="mps", daemon=True)
            self._keepers[name] = keeper
            keeper.start()

    def close(self) -> None:
        """Lets go of the daemons; they go on, since jobs may run through them. In a pod they can't: there it waits,
        CLOSE_SECONDS at most, until they are ended and the GPUs' compute mode is put back."""
        in_pod = self._root == mps.CONTAINER_ROOT
        for stop in self._stops.values():
            stop.container_ends = in_pod
            stop.keep_daemon = not in_pod
            stop.set()
        until = time.monotonic() + CLOSE_SECONDS
        for name in self._stops if in_pod else ():
            self._keepers[name].join(max(0.0, until - time.monotonic()))

    def _keep(self, daemon: ControlDaemon, stop: _Stop) -> None:
        name = daemon.resource.name
        failures = 0
        while not stop.is_set():
            try:
                started = daemon.start()
            except MpsError as error:
                self._tell(name, stop, str(error))
                stop.wait(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
                failures += 1
                continue
            log.info(
                "MPS control daemon " + ("started" if started else "taken over"),
                resource=name,
                pid=daemon.pid(),
            )
            self._tell(name, stop, None)
            began = time.monotonic()
            while not stop.wait(POLL_SECONDS) and daemon.pid() is not None:
                pass
            if not stop.is_set():
                failures = 0 if time.monotonic() - began > BACKOFF_SECONDS[-1] else failures + 1
                self._tell(name, stop, "its MPS control daemon died and is being started again")
                stop.wait(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1])
        if stop.container_ends:
            daemon.end_with_container()
        elif not stop.keep_daemon:
            daemon.quit()
        if not stop.keep_daemon:
            log.info("MPS control daemon ended", resource=name)

    def _tell(self, name: str, stop: _Stop, problem: str | None) -> None:
        def in_loop() -> None:
            if self._stops.get(name) is stop and self.problem(name) != problem:
                self._problems[name] = problem
                if problem is not None:
                    log.error("MPS", resource=name, problem=problem)
                self._changed()

        self._loop.call(in_loop)
