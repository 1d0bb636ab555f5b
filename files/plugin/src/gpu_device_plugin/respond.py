"""What Allocate answers, as plain values; :mod:`service` turns them into messages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from posixpath import join, normpath

from . import mps
from .config import CDI_ANNOTATIONS, CDI_CRI, DRIVER_MOUNTS, ENVVAR, VOLUME_MOUNTS, Settings
from .devices import Device, ResourcePlan

INVALID_ARGUMENT = "INVALID_ARGUMENT"
FAILED_PRECONDITION = "FAILED_PRECONDITION"

VISIBLE_DEVICES = "NVIDIA_VISIBLE_DEVICES"
VOLUME_MOUNTS_ROOT = "/var/run/nvidia-container-devices"
"""Where NVIDIA's runtime looks for the names of devices in a container's mounts."""

CDI_KIND = "k8s.device-plugin.nvidia.com/gpu"


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
    ) -> None:
        """``control_paths``: Snapshot.control_paths. ``cdi_names``: device names in the CDI spec as it was written
        (:func:`cdi.names`); without it no CDI name is answered."""
        self.resource = resource
        self.settings = settings
        self.control_paths = tuple(control_paths)
        self.cdi_names = frozenset(cdi_names)
        self.order = {device.id: number for number, device in enumerate(resource.devices)}
        self.strategies = frozenset(settings.device_list_strategy)
        self.device_root = settings.nvidia_dev_root or settings.nvidia_driver_root

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
        if (
            VOLUME_MOUNTS in self.strategies
        ):  # wins over envvar, as with the peer: the runtime then trusts mounts only
            envs[VISIBLE_DEVICES] = VOLUME_MOUNTS_ROOT
            mounts += [Mount(join(VOLUME_MOUNTS_ROOT, name), "/dev/null") for name in names]
        qualified = self._qualified(names) if self.strategies & {CDI_ANNOTATIONS, CDI_CRI} else ()
        annotations: dict[str, str] = {}
        if CDI_ANNOTATIONS in self.strategies:
            key = f"{self.settings.cdi_annotation_prefix}nvidia-device-plugin_{answer_id}"
            annotations[key] = ",".join(qualified)
        if DRIVER_MOUNTS in self.strategies:
            paths = (self.settings.driver_mounts_container_path, self.settings.driver_mounts_host_path)
            mounts.append(Mount(*paths, read_only=True))
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
        with_nodes = self.settings.pass_device_specs or DRIVER_MOUNTS in self.strategies
        return Answer(
            envs=envs,
            mounts=tuple(mounts),
            devices=self._specs(devices, self.control_paths) if with_nodes else (),
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
        missing = [name for name in names if name not in self.cdi_names]
        if missing:
            raise RequestError(
                FAILED_PRECONDITION,
                f"{self.resource.name}: the CDI specification in {self.settings.cdi_spec_dir} does not hold device "
                f"{_listed(missing)}; see the plugin's log for why it could not be written",
            )
        return tuple(f"{CDI_KIND}={name}" for name in names)

    def _specs(self, devices: Sequence[Device], control: Sequence[str]) -> tuple[DeviceSpec, ...]:
        """Control nodes, then each device's own, every path once."""
        specs = {path: DeviceSpec(path, self._on_host(path)) for path in control}
        for device in devices:
            for path in device.paths:
                host = path if device.gpu_uuid is None else self._on_host(path)
                specs.setdefault(path, DeviceSpec(path, host, device.permissions))
        return tuple(specs.values())

    def _on_host(self, path: str) -> str:
        return normpath(f"{self.device_root}/{path}").replace("//", "/")


def _listed(names: Sequence[str]) -> str:
    """At most three, so that a hostile request doesn't come back whole."""
    text = ", ".join(name[:200] for name in names[:3])
    return text if len(names) <= 3 else f"{text} and {len(names) - 3} more"
