"""What Allocate answers, as plain values; :mod:`service` turns them into messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from posixpath import join

from . import cdi, mps
from .config import CDI_ANNOTATIONS, CDI_CRI, DRIVER_MOUNTS, ENVVAR, VOLUME_MOUNTS, Settings
from .devices import Device, ResourcePlan
from .features import IMEX, Feature
from .roots import below, device_root

INVALID_ARGUMENT = "INVALID_ARGUMENT"
FAILED_PRECONDITION = "FAILED_PRECONDITION"

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
VOLUME_MOUNTS_ROOT = "/var/run/nvidia-container-devices"
"""Where NVIDIA's runtime looks for the names of devices in a container's mounts."""

IMEX_CHANNELS = "NVIDIA_IMEX_CHANNELS"


class RequestError(Exception):
    """A request that can't be met; ``code`` is a gRPC status name."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Mount:
    """As in ContainerAllocateResponse."""

    container_path: str
    host_path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """As in ContainerAllocateResponse."""

    container_path: str
    host_path: str
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class Answer:
    """One ContainerAllocateResponse."""

    envs: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    devices: tuple[DeviceSpec, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)
    cdi_devices: tuple[str, ...] = ()
    """Qualified names."""


class Responder:
    """What one resource's answers need, made once a plan so that an answer only looks things up (K22)."""

    def __init__(
        self,
        resource: ResourcePlan,
        settings: Settings,
        control_paths: Sequence[str] = (),
        cdi_names: Collection[str] = (),
        features: Sequence[Feature] = (),
    ) -> None:
        """``control_paths``: Snapshot.control_paths. ``cdi_names``: device names in the CDI specifications as they were
        written (:func:`cdi.names`); no other CDI name is answered. ``features``: :func:`features.given`."""
        self.resource = resource
        self.settings = settings
        self.control_paths = tuple(control_paths)
        self.cdi_names = frozenset(cdi_names)
        self.order = {device.id: number for number, device in enumerate(resource.devices)}
        self.strategies = frozenset(settings.device_list_strategy)
        self.features = tuple(features)
        self.channels = tuple(feature for feature in features if feature.kind == IMEX)
        names = (cdi.qualified(feature.kind, feature.name) for feature in features)
        self.feature_names = tuple(name for name in names if name in self.cdi_names)
        self.device_root = device_root(settings)

    def respond(self, ids: Sequence[str], answer_id: str) -> Answer:
        """``answer_id`` makes the CDI annotation's key unique (a random UUID). Raises :class:`RequestError`."""
        devices = self._requested(ids)
        if devices[0].gpu_uuid is None:
            return Answer(devices=self._specs(devices, control=()))
        name = "index" if self.settings.device_id_strategy == "index" else "uuid"
        names = tuple(dict.fromkeys(getattr(device, name) for device in devices))
        envs: dict[str, str] = {}
        mounts: list[Mount] = []
        if ENVVAR in self.strategies:
            envs[VISIBLE_DEVICES] = ",".join(names)
            if self.channels:
                envs[IMEX_CHANNELS] = ",".join(channel.name for channel in self.channels)
        if (
            VOLUME_MOUNTS in self.strategies
        ):  # wins over envvar, as with the peer: the runtime then trusts mounts only
            envs[VISIBLE_DEVICES] = VOLUME_MOUNTS_ROOT
            marks = [*names, *(join("imex", channel.name) for channel in self.channels)]
            mounts += [Mount(join(VOLUME_MOUNTS_ROOT, mark), "/dev/null") for mark in marks]
        qualified = self._qualified(names) if self.strategies & {CDI_ANNOTATIONS, CDI_CRI} else ()
        annotations: dict[str, str] = {}
        if CDI_ANNOTATIONS in self.strategies:
            key = f"{self.settings.cdi_annotation_prefix}nvidia-device-plugin_{answer_id}"
            annotations[key] = ",".join(qualified)
        if DRIVER_MOUNTS in self.strategies:
            paths = (self.settings.driver_mounts_container_path, self.settings.driver_mounts_host_path)
            mounts.append(Mount(*paths, read_only=True))
            files = [pair for feature in self.features for pair in feature.mounts]
            mounts += [Mount(path, host, read_only=True) for path, host in files]
        for variable, wanted in (
            ("NVIDIA_GDRCOPY", self.settings.gdrcopy_enabled),
            ("NVIDIA_GDS", self.settings.gds_enabled),
            ("NVIDIA_MOFED", self.settings.mofed_enabled),
        ):
            if wanted:
                envs[variable] = "enabled"
        if self.resource.shared == "mps" and any(device.replica is not None for device in devices):
            envs |= mps.client_environment(self.resource)
            mounts += [Mount(*pair) for pair in mps.client_mounts(self.settings, self.resource)]
        # Without NVIDIA's runtime nobody else brings the nodes of GDRCopy and the like; channels are as GPUs.
        alone = DRIVER_MOUNTS in self.strategies
        beside = self.features if alone else self.channels
        return Answer(
            envs=envs,
            mounts=tuple(mounts),
            devices=self._specs(devices, self.control_paths, beside)
            if self.settings.pass_device_specs or alone
            else (),
            annotations=annotations,
            cdi_devices=qualified if CDI_CRI in self.strategies else (),
        )

    def _requested(self, ids: Sequence[str]) -> list[Device]:
        """The devices, each once, in index order (K29)."""
        name = self.resource.name
        if not ids:
            raise RequestError(INVALID_ARGUMENT, f"{name}: the request names no device")
        unknown = [identity for identity in ids if identity not in self.order]
        if unknown:
            raise RequestError(INVALID_ARGUMENT, f"{name}: unknown device {_listed(unknown)}")
        devices = [
            self.resource.devices[number] for number in sorted({self.order[identity] for identity in ids})
        ]
        shared = any(device.replica is not None for device in devices)
        if self.resource.fail_requests_greater_than_one and shared and len(devices) > 1:
            raise RequestError(
                INVALID_ARGUMENT,
                f"{name}: maximum request size for shared resources is 1; found {len(devices)}",
            )
        ill = [f"{device.id} ({device.fault})" for device in devices if not device.healthy]
        if ill:
            raise RequestError(FAILED_PRECONDITION, f"{name}: unhealthy device {_listed(ill)}")
        return devices

    def _qualified(self, names: Sequence[str]) -> tuple[str, ...]:
        """CDI names, only such as the written specification holds: with another the container would not start, or
        would start without its GPU."""
        wanted = [cdi.qualified(cdi.CLASS, name) for name in names]
        missing = [name for name, full in zip(names, wanted, strict=True) if full not in self.cdi_names]
        if missing:
            raise RequestError(
                FAILED_PRECONDITION,
                f"{self.resource.name}: the CDI specification in {self.settings.cdi_spec_dir} does not hold device "
                f"{_listed(missing)}; see the plugin's log for why it could not be written",
            )
        return (*wanted, *self.feature_names)

    def _specs(
        self, devices: Sequence[Device], control: Sequence[str], features: Sequence[Feature] = ()
    ) -> tuple[DeviceSpec, ...]:
        """Control nodes, each device's own, then those of features; every path once."""
        specs = {path: DeviceSpec(path, below(self.device_root, path)) for path in control}
        for device in devices:
            for path in device.paths:
                host = path if device.gpu_uuid is None else below(self.device_root, path)
                specs.setdefault(path, DeviceSpec(path, host, device.permissions))
        for feature in features:
            for path, host in feature.nodes:
                specs.setdefault(path, DeviceSpec(path, host))
        return tuple(specs.values())


def _listed(names: Sequence[str]) -> str:
    """At most three, so that a hostile request doesn't come back whole."""
    text = ", ".join(name[:200] for name in names[:3])
    return text if len(names) <= 3 else f"{text} and {len(names) - 3} more"
