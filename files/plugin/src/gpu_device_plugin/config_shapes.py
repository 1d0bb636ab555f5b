"""The config file's shape, as :mod:`config_file` decodes it: the peer's keys, and ours beside them. None: not given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NewType

Strategies = NewType("Strategies", tuple[str, ...])
Selection = NewType("Selection", object)
Xids = NewType("Xids", dict[int, str])
Reference = NewType("Reference", str)
Anything = NewType("Anything", object)


@dataclass(frozen=True, slots=True)
class PluginFile:
    """``flags.plugin``, and ``plugin`` beside ``flags``."""

    passDeviceSpecs: bool | None = None
    deviceListStrategy: Strategies | None = None
    deviceIDStrategy: Literal["uuid", "index"] | None = None
    cdiAnnotationPrefix: str | None = None
    nvidiaCTKPath: str | None = None
    nvidiaCDIHookPath: str | None = None
    containerDriverRoot: str | None = None
    kubeletSocket: str | None = None
    cdiFeatureFlags: Anything | None = None
    sharedDevicesAllocationPolicy: Literal["distributed", "packed"] | None = None


@dataclass(frozen=True, slots=True)
class FlagsFile:
    """``flags``."""

    migStrategy: Literal["none", "single", "mixed"] | None = None
    failOnInitError: bool | None = None
    mpsRoot: str | None = None
    nvidiaDriverRoot: str | None = None
    nvidiaDevRoot: str | None = None
    gdrcopyEnabled: bool | None = None
    gdsEnabled: bool | None = None
    mofedEnabled: bool | None = None
    useNodeFeatureAPI: bool | None = None
    deviceDiscoveryStrategy: Literal["auto", "nvml", "tegra"] | None = None
    restartOnDeviceUnhealthy: bool | None = None
    plugin: PluginFile | None = None
    gfd: Anything | None = None


@dataclass(frozen=True, slots=True)
class SharedFile:
    """One entry of ``sharing.*.resources``."""

    name: str
    replicas: int
    rename: str | None = None
    devices: Selection = Selection("all")


@dataclass(frozen=True, slots=True)
class SharingFile:
    """``sharing.timeSlicing`` and ``sharing.mps``."""

    renameByDefault: bool | None = None
    failRequestsGreaterThanOne: bool | None = None
    resources: tuple[SharedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class SharingsFile:
    """``sharing``."""

    timeSlicing: SharingFile | None = None
    mps: SharingFile | None = None


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One entry of ``resources.gpus`` or ``resources.mig``."""

    pattern: str
    name: str


@dataclass(frozen=True, slots=True)
class ResourcesFile:
    """``resources``."""

    gpus: tuple[RuleFile, ...] = ()
    mig: tuple[RuleFile, ...] = ()


@dataclass(frozen=True, slots=True)
class ImexFile:
    """``imex``."""

    channelIDs: tuple[int, ...] | None = None
    required: bool | None = None


@dataclass(frozen=True, slots=True)
class DevicesFile:
    """``devices`` (ours)."""

    include: tuple[Reference, ...] | None = None
    exclude: tuple[Reference, ...] | None = None


@dataclass(frozen=True, slots=True)
class HostDeviceFile:
    """One entry of ``hostDevices`` (ours)."""

    resource: str
    paths: tuple[str, ...]
    group: bool = False
    count: int = 1
    permissions: str = "rw"


@dataclass(frozen=True, slots=True)
class HealthFile:
    """``health`` (ours)."""

    xids: Xids | None = None
    quietSeconds: float | None = None
    disable: str | None = None
    enable: str | None = None


@dataclass(frozen=True, slots=True)
class KubeletFile:
    """``kubelet`` (ours)."""

    pluginDir: str | None = None
    socket: str | None = None
    podResourcesDir: str | None = None
    registration: Literal["device-plugins", "plugins-registry"] | None = None
    pluginsRegistryDir: str | None = None


@dataclass(frozen=True, slots=True)
class MetricsFile:
    """``metrics`` (ours)."""

    address: str | None = None


@dataclass(frozen=True, slots=True)
class CdiFile:
    """``cdi`` (ours)."""

    specDir: str | None = None


@dataclass(frozen=True, slots=True)
class DriverMountsFile:
    """``driverMounts`` (ours)."""

    hostPath: str | None = None
    containerPath: str | None = None


@dataclass(frozen=True, slots=True)
class LogFile:
    """``log`` (ours)."""

    format: Literal["kv", "json"] | None = None
    level: Literal["debug", "info", "warning", "error"] | None = None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The whole file."""

    version: Literal["v1"] | None = None
    flags: FlagsFile = FlagsFile()
    plugin: PluginFile = PluginFile()
    sharing: SharingsFile = SharingsFile()
    resources: ResourcesFile = ResourcesFile()
    imex: ImexFile = ImexFile()
    devices: DevicesFile = DevicesFile()
    hostDevices: tuple[HostDeviceFile, ...] | None = None
    health: HealthFile = HealthFile()
    occupancyGuard: bool | None = None
    kubelet: KubeletFile = KubeletFile()
    metrics: MetricsFile = MetricsFile()
    cdi: CdiFile = CdiFile()
    driverMounts: DriverMountsFile = DriverMountsFile()
    stateDir: str | None = None
    runDir: str | None = None
    log: LogFile = LogFile()
    nodeName: str | None = None
    events: bool | None = None
    rescanSeconds: float | None = None
    resourcePrefix: str | None = None
