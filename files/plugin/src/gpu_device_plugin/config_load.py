"""From command line, environment and file to :class:`Settings`, every fault at once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from .config import (
    HealthSettings,
    HostDeviceRule,
    KubeletSettings,
    ResourceRule,
    Settings,
    SharedResource,
    Sharing,
)
from .config_check import Load, check
from .faults import Fault, Path, unknown_value
from .names import qualify
from .options import CONFIG_FILE, IGNORED, OPTIONS, REFUSED_VALUES, Option

if TYPE_CHECKING:
    from . import config_shapes
    from .config_file import Document

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
"""What the peer's flags take (Go's strconv.ParseBool)."""


class ConfigError(Exception):
    """The settings can't be used; ``faults`` holds every reason, in the order they were met."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


def load(
    argv: Sequence[str],
    environ: Mapping[str, str],
    read_file: Callable[[str], str | bytes],
) -> Settings:
    """All settings, checked: command line, then environment, then file, then default.

    ``argv`` holds flags only (no program name, no command such as ``run``). ``read_file`` is called once with the
    config file's path, if there is one, and may raise OSError. Raises :class:`ConfigError` with every fault at once;
    never another exception. Call it again after an edit of the file.
    """
    work = Load()
    given = dict(_from_environment(environ))
    flags, unknown = _from_command_line(argv, work)
    for word in unknown:
        work.fault(
            word.split("=", 1)[0], "unknown flag" if word.startswith("-") else "no flag takes this word"
        )
    given.update(flags)
    name, where = given.pop(CONFIG_FILE.field, ("", ""))
    if name:
        work.put(CONFIG_FILE.field, name, where)
        _from_file(name, where, read_file, work)
    for option in OPTIONS:
        if option.field in given:
            text, where = given[option.field]
            _convert(option, text, where, work)
    for ignored in IGNORED:
        if ignored.key in given:
            text, where = given[ignored.key]
            _ignore(ignored.key, where, ignored.why, text, work)
    settings = _settings(work)
    check(settings, work)
    if work.faults:
        raise ConfigError(tuple(sorted(dict.fromkeys(work.faults), key=_place)))
    return replace(settings, warnings=tuple(work.warnings))


