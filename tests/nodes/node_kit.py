"""A container node and a playbook's run, as the tests of this folder handle them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTBED = ROOT / "tests/testbed/testbed"
VENV_BIN = ROOT / ".venv/bin"


@dataclass(frozen=True)
class Play:
    """What a playbook did: exit code, its text, and the recap's numbers by host."""

    rc: int
    output: str
    recap: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """Changed tasks over all hosts."""
        return sum(host.get("changed", 0) for host in self.recap.values())


def read_recap(output: str) -> dict[str, dict[str, int]]:
    """The lines `host : ok=3 changed=0 ...` after PLAY RECAP."""
    recap = {}
    for line in output.rpartition("PLAY RECAP")[2].splitlines():
        match = re.match(r"(\S+)\s+:\s+(ok=.*)", line)
        if match:
            recap[match[1]] = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match[2])}
    return recap


@dataclass(frozen=True)
class Node:
    """A running container node."""

    name: str

    def run(
        self, command: str, *, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the node as root; text out; raises AssertionError when `check`.

        Not over SSH, as plays are: that takes a quarter of a CPU second each time.
        """
        done = subprocess.run(
            ["docker", "exec", f"gpuops-{self.name}", "sh", "-c", command],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def text(self, command: str) -> str:
        """Standard output of a command that must succeed, stripped."""
        return self.run(command).stdout.strip()

    def gpu(self, *verb: str) -> None:
        """Steer the node's GPUs: `node.gpu("xid", "3", "79")`."""
        subprocess.run(
            [TESTBED, "gpu", self.name, *verb], check=True, capture_output=True, text=True, timeout=60
        )


def newer_plugin(collections: Path, folder: Path) -> Path:
    """A copy of the installed collection, below a folder, whose plugin has another version, and so another image."""
    other = folder / "newer"
    shutil.copytree(collections, other)
    root = other / "ansible_collections/gpuops/k8s"
    for path in ("files/plugin/src/gpu_device_plugin/__init__.py", "roles/device_plugin/vars/main.yml"):
        text = (root / path).read_text()
        assert "0.1.0" in text, f"{path} has another version by now: tell this test"
        (root / path).write_text(text.replace("0.1.0", "0.1.1"))
    return other
