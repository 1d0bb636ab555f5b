"""The config file's text to dataclasses, strictly, with the place of every fault.

cattrs decodes; PyYAML's node tree knows the lines. Only :mod:`config_load` imports this module, and only where there is
something to decode: a plugin without a config file starts without both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal

import cattrs
from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from .config_shapes import Anything, Reference, Selection, Strategies, Xids
from .faults import Fault, Path, dotted, hint, shown, unknown_value
from .yaml_document import Document, Unreadable, parse

__all__ = ["Document", "Unreadable", "decode", "parse"]


def decode(document: Document, kind: Any) -> tuple[Any, tuple[Fault, ...]]:
    """The document as ``kind`` (one of config_shapes' dataclasses, or a tuple of one), and every fault in it.

    Where there are faults the value holds what is right, so that the rest can be checked too: faulty keys are left out,
    faulty entries of lists are None. The value is None when nothing of it can be used.
    """
    value = document.value
    if value is None:
        value = [] if getattr(kind, "__origin__", None) is tuple else {}
    found: tuple[tuple[Path, Fault], ...] = ()
    # A key that is taken out may be missed in the next round: then its list entry goes, and then all is well.
    for _unused in range(4):
        try:
            return _converter().structure(value, kind), tuple(fault for _path, fault in found)
        except Exception as error:  # noqa: BLE001 - cattrs wraps whatever a value made go wrong
            problems = tuple(_problems(error, document, ()))
            found = found or problems
            value = _without(value, {path for path, _fault in problems})
    return None, tuple(fault for _path, fault in found)


def _without(value: Any, paths: set[Path], at: Path = ()) -> Any:
    """A copy without the keys at ``paths``; list entries there become None, so that the others keep their number."""
    if isinstance(value, dict):
        return {
            key: _without(item, paths, (*at, key)) for key, item in value.items() if (*at, key) not in paths
        }
    if isinstance(value, list):
        return [
            None if (*at, index) in paths else _without(item, paths, (*at, index))
            for index, item in enumerate(value)
        ]
    return value


@cache
def _converter() -> Any:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)

    def exactly(kind: type, what: str) -> None:
        def check(value: Any, _unused: Any) -> Any:
            if type(value) is not kind:
                raise ValueError(f"{shown(value)} is not {what}")
            return value

        converter.register_structure_hook(kind, check)

    exactly(bool, "true or false")
    exactly(str, "text")
    exactly(int, "a whole number")
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Strategies, _strategies)
    converter.register_structure_hook(Selection, _selection)
    converter.register_structure_hook(Xids, _xids)
    converter.register_structure_hook(Reference, _reference)
    converter.register_structure_hook(Anything, lambda value, _: value)
    converter.register_structure_hook_func(
        lambda kind: getattr(kind, "__origin__", None) is Literal, _literal
    )

    def list_of(kind: Any) -> Any:
        item = kind.__args__[0]

        def structure(value: Any, _unused: Any) -> Any:
            if not isinstance(value, list):
                raise ValueError(f"{shown(value)} is not a list")
            good: list[Any] = []
            errors: list[Exception] = []
            for index, entry in enumerate(value):
                if entry is None:  # taken out by decode()
                    good.extend([None] if is_dataclass(item) else [])
                    continue
                try:
                    good.append(converter.structure(entry, item))
                except Exception as error:  # noqa: BLE001 - collected
                    error.add_note(IterableValidationNote(f"entry {index}", index, item))
                    errors.append(error)
            if errors:
                raise IterableValidationError("list", errors, kind)
            return tuple(good)

        return structure

    converter.register_structure_hook_factory(
        lambda kind: getattr(kind, "__origin__", None) is tuple, list_of
    )
    _refuse_non_mappings(converter)
    return converter


def _refuse_non_mappings(converter: Any) -> None:
    def factory(kind: Any) -> Any:
        inner = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

        def structure(value: Any, _unused: Any) -> Any:
            if not isinstance(value, dict):
                raise ValueError(f"{shown(value)} is not a mapping of keys")
            return inner(value, kind)

        return structure

    converter.register_structure_hook_factory(is_dataclass, factory)


def _number(value: Any, _unused: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{shown(value)} is not a number")
    return float(value)


def _literal(value: Any, kind: Any) -> Any:
    for choice in kind.__args__:
        if type(value) is type(choice) and value == choice:
            return value
    raise ValueError(unknown_value(value, tuple(map(str, kind.__args__))))


def _strategies(value: Any, _unused: Any) -> Strategies:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{shown(value)} is not a strategy or a list of them")
    return Strategies(tuple(item.strip() for item in value))


def _reference(value: Any, _unused: Any) -> Reference:
    if type(value) not in (int, str) or not str(value).strip():
        raise ValueError(f"{shown(value)} is no index, UUID, PCI address or model pattern")
    return Reference(str(value).strip())


def _xid(value: Any) -> int:
    text = str(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or not re.fullmatch("[0-9]{1,6}", text, re.ASCII)
    ):
        raise ValueError(f"{shown(value)} is no XID: write a number")
    return int(text)


def _xids(value: Any, _unused: Any) -> Xids:
    if not isinstance(value, dict):
        raise ValueError(f"{shown(value)} is not a mapping of XIDs")
    good: dict[int, str] = {}
    errors: list[Exception] = []
    for key, choice in value.items():
        try:
            good[_xid(key)] = _literal(choice, Literal["ignore", "transient", "fatal"])
        except ValueError as error:
            error.add_note(IterableValidationNote(f"XID {key}", key, str))
            errors.append(error)
    if errors:
        raise IterableValidationError("xids", errors, dict)
    return Xids(good)


_DEVICE = re.compile(r"[0-9]{1,4}|[0-9]{1,4}:[0-9]{1,4}|(GPU|MIG)-\S+", re.ASCII)


def _selection(value: Any, _unused: Any) -> Selection:
    if value == "all":
        return Selection("all")
    if type(value) is int and value > 0:
        return Selection(value)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{shown(value)} is not all, a count from 1, or a list of indices and UUIDs")
    chosen: list[str | int] = []
    for item in value:
        if type(item) not in (int, str) or not _DEVICE.fullmatch(str(item)):
            raise ValueError(f"{shown(item)} is no GPU index, MIG index such as 0:1, or UUID")
        chosen.append(item)
    return Selection(tuple(chosen))


def _problems(error: BaseException, document: Document, at: Path) -> Iterator[tuple[Path, Fault]]:
    """One fault a leaf of cattrs' tree of exceptions, with the path of what to leave out because of it."""
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            at = (*at, note.name)
        elif isinstance(note, IterableValidationNote):
            at = (*at, note.index)
    if isinstance(error, BaseValidationError):
        for inner in error.exceptions:
            yield from _problems(inner, document, at)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = tuple(item.name for item in fields(error.cl))
        for name in sorted(error.extra_fields, key=str):
            text = f"{dotted((*at, name))}: unknown key{hint(str(name), known)}"
            yield (*at, name), Fault(document.where((*at, name), key=True), text)
    elif isinstance(error, KeyError):
        yield at[:-1], Fault(document.where(at[:-1]), f"{dotted(at)}: missing")
    else:
        name = dotted(at)
        yield at, Fault(document.where(at), f"{name}: {error}" if name else str(error))