def _place(fault: Fault) -> tuple[int, ...]:
    """Faults without a line first, then in the order of the file."""
    found = re.search(r":([0-9]+)(?::([0-9]+))?$", fault.where)
    return tuple(int(number or 0) for number in found.groups()) if found else ()


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(field, (text, variable)) of each variable that is set and not empty."""
    for name, variables in [(option.field, option.env) for option in OPTIONS] + [
        (i.key, i.env) for i in IGNORED
    ]:
        for variable in variables:
            if environ.get(variable, "").strip():
                yield name, (environ[variable].strip(), variable)
                break


class _Parser(argparse.ArgumentParser):
    """argparse that raises where it would print and exit."""

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def _parser(program: str) -> _Parser:
    parser = _Parser(
        prog=program,
        usage=f"{program} [run | status [--json] | check [--json] | --version | --help] [flags]",
        description="Offers NVIDIA GPUs, their MIG slices and other device files to the kubelet. "
        "A flag wins over its environment variable, that over the config file.",
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    for option in OPTIONS:
        kind: dict[str, Any] = {"metavar": _metavar(option)}
        if option.kind == "bool":
            kind |= {"nargs": "?", "const": "true"}
        place = [f"env {', '.join(option.env)}"]
        if option.key:
            place.append(f"file {', '.join(option.key)}")
        place.append(f"default {option.default_text}" if option.default_text else "no default")
        text = f"{option.help} [{'; '.join(place)}]".replace("%", "%%")
        parser.add_argument(*option.flags, dest=option.field, action="append", help=text, **kind)
    for ignored in IGNORED:
        if ignored.flags:
            parser.add_argument(
                *ignored.flags, dest=ignored.key, nargs="?", const="true", action="append", metavar="...",
                help=f"no effect here: {ignored.why} [env {', '.join(ignored.env)}; file {ignored.key}]",
            )  # fmt: skip
    return parser


def _metavar(option: Option) -> str:
    named = {
        "bool": "true|false",
        "number": "N",
        "list": "A,B",
        "integers": "N,M",
        "choices": "A,B",
        "yaml": "YAML",
        "address": "HOST:PORT",
    }
    return (
        "|".join(option.choices) if option.kind == "choice" else named.get(option.kind, option.kind.upper())
    )


def help_text(program: str = "gpu-device-plugin") -> str:
    """What ``--help`` prints: every flag with its environment variable, file key and default."""
    return _parser(program).format_help()


def _from_command_line(argv: Sequence[str], work: Load) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """(field -> (text, flag)), and the words that are no flag of ours."""
    words = [f"-{word}" if re.match(r"-[a-z][a-z-]", word) else word for word in argv]
    parser = _parser("gpu-device-plugin")
    try:
        known, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        work.fault(error.argument_name or "command line", error.message)
        return {}, []
    kinds = {option.field: option for option in OPTIONS}
    flags = {option.field: option.flags[0] for option in OPTIONS} | {
        i.key: i.flags[0] for i in IGNORED if i.flags
    }
    found = {}
    for name, texts in vars(known).items():
        if texts:
            several = name in kinds and kinds[name].kind in ("list", "integers", "choices")
            found[name] = (",".join(texts) if several else texts[-1], flags[name])
    return found, unknown


def _convert(option: Option, text: str, where: str, work: Load) -> None:  # noqa: PLR0911 - one branch a kind
    """Text of a flag or variable to a value."""
    if option.kind == "bool":
        if text in _TRUE or text in _FALSE:
            return work.put(option.field, text in _TRUE, where)
        return work.fault(where, f"{text!r} is not true or false")
    if option.kind == "number":
        try:
            return work.put(option.field, float(text), where)
        except ValueError:
            return work.fault(where, f"{text!r} is not a number")
    if option.kind == "integers":
        words = [word.strip() for word in text.split(",") if word.strip()]
        wrong = [word for word in words if not re.fullmatch("[0-9]{1,9}", word, re.ASCII)]
        if wrong:
            return work.fault(where, f"{wrong[0]!r} is not a whole number")
        return work.put(option.field, tuple(map(int, words)), where)
    if option.kind in ("list", "choices"):
        return work.put(option.field, tuple(item.strip() for item in text.split(",") if item.strip()), where)
    if option.kind == "choice" and text not in option.choices:
        return work.fault(where, unknown_value(text, option.choices))
    if option.kind == "yaml":
        return _convert_yaml(option, text, where, work)
    return work.put(option.field, text, where)


def _decoder() -> tuple[Any, Any]:
    """The modules that decode, imported only where there is something to decode: they cost 40 ms and 7 MB."""
    from . import config_file, config_shapes  # noqa: PLC0415

    return config_file, config_shapes


def _kind_of(name: str, shapes: Any) -> Any:
    return {
        "time_slicing": shapes.SharingFile,
        "mps": shapes.SharingFile,
        "gpu_rules": tuple[shapes.RuleFile, ...],
        "mig_rules": tuple[shapes.RuleFile, ...],
        "host_devices": tuple[shapes.HostDeviceFile, ...],
        "health.xids": shapes.Xids,
    }[name]


def _convert_yaml(option: Option, text: str, where: str, work: Load) -> None:
    config_file, shapes = _decoder()
    try:
        document = config_file.parse(text, where, single_line=True)
    except config_file.Unreadable as error:
        return work.faults.extend(error.faults)
    value, faults = config_file.decode(document, _kind_of(option.field, shapes))
    work.faults.extend(faults)
    if not faults:
        work.put(option.field, value, where, document)
    return None


def _from_file(name: str, where: str, read_file: Callable[[str], str | bytes], work: Load) -> None:
    config_file, shapes = _decoder()
    try:
        document = config_file.parse(read_file(name), name)
    except OSError as error:
        return work.fault(where, f"can't read {name}: {error.strerror or error}")
    except config_file.Unreadable as error:
        return work.faults.extend(error.faults)
    decoded, faults = config_file.decode(document, shapes.ConfigFile)
    work.faults.extend(faults)
    if decoded is None:
        return None
    for option in OPTIONS:
        _take(option, decoded, document, work)
    for ignored in IGNORED:
        value = _at(decoded, ignored.key)
        path = tuple(ignored.key.split("."))
        if value not in (None, False, (), {}, "", "auto", "nvml"):
            _ignore(ignored.key, document.where(path, key=True), ignored.why, value, work)
    return None


def _at(decoded: Any, key: str) -> Any:
    for step in key.split("."):
        decoded = getattr(decoded, step, None)
    return decoded


def _take(option: Option, decoded: Any, document: Document, work: Load) -> None:
    """The option's value from the file, wherever it may stand there; twice is a fault."""
    taken = ""
    for key in option.key:
        beside = [key.removeprefix("flags.")] if key.startswith("flags.plugin.") else []
        for place in [key, *beside]:
            value = _at(decoded, place)
            if value is None or (value == () and option.field != "device_list_strategy"):
                continue
            path: Path = tuple(place.split("."))
            where = document.where(path)
            if taken:
                work.fault(where, f"{place}: already given as {taken}")
                continue
            taken = place
            work.put(option.field, value, where, document, path)


