"""What the plugin's own tests share: a node in a temporary directory, and the plugin running on it.

`Node` is a directory with the kubelet's places and an embedded kubelet; `Node.plugin(...)` starts the real program
as a process. `LinkUnderTest` runs only state, service and kubelet link, in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from embedded_kubelet import EmbeddedKubelet
from embedded_kubelet import Settings as KubeletFlags
from gpu_device_plugin.config import KubeletSettings, Settings
from gpu_device_plugin.counters import Counters
from gpu_device_plugin.devices import Device, Plan, ResourcePlan, Snapshot
from gpu_device_plugin.kubelet import KubeletLink
from gpu_device_plugin.loop import Loop
from gpu_device_plugin.prefer import Chooser
from gpu_device_plugin.respond import Responder
from gpu_device_plugin.state import Desk, State
from gpu_device_plugin.topology import Scores

GPU = "nvidia.com/gpu"
SOURCE = Path(__file__).resolve().parents[2] / "files/plugin/src"


def wait_until(true: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """The condition's value as soon as it is true; fails after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        value = true()
        if value:
            return value
        assert time.monotonic() < until, f"waited {seconds} s in vain for {what or true}"
        time.sleep(0.002)


def devices(count: int, sick: Sequence[int] = (), resource: str = GPU) -> tuple[Device, ...]:
    """GPU-0, GPU-1 ... of a resource."""
    return tuple(
        Device(
            id=f"GPU-{number}",
            resource=resource,
            uuid=f"GPU-{number}",
            index=str(number),
            gpu_uuid=f"GPU-{number}",
            gpu_index=number,
            paths=(f"/dev/nvidia{number}",),
            fault="XID 79" if number in sick else None,
        )
        for number in range(count)
    )


def plan(**resources: Sequence[Device]) -> Plan:
    """gpu=devices(8) -> nvidia.com/gpu."""
    return Plan(
        resources=tuple(
            ResourcePlan(f"nvidia.com/{name}", tuple(list_)) for name, list_ in sorted(resources.items())
        )
    )


def desk(resource: ResourcePlan) -> Desk:
    """Answers by the defaults."""
    return Desk(Responder(resource, Settings()), Chooser(resource, Scores()))


class LinkUnderTest:
    """The kubelet link with a loop of its own in a thread, offering whatever the test says."""

    def __init__(self, settings: KubeletSettings) -> None:
        self.loop = Loop()
        self.state = State()
        self.counters = Counters()
        self.deaths: list[str] = []
        self.calls: list[Any] = []
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.link: KubeletLink = self.make(settings)
        self.thread.start()

    def make(self, settings: KubeletSettings) -> KubeletLink:
        return KubeletLink(
            self.loop, settings, self.state, self.counters, fatal=self.deaths.append, called=self.calls.append
        )

    def run(self, function: Callable[[], Any]) -> Any:
        """In the loop's thread, and waits for it."""
        done = threading.Event()
        result: list[Any] = []

        def call() -> None:
            try:
                result.append(function())
            finally:
                done.set()

        self.loop.call(call)
        assert done.wait(10), "the loop is stuck"
        return result[0]

    def offer(self, **resources: Sequence[Device]) -> None:
        """Publishes these lists and registers their resources."""

        def call() -> None:
            self.state.publish(Settings(), Snapshot(), plan(**resources), desk)
            self.link.offer(list(self.state.world.offers))

        self.run(call)

    def phase(self, resource: str = GPU) -> str:
        registration = self.link.registrations.get(resource)
        return registration.phase if registration is not None else "none"

    def close(self) -> None:
        self.run(self.link.close)
        self.loop.stop()
        self.thread.join(5)


class Node:
    """A kubelet's directories, and the kubelet."""

    def __init__(self, root: Path, version: str = "1.36", **flags: Any) -> None:
        self.root = root
        self.plugin_dir = root / "device-plugins"
        self.kubelet_root = root / "kubelet"
        self.plugin_dir.mkdir(parents=True, exist_ok=True)
        self.kubelet = EmbeddedKubelet(
            KubeletFlags(
                plugin_dir=self.plugin_dir, root_dir=self.kubelet_root, version=version, seed=1, **flags
            )
        )

    @property
    def settings(self) -> KubeletSettings:
        return KubeletSettings(
            plugin_dir=str(self.plugin_dir),
            pod_resources_dir=str(self.kubelet_root / "pod-resources"),
            plugins_registry_dir=str(self.kubelet_root / "plugins_registry"),
        )

    def own_sockets(self) -> list[str]:
        return sorted(path.name for path in self.plugin_dir.glob("gpuops-*"))

    def flags(self) -> list[str]:
        return [
            f"--kubelet-plugin-dir={self.plugin_dir}",
            f"--kubelet-pod-resources-dir={self.kubelet_root / 'pod-resources'}",
            f"--kubelet-plugins-registry-dir={self.kubelet_root / 'plugins_registry'}",
            f"--run-dir={self.root / 'run'}",
            f"--state-dir={self.root / 'state'}",
        ]


class PluginProcess:
    """The program, as a process. Its log is kept in memory, line by line."""

    def __init__(self, node: Node, environ: dict[str, str], *flags: str) -> None:
        self.node = node
        path = os.pathsep.join(filter(None, (str(SOURCE), environ.get("PYTHONPATH"))))
        self.environ = {**environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpu_device_plugin", "run", *node.flags(), *flags],
            env=self.environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip("\n"))

    def logged(self, *words: str) -> list[str]:
        return [line for line in list(self.log) if all(word in line for word in words)]

    def wait_logged(self, *words: str, seconds: float = 10.0) -> list[str]:
        return wait_until(lambda: self.logged(*words), seconds, f"a log line with {words} in {self.log}")

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gpu_device_plugin", *words, *self.node.flags()],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        return json.loads(self.command("status", "--json").stdout)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 10.0) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.wait()


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a unix socket's 107 bytes; pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="gp-", dir=os.environ.get("TMPDIR", "/tmp")) as name:
        yield Path(name)
