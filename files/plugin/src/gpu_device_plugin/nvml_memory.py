"""Who the GPUs of this boot are, kept over restarts of the plugin: NVML tells nothing of a lost GPU, not even
its UUID, and it has to stay listed all the same (K19)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import logs
from .devices import Gpu, MigSlice
from .files import boot_id, write_atomically

log = logs.Log("nvml")

FILE = "gpus.json"


def _gpu(values: dict[str, Any]) -> Gpu:
    slices = tuple(
        MigSlice(**{**one, "capability_paths": tuple(one["capability_paths"])}) for one in values["slices"]
    )
    capability = values["compute_capability"]
    return Gpu(
        **{
            **values,
            "slices": slices,
            "paths": tuple(values["paths"]),
            "compute_capability": None if capability is None else (int(capability[0]), int(capability[1])),
            "fault": None,
        }
    )


class Memory:
    """The file, and what it said last."""

    def __init__(self, directory: str | None) -> None:
        """None: nothing is kept."""
        self._path = Path(directory) / FILE if directory else None
        self._kept: tuple[Gpu, ...] = ()

    def load(self) -> tuple[Gpu, ...]:
        """GPUs of this boot; none where there is no file, a broken one, or one of another boot. Never raises."""
        if self._path is None:
            return ()
        try:
            content = json.loads(self._path.read_text())
            if content["boot_id"] != boot_id():
                return ()
            self._kept = tuple(_gpu(values) for values in content["gpus"])
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            log.warning("what was known of the GPUs is lost", file=self._path, problem=str(error))
            return ()
        return self._kept

    def keep(self, gpus: Iterable[Gpu]) -> None:
        """Writes them down when they are others than before. A disk that refuses costs nothing but the memory."""
        now = tuple(replace(gpu, fault=None) for gpu in gpus)
        if self._path is None or now == self._kept:
            return
        text = json.dumps({"boot_id": boot_id(), "gpus": [asdict(gpu) for gpu in now]})
        try:
            write_atomically(self._path, text)
        except OSError as error:
            log.debug("GPUs not written down", file=self._path, problem=str(error))
        self._kept = now
