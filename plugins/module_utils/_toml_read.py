# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read TOML 1.0 with positions. One reader in one class of small methods: cut in two it would only be harder to read.

Nodes run Python 3.9 and have no TOML reader (tomllib came with 3.11), and a reader that forgets positions
could not leave an administrator's comments alone. Checked against tomllib by property tests.
Dates and times are kept as they are written (class Moment): engines' files hold none that matter here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn, Optional, Tuple

Path = Tuple[str, ...]  # keys, from the root

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_INTEGER = re.compile(
    r"0x[0-9A-Fa-f](?:_?[0-9A-Fa-f])*|0o[0-7](?:_?[0-7])*|0b[01](?:_?[01])*"
    r"|[+-]?(?:0|[1-9](?:_?[0-9])*)(?![0-9_.eE])"
)
_FLOAT = re.compile(
    r"[+-]?(?:inf|nan|(?:0|[1-9](?:_?[0-9])*)(?:\.[0-9](?:_?[0-9])*)?(?:[eE][+-]?[0-9](?:_?[0-9])*)?)"
)
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})?)?"
    r"|[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
)
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_VALUE_END = " \t\r\n,]}#"


class TomlError(ValueError):
    """The text is not TOML. ``line`` and ``column`` count from 1."""

    def __init__(self, reason: str, text: str, offset: int) -> None:
        self.reason = reason
        self.line = text.count("\n", 0, offset) + 1
        self.column = offset - (text.rfind("\n", 0, offset) + 1) + 1
        super().__init__(f"{self.line}:{self.column}: {reason}")


class Moment(str):
    """A date, a time or both, as written."""


@dataclass
class Document:
    """The values, and where they stand in the text.

    ``spans`` gives (start, end) of each value by its path; ``keys`` the offset of its key; ``items`` the spans
    of an array's elements; ``root_end`` the offset of the first table header (or of the end).
    """

    value: dict[str, Any] = field(default_factory=dict)
    spans: dict[Path, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Path, int] = field(default_factory=dict)
    items: dict[Path, list[tuple[int, int]]] = field(default_factory=dict)
    root_end: int = 0