def _ignore(key: str, where: str, why: str, value: Any, work: Load) -> None:
    flags = {ignored.key: ignored.flags[0] for ignored in IGNORED if ignored.flags}
    text = str(value).strip().lower()
    if text in ("", "auto", "nvml", "false", "0", "f"):
        return
    if REFUSED_VALUES.get(flags.get(key, "")) == ("true" if text in ("1", "t") else text):
        work.fault(where, f"{key}: {text} is not supported: {why}")
    else:
        work.warnings.append(f"{where}: {key} has no effect: {why}")


def _settings(work: Load) -> Settings:
    """Settings() with what was given; structures turned from their file shape. Faulty parts keep their default."""
    top: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {"health": {}, "kubelet": {}}
    prefix = work.values.get("resource_prefix", Settings().resource_prefix)
    for name, given in work.values.items():
        part, _unused, inner = name.rpartition(".")
        value = given
        if name in _BUILD:
            document, path = work.documents[name]
            value = _BUILD[name](given, document, path, prefix)
        elif name in ("device_list_strategy", "imex_channel_ids", "include", "exclude"):
            value = tuple(dict.fromkeys(given))
        (parts[part] if part else top)[inner] = value
    settings = Settings(
        health=HealthSettings(**parts["health"]), kubelet=KubeletSettings(**parts["kubelet"]), **top
    )
    if settings.mps is not None and not settings.mps.fail_requests_greater_than_one:
        document, path = work.documents["mps"]
        if work.values["mps"].failRequestsGreaterThanOne is False:
            place = document.where((*path, "failRequestsGreaterThanOne"))
            work.warnings.append(f"{place}: failRequestsGreaterThanOne is always true with MPS")
        settings = replace(settings, mps=replace(settings.mps, fail_requests_greater_than_one=True))
    return settings


def _build_sharing(value: config_shapes.SharingFile, document: Document, path: Path, prefix: str) -> Sharing:
    resources = tuple(
        SharedResource(
            name=qualify(entry.name, prefix),
            replicas=entry.replicas,
            rename=qualify(entry.rename, prefix) if entry.rename else None,
            devices=entry.devices,  # type: ignore[arg-type]
            where=document.where((*path, "resources", number)),
        )
        for number, entry in enumerate(value.resources)
        if entry is not None
    )
    return Sharing(bool(value.renameByDefault), bool(value.failRequestsGreaterThanOne), resources)


def _build_rules(
    value: tuple[config_shapes.RuleFile, ...], document: Document, path: Path, prefix: str
) -> tuple[ResourceRule, ...]:
    return tuple(
        ResourceRule(rule.pattern, qualify(rule.name, prefix), document.where((*path, number)))
        for number, rule in enumerate(value)
        if rule is not None
    )


def _build_host_devices(
    value: tuple[config_shapes.HostDeviceFile, ...], document: Document, path: Path, prefix: str
) -> tuple[HostDeviceRule, ...]:
    return tuple(
        HostDeviceRule(
            rule.resource,
            rule.paths,
            rule.group,
            rule.count,
            rule.permissions,
            document.where((*path, number)),
        )
        for number, rule in enumerate(value)
        if rule is not None
    )


def _build_xids(
    value: dict[int, str], document: Document, path: Path, prefix: str
) -> tuple[tuple[int, str], ...]:
    return tuple(sorted(value.items()))


_BUILD: dict[str, Callable[[Any, Document, Path, str], Any]] = {
    "time_slicing": _build_sharing,
    "mps": _build_sharing,
    "gpu_rules": _build_rules,
    "mig_rules": _build_rules,
    "host_devices": _build_host_devices,
    "health.xids": _build_xids,
}
