"""Settings by command line, environment and file."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from gpu_device_plugin import config_file, config_shapes, options
from gpu_device_plugin.config import (
    HostDeviceRule,
    ResourceRule,
    Settings,
    SharedResource,
    Sharing,
)
from gpu_device_plugin.config_load import ConfigError, help_text, load
from gpu_device_plugin.faults import shown, unknown_value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

CHECKOUT = Path(__file__).resolve().parents[2]


def from_file(text: str | bytes, *argv: str, **environ: str) -> Settings:
    return load(["--config-file=c.yaml", *argv], environ, lambda path: text)


def faults(text: str | bytes, *argv: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        from_file(text, *argv, **environ)
    assert str(raised.value) == "\n".join(map(str, raised.value.faults))
    return [str(fault) for fault in raised.value.faults]


def no_file(path: str) -> str:
    raise AssertionError(f"{path} was read")


PEERS_FILE = """\
version: v1
flags:
  migStrategy: "mixed"
  failOnInitError: false
  nvidiaDriverRoot: "/run/nvidia/driver"
  nvidiaDevRoot: /
  deviceDiscoveryStrategy: auto
  mpsRoot: "/run/mps"
  gdrcopyEnabled: true
  gdsEnabled: true
  mofedEnabled: true
  useNodeFeatureAPI: null
  plugin:
    passDeviceSpecs: false
    deviceListStrategy:
      - "envvar"
      - cdi-cri
    deviceIDStrategy: "index"
    cdiAnnotationPrefix: "cdi.example.com/"
    nvidiaCTKPath: "/usr/local/bin/nvidia-ctk"
    containerDriverRoot: "/host"
    sharedDevicesAllocationPolicy: packed
  gfd:
    oneshot: false
    sleepInterval: 60s
imex: {channelIDs: [0], required: true}
resources:
  gpus:
    - pattern: "A100-SXM4*"
      name: nvidia.com/a100
    - pattern: "*"
      name: gpu
  mig:
    - pattern: "1g.5gb"
      name: nvidia.com/mig-small
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
      - name: nvidia.com/gpu
        replicas: 10
      - name: nvidia.com/mig-1g.10gb
        rename: nvidia.com/slice
        devices: [0, "0:1", 1:0, GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c]
        replicas: 2
      - name: a100
        devices: 2
        replicas: 3
"""


def test_a_peers_file_with_everything_in_it_works_unchanged() -> None:
    found = from_file(PEERS_FILE)
    assert dataclasses.replace(found, warnings=()) == Settings(
        mig_strategy="mixed",
        fail_on_init_error=False,
        nvidia_driver_root="/run/nvidia/driver",
        nvidia_dev_root="/",
        container_driver_root="/host",
        pass_device_specs=False,
        device_list_strategy=("envvar", "cdi-cri"),
        device_id_strategy="index",
        shared_devices_allocation_policy="packed",
        gds_enabled=True,
        mofed_enabled=True,
        gdrcopy_enabled=True,
        cdi_annotation_prefix="cdi.example.com/",
        nvidia_cdi_hook_path="/usr/local/bin/nvidia-ctk",
        imex_channel_ids=(0,),
        imex_required=True,
        mps_root="/run/mps",
        time_slicing=Sharing(
            rename_by_default=True,
            fail_requests_greater_than_one=True,
            resources=(
                SharedResource("nvidia.com/gpu", 10),
                SharedResource(
                    "nvidia.com/mig-1g.10gb",
                    2,
                    "nvidia.com/slice",
                    (0, "0:1", "1:0", "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"),
                ),
                SharedResource("nvidia.com/a100", 3, devices=2),
            ),
        ),
        gpu_rules=(ResourceRule("A100-SXM4*", "nvidia.com/a100"), ResourceRule("*", "nvidia.com/gpu")),
        mig_rules=(ResourceRule("1g.5gb", "nvidia.com/mig-small"),),
        config_file="c.yaml",
    )
    assert found.warnings == (
        "c.yaml:23:3: flags.gfd has no effect: GPU feature discovery is another program",
    )
    assert found.time_slicing is not None
    assert [entry.where for entry in found.time_slicing.resources] == [
        "c.yaml:41:9",
        "c.yaml:43:9",
        "c.yaml:47:9",
    ]
    assert [rule.where for rule in (*found.gpu_rules, *found.mig_rules)] == [
        "c.yaml:29:7",
        "c.yaml:31:7",
        "c.yaml:34:7",
    ]


OUR_FILE = """\
devices: {include: [0, "GPU-1", A100*], exclude: ["0000:18:00.0"]}
hostDevices:
  - {resource: example.com/ib, paths: ["/dev/infiniband/uverbs*", "/dev/infiniband/umad*"], group: true, count: 3}
  - {resource: example.com/fpga, paths: [/dev/xdma*], permissions: rwm}