class _Reader:
    """One pass over the text. ``frozen`` holds what may not be added to: inline tables and plain arrays."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.document = Document(root_end=len(text))
        self.headed: set[Path] = set()  # tables opened by a [header]
        self.dotted: set[Path] = set()  # tables made by a dotted key
        self.frozen: set[int] = set()  # id() of inline tables and of arrays written as values
        self.keep: list[Any] = []  # keeps those ids alive

    def fail(self, reason: str, offset: Optional[int] = None) -> NoReturn:
        raise TomlError(reason, self.text, self.at if offset is None else offset)

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def blanks(self) -> None:
        while self.peek() in (" ", "\t"):
            self.at += 1

    def comment(self) -> None:
        if self.peek() == "#":
            while self.at < len(self.text) and self.peek() != "\n":
                char = self.peek()
                if (ord(char) < 0x20 and char != "\t" and self.peek(2) != "\r\n") or ord(char) == 0x7F:
                    self.fail("a control character inside a comment")
                self.at += 1

    def line_end(self, after: str) -> None:
        self.blanks()
        self.comment()
        if self.peek(2) == "\r\n":
            self.at += 1
        if self.at < len(self.text) and self.peek() != "\n":
            self.fail(f"only one {after} fits on a line")
        self.at += 1

    def space(self) -> None:
        """Blanks, line ends and comments, as between the elements of an array."""
        while True:
            self.blanks()
            self.comment()
            if self.peek(2) == "\r\n":
                self.at += 1
            if self.peek() != "\n":
                return
            self.at += 1

    def read(self) -> Document:
        table: dict[str, Any] = self.document.value
        prefix: Path = ()
        while True:
            self.space()
            if self.at >= len(self.text):
                return self.document
            if self.peek() == "[":
                self.document.root_end = min(self.document.root_end, self.at)
                table, prefix = self.header()
                self.line_end("table header")
            else:
                self.pair(table, prefix)
                self.line_end("key")

    def header(self) -> tuple[dict[str, Any], Path]:
        start = self.at
        many = self.peek(2) == "[["
        self.at += 2 if many else 1
        self.blanks()
        keys = self.dotted_key()
        close = "]]" if many else "]"
        if self.peek(len(close)) != close:
            self.fail(f"{close!r} is missing")
        self.at += len(close)
        table = self.document.value
        for depth, key in enumerate(keys[:-1], start=1):
            inner = table.setdefault(key, {})
            if isinstance(inner, list) and id(inner) not in self.frozen and inner:
                inner = inner[-1]
            if not isinstance(inner, dict) or id(inner) in self.frozen:
                self.fail(f"{dotted_name(keys[:depth])} is a value already, not a table", start)
            table = inner
        name = dotted_name(keys)
        if many:
            array = table.setdefault(keys[-1], [])
            if not isinstance(array, list) or id(array) in self.frozen:
                self.fail(f"{name} is defined already and is no array of tables", start)
            array.append({})
            self.forget(keys)
            return array[-1], keys
        inner = table.setdefault(keys[-1], {})
        if not isinstance(inner, dict) or id(inner) in self.frozen:
            self.fail(f"{name} is defined already and is no table", start)
        if keys in self.headed or keys in self.dotted:
            self.fail(f"table {name} is given twice", start)
        self.headed.add(keys)
        return inner, keys

    def forget(self, prefix: Path) -> None:
        """A new element of an array of tables: what was defined below the last one may be defined again."""
        for known in (self.headed, self.dotted):
            known -= {path for path in known if path[: len(prefix)] == prefix}

    def dotted_key(self) -> Path:
        keys = [self.simple_key()]
        self.blanks()
        while self.peek() == ".":
            self.at += 1
            self.blanks()
            keys.append(self.simple_key())
            self.blanks()
        return tuple(keys)

    def simple_key(self) -> str:
        char = self.peek()
        if char in ('"', "'"):
            if self.peek(3) == char * 3:
                self.fail("a key may not be a string of many lines")
            return self.string()
        match = _BARE.match(self.text, self.at)
        if match is None:
            self.fail("a key is missing here")
        self.at = match.end()
        return match.group()

    def pair(self, table: dict[str, Any], prefix: Path, inline: bool = False) -> None:
        start = self.at
        keys = self.dotted_key()
        if self.peek() != "=":
            self.fail(f"'=' is missing after key {dotted_name(keys)}")
        self.at += 1
        self.blanks()
        for depth, key in enumerate(keys[:-1], start=1):
            path = prefix + keys[:depth]
            inner = table.get(key)
            if inner is None:
                inner = table[key] = {}
                if inline:
                    self.keep.append(inner)
                else:
                    self.dotted.add(path)
            elif (
                not isinstance(inner, dict)
                or id(inner) in self.frozen
                or (path in self.headed and not inline)
            ):
                self.fail(f"{dotted_name(path)} can't be added to here", start)
            elif not inline and path not in self.dotted:
                self.fail(f"{dotted_name(path)} is defined elsewhere", start)
            table = inner
        path = prefix + keys
        if keys[-1] in table:
            self.fail(f"key {dotted_name(path)} is given twice", start)
        value_at = self.at
        value, items = self.value()
        table[keys[-1]] = value
        if not inline:
            self.document.keys[path] = start
            self.document.spans[path] = (value_at, self.at)
            if items is not None:
                self.document.items[path] = items

    def value(self) -> tuple[Any, Optional[list[tuple[int, int]]]]:
        char = self.peek()
        if char in ('"', "'"):
            return (self.long_string() if self.peek(3) == char * 3 else self.string()), None
        if char == "[":
            return self.array()
        if char == "{":
            return self.inline_table(), None
        for word, meaning in (("true", True), ("false", False)):
            if self.peek(len(word)) == word and self.ended(self.at + len(word)):
                self.at += len(word)
                return meaning, None
        for pattern, make in ((_MOMENT, _moment), (_INTEGER, _integer), (_FLOAT, _float)):
            match = pattern.match(self.text, self.at)
            if match and self.ended(match.end()):
                try:
                    value = make(match.group())
                except ValueError:
                    self.fail("no such date or time")
                self.at = match.end()
                return value, None
        if self.at >= len(self.text) or char in "\r\n#":
            self.fail("a value is missing here")
        return self.fail("this is no TOML value; a string needs quotes")

    def ended(self, offset: int) -> bool:
        return offset >= len(self.text) or self.text[offset] in _VALUE_END

    def array(self) -> tuple[list[Any], list[tuple[int, int]]]:
        opened = self.at
        self.at += 1
        values: list[Any] = []
        spans: list[tuple[int, int]] = []
        self.space()
        while self.peek() != "]":
            if values:
                if self.peek() != ",":
                    self.fail(
                        "',' or ']' is missing" if self.peek() else "this array is never closed",
                        None if self.peek() else opened,
                    )
                self.at += 1
                self.space()
                if self.peek() == "]":
                    break
            if not self.peek():
                self.fail("this array is never closed", opened)
            start = self.at
            values.append(self.value()[0])
            spans.append((start, self.at))
            self.space()
        self.at += 1
        self.frozen.add(id(values))
        self.keep.append(values)
        return values, spans

    def inline_table(self) -> dict[str, Any]:
        opened = self.at
        self.at += 1
        table: dict[str, Any] = {}
        self.blanks()
        first = True
        while first or self.peek() != "}":
            if first and self.peek() == "}":
                break
            if not first:
                if self.peek() != ",":
                    self.fail("',' or '}' is missing in the inline table opened here", opened)
                self.at += 1
                self.blanks()
            self.pair(table, (), inline=True)
            self.blanks()
            first = False
        self.at += 1
        self.freeze(table)
        return table

    def freeze(self, table: dict[str, Any]) -> None:
        self.frozen.add(id(table))
        self.keep.append(table)
        for inner in table.values():
            if isinstance(inner, dict):
                self.freeze(inner)

    def string(self) -> str:
        start, quote = self.at, self.peek()
        self.at += 1
        parts: list[str] = []
        while True:
            char = self.peek()
            if not char or char in "\r\n":
                self.fail("this string is never closed", start)
            if char == quote:
                self.at += 1
                return "".join(parts)
            self.printable(char)
            parts.append(self.escape() if char == "\\" and quote == '"' else self.take())

    def take(self) -> str:
        char = self.peek()
        self.at += 1
        return char

    def printable(self, char: str) -> None:
        if (ord(char) < 0x20 and char != "\t") or ord(char) == 0x7F:
            self.fail("a control character inside a string")

    def escape(self) -> str:
        start = self.at
        kind = self.text[self.at + 1 : self.at + 2]
        if kind in _ESCAPES:
            self.at += 2
            return _ESCAPES[kind]
        length = {"u": 4, "U": 8}.get(kind, 0)
        digits = self.text[self.at + 2 : self.at + 2 + length]
        if not length or not re.fullmatch(f"[0-9A-Fa-f]{{{length}}}", digits):
            self.fail("a wrong escape inside a string", start)
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            self.fail("an escape that is no character", start)
        self.at += 2 + length
        return chr(code)

    def long_string(self) -> str:
        start, quote = self.at, self.peek()
        self.at += 3
        if self.peek(2) == "\r\n":
            self.at += 2
        elif self.peek() == "\n":
            self.at += 1
        parts: list[str] = []
        while True:
            if self.at >= len(self.text):
                self.fail("this string is never closed", start)
            if self.peek(3) == quote * 3:
                run = 3
                while run < 5 and self.text[self.at + run : self.at + run + 1] == quote:
                    run += 1
                parts.append(quote * (run - 3))
                self.at += run
                return "".join(parts)
            char = self.peek()
            if char == "\\" and quote == '"':
                folded = re.compile(r"\\[ \t]*\r?\n[ \t\r\n]*").match(self.text, self.at)
                if folded:
                    self.at = folded.end()
                else:
                    parts.append(self.escape())
                continue
            if self.peek(2) == "\r\n":
                self.at += 1
                char = "\n"
            elif char != "\n":
                self.printable(char)
            parts.append(char)
            self.at += 1


def _moment(text: str) -> Moment:
    # Ranges only, not the length of months: no engine's setting is a date.
    numbers = [int(part) for part in re.findall(r"[0-9]+", text.partition(".")[0])]
    if "-" in text[:5]:
        if not (1 <= numbers[1] <= 12 and 1 <= numbers[2] <= 31):
            raise ValueError(text)
        numbers = numbers[3:]
    if numbers and not (numbers[0] < 24 and numbers[1] < 60 and numbers[2] < 60):
        raise ValueError(text)
    return Moment(text)


def _integer(text: str) -> int:
    return int(text.replace("_", ""), 0 if text[:2] in ("0x", "0o", "0b") else 10)


def _float(text: str) -> float:
    return float(text.replace("_", ""))


def dotted_name(keys: Path) -> str:
    return ".".join(key if _BARE.fullmatch(key) else basic_string(key) for key in keys)


def basic_string(text: str) -> str:
    """A TOML basic string with its quotes."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'


def parse(text: str) -> Document:
    """The document with all positions. Raises TomlError on anything TOML 1.0 forbids, keys given twice too."""
    return _Reader(text).read()
