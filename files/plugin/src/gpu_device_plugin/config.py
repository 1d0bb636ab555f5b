"""The plugin's settings: their shape and defaults. Loading and checking them is :mod:`config_load`.

Names in files, flags and environment are the peer's (NVIDIA device plugin 0.20), so that its config file, flags and
manifests work unchanged; ours are marked "ours". Order: command line, environment, file, default.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ENVVAR = "envvar"
VOLUME_MOUNTS = "volume-mounts"
CDI_ANNOTATIONS = "cdi-annotations"
CDI_CRI = "cdi-cri"
DRIVER_MOUNTS = "driver-mounts"
DEVICE_LIST_STRATEGIES = (ENVVAR, VOLUME_MOUNTS, CDI_ANNOTATIONS, CDI_CRI, DRIVER_MOUNTS)


@dataclass(frozen=True, slots=True)
class SharedResource:
    """One entry of ``sharing.*.resources``."""

    name: str
    replicas: int
    rename: str | None = None
    devices: str | int | tuple[str | int, ...] = "all"
    """``all``, a count, or a list of indices, ``0:1`` MIG indices and UUIDs."""
    where: str = field(default="", compare=False)
    """``file:line`` it was written at, for problems that only the hardware shows."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """``sharing.timeSlicing`` or ``sharing.mps``."""

    rename_by_default: bool = False
    fail_requests_greater_than_one: bool = False
    resources: tuple[SharedResource, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceRule:
    """One entry of ``resources.gpus`` or ``resources.mig``: shell pattern over model or profile -> resource name."""

    pattern: str
    name: str
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class HostDeviceRule:
    """One entry of ``hostDevices`` (ours)."""

    resource: str
    paths: tuple[str, ...]
    """Globs on the node. With ``group`` each match of the first glob takes the matches of the others that share
    its number; without it each matching file is a device."""
    group: bool = False
    count: int = 1
    """How many containers may hold each at once."""
    permissions: str = "rw"
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class HealthSettings:
    """``health`` (ours): overrides of the XID table, and times in seconds (monotonic)."""

    xids: tuple[tuple[int, str], ...] = ()
    """(XID, ``ignore`` | ``transient`` | ``fatal``)."""
    quiet_seconds: float = 60.0
    disable: str = ""
    """DP_DISABLE_HEALTHCHECKS: ``all``, ``xids``, or a list of XIDs to ignore."""
    enable: str = ""
    """DP_ENABLE_HEALTHCHECKS: XIDs to heed again; together with ``disable: all`` the exceptions."""


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """Where the kubelet is (K15: two directories, two settings)."""

    plugin_dir: str = "/var/lib/kubelet/device-plugins"
    socket: str = ""
    """Empty: ``kubelet.sock`` in plugin_dir."""
    pod_resources_dir: str = "/var/lib/kubelet/pod-resources"
    registration: str = "device-plugins"
    """``device-plugins`` (Register call) or ``plugins-registry`` (pluginregistration v1)."""
    plugins_registry_dir: str = "/var/lib/kubelet/plugins_registry"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked."""

    mig_strategy: str = "none"
    fail_on_init_error: bool = True
    nvidia_driver_root: str = "/"
    nvidia_dev_root: str = ""
    """Empty: the driver root."""
    container_driver_root: str = "/driver-root"
    pass_device_specs: bool = True
    device_list_strategy: tuple[str, ...] = (ENVVAR,)
    device_id_strategy: str = "uuid"
    shared_devices_allocation_policy: str = "distributed"
    gds_enabled: bool = False
    mofed_enabled: bool = False
    gdrcopy_enabled: bool = False
    imex_channel_ids: tuple[int, ...] = ()
    """Numbers of /dev/nvidia-caps-imex-channels/channelN."""
    imex_required: bool = False
    cdi_annotation_prefix: str = "cdi.k8s.io/"
    cdi_spec_dir: str = "/var/run/cdi"
    nvidia_cdi_hook_path: str = "/usr/bin/nvidia-ctk"
    driver_mounts_host_path: str = "/home/kubernetes/bin/nvidia"
    driver_mounts_container_path: str = "/usr/local/nvidia"
    mps_root: str = "/run/nvidia/mps"
    time_slicing: Sharing | None = None
    mps: Sharing | None = None
    gpu_rules: tuple[ResourceRule, ...] = ()
    """Empty: every GPU is nvidia.com/gpu."""
    mig_rules: tuple[ResourceRule, ...] = ()
    resource_prefix: str = "nvidia.com"
    include: tuple[str, ...] = ()
    """Index, UUID, PCI address or model pattern; empty: all."""
    exclude: tuple[str, ...] = ()
    host_devices: tuple[HostDeviceRule, ...] = ()
    health: HealthSettings = HealthSettings()
    kubelet: KubeletSettings = KubeletSettings()
    occupancy_guard: bool = False
    state_dir: str = "/var/lib/gpu-device-plugin"
    """What must outlive restarts (fatal faults, by boot id). Never inside the kubelet's directory (K9)."""
    run_dir: str = "/run/gpu-device-plugin"
    """status.sock, which `status` asks."""
    metrics_address: str = ""
    """``host:port`` (``:9400``); empty: off."""
    log_format: str = "kv"
    """``kv`` or ``json``."""
    log_level: str = "info"
    node_name: str = ""
    """NODE_NAME: for Events and the node condition; empty: none are sent."""
    events: bool = False
    rescan_seconds: float = 10.0
    config_file: str = ""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What was accepted and has no effect here (the peer's keys we have no use for): log each once at start."""
