"""Our device plugin as a process of its own, on simulated GPUs: for the cases, the benchmark and the soak test."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import yaml
from gpu_device_plugin.status import NotRunning, ask
from testbed_nvml import Machine

PACKAGES = sysconfig.get_path("purelib")
SOURCES = Path(__file__).resolve().parents[2] / "files/plugin/src"


def accepts(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def remove_directory(path: Path) -> None:
    """Take it away in one step: a plugin may be making a socket in it at this moment."""
    aside = path.with_name(f"{path.name}.gone")
    path.rename(aside)
    while aside.exists():
        shutil.rmtree(aside, ignore_errors=True)


class PluginProcess:
    """Starts, dies and comes back; keeps its directories between runs, as a node does."""

    def __init__(
        self,
        plugin_dir: Path,
        root_dir: Path,
        machine: Machine,
        *flags: str,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="gp-", dir="/tmp"))
        self.plugin_dir = plugin_dir
        self.machine = machine
        self.log = self.base / "log"
        self.config_file = self.base / "config.yaml"
        self.run_dir = self.base / "run"
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = [
            f"--kubelet-plugin-dir={plugin_dir}",
            f"--kubelet-pod-resources-dir={root_dir / 'pod-resources'}",
            f"--kubelet-plugins-registry-dir={root_dir / 'plugins_registry'}",
            f"--nvidia-dev-root={machine.root}",
            f"--state-dir={self.base / 'state'}",
            f"--run-dir={self.run_dir}",
            f"--cdi-spec-dir={self.base / 'cdi'}",
            *flags,
        ]
        if config is not None:
            self.configure(config)
            self._arguments.append(f"--config-file={self.config_file}")

    def configure(self, config: dict[str, Any]) -> None:
        """Write the config file, in one step."""
        temporary = self.config_file.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump({"version": "v1", **config}))
        temporary.replace(self.config_file)

    def start(self) -> PluginProcess:
        """Go; nothing is waited for. As on a node: no site-packages with .pth files to read first."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-m", "gpu_device_plugin", "run", *self._arguments],
                stdout=log,
                stderr=log,
                env=self.machine.environ(PYTHONPATH=f"{SOURCES}:{PACKAGES}"),
            )
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self, seconds: float = 10.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self.process is not None
        return self.process.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def status(self) -> dict[str, Any]:
        """What ``status --json`` prints; empty while it can't be asked."""
        try:
            return dict(ask(str(self.run_dir)))
        except (NotRunning, OSError):
            return {}

    def sockets(self) -> list[Path]:
        """Sockets in the kubelet's directory that a process of ours listens on."""
        return sorted(path for path in self.plugin_dir.glob("gpuops-*") if accepts(path))

    def threads(self) -> int:
        """Kernel threads."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def thread_names(self) -> dict[str, int]:
        """How many kernel threads of each name."""
        names = [(task / "comm").read_text().strip() for task in Path(f"/proc/{self.pid}/task").iterdir()]
        return {name: names.count(name) for name in sorted(set(names))}

    def files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory(self) -> dict[str, int]:
        """Bytes: rss, pss, uss."""
        values = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in values:
                values[name] = int(rest.split()[0]) * 1024
        uss = values["Private_Clean"] + values["Private_Dirty"]
        return {"rss": values["Rss"], "pss": values["Pss"], "uss": uss}

    def tail(self, lines: int = 20) -> str:
        """Of the log."""
        return "\n".join(self.log.read_text().splitlines()[-lines:]) if self.log.exists() else ""

    def close(self) -> None:
        """End it, whatever its state, and forget its directories."""
        if self.alive():
            self.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    def __enter__(self) -> PluginProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