health: {xids: {79: ignore, "31": fatal}, quietSeconds: 5, disable: "12,13", enable: "all"}
occupancyGuard: true
kubelet: {pluginDir: /p, socket: /p/k.sock, podResourcesDir: /r, registration: plugins-registry, pluginsRegistryDir: /g}
metrics: {address: ":9400"}
cdi: {specDir: /etc/cdi}
driverMounts: {hostPath: /h, containerPath: /c}
stateDir: /s
runDir: /u
log: {format: json, level: debug}
nodeName: n1
events: true
rescanSeconds: 2.5
resourcePrefix: example.org
plugin: {deviceListStrategy: driver-mounts}
sharing: {mps: {resources: [{name: gpu, replicas: 4}]}}
"""


def test_our_own_keys_work_too() -> None:
    found = from_file(OUR_FILE)
    assert found.include == ("0", "GPU-1", "A100*")
    assert found.exclude == ("0000:18:00.0",)
    assert found.host_devices == (
        HostDeviceRule("example.com/ib", ("/dev/infiniband/uverbs*", "/dev/infiniband/umad*"), True, 3),
        HostDeviceRule("example.com/fpga", ("/dev/xdma*",), permissions="rwm"),
    )
    assert found.health.xids == ((31, "fatal"), (79, "ignore"))
    assert (found.health.quiet_seconds, found.health.disable, found.health.enable) == (5.0, "12,13", "all")
    assert found.occupancy_guard is True
    kubelet = found.kubelet
    assert (kubelet.plugin_dir, kubelet.socket, kubelet.pod_resources_dir) == ("/p", "/p/k.sock", "/r")
    assert (kubelet.registration, kubelet.plugins_registry_dir) == ("plugins-registry", "/g")
    assert found.metrics_address == ":9400"
    assert (found.cdi_spec_dir, found.driver_mounts_host_path, found.driver_mounts_container_path) == (
        "/etc/cdi",
        "/h",
        "/c",
    )
    assert (found.state_dir, found.run_dir, found.log_format, found.log_level) == (
        "/s",
        "/u",
        "json",
        "debug",
    )
    assert (found.node_name, found.events, found.rescan_seconds) == ("n1", True, 2.5)
    assert found.device_list_strategy == ("driver-mounts",)
    assert found.mps == Sharing(False, True, (SharedResource("example.org/gpu", 4),))
    assert found.warnings == ()


def test_without_anything_the_defaults_hold_and_no_file_is_read() -> None:
    assert load([], {}, no_file) == Settings()


def test_a_flag_wins_over_a_variable_and_that_over_the_file() -> None:
    text = "flags: {migStrategy: single}"
    assert from_file(text).mig_strategy == "single"
    assert from_file(text, MIG_STRATEGY="mixed").mig_strategy == "mixed"
    assert from_file(text, "--mig-strategy=none", MIG_STRATEGY="mixed").mig_strategy == "none"


SAMPLES = {
    "text": "some.text/",
    "path": "/some/path",
    "bool": None,
    "number": "7.5",
    "list": "0,GPU-1",
    "integers": "0,7",
    "address": "127.0.0.1:80",
}
YAML_SAMPLES = {
    "time_slicing": '{"resources": [{"name": "gpu", "replicas": 2}]}',
    "mps": '{"resources": [{"name": "gpu", "replicas": 2}]}',
    "gpu_rules": '[{"pattern": "*", "name": "gpu"}]',
    "mig_rules": '[{"pattern": "*", "name": "x"}]',
    "host_devices": '[{"resource": "a.b/c", "paths": ["/dev/x"]}]',
    "health.xids": "{79: ignore}",
}
SPECIAL = {
    "resource_prefix": "example.com",
    "health.disable": "79",
    "health.enable": "31",
    "config_file": "f.yaml",
}


def sample(option: options.Option) -> str:
    if option.field in SPECIAL:
        return SPECIAL[option.field]
    if option.kind == "yaml":
        return YAML_SAMPLES[option.field]
    if option.kind == "bool":
        return "false" if option.default else "true"
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default_text)
    return SAMPLES[option.kind]


def value_of(found: Settings, field: str) -> object:
    value: object = found
    for step in field.split("."):
        value = getattr(value, step)
    return value


@pytest.mark.parametrize("option", options.OPTIONS, ids=lambda option: option.field)
def test_every_setting_can_be_given_by_each_flag_each_variable_and_each_key(option: options.Option) -> None:
    text = sample(option)

    def read(path: str) -> str:
        return ""

    ways = [value_of(load([flag, text], {}, read), option.field) for flag in option.flags]
    ways += [value_of(load([f"{flag}={text}"], {}, read), option.field) for flag in option.flags]
    ways += [value_of(load([], {variable: text}, read), option.field) for variable in option.env]
    for key in option.key:
        literal = text if option.kind in ("bool", "number", "yaml") else json.dumps(text)
        if option.kind == "list":
            literal = json.dumps(text.split(","))
        if option.kind == "integers":
            literal = f"[{text}]"
        for step in reversed(key.split(".")):
            literal = f"{{{step}: {literal}}}"
        ways.append(value_of(from_file(literal), option.field))
    assert all(way == ways[0] for way in ways)
    assert ways[0] != option.default


def test_the_table_has_every_setting_once_and_no_flag_variable_or_key_twice() -> None:
    assert {option.field for option in options.OPTIONS} == options.setting_fields()
    for each in ("flags", "env", "key"):
        names = [name for option in options.OPTIONS for name in getattr(option, each)]
        names += [name for i in options.IGNORED for name in ((i.key,) if each == "key" else getattr(i, each))]
        assert len(names) == len(set(names)), each


def keys_of(shape: type, before: str = "") -> set[str]:
    found = set()
    for field in dataclasses.fields(shape):
        inner = getattr(config_shapes, str(field.type).removesuffix(" | None"), None)
        if dataclasses.is_dataclass(inner) and inner is not config_shapes.SharingFile:
            found |= keys_of(inner, f"{before}{field.name}.")  # type: ignore[arg-type]
        else:
            found.add(f"{before}{field.name}")
    return found


def test_the_files_shape_and_the_table_name_the_same_keys() -> None:
    table = {key for option in options.OPTIONS for key in option.key} | {i.key for i in options.IGNORED}
    beside = {key.removeprefix("flags.") for key in table if key.startswith("flags.plugin.")}
    assert keys_of(config_shapes.ConfigFile) - {"version"} == table | beside


def test_single_dashes_and_repeated_flags_work_as_with_gos_flags() -> None:
    found = load(
        ["-mig-strategy", "single", "-mig-strategy=mixed", "--device-list-strategy=envvar", "-pass-device-specs=F",
         "--device-list-strategy", "cdi-cri,envvar", "--gds-enabled"], {}, no_file)  # fmt: skip
    assert found.mig_strategy == "mixed"
    assert found.device_list_strategy == ("envvar", "cdi-cri")
    assert found.pass_device_specs is False
    assert found.gds_enabled is True


def test_empty_variables_are_as_if_unset() -> None:
    assert load([], {"MIG_STRATEGY": "", "PASS_DEVICE_SPECS": " ", "NODE_NAME": ""}, no_file) == Settings()


def test_faults_of_flags_and_variables_come_together() -> None:
    with pytest.raises(ConfigError) as raised:
        load(
            ["--mig-stratgy=single", "stray", "--device-id-strategy=uid", "--rescan-seconds", "0", "--state-dir=here"],
            {"PASS_DEVICE_SPECS": "yes", "DEVICE_LIST_STRATEGY": "envvar,cdi", "METRICS_ADDRESS": "9400",
             "RESCAN_SECONDS": "x", "HOST_DEVICES": "[{resource: a}]", "SHARING_MPS": "[", "RESOURCE_PREFIX": "A_b"},
            no_file,
        )  # fmt: skip
    assert sorted(map(str, raised.value.faults)) == sorted(
        [
            "--mig-stratgy: unknown flag",
            "stray: no flag takes this word",
            "--device-id-strategy: 'uid' is not one of uuid, index; did you mean uuid?",
            "--rescan-seconds: 0.0 is no number of seconds",
            "--state-dir: 'here' is not an absolute path",
            "PASS_DEVICE_SPECS: 'yes' is not true or false",
            "DEVICE_LIST_STRATEGY: 'cdi' is not one of envvar, volume-mounts, cdi-annotations, cdi-cri, driver-mounts",
            "METRICS_ADDRESS: '9400' is no host:port or :port",
            "HOST_DEVICES: [0].paths: missing",
            "SHARING_MPS: while parsing a flow node did not find expected node content",
            "RESOURCE_PREFIX: 'A_b' is no domain name (lower case letters, digits, '-' and '.')",
        ]
    )


def test_a_flag_without_its_value_is_a_fault_not_an_exit() -> None:
    with pytest.raises(ConfigError, match="expected one argument"):
        load(["--state-dir"], {}, no_file)
    with pytest.raises(ConfigError, match="RESCAN_SECONDS: 'x' is not a number"):
        load([], {"RESCAN_SECONDS": "x"}, no_file)


BAD_FILE = """\
version: v2
flags:
  migStratgy: single
  failOnInitError: "yes"
  plugin:
    deviceListStrategy: [envvar, cdi]
    passDeviceSpecs: 1
