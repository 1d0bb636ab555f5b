"""NVML opened, closed, and opened again: nvidia-ml-py over the driver's libnvidia-ml.so.1.

The driver may come after the plugin, be upgraded under it, or go away; nothing of that needs a restart. So the
library can be unloaded, which nvidia-ml-py itself does not offer, and it is looked for below the driver root
first.
"""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Any

from .devices import SourceError
from .roots import LIBRARY_FOLDERS

SONAME = "libnvidia-ml.so.1"
GONE = (1, 9, 18)
"""NVML codes after which nothing works until it is opened again: UNINITIALIZED, DRIVER_NOT_LOADED,
LIB_RM_VERSION_MISMATCH (the driver was upgraded under us)."""
NOT_SUPPORTED = (2, 3, 13, 25)
"""INVALID_ARGUMENT, NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH: this GPU or driver hasn't got it."""
LOST = (15, 28)
"""GPU_IS_LOST, GPU_NOT_FOUND."""
TIMEOUT = 10

_ADVICE = {
    9: "load the kernel module (modprobe nvidia), or install the driver",
    12: "install the driver, or set nvidiaDriverRoot to where it is",
    18: "the driver was upgraded under its loaded kernel module: drain the node, then reload the module or reboot",
    4: "the plugin must run as root",
    15: "drain the node and reset the GPU (nvidia-smi --gpu-reset) or reboot",
}


def locate(roots: tuple[str, ...]) -> str | None:
    """The library's path below the first root that has it, None where none has."""
    for root in roots:
        for folder in LIBRARY_FOLDERS:
            path = Path(root) / folder / SONAME
            if path.exists():
                return str(path)
    return None


def describe(error: Exception) -> str:
    """An NVML error in words, with the next step where there is one."""
    code = getattr(error, "value", None)
    text = str(error)
    advice = _ADVICE.get(code) if isinstance(code, int) else None
    return f"{text}: {advice}" if advice else text


class Library:
    """One opening of NVML in this process. Not thread-safe: its owner holds a lock."""

    def __init__(self, roots: tuple[str, ...] = ()) -> None:
        """``roots``: driver roots to look below, as this process sees them, before the loader's own search."""
        self._roots = roots
        self.api: Any = None
        """nvidia-ml-py's module while NVML is open, else None."""
        self.generation = 0
        """Rises with each opening; handles of an older one are dead."""

    @property
    def is_open(self) -> bool:
        """Whether :attr:`api` can be called."""
        return self.api is not None

    def open(self) -> None:
        """Loads and initialises. Raises :class:`SourceError` that says what is wrong and what to do."""
        if self.api is not None:
            return
        import pynvml  # noqa: PLC0415 - 5 MB and 20 ms: only where it is used

        path = locate(self._roots)
        try:
            if pynvml.nvmlLib is None:
                pynvml.nvmlLib = ctypes.CDLL(path or SONAME)
            pynvml.nvmlInit()
        except OSError as error:
            pynvml.nvmlLib = None
            where = f" below {' or '.join(self._roots)}" if self._roots else ""
            raise SourceError(
                f"can't load {path or SONAME}{where}: {error}: install the NVIDIA driver, or set nvidiaDriverRoot to "
                "where it is"
            ) from error
        except pynvml.NVMLError as error:
            self._unload(pynvml)
            raise SourceError(f"NVML can't be initialised: {describe(error)}") from error
        self.api = pynvml
        self.generation += 1

    def close(self) -> None:
        """Shuts NVML down and unloads it, so that the next :meth:`open` meets the driver as it is then."""
        api, self.api = self.api, None
        if api is None:
            return
        with contextlib.suppress(api.NVMLError):
            api.nvmlShutdown()
        self._unload(api)

    @staticmethod
    def _unload(api: Any) -> None:
        library, api.nvmlLib = api.nvmlLib, None
        api._nvmlGetFunctionPointer_cache.clear()
        if library is not None:
            import _ctypes  # noqa: PLC0415

            with contextlib.suppress(OSError):
                _ctypes.dlclose(library._handle)
