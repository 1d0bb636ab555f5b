"""The command line and KubeletConfiguration, read as the real kubelet reads them: same names, same refusals."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .names_of_flags import GATES, SWITCHES, VALUES
from .settings import PLUGIN_DIR, ROOT_DIR, Settings
from .version import DEFAULT, parse

GATE = "DevicePlugins"
VERSION_FILE = Path("/etc/embedded-kubelet/version")
"""The version to imitate where EMBEDDED_KUBELET_VERSION does not say."""


class FatalError(Exception):
    """The kubelet would exit; ``status`` is its exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Run:
    """All that a run needs."""

    settings: Settings
    healthz: tuple[str, int]
    """(address, port); port 0: none."""
    read_only_port: int
    """/metrics, as the real one has it there; 0: none."""
    static_pods: Path | None
    warnings: tuple[str, ...]
    print_version: bool = False


def version_to_imitate(environment: Mapping[str, str] = os.environ) -> str:
    """From EMBEDDED_KUBELET_VERSION, else the file, else the newest that was observed."""
    named = environment.get("EMBEDDED_KUBELET_VERSION", "")
    if not named:
        try:
            named = VERSION_FILE.read_text().strip()
        except FileNotFoundError:
            named = DEFAULT
    parse(named)
    return named


def read_flags(arguments: Sequence[str]) -> dict[str, str]:
    """name -> value; the last one wins. Raises FatalError for what the kubelet doesn't know."""
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            raise FatalError(f"unknown command: {word}")
        name, equals, value = word.lstrip("-").partition("=")
        if name == "version" or name in SWITCHES:
            flags[name] = value if equals else "true"
        elif name in VALUES:
            if not equals and not rest:
                raise FatalError(f"flag needs an argument: --{name}", 255)
            value = value if equals else rest.pop(0)
            if name == "feature-gates" and name in flags:
                value = f"{flags[name]},{value}"
            flags[name] = value
        else:
            raise FatalError(f"unknown flag: --{name}", 255)
    return flags


def read_gates(text: str) -> dict[str, bool]:
    """``A=true,B=false`` as --feature-gates has it. Raises FatalError."""
    gates = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = pair.partition("=")
        where = f'invalid argument "{text}" for "--feature-gates" flag'
        if not equals:
            raise FatalError(f"{where}: malformed pair, expect string=bool", 255)
        if value.lower() not in ("true", "false", "1", "0", "t", "f"):
            raise FatalError(f"{where}: invalid value of {name.strip()}: {value}, err: invalid syntax", 255)
        gates[name.strip()] = value.lower() in ("true", "1", "t")
    return gates


def check_gates(gates: Mapping[str, bool], version: str) -> tuple[bool, list[str]]:
    """(is DevicePlugins on, warnings), by the table of KUBELET.md. Raises FatalError where that kubelet exits."""
    number = parse(version)
    for name in gates:
        if name == GATE:
            if number < (1, 8) or number >= (1, 28):
                raise FatalError(
                    f"failed to set feature gates from initial flags-based config: {_unknown(GATE)}"
                )
        elif name not in GATES:
            raise FatalError(f"failed to set feature gates from initial flags-based config: {_unknown(name)}")
    if GATE not in gates:
        return number >= (1, 10), []
    if number >= (1, 26):
        if not gates[GATE]:
            raise FatalError(
                "failed to set feature gates from initial flags-based config: "
                f"cannot set feature gate {GATE} to false, feature is locked to true"
            )
        return True, [f"Setting GA feature gate {GATE}=true. It will be removed in a future release."]
    return gates[GATE], []


def read_run(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Run:
    """Everything the program was told. Raises FatalError with the kubelet's own words."""
    flags = read_flags(arguments)
    version = version_to_imitate(environment)
    config = _read_config(flags, version)
    gates = {
        **_config_gates(config),
        **read_gates(flags.get("feature-gates", "")),
    }  # the flag wins key by key
    on, warnings = check_gates(gates, version)

    def setting(flag: str, key: str, default: Any) -> Any:
        return flags.get(flag, config.get(key, default))

    topology = setting("topology-manager-policy", "topologyManagerPolicy", "none")
    settings = Settings(
        plugin_dir=Path(environment.get("EMBEDDED_KUBELET_PLUGIN_DIR", "") or PLUGIN_DIR),
        root_dir=Path(flags.get("root-dir", ROOT_DIR)),
        version=version,
        gate=on,
        node_status_seconds=seconds(
            setting("node-status-update-frequency", "nodeStatusUpdateFrequency", "10s"),
            "nodeStatusUpdateFrequency",
        ),
        topology_policy=topology,
    )
    static = setting("pod-manifest-path", "staticPodPath", "")
    return Run(
        settings=settings,
        healthz=(
            setting("healthz-bind-address", "healthzBindAddress", "127.0.0.1"),
            int(setting("healthz-port", "healthzPort", 10248)),
        ),
        read_only_port=int(setting("read-only-port", "readOnlyPort", 0)),
        static_pods=Path(static) if static else None,
        warnings=tuple(warnings),
        print_version=flags.get("version", "false") not in ("false", "0"),
    )


def seconds(value: Any, what: str) -> float:
    """``10s``, ``1m30s``, ``500ms``. Raises FatalError."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6}
    parts = re.findall(r"([0-9.]+)(ms|us|h|m|s)", str(value))
    if not parts or "".join(a + b for a, b in parts) != str(value):
        raise FatalError(f'{what}: time: invalid duration "{value}"')
    return sum(float(number) * units[unit] for number, unit in parts)


def _read_config(flags: Mapping[str, str], version: str) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if "config" in flags:
        config = _read_yaml(Path(flags["config"]))
    if "config-dir" in flags:
        if parse(version) < (1, 28):
            raise FatalError("unknown flag: --config-dir", 255)
        for path in sorted(Path(flags["config-dir"]).glob("*.conf")):
            config = _merged(config, _read_yaml(path))
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415  only a run with a file needs it, and it is slow to load

    where = f"failed to load Kubelet config file {path}, error"
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise FatalError(
            f"{where} failed to read kubelet config file {str(path)!r}, error: {error}"
        ) from error
    except yaml.YAMLError as error:
        raise FatalError(f"{where} failed to decode: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or content.get("kind") != "KubeletConfiguration":
        raise FatalError(f'{where} no kind "KubeletConfiguration" is registered in this file')
    return content


def _config_gates(config: Mapping[str, Any]) -> dict[str, bool]:
    gates = config.get("featureGates") or {}
    for name, value in gates.items():
        if not isinstance(value, bool):
            raise FatalError(
                f"failed to load Kubelet config file: json: cannot unmarshal {type(value).__name__} "
                f"into Go struct field KubeletConfiguration.featureGates of type bool ({name})"
            )
    return dict(gates)


def _merged(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key; null deletes."""
    result = dict(base)
    for key, value in other.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def _unknown(gate: str) -> str:
    return f"unrecognized feature gate: {gate}"
