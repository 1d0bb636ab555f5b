"""YAML or JSON text to plain values that remember their lines, safe against hostile input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from .faults import Fault, Path

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
        place = f"{source}:{text[: error.start].count(10) + 1}"
        raise Unreadable(Fault(place, "not UTF-8 text")) from None
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
    scalar("null", "~|null|Null|NULL", "~nN")
    Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("$"), [""])
    scalar("merge", "<<", "<")
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
