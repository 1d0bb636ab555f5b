"""From what a scan found to what the kubelet is offered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

from . import features
from .config import ResourceRule, Settings, SharedResource
from .devices import Device, Gpu, HostDevice, MigSlice, Plan, ResourcePlan, Snapshot
from .mps import max_clients
from .names import bad_name

MAX_DEVICES = 50_000
"""Entries of one list (K18: about 71,000 ids of 58 bytes fill the 4 MiB that a message may have)."""

FaultLookup = Callable[[str, int | None, int | None], str | None]
"""(GPU UUID, GPU instance or None, compute instance or None) -> reason in words, or None; as HealthBook.reason."""


def no_faults(gpu_uuid: str, gpu_instance: int | None, compute_instance: int | None) -> str | None:
    """A lookup for a node whose health isn't watched."""
    return None


@dataclass(slots=True)
class _Work:
    """A plan in the making."""

    snapshot: Snapshot
    settings: Settings
    faults: FaultLookup
    lacking: str | None = None
    """Why no GPU at all may be given out."""
    offered: dict[str, list[Device]] = field(default_factory=dict)
    shared: dict[str, tuple[str, bool]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def offer(self, device: Device) -> None:
        self.offered.setdefault(device.resource, []).append(device)


def plan(snapshot: Snapshot, settings: Settings, faults: FaultLookup = no_faults) -> Plan:
    """Pure; never raises. ``problems`` and ``errors`` of the plan say what could not be offered and why."""
    lacking = features.required_fault(settings, snapshot.feature_nodes) if snapshot.gpus else None
    work = _Work(snapshot, settings, faults, lacking, problems=list(snapshot.problems))
    if lacking is not None:
        work.errors.append(
            f"imex.required: {lacking}; no GPU is given out: {features.NEXT_STEP[features.IMEX]}"
        )
    elif snapshot.gpus:
        work.problems += features.missing(settings, snapshot.feature_nodes)
    gpus = _chosen(work)
    if settings.mig_strategy == "single" and any(gpu.mig_enabled or gpu.slices for gpu in gpus):
        _offer_single(work, gpus)
    else:
        _offer_gpus(work, gpus)
    _share(work)
    for device in snapshot.host_devices:
        _offer_host_device(work, device)
    return _finished(work)


def _chosen(work: _Work) -> list[Gpu]:
    """GPUs that are offered at all, each UUID once (K20), in index order."""
    settings = work.settings
    chosen: dict[str, Gpu] = {}
    matched: set[str] = set()
    for gpu in sorted(work.snapshot.gpus, key=lambda gpu: gpu.index):
        if "DGX Display" in gpu.name:
            continue
        hits = {
            reference for reference in (*settings.include, *settings.exclude) if refers_to(reference, gpu)
        }
        matched |= hits
        if (settings.include and hits.isdisjoint(settings.include)) or not hits.isdisjoint(settings.exclude):
            continue
        if gpu.uuid in chosen:
            work.problems.append(
                f"GPU {gpu.index} has the UUID {gpu.uuid} of GPU {chosen[gpu.uuid].index}; it is left out: "
                "see `nvidia-smi -L`"
            )
            continue
        chosen[gpu.uuid] = gpu
    if work.snapshot.gpus:
        for key, references in (("include", settings.include), ("exclude", settings.exclude)):
            work.problems += [
                f"devices.{key}: {reference!r} matches no GPU of this node"
                for reference in references
                if reference not in matched
            ]
    return list(chosen.values())


def refers_to(reference: str, gpu: Gpu) -> bool:
    """Whether an entry of devices.include or .exclude means this GPU: its index, UUID, PCI address (with or without
    domain, either case), or a shell pattern over its model."""
    if reference.isdigit():
        return int(reference) == gpu.index
    if reference == gpu.uuid:
        return True
    address = pci_address(reference)
    if address is not None:
        return address == pci_address(gpu.pci_bus_id)
    return matches(reference, gpu.name)


def pci_address(text: str) -> tuple[int, int, int, int] | None:
    """Domain, bus, device and function; None for what is no PCI address. ``00000000:18:00.0`` is NVML's form,
    ``0000:18:00.0`` sysfs's, ``18:00.0`` lspci's."""
    parts = text.split(":")
    if len(parts) == 2:
        parts.insert(0, "0")
    device, dot, function = parts[-1].partition(".")
    try:
        return None if len(parts) != 3 or not dot else (
            int(parts[0], 16), int(parts[1], 16), int(device, 16), int(function, 16)
        )  # fmt: skip
    except ValueError:
        return None


def matches(pattern: str, model: str) -> bool:
    """Shell pattern over the model's name, with or without its leading ``NVIDIA``."""
    return fnmatchcase(model, pattern) or fnmatchcase(model.removeprefix("NVIDIA "), pattern)


def _named(rules: Iterable[ResourceRule], text: str, otherwise: str) -> str:
    return next((rule.name for rule in rules if matches(rule.pattern, text)), otherwise)


def mig_resource(profile: str, prefix: str) -> str:
    """``1g.10gb+me`` -> ``nvidia.com/mig-1g.10gb.me``; anything else that no name may hold becomes a dot too."""
    clean = "".join(letter if letter.isalnum() or letter in "-_." else "." for letter in profile)
    return f"{prefix}/mig-{clean}"


def _offer_gpus(work: _Work, gpus: Sequence[Gpu]) -> None:
    """Strategies none and mixed, and single on a node without MIG."""
    settings = work.settings
    for gpu in gpus:
        if gpu.mig_enabled and settings.mig_strategy == "mixed":
            if not gpu.slices and gpu.fault is None:
                work.problems.append(
                    f"GPU {gpu.index} ({gpu.uuid}) has MIG enabled and no slices, so nothing of it is offered: "
                    "create some with `nvidia-smi mig -cgi ... -C`, or disable MIG on it"
                )
            for piece in gpu.slices:
                name = _named(
                    settings.mig_rules, piece.profile, mig_resource(piece.profile, settings.resource_prefix)
                )
                work.offer(_slice_device(work, gpu, piece, name))
            continue
        if gpu.mig_enabled and gpu.fault is None:
            work.problems.append(
                f"GPU {gpu.index} ({gpu.uuid}) has MIG enabled but migStrategy is none: it is offered whole, and "
                "programs can't use it so; set migStrategy to single or mixed, or disable MIG on it"
            )
        name = _named(settings.gpu_rules, gpu.name, f"{settings.resource_prefix}/gpu")
        work.offer(_gpu_device(work, gpu, name))


def _offer_single(work: _Work, gpus: Sequence[Gpu]) -> None:
    """Every GPU cut into slices of one profile, offered as whole GPUs would be; anything else offers nothing, because
    the name could not tell a user what he gets. A GPU that can't be read takes no part in this."""
    settings = work.settings
    readable = [gpu for gpu in gpus if gpu.slices or gpu.fault is None]
    wrong = [
        f"GPU {gpu.index} has MIG disabled" for gpu in readable if not gpu.mig_enabled and not gpu.slices
    ]
    wrong += [
        f"GPU {gpu.index} has MIG enabled but no slices"
        for gpu in readable
        if gpu.mig_enabled and not gpu.slices
    ]
    profiles: dict[str, int] = {}
    for gpu in readable:
        for piece in gpu.slices:
            profiles.setdefault(piece.profile, gpu.index)
    if len(profiles) > 1:
        listed = ", ".join(f"{profile} on GPU {index}" for profile, index in profiles.items())
        wrong.append(f"there is more than one profile ({listed})")
    work.problems += [
        f"GPU {gpu.index} ({gpu.uuid}) is not offered: its slices can't be read ({gpu.fault})"
        for gpu in gpus
        if gpu not in readable
    ]
    if wrong:
        work.problems.append(
            f"migStrategy single needs every GPU cut into slices of one profile, but {'; '.join(wrong)}: "
            "no GPU is offered; change the layout, or set migStrategy to mixed"
        )
        return
    for gpu in readable:
        for piece in gpu.slices:
            name = _named(settings.mig_rules, piece.profile, f"{settings.resource_prefix}/gpu")
            work.offer(_slice_device(work, gpu, piece, name))


def _numa(node: int | None) -> int | None:
    return node if node is not None and node >= 0 else None  # K20


def _gpu_device(work: _Work, gpu: Gpu, resource: str) -> Device:
    return Device(
        id=gpu.uuid,
        resource=resource,
        uuid=gpu.uuid,
        index=str(gpu.index),
        gpu_uuid=gpu.uuid,
        gpu_index=gpu.index,
        paths=gpu.paths,
        numa_node=_numa(gpu.numa_node),
        memory_bytes=gpu.memory_bytes,
        fault=gpu.fault or work.faults(gpu.uuid, None, None) or work.lacking,
    )


def _slice_device(work: _Work, gpu: Gpu, piece: MigSlice, resource: str) -> Device:
    return Device(
        id=piece.uuid,
        resource=resource,
        uuid=piece.uuid,
        index=f"{gpu.index}:{piece.index}",
        gpu_uuid=gpu.uuid,
        gpu_index=gpu.index,
        gpu_instance=piece.gpu_instance,
        compute_instance=piece.compute_instance,
        paths=(*gpu.paths, *piece.capability_paths),
        numa_node=_numa(gpu.numa_node),
        memory_bytes=piece.memory_bytes,
        fault=gpu.fault or work.faults(gpu.uuid, piece.gpu_instance, piece.compute_instance) or work.lacking,
    )


def _share(work: _Work) -> None:
    """Time-slicing, then MPS: each entry takes its devices out of the list and puts replicas in, renamed or not."""
    settings = work.settings
    before = {name: list(devices) for name, devices in work.offered.items()}
    done: dict[str, set[str]] = {}
    for kind, sharing in (("time-slicing", settings.time_slicing), ("mps", settings.mps)):
        for entry in sharing.resources if sharing is not None else ():
            if entry.name not in before:
                if work.snapshot.gpus:
                    known = ", ".join(sorted(before)) or "none"
                    work.errors.append(
                        f"{_at(entry)}sharing entry {entry.name} matches no resource; here are: {known}"
                    )
                continue
            used = done.setdefault(entry.name, set())
            rename = entry.rename
            if rename is None and sharing is not None and sharing.rename_by_default:
                rename = f"{entry.name}.shared"
            chosen = _selected(work, entry, before[entry.name], used)
            used.update(device.id for device in chosen)
            if kind == "mps":
                chosen = [device for device in chosen if _mps_can(work, entry, device)]
            replicas = [_replicas(work, entry, device, rename or entry.name, kind) for device in chosen]
            away = {device.id for device in chosen}
            work.offered[entry.name] = [d for d in work.offered[entry.name] if d.id not in away]
            for copies in replicas:
                work.offered.setdefault(rename or entry.name, []).extend(copies)
            if replicas and sharing is not None:
                work.shared[rename or entry.name] = (kind, sharing.fail_requests_greater_than_one)


def _at(entry: SharedResource) -> str:
    return f"{entry.where}: " if entry.where else ""


def _selected(work: _Work, entry: SharedResource, devices: Sequence[Device], used: set[str]) -> list[Device]:
    """The entry's devices: ``all`` not shared yet, the first so many, or those named."""
    free = [device for device in devices if device.id not in used]
    if entry.devices == "all":
        return free
    if isinstance(entry.devices, int):
        if entry.devices > len(free):
            work.errors.append(
                f"{_at(entry)}sharing entry {entry.name} asks for {entry.devices} devices; there are {len(free)}"
            )
        return free[: entry.devices]
    chosen: dict[str, Device] = {}
    for reference in entry.devices:
        found = [device for device in devices if str(reference) in (device.index, device.uuid)]
        if not found:
            work.errors.append(
                f"{_at(entry)}sharing entry {entry.name}: no device {reference} in this resource"
            )
        elif found[0].id in used:
            work.errors.append(
                f"{_at(entry)}sharing entry {entry.name}: device {reference} is in an entry above too"
            )
        else:
            chosen[found[0].id] = found[0]
    return [device for device in devices if device.id in chosen]


def _mps_can(work: _Work, entry: SharedResource, device: Device) -> bool:
    """MPS is for whole GPUs (the peer's rule too); slices stay unshared."""
    if device.gpu_instance is None:
        return True
    work.errors.append(
        f"{_at(entry)}sharing entry {entry.name}: MPS can't share MIG slices; {device.index} stays unshared"
    )
    return False


def _replicas(work: _Work, entry: SharedResource, device: Device, resource: str, kind: str) -> list[Device]:
    count = min(entry.replicas, MAX_DEVICES + 1)
    if kind == "mps":
        gpu = next(gpu for gpu in work.snapshot.gpus if gpu.uuid == device.gpu_uuid)
        most = max_clients(gpu.compute_capability)
        if count > most:
            work.errors.append(
                f"{_at(entry)}sharing entry {entry.name}: GPU {device.index} ({gpu.name}) serves at most {most} MPS "
                f"clients, not {entry.replicas}; it is offered {most} times"
            )
            count = most
    return _copies(device, resource, count)


def _copies(device: Device, resource: str, count: int) -> list[Device]:
    """The device once a replica. Built from its values in order: dataclasses.replace() takes four times as long, which
    10,000 replicas would show in the time from an XID to the list."""
    values = [getattr(device, name) for name in _NAMES]
    values[_RESOURCE] = resource
    copies = []
    for number in range(count):
        values[_ID], values[_REPLICA] = f"{device.uuid}::{number}", number
        copies.append(Device(*values))
    return copies


_NAMES = tuple(item.name for item in fields(Device))
_ID, _RESOURCE, _REPLICA = (_NAMES.index(name) for name in ("id", "resource", "replica"))


def _offer_host_device(work: _Work, found: HostDevice) -> None:
    base = Device(
        id=found.id,
        resource=found.resource,
        uuid=found.id,
        index=found.id,
        paths=found.paths,
        permissions=found.permissions,
        numa_node=_numa(found.numa_node),
        fault=found.fault,
    )
    if found.replicas <= 1:
        work.offer(base)
        return
    work.offered.setdefault(found.resource, []).extend(
        _copies(base, found.resource, min(found.replicas, MAX_DEVICES + 1))
    )


def _finished(work: _Work) -> Plan:
    """Names checked (K4), no id twice (K20), no list too long (K18), everything in its order."""
    seen: dict[str, str] = {}
    resources = []
    for name in sorted(work.offered):
        devices = []
        for device in sorted(work.offered[name], key=_order):
            if device.id in seen:
                work.problems.append(
                    f"{name}: the id {device.id} is offered by {seen[device.id]} already; it is left out here"
                )
                continue
            seen[device.id] = name
            devices.append(device)
        wrong = bad_name(name)
        if wrong:
            work.errors.append(f"resource {name} is not offered: {wrong}")
        elif len(devices) > MAX_DEVICES:
            work.errors.append(
                f"resource {name} is not offered: {len(work.offered[name])} devices are more than the {MAX_DEVICES} "
                "that fit into one message to the kubelet; lower its replicas"
            )
        elif devices:
            kind, fail = work.shared.get(name, ("", False))
            resources.append(ResourcePlan(name, tuple(devices), kind or None, fail))
    return Plan(tuple(resources), tuple(dict.fromkeys(work.problems)), tuple(dict.fromkeys(work.errors)))


def _order(device: Device) -> tuple[int, int, str, int]:
    """By GPU, slice, then replica; host devices after GPUs by id."""
    gpu, _unused, piece = device.index.partition(":")
    if device.gpu_index is None:
        return 1 << 30, 0, device.uuid, device.replica or 0
    return int(gpu), int(piece or -1), "", -1 if device.replica is None else device.replica
