"""kubelet_internal_checkpoint: which container holds which devices, and which ids were healthy last."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "kubelet_internal_checkpoint"


@dataclass(frozen=True, slots=True)
class Entry:
    """One allocation."""

    pod_uid: str
    container: str
    resource: str
    device_ids: Mapping[int, tuple[str, ...]]
    """By NUMA node; -1 (0 before 1.21) for devices without one."""
    response: bytes
    """ContainerAllocateResponse as the plugin sent it."""


def dump(entries: list[Entry], registered: Mapping[str, list[str]]) -> bytes:
    """The file's bytes, in the kubelet's shape. The checksum is ours: a real kubelet would warn and start empty."""
    data = {
        "PodDeviceEntries": [
            {
                "PodUID": entry.pod_uid,
                "ContainerName": entry.container,
                "ResourceName": entry.resource,
                "DeviceIDs": {str(node): list(ids) for node, ids in entry.device_ids.items()},
                "AllocResp": base64.b64encode(entry.response).decode(),
            }
            for entry in entries
        ]
        or None,
        "RegisteredDevices": {name: list(ids) for name, ids in registered.items()},
    }
    text = json.dumps(data, separators=(",", ":"))
    return f'{{"Data":{text},"Checksum":{zlib.crc32(text.encode())}}}'.encode()


def load(content: bytes) -> tuple[list[Entry], list[str]]:
    """(allocations, resource names). Raises ValueError when the file is no checkpoint."""
    try:
        data = json.loads(content)["Data"]
        entries = [
            Entry(
                pod_uid=item["PodUID"],
                container=item["ContainerName"],
                resource=item["ResourceName"],
                device_ids={int(node): tuple(ids) for node, ids in item["DeviceIDs"].items()},
                response=base64.b64decode(item["AllocResp"] or ""),
            )
            for item in data["PodDeviceEntries"] or ()
        ]
        return entries, sorted(data["RegisteredDevices"] or {})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"no checkpoint: {error!r}") from error


def write(directory: Path, content: bytes) -> None:
    """Put it in place in one step. The temporary file is a dot file in the same directory, as the kubelet's is."""
    temporary = directory / f".{FILE_NAME}.{os.getpid()}"
    temporary.write_bytes(content)
    temporary.replace(directory / FILE_NAME)
