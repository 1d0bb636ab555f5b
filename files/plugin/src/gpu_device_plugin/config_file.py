"""The config file's text to dataclasses, strictly, with the place of every fault.

cattrs decodes; PyYAML's node tree knows the lines. Only :mod:`config_load` imports this module, and only where there is
something to decode: a plugin without a config file starts without both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal

import cattrs
import yaml
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

MAX_BYTES = 1 << 20
"""A ConfigMap holds no more either."""

MAX_DEPTH = 30
"""Levels of nesting; ours has 6, and libyaml's composer, which recurses in C, dies of some ten thousand."""

MAX_NODES = 100_000
"""Values after aliases are followed, so that a few lines can't grow to fill the memory."""


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text: plain values, and where each stands."""

    source: str
    value: Any
    root: Any = field(repr=False)
    single_line: bool = False
    """Of a flag or variable, whose name says enough."""

    def where(self, path: Path, *, key: bool = False) -> str:
        """``file:line:column`` of the value at ``path`` (or of its key), as far as the path exists."""
        node = self.root
        mark = node.start_mark if node is not None else None
        for number, step in enumerate(path):
            found = _child(node, step)
            if found is None:
                break
            key_node, node = found
            last = number == len(path) - 1
            mark = key_node.start_mark if key_node is not None and (key or not last) else node.start_mark
        if mark is None or self.single_line:
            return self.source
        return f"{self.source}:{mark.line + 1}:{mark.column + 1}"


def _child(node: Any, step: str | int) -> tuple[Any, Any] | None:
    kind = getattr(node, "id", "")
    if kind == "mapping":
        for key_node, value_node in node.value:
            if key_node.value == str(step):
                return key_node, value_node
    elif kind == "sequence" and isinstance(step, int) and step < len(node.value):
        return None, node.value[step]
    return None


class Unreadable(Exception):
    """The text is no YAML that we take; ``faults`` say where."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


def parse(text: str | bytes, source: str, *, single_line: bool = False) -> Document:
    """YAML or JSON to a :class:`Document`; nulls are left out. Raises :class:`Unreadable`."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogateescape")
    if len(text) > MAX_BYTES:
        raise Unreadable(Fault(source, f"larger than {MAX_BYTES} bytes"))
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise Unreadable(Fault(f"{source}:{line}", "not UTF-8 text")) from None
    loader: Any = None
    try:
        _check_depth(decoded, source)
        loader = _loader()(decoded)
        root = loader.get_single_node()
        if root is not None and _size(root, {}) > MAX_NODES:
            raise Unreadable(Fault(source, f"more than {MAX_NODES} values"))
        duplicates = tuple(
            Fault(Document(source, None, node, single_line).where(()), f"{node.value!r} is given twice")
            for node in _duplicate_keys(root)
        )
        if duplicates:
            raise Unreadable(*duplicates)
        value = _without_nulls(loader.construct_document(root)) if root is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark and not single_line else source
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        raise Unreadable(Fault(place, what or "not YAML")) from None
    except yaml.YAMLError as error:
        raise Unreadable(Fault(source, " ".join(str(error).split()))) from None
    except RecursionError:
        raise Unreadable(
            Fault(source, "an alias that holds itself, or too many inside of each other")
        ) from None
    except (ValueError, OverflowError, TypeError, LookupError, AttributeError) as error:
        # what PyYAML's constructors let through: an integer of too many digits, an unhashable key, an empty !!int
        raise Unreadable(Fault(source, f"not readable as YAML: {error}")) from None
    finally:
        if loader is not None:
            loader.dispose()
    return Document(source, value, root, single_line)


@cache
def _loader() -> Any:
    """A safe loader with the scalars of the peer's parser, go-yaml 2: no dates; no base 60, as 1:0 is a MIG index."""
    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc, valid-type]
        yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def scalar(tag: str, pattern: str, first: str) -> None:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), list(first))

    scalar(
        "bool",
        "y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yYnNtTfFoO",
    )
    scalar("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789")
    scalar(
        "float",
        r"[-+]?(?:[0-9][0-9_]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+|[-+]?[0-9]+\.",
        "-+0123456789.",
    )
    scalar("null", "~|null|Null|NULL|", "~nN")
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("$"), [""])
    Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("<<$"), ["<"])
    return Loader


def _check_depth(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(Fault(source, f"nested more than {MAX_DEPTH} levels deep"))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _size(node: Any, known: dict[int, int]) -> int:
    """How many values the node stands for. An alias inside of what it names has no end: RecursionError."""
    if id(node) not in known:
        if node.id == "mapping":
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if node.id == "sequence" else []
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _duplicate_keys(root: Any) -> Iterator[Any]:
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.id == "mapping":
            keys = set()
            for key_node, value_node in node.value:
                if isinstance(key_node.value, str):
                    if key_node.value in keys:
                        yield key_node
                    keys.add(key_node.value)
                waiting.append(value_node)
        elif node.id == "sequence":
            waiting.extend(node.value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def decode(document: Document, kind: Any) -> tuple[Any, tuple[Fault, ...]]:
    """The document as ``kind`` (one of config_shapes' dataclasses, or a tuple of one), and every fault in it.

    Where there are faults the value holds what is right, so that the rest can be checked too: faulty keys are left out,
    faulty entries of lists are None. The value is None when nothing of it can be used.
    """
    value = document.value
    if value is None:
        value = [] if getattr(kind, "__origin__", None) is tuple else {}
    found: tuple[tuple[Path, Fault], ...] = ()
    for _ in range(
        4
    ):  # a key that is taken out may be missed next: then its list entry goes, and then all is well
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
        def check(value: Any, _: Any) -> Any:
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

        def structure(value: Any, _: Any) -> Any:
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

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, dict):
                raise ValueError(f"{shown(value)} is not a mapping of keys")
            return inner(value, kind)

        return structure

    converter.register_structure_hook_factory(is_dataclass, factory)


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{shown(value)} is not a number")
    return float(value)


def _literal(value: Any, kind: Any) -> Any:
    for choice in kind.__args__:
        if type(value) is type(choice) and value == choice:
            return value
    raise ValueError(unknown_value(value, tuple(map(str, kind.__args__))))


def _strategies(value: Any, _: Any) -> Strategies:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{shown(value)} is not a strategy or a list of them")
    return Strategies(tuple(item.strip() for item in value))


def _reference(value: Any, _: Any) -> Reference:
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


def _xids(value: Any, _: Any) -> Xids:
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


def _selection(value: Any, _: Any) -> Selection:
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
