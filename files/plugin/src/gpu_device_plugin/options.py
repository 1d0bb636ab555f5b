"""Every setting by flag, environment and file: one table (so the length), which flags, help and documentation follow.

The peer's names are those of NVIDIA's k8s-device-plugin 0.17 to 0.20 (its api/config/v1 and cmd/nvidia-device-plugin).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from .config import DEVICE_LIST_STRATEGIES, Settings


@dataclass(frozen=True, slots=True)
class Option:
    """One setting."""

    field: str
    """Attribute of Settings, dotted where it is in a part of it."""
    kind: str
    """``text``, ``path`` (absolute), ``bool``, ``number``, ``list`` and ``integers`` (comma separated), ``choice``,
    ``choices``, ``address``, or ``yaml`` (the file's structure, written in YAML or JSON)."""
    help: str
    flags: tuple[str, ...]
    env: tuple[str, ...]
    key: tuple[str, ...]
    """Keys in the file, dotted; the first is the one to use."""
    choices: tuple[str, ...] = ()
    ours: bool = False

    @property
    def default(self) -> Any:
        """As in Settings()."""
        value: Any = Settings()
        for name in self.field.split("."):
            value = getattr(value, name)
        return value

    @property
    def default_text(self) -> str:
        """The default as one would write it; empty when there is none."""
        value = self.default
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A setting of the peer's that has no effect here: accepted, with a warning that says why."""

    key: str
    why: str
    flags: tuple[str, ...] = ()
    env: tuple[str, ...] = ()


def _peer(  # noqa: PLR0917 - a row of the table
    field: str, kind: str, name: str, env: str, key: str, text: str, *choices: str
) -> Option:
    return Option(field, kind, text, (f"--{name}",), (env,), (key,), choices)


def _ours(
    field: str, kind: str, name: str, key: str, text: str, *choices: str, env: str = "", ours: bool = True
) -> Option:
    variable = env or name.replace("-", "_").upper()
    return Option(field, kind, text, (f"--{name}",), (variable,), (key,), choices, ours)


CONFIG_FILE = Option(
    "config_file", "text", "file with settings, watched for edits", ("--config-file",), ("CONFIG_FILE",), ()
)

OPTIONS: tuple[Option, ...] = (
    CONFIG_FILE,
    _peer(
        "mig_strategy",
        "choice",
        "mig-strategy",
        "MIG_STRATEGY",
        "flags.migStrategy",
        "how MIG slices are offered: not at all, as nvidia.com/gpu, or a resource a profile",
        "none",
        "single",
        "mixed",
    ),
    _peer(
        "fail_on_init_error",
        "bool",
        "fail-on-init-error",
        "FAIL_ON_INIT_ERROR",
        "flags.failOnInitError",
        "exit when NVML can't be initialised; false: stay up without devices and try again",
    ),
    Option(
        "nvidia_driver_root",
        "path",
        "root of the driver's files on the node",
        ("--nvidia-driver-root", "--driver-root"),
        ("NVIDIA_DRIVER_ROOT",),
        ("flags.nvidiaDriverRoot",),
    ),
    Option(
        "nvidia_dev_root",
        "path",
        "root of the driver's device nodes on the node; empty: the driver root",
        ("--nvidia-dev-root", "--dev-root"),
        ("NVIDIA_DEV_ROOT",),
        ("flags.nvidiaDevRoot",),
    ),
    Option(
        "container_driver_root",
        "path",
        "where the driver root is mounted in the plugin's own container, for making CDI specifications",
        ("--driver-root-ctr-path", "--container-driver-root"),
        ("DRIVER_ROOT_CTR_PATH", "CONTAINER_DRIVER_ROOT"),
        ("flags.plugin.containerDriverRoot",),
    ),
    _peer(
        "pass_device_specs",
        "bool",
        "pass-device-specs",
        "PASS_DEVICE_SPECS",
        "flags.plugin.passDeviceSpecs",
        "name device nodes to the kubelet, so that containers keep GPUs over a daemon-reload",
    ),
    _peer(
        "device_list_strategy",
        "choices",
        "device-list-strategy",
        "DEVICE_LIST_STRATEGY",
        "flags.plugin.deviceListStrategy",
        "how the container runtime learns of the devices, one or several",
        *DEVICE_LIST_STRATEGIES,
    ),
    _peer(
        "device_id_strategy",
        "choice",
        "device-id-strategy",
        "DEVICE_ID_STRATEGY",
        "flags.plugin.deviceIDStrategy",
        "what the runtime is told",
        "uuid",
        "index",
    ),
    _peer(
        "shared_devices_allocation_policy",
        "choice",
        "shared-devices-allocation-policy",
        "SHARED_DEVICES_ALLOCATION_POLICY",
        "flags.plugin.sharedDevicesAllocationPolicy",
        "spread shared GPUs and MIG slices over GPUs, or fill one GPU first",
        "distributed",
        "packed",
    ),
    _peer(
        "gds_enabled",
        "bool",
        "gds-enabled",
        "GDS_ENABLED",
        "flags.gdsEnabled",
        "GPUDirect Storage: set NVIDIA_GDS=enabled, name its nodes by CDI",
    ),
    _peer(
        "mofed_enabled",
        "bool",
        "mofed-enabled",
        "MOFED_ENABLED",
        "flags.mofedEnabled",
        "MOFED: set NVIDIA_MOFED=enabled, name its nodes by CDI",
    ),
    _peer(
        "gdrcopy_enabled",
        "bool",
        "gdrcopy-enabled",
        "GDRCOPY_ENABLED",
        "flags.gdrcopyEnabled",
        "GDRCopy: set NVIDIA_GDRCOPY=enabled, name its node by CDI",
    ),
    _peer(
        "imex_channel_ids",
        "integers",
        "imex-channel-ids",
        "IMEX_CHANNEL_IDS",
        "imex.channelIDs",
        "IMEX channels that every container with a GPU is given, where the node has them",
    ),
    _peer(
        "imex_required",
        "bool",
        "imex-required",
        "IMEX_REQUIRED",
        "imex.required",
        "give out no GPU while one of these channels is not there",
    ),
    _peer(
        "cdi_annotation_prefix",
        "text",
        "cdi-annotation-prefix",
        "CDI_ANNOTATION_PREFIX",
        "flags.plugin.cdiAnnotationPrefix",
        "what the CDI annotation's key begins with",
    ),
    _ours("cdi_spec_dir", "path", "cdi-spec-dir", "cdi.specDir", "where the CDI specification is written"),
    Option(
        "nvidia_cdi_hook_path",
        "path",
        "nvidia-cdi-hook or nvidia-ctk on the node, named in the CDI specification",
        ("--nvidia-cdi-hook-path", "--nvidia-ctk-path"),
        ("NVIDIA_CDI_HOOK_PATH", "NVIDIA_CTK_PATH"),
        ("flags.plugin.nvidiaCDIHookPath", "flags.plugin.nvidiaCTKPath"),
    ),
    _ours(
        "driver_mounts_host_path",
        "path",
        "driver-mounts-host-path",
        "driverMounts.hostPath",
        "driver-mounts: the driver's libraries on the node",
    ),
    _ours(
        "driver_mounts_container_path",
        "path",
        "driver-mounts-container-path",
        "driverMounts.containerPath",
        "driver-mounts: where they appear in containers",
    ),
    _peer(
        "mps_root",
        "path",
        "mps-root",
        "MPS_ROOT",
        "flags.mpsRoot",
        "MPS pipes, logs and shared memory on the node",
    ),
    _ours(
        "time_slicing",
        "yaml",
        "sharing-time-slicing",
        "sharing.timeSlicing",
        "resources shared by time-slicing",
        ours=False,
    ),
    _ours("mps", "yaml", "sharing-mps", "sharing.mps", "resources shared by MPS", ours=False),
    _ours(
        "gpu_rules",
        "yaml",
        "resources-gpus",
        "resources.gpus",
        "model pattern -> resource name; nvidia.com/gpu for the rest",
        ours=False,
    ),
    _ours(
        "mig_rules",
        "yaml",
        "resources-mig",
        "resources.mig",
        "MIG profile pattern -> resource name; nvidia.com/mig-PROFILE for the rest",
        ours=False,
    ),
    _ours(
        "resource_prefix",
        "text",
        "resource-prefix",
        "resourcePrefix",
        "what comes before the slash of a resource's name",
    ),
    _ours(
        "include",
        "list",
        "include-devices",
        "devices.include",
        "offer only these GPUs: index, UUID, PCI address or model pattern",
    ),
    _ours(
        "exclude",
        "list",
        "exclude-devices",
        "devices.exclude",
        "never offer these GPUs: index, UUID, PCI address or model pattern",
    ),
    _ours("host_devices", "yaml", "host-devices", "hostDevices", "devices that are files, by pattern"),
    _ours("health.xids", "yaml", "health-xids", "health.xids", "XID -> ignore, transient or fatal"),
    _ours(
        "health.quiet_seconds",
        "number",
        "health-quiet-seconds",
        "health.quietSeconds",
        "how long a transient fault keeps a device Unhealthy; doubled at each return, up to an hour",
    ),
    _ours(
        "health.disable",
        "text",
        "disable-healthchecks",
        "health.disable",
        "all, xids, or XIDs to ignore",
        env="DP_DISABLE_HEALTHCHECKS",
        ours=False,
    ),
    _ours(
        "health.enable",
        "text",
        "enable-healthchecks",
        "health.enable",
        "all, or XIDs to heed in spite of the above",
        env="DP_ENABLE_HEALTHCHECKS",
        ours=False,
    ),
    _ours(
        "occupancy_guard",
        "bool",
        "occupancy-guard",
        "occupancyGuard",
        "a free GPU that runs processes is Unhealthy until it is clean",
    ),
    _ours(
        "kubelet.plugin_dir",
        "path",
        "kubelet-plugin-dir",
        "kubelet.pluginDir",
        "the kubelet's directory for device plugins",
    ),
    Option(
        "kubelet.socket",
        "path",
        "the kubelet's registration socket; empty: kubelet.sock in the directory",
        ("--kubelet-socket",),
        ("KUBELET_SOCKET",),
        ("kubelet.socket", "flags.plugin.kubeletSocket"),
    ),
    _ours(
        "kubelet.pod_resources_dir",
        "path",
        "kubelet-pod-resources-dir",
        "kubelet.podResourcesDir",
        "directory of the PodResources socket",
    ),
    _ours(
        "kubelet.registration",
        "choice",
        "kubelet-registration",
        "kubelet.registration",
        "how the kubelet learns of the plugin",
        "device-plugins",
        "plugins-registry",
    ),
    _ours(
        "kubelet.plugins_registry_dir",
        "path",
        "kubelet-plugins-registry-dir",
        "kubelet.pluginsRegistryDir",
        "directory of the plugin watcher",
    ),
    _ours(
        "metrics_address",
        "address",
        "metrics-address",
        "metrics.address",
        "host:port of /metrics, /healthz and /readyz; empty: none",
    ),
    _ours(
        "state_dir",
        "path",
        "state-dir",
        "stateDir",
        "what must outlive restarts; never in the kubelet's directory",
    ),
    _ours("run_dir", "path", "run-dir", "runDir", "the socket that `status` asks"),
    _ours("log_format", "choice", "log-format", "log.format", "key=value or JSON lines", "kv", "json"),
    _ours(
        "log_level",
        "choice",
        "log-level",
        "log.level",
        "the least that is logged",
        "debug",
        "info",
        "warning",
        "error",
    ),
    _ours(
        "node_name",
        "text",
        "node-name",
        "nodeName",
        "this node, for Events and the node condition; empty: none are sent",
    ),
    _ours(
        "events",
        "bool",
        "events",
        "events",
        "send Events and a node condition on changes of health",
        env="KUBERNETES_EVENTS",
    ),
    _ours(
        "rescan_seconds",
        "number",
        "rescan-seconds",
        "rescanSeconds",
        "how often to look for new, lost and repartitioned GPUs",
    ),
)

IGNORED: tuple[Ignored, ...] = (
    Ignored(
        "flags.deviceDiscoveryStrategy",
        "devices are found through NVML",
        ("--device-discovery-strategy",),
        ("DEVICE_DISCOVERY_STRATEGY",),
    ),
    Ignored(
        "flags.useNodeFeatureAPI",
        "labels come from the gpu_info module, not from this program",
        ("--use-node-feature-api",),
        ("USE_NODE_FEATURE_API",),
    ),
    Ignored(
        "flags.restartOnDeviceUnhealthy",
        "devices recover without a restart",
        ("--restart-on-device-unhealthy",),
        ("RESTART_ON_DEVICE_UNHEALTHY",),
    ),
    Ignored("flags.gfd", "GPU feature discovery is another program"),
    Ignored(
        "flags.plugin.cdiFeatureFlags",
        "they steer NVIDIA's generator of CDI specifications",
        ("--cdi-feature-flags",),
        ("CDI_FEATURE_FLAGS",),
    ),
)

REFUSED_VALUES = {"--device-discovery-strategy": "tegra"}
"""Ignored flags whose value is a need that we can't meet, so that a warning would not do."""


def setting_fields() -> frozenset[str]:
    """Dotted names of every attribute of Settings that one can set; the tests hold the table against it."""
    names: set[str] = set()
    for field in fields(Settings):
        value = getattr(Settings(), field.name)
        if is_dataclass(value):
            names.update(f"{field.name}.{inner.name}" for inner in fields(value))
        elif field.name != "warnings":
            names.add(field.name)
    return frozenset(names)
