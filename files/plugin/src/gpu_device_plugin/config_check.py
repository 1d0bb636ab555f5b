"""What settings must not be, alone or together, beyond their types; with the place of every fault."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .config import Settings
from .faults import Fault, Path, dotted, unknown_value
from .names import bad_name, bad_prefix, qualify
from .options import OPTIONS, Option

if TYPE_CHECKING:
    from .config_file import Document
    from .config_shapes import HostDeviceFile

MAX_REPLICAS = 50_000
"""K18: no list with more is offered, so no single device may ask for more."""


CHANNELS = 1 << 20
"""An IMEX channel's number is its node's minor number, which has 20 bits. The peer takes channel 0 alone."""


@dataclass(slots=True)
class Load:
    """What one call of :func:`config_load.load` gathers."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    documents: dict[str, tuple[Document, Path]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fault(self, where: str, text: str) -> None:
        self.faults.append(Fault(where, text))

    def put(
        self, name: str, value: Any, where: str, document: Document | None = None, path: Path = ()
    ) -> None:
        self.values[name] = value
        self.places[name] = where
        self.documents.pop(name, None)
        if document is not None:
            self.documents[name] = (document, path)


def check(settings: Settings, work: Load) -> None:
    """What one value alone, or two together, must not be."""
    for option in OPTIONS:
        if option.field not in work.values:
            continue
        value, where = work.values[option.field], work.places[option.field]
        label = f"{option.key[0]}: " if option.field in work.documents and option.key else ""
        for text in _bad_value(option, value):
            work.fault(where, label + text)
    wrong = bad_prefix(settings.resource_prefix)
    if wrong:
        work.fault(work.places["resource_prefix"], wrong)
    prefix = settings.resource_prefix
    for name in ("gpu_rules", "mig_rules"):
        for number, rule in _entries(work, name):
            _check_name(work, name, (number, "name"), qualify(rule.name, prefix))
            if not rule.pattern:
                fault_at(work, name, (number, "pattern"), "empty; '*' matches everything")
    for number, device in _entries(work, "host_devices"):
        _check_host_device(work, number, device)
    if settings.imex_required and not settings.imex_channel_ids:
        work.warnings.append(
            f"{work.places['imex_required']}: imex.required has no effect without imex.channelIDs"
        )
    _check_sharing(settings, work)
    _check_health(settings, work)


def _entries(work: Load, name: str) -> Iterator[tuple[int, Any]]:
    """(position, entry) of a list that was given; entries with faults of their own are None there."""
    given = work.values.get(name, ())
    entries = given.resources if hasattr(given, "resources") else given
    return ((number, entry) for number, entry in enumerate(entries) if entry is not None)


def _bad_value(option: Option, value: Any) -> Iterator[str]:
    if option.kind == "path" and value and not value.startswith("/"):
        yield f"{value!r} is not an absolute path"
    if isinstance(value, str) and "\0" in value:
        yield "holds a zero byte"
    if option.kind == "choices":
        if not value:
            yield f"empty; one or several of {', '.join(option.choices)}"
        for item in value:
            if item not in option.choices:
                yield unknown_value(item, option.choices)
    if option.kind == "integers":
        for number in value:
            if not 0 <= number < CHANNELS:
                yield f"{number} is not from 0 to {CHANNELS - 1}"
    if option.kind == "number" and not (
        math.isfinite(value) and (value > 0 or option.field.startswith("health."))
    ):
        yield f"{value} is no number of seconds"
    elif option.kind == "number" and value < 0:
        yield f"{value} is less than 0"
    if option.kind == "address" and value and not _is_address(value):
        yield f"{value!r} is no host:port or :port"


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    bare = ":" not in host or (host.startswith("[") and host.endswith("]"))
    return bool(colon and bare and re.fullmatch("[0-9]{1,5}", port, re.ASCII) and int(port) < 65536)


def fault_at(work: Load, name: str, path: Path, text: str, *, key: bool = False) -> None:
    document, base = work.documents[name]
    option = next(option for option in OPTIONS if option.field == name)
    work.fault(document.where((*base, *path), key=key), f"{dotted((option.key[0], *path))}: {text}")


def _check_name(work: Load, name: str, path: Path, resource: str) -> None:
    wrong = bad_name(resource)
    if wrong:
        fault_at(work, name, path, wrong)


def _check_host_device(work: Load, number: int, rule: HostDeviceFile) -> None:
    _check_name(work, "host_devices", (number, "resource"), rule.resource)
    if not rule.paths:
        fault_at(work, "host_devices", (number, "paths"), "empty; at least one path or pattern")
    for index, path in enumerate(rule.paths):
        if not path.startswith("/") or "\0" in path:
            fault_at(work, "host_devices", (number, "paths", index), f"{path!r} is not an absolute path")
    if not 1 <= rule.count <= MAX_REPLICAS:
        fault_at(work, "host_devices", (number, "count"), f"{rule.count} is not from 1 to {MAX_REPLICAS}")
    if not rule.permissions or not re.fullmatch("r?w?m?", rule.permissions):
        fault_at(
            work,
            "host_devices",
            (number, "permissions"),
            f"{rule.permissions!r} is not of r, w and m, in this order",
        )


def _check_sharing(settings: Settings, work: Load) -> None:
    shared: dict[str, str] = {}
    for name in ("time_slicing", "mps"):
        for number, entry in _entries(work, name):
            at: Path = ("resources", number)
            resource = qualify(entry.name, settings.resource_prefix)
            if not 2 <= entry.replicas <= MAX_REPLICAS:
                fault_at(work, name, (*at, "replicas"), f"{entry.replicas} is not from 2 to {MAX_REPLICAS}")
            _check_name(work, name, (*at, "name"), resource)
            if entry.rename:
                _check_name(work, name, (*at, "rename"), qualify(entry.rename, settings.resource_prefix))
            elif work.values[name].renameByDefault:
                _check_name(work, name, (*at, "name"), f"{resource}.shared")
            if shared.setdefault(resource, name) != name:
                fault_at(work, name, (*at, "name"), f"{resource} is shared by time-slicing too: choose one")
            if bad_name(resource) is None and not _can_exist(resource, settings):
                known = ", ".join(_possible(settings))
                text = f"no resource {resource} comes of these settings, only {known}"
                fault_at(work, name, (*at, "name"), text)


def _possible(settings: Settings) -> tuple[str, ...]:
    """Names and patterns of every resource of GPUs that these settings can give on any node."""
    prefix = settings.resource_prefix
    found = [rule.name for rule in settings.gpu_rules] + [f"{prefix}/gpu"]
    if settings.mig_strategy != "none":
        found += [rule.name for rule in settings.mig_rules]
    if settings.mig_strategy == "mixed":
        found.append(f"{prefix}/mig-*")
    return tuple(dict.fromkeys(found))


def _can_exist(name: str, settings: Settings) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _possible(settings))


def _check_health(settings: Settings, work: Load) -> None:
    """What isn't a number in the two lists is passed over, as the peer does, but not silently."""
    for name, text in (
        ("health.disable", settings.health.disable),
        ("health.enable", settings.health.enable),
    ):
        for word in text.split(","):
            if word.strip().lower() not in ("", "all", "xids") and not re.fullmatch(
                r"\s*[0-9]{1,6}\s*", word, re.ASCII
            ):
                work.warnings.append(f"{work.places[name]}: {word.strip()!r} is no XID and is passed over")
