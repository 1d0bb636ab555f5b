# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask NVML through ctypes, in a child process with a deadline: a sick driver can hang or crash its caller.

Numbers and structures are those of NVIDIA's nvml.h. Nothing is written and no context is made on a GPU.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import time
from typing import Any, Callable, Dict, List, Optional

LIBRARY = "libnvidia-ml.so.1"

SUCCESS = 0
ERROR_NOT_SUPPORTED = 3
ERROR_NOT_FOUND = 6
ERROR_GPU_IS_LOST = 15
ERROR_LIB_RM_VERSION_MISMATCH = 18
_NO_VALUE = 0xFFFFFFFFFFFFFFFF


class NvmlError(Exception):
    """NVML could not be asked at all. ``code`` is NVML's, None where there is no answer."""

    def __init__(self, text: str, code: Optional[int] = None) -> None:
        super().__init__(text)
        self.code = code


class _Pci(ctypes.Structure):
    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


def normal_bus_id(text: str) -> str:
    """``00000000:18:00.0`` as sysfs writes it: ``0000:18:00.0``."""
    text = text.strip().lower()
    domain, colon, rest = text.partition(":")
    return f"{int(domain, 16):04x}:{rest}" if colon and rest.count(":") == 1 else text


def _text(call: Callable[..., int], *handle: Any) -> Optional[str]:
    buffer = ctypes.create_string_buffer(128)
    if call(*handle, buffer, ctypes.c_uint(128)) != SUCCESS:
        return None
    return buffer.value.decode("utf-8", "replace")


def _number(call: Callable[..., int], *handle: Any) -> Optional[int]:
    value = ctypes.c_uint()
    return value.value if call(*handle, ctypes.byref(value)) == SUCCESS else None


def _processes(library: Any, handle: Any) -> List[Dict[str, int]]:
    try:
        call = library.nvmlDeviceGetComputeRunningProcesses_v3
    except AttributeError:
        return []
    count = ctypes.c_uint(1024)
    rows = (_Process * 1024)()
    if call(handle, ctypes.byref(count), rows) != SUCCESS:
        return []
    return [
        {"pid": row.pid, "memory_bytes": 0 if row.memory == _NO_VALUE else row.memory}
        for row in rows[: count.value]
    ]


def _slices(library: Any, handle: Any) -> List[Dict[str, Any]]:
    found = []
    for index in range(_number(library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        mig = ctypes.c_void_p()
        if library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index, ctypes.byref(mig)) != SUCCESS:
            continue
        name = _text(library.nvmlDeviceGetName, mig) or ""
        found.append(
            {
                "index": index,
                "uuid": _text(library.nvmlDeviceGetUUID, mig),
                "profile": name.rpartition("MIG ")[2] or None,
            }
        )
    return found


def _mig_enabled(library: Any, handle: Any) -> bool:
    current, pending = ctypes.c_uint(), ctypes.c_uint()
    rc = library.nvmlDeviceGetMigMode(handle, ctypes.byref(current), ctypes.byref(pending))
    return bool(rc == SUCCESS and current.value == 1)


def _gpu(library: Any, index: int, error: Callable[[int], str], processes: bool) -> Dict[str, Any]:
    gpu: Dict[str, Any] = {"index": index, "uuid": None, "fault": None}
    handle = ctypes.c_void_p()
    rc = library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    if rc != SUCCESS:
        gpu["fault"] = error(rc)
        return gpu
    gpu["uuid"] = _text(library.nvmlDeviceGetUUID, handle)
    gpu["name"] = _text(library.nvmlDeviceGetName, handle)
    gpu["minor"] = _number(library.nvmlDeviceGetMinorNumber, handle)
    pci = _Pci()
    if library.nvmlDeviceGetPciInfo_v3(handle, ctypes.byref(pci)) == SUCCESS:
        gpu["pci_bus_id"] = normal_bus_id(pci.bus_id.decode("ascii", "replace"))
    memory = _Memory()
    rc = library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    if rc == SUCCESS:
        gpu["memory_bytes"] = memory.total
        gpu["memory_used_bytes"] = memory.used
    elif rc not in (ERROR_NOT_SUPPORTED, ERROR_NOT_FOUND):
        gpu["fault"] = error(rc)
    major, minor = ctypes.c_int(), ctypes.c_int()
    if (
        library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
        == SUCCESS
    ):
        gpu["compute_capability"] = f"{major.value}.{minor.value}"
    gpu["mig_enabled"] = _mig_enabled(library, handle)
    gpu["mig_devices"] = _slices(library, handle) if gpu["mig_enabled"] else []
    if processes:
        gpu["processes"] = _processes(library, handle)
    return gpu


def _ask(path: str, processes: bool) -> Dict[str, Any]:
    """Everything at once; runs in the child."""
    try:
        library = ctypes.CDLL(path)
    except OSError as problem:
        return {"error": str(problem), "code": None}
    library.nvmlErrorString.restype = ctypes.c_char_p

    def error(code: int) -> str:
        text = library.nvmlErrorString(code)
        return f"{(text or b'?').decode('utf-8', 'replace')} (NVML {code})"

    rc = library.nvmlInit_v2()
    if rc != SUCCESS:
        return {"error": error(rc), "code": rc}
    try:
        cuda = _number(library.nvmlSystemGetCudaDriverVersion_v2) or 0
        return {
            "driver_version": _text(library.nvmlSystemGetDriverVersion),
            "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            "library_file": _loaded_file(),
            "gpus": [
                _gpu(library, index, error, processes)
                for index in range(_number(library.nvmlDeviceGetCount_v2) or 0)
            ],
        }
    finally:
        library.nvmlShutdown()


def _loaded_file() -> Optional[str]:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = (line.split()[-1] for line in maps if "libnvidia-ml" in line)
        return next((os.path.realpath(path) for path in paths), None)


def ask(
    path: str = LIBRARY,
    timeout: float = 15.0,
    processes: bool = False,
    ask_in_child: Callable[[str, bool], Any] = _ask,
) -> Dict[str, Any]:
    """GPUs by index with driver_version, cuda_version and library_file.

    ``timeout`` in seconds. Raises NvmlError: library missing, init failed, no answer in time, library crashed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # only async-signal-safe company here: no locks of the parent are touched
        os.close(reader)
        try:
            answer = json.dumps(ask_in_child(path, processes)).encode()
        except Exception as problem:  # noqa: BLE001  the parent tells it
            answer = json.dumps({"error": repr(problem), "code": None}).encode()
        with os.fdopen(writer, "wb") as stream:
            stream.write(answer)
        os._exit(0)
    os.close(writer)
    try:
        raw = _read_until(reader, time.monotonic() + timeout)
    finally:
        os.close(reader)
        if os.waitpid(child, os.WNOHANG)[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if raw is None:
        raise NvmlError(f"NVML did not answer within {timeout:g} s")
    try:
        found: Dict[str, Any] = json.loads(raw)
    except ValueError as problem:
        raise NvmlError("the NVML library crashed") from problem
    if "error" in found:
        raise NvmlError(found["error"], found["code"])
    return found


def _read_until(reader: int, deadline: float) -> Optional[bytes]:
    """Everything up to the end of the pipe; None when the deadline (monotonic) comes first."""
    chunks: List[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return None
        chunk = os.read(reader, 65536)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
