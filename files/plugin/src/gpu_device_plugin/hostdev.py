"""Host device files as a source of devices: InfiniBand, FPGA, NIC, /dev/dri, whatever has a node and no plugin
of its own."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from .config import HostDeviceRule
from .devices import HostDevice, Snapshot

_NUMBER = re.compile(r"(\d+)(?!.*\d)")


def _number(path: str) -> str | None:
    """The last number in a file's name: what ``uverbs3``, ``issm3`` and ``umad3`` share."""
    found = _NUMBER.search(os.path.basename(path))
    return found.group(1) if found else None


def natural(path: str) -> list[tuple[int, int | str]]:
    """Sorts ``renderD9`` before ``renderD10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", path) if part]


def _is_device(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


class HostDeviceSource:
    """Scans for the files that the settings' rules name."""

    def __init__(self, rules: Iterable[HostDeviceRule], root: str = "", sysfs: str = "/sys") -> None:
        """``root`` stands before every pattern where the host's files are mounted below another directory."""
        self._rules = tuple(rules)
        self._root = root.rstrip("/")
        self._sysfs = sysfs
        self._seen: dict[str, HostDevice] = {}

    def scan(self) -> Snapshot:
        """One look. A device whose file is gone stays listed as Unhealthy for as long as the plugin runs, since
        a pod may hold it (K19). Rules that match nothing are problems, not errors: the driver may come later."""
        found: dict[str, HostDevice] = {}
        problems: list[str] = []
        for rule in self._rules:
            devices = self._group(rule) if rule.group else self._single(rule)
            if not devices:
                problems.append(
                    f"{rule.resource}: no device file matches {', '.join(rule.paths)}"
                    + (f" ({rule.where})" if rule.where else "")
                )
            for device in devices:
                found.setdefault(device.id, device)
        for identity, device in self._seen.items():
            if identity not in found and any(device.resource == rule.resource for rule in self._rules):
                missing = next((path for path in device.paths if not self._there(path)), device.paths[0])
                found[identity] = HostDevice(
                    resource=device.resource,
                    id=device.id,
                    paths=device.paths,
                    permissions=device.permissions,
                    numa_node=device.numa_node,
                    replicas=device.replicas,
                    fault=f"{missing} is gone",
                )
        self._seen = {
            identity: device if device.fault is None else self._seen[identity]
            for identity, device in found.items()
        }
        ordered = sorted(found.values(), key=lambda device: (device.resource, natural(device.id)))
        return Snapshot(host_devices=tuple(ordered), problems=tuple(problems))

    def _matches(self, pattern: str) -> list[str]:
        """Device files that match, without the root, in natural order."""
        paths = (path for path in glob.glob(self._root + pattern) if _is_device(path))
        return sorted((path[len(self._root) :] for path in paths), key=natural)

    def _there(self, path: str) -> bool:
        return _is_device(self._root + path)

    def _single(self, rule: HostDeviceRule) -> list[HostDevice]:
        paths = dict.fromkeys(path for pattern in rule.paths for path in self._matches(pattern))
        return [self._device(rule, path, (path,)) for path in paths]

    def _group(self, rule: HostDeviceRule) -> list[HostDevice]:
        """Each match of the first pattern with the matches of the others that end in its number; matches without any
        number (``/dev/infiniband/rdma_cm``) belong to every group."""
        if not rule.paths:
            return []
        others = [path for pattern in rule.paths[1:] for path in self._matches(pattern)]
        devices = []
        for leader in self._matches(rule.paths[0]):
            number = _number(leader)
            members = [path for path in others if _number(path) in (None, number)]
            devices.append(self._device(rule, leader, tuple(dict.fromkeys((leader, *members)))))
        return devices

    def _device(self, rule: HostDeviceRule, leader: str, paths: tuple[str, ...]) -> HostDevice:
        short = leader[len("/dev/") :] if leader.startswith("/dev/") else leader.strip("/")
        return HostDevice(
            resource=rule.resource,
            id=re.sub(r"[^A-Za-z0-9._-]", "-", short),
            paths=paths,
            permissions=rule.permissions,
            numa_node=self._numa_node(leader),
            replicas=rule.count,
        )

    def _numa_node(self, path: str) -> int | None:
        """Of the device behind the node, through /sys/dev/char; None where it has none (K20)."""
        try:
            status = os.stat(self._root + path)
            kind = "char" if stat.S_ISCHR(status.st_mode) else "block"
            numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
            text = Path(f"{self._sysfs}/dev/{kind}/{numbers}/device/numa_node").read_text()
            return int(text) if int(text) >= 0 else None
        except (OSError, ValueError):
            return None