sharing:
  timeSlicing:
    renameByDefault: tru
    resources:
    - name: nvidia.com/gpu
      replicas: 1
    - name: gpux
      replicas: 4
      devices: [0, x, 1.5]
    - replicas: 3
    - 7
    - name: nvidia.com/gpu
      replicas: 2
      devices: none
      extra: 1
  mps: {resources: [{name: nvidia.com/gpu, replicas: 99999, rename: a/b/c}]}
resources: {gpus: [{pattern: "", name: "kubernetes.io/x"}]}
devices: {include: [[]]}
hostDevices:
- {resource: fpga, paths: [], count: 0, permissions: wr}
- {resource: a.b/c, paths: [dev/x], group: maybe}
health: {xids: {79: deadly, abc: fatal}, quietSeconds: -1}
imex: {channelIDs: [0, -1, x], required: maybe}
log: 3
rescanSeconds: .inf
metrics: {address: "host:99999"}
unknwon: 1
"""


def test_every_fault_of_a_file_is_told_at_once_with_its_line_and_column() -> None:
    assert faults(BAD_FILE) == [
        "c.yaml:1:10: version: 'v2' is not one of v1",
        "c.yaml:3:3: flags.migStratgy: unknown key; did you mean migStrategy?",
        "c.yaml:4:20: flags.failOnInitError: 'yes' is not true or false",
        "c.yaml:6:25: flags.plugin.deviceListStrategy: 'cdi' is not one of envvar, volume-mounts, cdi-annotations, "
        "cdi-cri, driver-mounts",
        "c.yaml:7:22: flags.plugin.passDeviceSpecs: 1 is not true or false",
        "c.yaml:10:22: sharing.timeSlicing.renameByDefault: 'tru' is not true or false",
        "c.yaml:13:17: sharing.timeSlicing.resources[0].replicas: 1 is not from 2 to 50000",
        "c.yaml:14:13: sharing.timeSlicing.resources[1].name: no resource nvidia.com/gpux comes of these settings, "
        "only kubernetes.io/x, nvidia.com/gpu",
        "c.yaml:16:16: sharing.timeSlicing.resources[1].devices: 'x' is no GPU index, MIG index such as 0:1, or UUID",
        "c.yaml:17:7: sharing.timeSlicing.resources[2].name: missing",
        "c.yaml:18:7: sharing.timeSlicing.resources[3]: 7 is not a mapping of keys",
        "c.yaml:21:16: sharing.timeSlicing.resources[4].devices: 'none' is not all, a count from 1, or a list of "
        "indices and UUIDs",
        "c.yaml:22:7: sharing.timeSlicing.resources[4].extra: unknown key",
        "c.yaml:23:28: sharing.mps.resources[0].name: nvidia.com/gpu is shared by time-slicing too: choose one",
        "c.yaml:23:54: sharing.mps.resources[0].replicas: 99999 is not from 2 to 50000",
        "c.yaml:23:69: sharing.mps.resources[0].rename: 'b/c' must be letters, digits, '-', '_' and '.', beginning "
        "and ending with a letter or digit",
        "c.yaml:24:30: resources.gpus[0].pattern: empty; '*' matches everything",
        "c.yaml:24:40: resources.gpus[0].name: 'kubernetes.io': kubernetes.io is kept for Kubernetes itself",
        "c.yaml:25:21: devices.include[0]: [] is no index, UUID, PCI address or model pattern",
        "c.yaml:27:14: hostDevices[0].resource: 'fpga' has no '/': write it as example.com/fpga",
        "c.yaml:27:27: hostDevices[0].paths: empty; at least one path or pattern",
        "c.yaml:27:38: hostDevices[0].count: 0 is not from 1 to 50000",
        "c.yaml:27:54: hostDevices[0].permissions: 'wr' is not of r, w and m, in this order",
        "c.yaml:28:29: hostDevices[1].paths[0]: 'dev/x' is not an absolute path",
        "c.yaml:28:44: hostDevices[1].group: 'maybe' is not true or false",
        "c.yaml:29:21: health.xids[79]: 'deadly' is not one of ignore, transient, fatal",
        "c.yaml:29:34: health.xids.abc: 'abc' is no XID: write a number",
        "c.yaml:29:56: health.quietSeconds: -1.0 is less than 0",
        "c.yaml:30:20: imex.channelIDs: -1 is not from 0 to 1048575",
        "c.yaml:30:28: imex.channelIDs[2]: 'x' is not a whole number",
        "c.yaml:30:42: imex.required: 'maybe' is not true or false",
        "c.yaml:31:6: log: 3 is not a mapping of keys",
        "c.yaml:32:16: rescanSeconds: '.inf' is not a number",
        "c.yaml:33:20: metrics.address: 'host:99999' is no host:port or :port",
        "c.yaml:34:1: unknwon: unknown key",
    ]


def test_faults_of_file_flags_and_environment_come_together() -> None:
    found = faults("flags: {migStrategy: x}", "--foo", PASS_DEVICE_SPECS="?")
    assert found == [
        "--foo: unknown flag",
        "PASS_DEVICE_SPECS: '?' is not true or false",
        "c.yaml:1:22: flags.migStrategy: 'x' is not one of none, single, mixed",
    ]


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("flags: [", "c.yaml:2:1: while parsing a flow node did not find expected node content"),
        ("flags:\n  a: b: c\n", "c.yaml:2:7: mapping values are not allowed in this context"),
        ("flags: {}\nflags: {}\n", "c.yaml:2:1: 'flags' is given twice"),
        ("- 1\n", "c.yaml:1:1: [1] is not a mapping of keys"),
        (b"log: \xff\n", "c.yaml:1: not UTF-8 text"),
        (b"a: 1\nlog: \xff\n", "c.yaml:2: not UTF-8 text"),
        ("[" * 50_000, "c.yaml: nested more than 30 levels deep"),
        ("a: " + "[" * 30 + "]" * 30, "c.yaml: nested more than 30 levels deep"),
        ("x: &a [*a]\nversion: *a\n", "c.yaml: an alias that holds itself, or too many inside of each other"),
        (LAUGHS, "c.yaml: more than 100000 values"),
        ("a: !!python/object:os.system {}\n", None),
        ("log: \0", None),
        ("a: 1\n---\nb: 2\n", None),
        ("? [a, b]\n: c\n", None),
        (" " * (1 << 20) + "x", "c.yaml: larger than 1048576 bytes"),
        ("version: 1e400\n", None),
        ("nodeName: 12345678901234567890\n", "c.yaml:1:11: nodeName: 12345678901234567890 is not text"),
        ("rescanSeconds: " + "9" * 5000, None),
        ("flags: {plugin: {passDeviceSpecs: true}}\nplugin: {passDeviceSpecs: false}\n",
         "c.yaml:2:27: plugin.passDeviceSpecs: already given as flags.plugin.passDeviceSpecs"),
        ("flags: {plugin: {nvidiaCTKPath: /a, nvidiaCDIHookPath: /b}}\n",
         "c.yaml:1:33: flags.plugin.nvidiaCTKPath: already given as flags.plugin.nvidiaCDIHookPath"),
        ("flags: {deviceDiscoveryStrategy: tegra}\n",
         "c.yaml:1:9: flags.deviceDiscoveryStrategy: tegra is not supported: devices are found through NVML"),
        ("plugin: {deviceListStrategy: []}\n",
         "c.yaml:1:30: flags.plugin.deviceListStrategy: empty; one or several of envvar, volume-mounts, "
         "cdi-annotations, cdi-cri, driver-mounts"),
        ('stateDir: "/a\\0b"\n', "c.yaml:1:11: stateDir: holds a zero byte"),
        ("sharing: {timeSlicing: {renameByDefault: true, resources: [{name: gpu, replicas: 2}]}}\n"
         f"resourcePrefix: {'a' * 60}.{'b' * 190}\n", None),
        ("sharing: {timeSlicing: {resources: [{name: nvidia.com/mig-1g.10gb, replicas: 2}]}}\n",
         "c.yaml:1:44: sharing.timeSlicing.resources[0].name: no resource nvidia.com/mig-1g.10gb comes of these "
         "settings, only nvidia.com/gpu"),
    ],
)  # fmt: skip
def test_files_that_are_no_settings_are_refused_with_a_place(text: str | bytes, fault: str | None) -> None:
    found = faults(text)
    assert found
    if fault is not None:
        assert found == [fault]


def test_a_shared_name_that_grows_too_long_is_refused() -> None:
    text = "sharing: {timeSlicing: {renameByDefault: true, resources: [{name: %s, replicas: 2}]}}"
    rule = "\nresources: {gpus: [{pattern: '*', name: %s}]}"
    good, bad = "a" * 56, "a" * 57
    assert from_file(text % good + rule % good).time_slicing is not None
    assert faults(text % bad + rule % bad) == [
        f"c.yaml:1:67: sharing.timeSlicing.resources[0].name: {('a' * 40)!r}... is 64 characters long; 63 is the "
        "most after the '/'"
    ]


def test_a_sharing_entry_may_name_any_resource_that_the_settings_can_give() -> None:
    text = "flags: {migStrategy: %s}\nresources: {mig: [{pattern: '*', name: small}]}\n"
    text += "sharing: {timeSlicing: {resources: [{name: %s, replicas: 2}]}}"
    assert from_file(text % ("single", "small")).time_slicing
    assert from_file(text % ("mixed", "mig-2g.20gb")).time_slicing
    assert len(faults(text % ("none", "small"))) == 1
    assert len(faults(text % ("single", "mig-2g.20gb"))) == 1


def test_a_file_that_cannot_be_read_is_a_fault_at_the_flag_or_variable_that_names_it() -> None:
    def missing(path: str) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(ConfigError, match=r"^--config-file: can't read x.yaml: No such file or directory$"):
        load(["--config-file=x.yaml"], {}, missing)
    with pytest.raises(ConfigError, match=r"^CONFIG_FILE: can't read x.yaml: No such file or directory$"):
        load([], {"CONFIG_FILE": "x.yaml"}, missing)


def test_a_json_file_and_one_with_a_byte_order_mark_are_read() -> None:
    assert from_file('{"version": "v1", "flags": {"migStrategy": "single"}}').mig_strategy == "single"
    assert from_file(b"\xef\xbb\xbfflags: {migStrategy: single}").mig_strategy == "single"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "flags:\nplugin: ~\n", "version:\n", "sharing: {timeSlicing: null}"]
)
def test_files_that_say_nothing_leave_the_defaults(text: str) -> None:
    assert from_file(text) == dataclasses.replace(Settings(), config_file="c.yaml")


def test_words_of_old_yaml_are_booleans_as_with_the_peer() -> None:
    assert from_file("flags: {failOnInitError: off, gdsEnabled: Yes}").fail_on_init_error is False
    assert from_file("flags: {failOnInitError: off, gdsEnabled: Yes}").gds_enabled is True


def test_the_peers_settings_that_do_nothing_here_are_accepted_with_a_warning() -> None:
    found = from_file(
        "flags: {useNodeFeatureAPI: true, restartOnDeviceUnhealthy: true, plugin: {cdiFeatureFlags: x}}\n"
        "imex: {channelIDs: [], required: true}\n",
        "--device-discovery-strategy=nvml",
        USE_NODE_FEATURE_API="true",
    )
    assert found.warnings == (
        "c.yaml:1:9: flags.useNodeFeatureAPI has no effect: labels come from the gpu_info module, not from "
        "this program",
        "c.yaml:1:34: flags.restartOnDeviceUnhealthy has no effect: devices recover without a restart",
        "c.yaml:1:75: flags.plugin.cdiFeatureFlags has no effect: they steer NVIDIA's generator of CDI specifications",
        "USE_NODE_FEATURE_API: flags.useNodeFeatureAPI has no effect: labels come from the gpu_info module, not from "
        "this program",
        "c.yaml:2:34: imex.required has no effect without imex.channelIDs",
    )
    quiet = (
        "flags: {useNodeFeatureAPI: false, deviceDiscoveryStrategy: nvml, gfd: {}}\nimex: {channelIDs: []}"
    )
    assert from_file(quiet, "--imex-required=false").warnings == ()


def test_imex_channels_are_numbers_each_once() -> None:
    found = load(["--imex-channel-ids=7, 0,7", "--imex-required"], {}, no_file)
    assert (found.imex_channel_ids, found.imex_required) == ((7, 0), True)
    assert load([], {"IMEX_CHANNEL_IDS": "1048575"}, no_file).imex_channel_ids == (1048575,)
    for text, fault in (
        ("0,x", "'x' is not a whole number"),
        ("1048576", "1048576 is not from 0 to 1048575"),
    ):
        with pytest.raises(ConfigError, match=f"^IMEX_CHANNEL_IDS: {fault}$"):
            load([], {"IMEX_CHANNEL_IDS": text}, no_file)


def test_mps_refuses_larger_requests_whatever_the_file_says_and_says_so() -> None:
    text = "sharing: {mps: {failRequestsGreaterThanOne: false, resources: [{name: gpu, replicas: 2}]}}"
    found = from_file(text)
    assert found.mps is not None
    assert found.mps.fail_requests_greater_than_one is True
    assert found.warnings == ("c.yaml:1:45: failRequestsGreaterThanOne is always true with MPS",)


def test_words_in_the_health_lists_that_are_no_xids_are_told() -> None:
    found = load([], {"DP_DISABLE_HEALTHCHECKS": "ALL, 31,foo", "DP_ENABLE_HEALTHCHECKS": "48, ?"}, no_file)
    assert (found.health.disable, found.health.enable) == ("ALL, 31,foo", "48, ?")
    assert found.warnings == (
        "DP_DISABLE_HEALTHCHECKS: 'foo' is no XID and is passed over",
        "DP_ENABLE_HEALTHCHECKS: '?' is no XID and is passed over",
    )


def test_help_lists_every_flag_with_its_variable_key_and_default() -> None:
    text = help_text()
    for option in options.OPTIONS:
        entry = re.search(rf"\n +{re.escape(option.flags[0])}[ ,].*?(?=\n  -|\Z)", text, re.DOTALL)
        assert entry, option.flags
        plain = "".join(entry[0].split())
        assert all(flag in plain for flag in option.flags)
        assert f"env{','.join(option.env)}" in plain
        assert not option.key or f"file{','.join(option.key)}" in plain
        assert f"default{option.default_text}]" in plain or (
            not option.default_text and "nodefault]" in plain
        )
    for ignored in options.IGNORED:
        assert all(flag in text for flag in ignored.flags)


def test_without_a_file_neither_cattrs_nor_yaml_is_imported() -> None:
    code = "import sys; from gpu_device_plugin.config_load import load; load([], {}, open); "
    code += "sys.exit(bool({'cattrs', 'attrs', 'yaml'} & set(sys.modules)))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(CHECKOUT / "files/plugin/src")}
    )


def test_long_values_are_cut_in_messages_and_unknown_flags_shown_without_their_value() -> None:
    assert shown("x" * 58) == repr("x" * 58)
    assert shown("x" * 59) == "'" + "x" * 56 + "..."
    assert unknown_value("x", ()) == "'x' is not one of "
    with pytest.raises(ConfigError, match=r"^--foo: unknown flag$"):
        load(["--foo=a=b"], {}, no_file)


def test_places_of_values_that_are_not_there_are_those_of_what_should_hold_them() -> None:
    document = config_file.parse("a: {b: [1, 2]}\n", "f")
    assert document.where(("a", "b", 1)) == "f:1:12"
    assert document.where(("a", "b", 5)) == "f:1:5"
    assert document.where(("a", "c")) == "f:1:1"
    assert document.where(("a", "b"), key=True) == "f:1:5"
    assert config_file.parse("", "f").where(("a",)) == "f"


WORDS = st.sampled_from(
    [
        "version", "v1", "flags", "plugin", "sharing", "timeSlicing", "mps", "resources", "name", "replicas", "rename",
        "devices", "all", "nvidia.com/gpu", "gpus", "mig", "pattern", "*", "hostDevices", "paths", "/dev/x", "health",
        "xids", "79", "fatal", "kubelet", "include", "imex", "channelIDs", "log", "format", "migStrategy", "gfd",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.integers(0, 99).map(str), inner, max_size=4)
    ),
    max_leaves=12,
)


def survives(text: str | bytes) -> None:
    try:
        assert isinstance(from_file(text), Settings)
    except ConfigError as error:
        assert error.faults


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_any_structure_gives_settings_or_faults_never_another_exception(value: object) -> None:
    survives(json.dumps(value))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
@example("!!binary x")
@example("? {a: 1}\n: b")
@example("!!timestamp 2020-99-99")
@example("<<: 1")
@example("<<: [a]")
@example("a: &x {<<: *x}")
@example("!!int ''")
@example("version: =")
@example("!!omap [1]")
@example("!!set {a: b}\n")
@example("flags: {plugin: &p {passDeviceSpecs: true, x: *p}}")
def test_any_text_gives_settings_or_faults_never_another_exception(text: str | bytes) -> None:
    survives(text)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_good_file_with_pieces_cut_out_or_doubled_never_crashes(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([PEERS_FILE, OUR_FILE, BAD_FILE]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 20))
        text = text[:at] + data.draw(st.text(max_size=4)) + text[at + length :]
    survives(text)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(max_size=12) | st.sampled_from([f for o in options.OPTIONS for f in o.flags]), max_size=4
    )
)
def test_any_command_line_gives_settings_or_faults(argv: list[str]) -> None:
    try:
        load(argv, {}, lambda path: "")
    except ConfigError as error:
        assert error.faults


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([v for o in options.OPTIONS for v in o.env]), st.text(max_size=12), max_size=4
    )
)
def test_any_environment_gives_settings_or_faults(environ: dict[str, str]) -> None:
    try:
        load([], environ, lambda path: "")
    except ConfigError as error:
        assert error.faults
