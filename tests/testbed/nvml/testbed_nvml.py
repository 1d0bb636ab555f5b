"""Simulated NVIDIA GPUs for tests without a node: a library with NVML's ABI, and a fake /dev, /sys and /proc.

    from testbed_nvml import standin

    def test_lost_gpu():
        with standin(gpus=8, model="H100") as machine:
            machine.xid(3, 79)                 # an XID, heard by every listener within milliseconds
            machine.lose(3)                    # NVML: GPU is lost
            subprocess.run([...], env=machine.environ())

`machine.dev`, `.sys`, `.proc` are directories to hand to what reads devices (`/dev`-like: nvidia0, nvidiactl,
nvidia-caps/; `.sys / "bus/pci/devices"`; `.proc / "driver/nvidia-caps/mig-minors"`). `machine.library` is the .so.
Inside the block this very process can use nvidia-ml-py too: the library is loaded already, under the name that pynvml
asks for, and NVML_STANDIN_STATE points to this machine (the library reads it at every first nvmlInit).

Verbs are those of `World` in world.py: xid, lose, restore, ecc, init_fail, init_ok, mig, remove, add, process,
end_processes, update, edit.

Like the real library: a GPU that is added shows after the next nvmlShutdown + nvmlInit (hotplug="live" for at once); a
lost GPU makes nvmlEventSetWait return GPU_IS_LOST at once, each time, until it is restored or no longer registered.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_nvml
from world import World

__all__ = ["Machine", "standin"]


class Machine(World):
    """A world under a temporary directory, with the library that plays it."""

    def __init__(self, root: Path, library: Path) -> None:
        super().__init__(root / "run/state.json", root / "dev", root / "sys", root / "proc")
        self.root = root
        self.library = library
        self.dev.mkdir(parents=True, exist_ok=True)

    def environ(self, **more: str) -> dict[str, str]:
        """An environment for programs that shall see this machine's GPUs."""
        path = os.environ.get("LD_LIBRARY_PATH")
        return {
            **os.environ,
            "NVML_STANDIN_STATE": str(self.state),
            "LD_LIBRARY_PATH": f"{self.library.parent}{':' + path if path else ''}",
            "PATH": f"{self.library.parent}:{os.environ['PATH']}",
            **more,
        }


@contextlib.contextmanager
def standin(
    gpus: int = 8, model: str | list[str] = "H100", *, numa_nodes: int = 2, seed: str = "test",
    root: Path | None = None, **settings: object,
) -> Iterator[Machine]:  # fmt: skip
    """A machine with `gpus` GPUs of `model` (or one model a GPU when it is a list) for the length of the block.

    `settings` are keys of the state file: driver_version="550.54.15", hotplug="live", init_error=9 ...
    """
    library = build_nvml.build() / "libnvidia-ml.so.1"
    machine_models = list(model) if isinstance(model, list) else [model] * gpus
    directory = Path(root) if root else Path(tempfile.mkdtemp(prefix="nvml-standin-"))
    before = os.environ.get("NVML_STANDIN_STATE")
    machine = Machine(directory, library)
    try:
        machine.start(machine_models, seed, numa_nodes, **settings)
        os.environ["NVML_STANDIN_STATE"] = str(machine.state)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        yield machine
    finally:
        if before is None:
            os.environ.pop("NVML_STANDIN_STATE", None)
        else:
            os.environ["NVML_STANDIN_STATE"] = before
        if root is None:
            shutil.rmtree(directory, ignore_errors=True)
