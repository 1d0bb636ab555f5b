# Copyright (c) 2026, The gpuops developers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read JSON with positions and change single members without touching the rest of the text.

Python's own reader forgets where a key stood, takes the last of two equal keys and can only write the whole
document anew. An administrator's daemon.json must come back with the order, the indentation and the line
ends it had, so edits here are splices into the original text. Grammar: RFC 8259.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Optional

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None}
_MAX_DEPTH = 200


class JsonError(ValueError):
    """The text is not JSON. ``offset`` counts characters from 0; ``line`` and ``column`` count from 1."""

    def __init__(self, reason: str, text: str, offset: int) -> None:
        self.reason = reason
        self.offset = offset
        self.line, self.column = position(text, offset)
        super().__init__(f"{self.line}:{self.column}: {reason}")


@dataclass(frozen=True)
class Member:
    """One ``"key": value`` of an object; ``start`` is the offset of the key's opening quote."""

    key: str
    start: int
    node: Node


@dataclass(frozen=True)
class Node:
    """One value and where it stands: ``text[start:end]``. ``members`` is None for all but objects."""

    value: Any
    start: int
    end: int
    members: Optional[tuple[Member, ...]] = None

    def get(self, key: str) -> Optional[Member]:
        """The member called ``key``, or None (also for a value that is no object)."""
        for member in self.members or ():
            if member.key == key:
                return member
        return None


def position(text: str, offset: int) -> tuple[int, int]:
    """Line and column, both from 1, of a character offset."""
    line = text.count("\n", 0, offset) + 1
    return line, offset - (text.rfind("\n", 0, offset) + 1) + 1


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, reason: str, offset: Optional[int] = None) -> JsonError:
        return JsonError(reason, self.text, self.at if offset is None else offset)

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
            self.at += 1
        if self.text.startswith(("//", "/*", "#"), self.at):
            raise self.fail("a comment; JSON has none")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def document(self) -> Node:
        self.space()
        node = self.value(0)
        self.space()
        if self.at < len(self.text):
            raise self.fail("text after the end of the document")
        return node

    def value(self, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            raise self.fail("nested too deeply")
        start, char = self.at, self.peek()
        if not char:
            raise self.fail("the file ends where a value should stand")
        if char == "{":
            return self.object(depth)
        if char == "[":
            return self.array(depth)
        if char == '"':
            return Node(self.string(), start, self.at)
        for word, meaning in _WORDS.items():
            if self.text.startswith(word, start):
                self.at += len(word)
                return Node(meaning, start, self.at)
        match = _NUMBER.match(self.text, start)
        if match is None:
            raise self.fail("a string must stand in double quotes" if char == "'" else f"unexpected {char!r}")
        self.at = match.end()
        return Node(json.loads(match.group()), start, self.at)

    def string(self) -> str:
        start = self.at
        self.at += 1
        while True:
            char = self.peek()
            if not char or char == "\n":
                raise self.fail("this string is never closed", start)
            if ord(char) < 0x20:
                raise self.fail("a control character inside a string")
            self.at += 2 if char == "\\" else 1
            if char == '"':
                break
        try:
            return str(json.loads(self.text[start : self.at]))
        except ValueError as error:
            raise self.fail("a wrong escape inside this string", start) from error

    def object(self, depth: int) -> Node:
        start = self.at
        self.at += 1
        members: list[Member] = []
        seen: dict[str, int] = {}
        self.space()
        while self.peek() != "}":
            if members:
                self.comma("}", start)
            key_at = self.at
            if self.peek() != '"':
                raise self.fail(
                    "a key in double quotes is missing here" if self.peek() else self.unclosed(start)
                )
            key = self.string()
            if key in seen:
                line, column = position(self.text, seen[key])
                raise self.fail(f"key {json.dumps(key)} is given twice (first at {line}:{column})", key_at)
            seen[key] = key_at
            self.space()
            if self.peek() != ":":
                raise self.fail(f"':' is missing after key {json.dumps(key)}")
            self.at += 1
            self.space()
            members.append(Member(key, key_at, self.value(depth + 1)))
            self.space()
        self.at += 1
        return Node({m.key: m.node.value for m in members}, start, self.at, tuple(members))

    def array(self, depth: int) -> Node:
        start = self.at
        self.at += 1
        values: list[Any] = []
        self.space()
        while self.peek() != "]":
            if values:
                self.comma("]", start)
            values.append(self.value(depth + 1).value)
            self.space()
        self.at += 1
        return Node(values, start, self.at)

    def comma(self, close: str, opened: int) -> None:
        if not self.peek():
            raise self.fail(self.unclosed(opened))
        if self.peek() != ",":
            raise self.fail("',' is missing before this")
        comma_at = self.at
        self.at += 1
        self.space()
        if self.peek() == close:
            raise self.fail("trailing comma", comma_at)

    def unclosed(self, opened: int) -> str:
        line, column = position(self.text, opened)
        return f"the file ends inside what was opened at {line}:{column}"


def parse(text: str) -> Node:
    """The document with all positions. Raises JsonError on anything RFC 8259 forbids and on a key given twice."""
    return _Reader(text).document()


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _lead(text: str, node: Node, index: int) -> str:
    """The white space before member ``index`` of an object."""
    members = node.members or ()
    after = node.start + 1 if index == 0 else members[index - 1].node.end
    lead = text[after : members[index].start]
    return lead[lead.find(",") + 1 :] if index else lead


def _unit(text: str, root: Node) -> str:
    """One level of indentation as this document has it; four spaces where it shows none."""
    if root.members:
        lead = _lead(text, root, 0)
        if "\n" in lead and lead.rpartition("\n")[2]:
            return lead.rpartition("\n")[2]
    return "    "


def _render(value: Any, base: Optional[str], unit: str, newline: str) -> str:
    """JSON text of a value; ``base`` is the indentation of the line it starts on, None for one line."""
    if base is None:
        return json.dumps(value, ensure_ascii=False)
    text = json.dumps(value, ensure_ascii=False, indent=unit)
    return text.replace("\n", newline + base)


def set_member(text: str, path: tuple[str, ...], value: Any) -> str:
    """The text with the member at ``path`` set, missing objects on the way made; equal values change nothing.

    New members go last in their object, in the style of the members already there. Raises JsonError when
    the text is no JSON and TypeError when something on the way is not an object.
    """
    root = parse(text)
    node, base = root, ""
    unit, newline = _unit(text, root), _newline(text)
    for depth, key in enumerate(path):
        if node.members is None:
            raise TypeError(".".join(path[:depth]) or "the document")
        if node.members:
            lead = _lead(text, node, len(node.members) - 1)
            base = lead.rpartition("\n")[2] if "\n" in lead else base
        member = node.get(key)
        if member is None:
            for outer in reversed(path[depth + 1 :]):
                value = {outer: value}
            return _insert(text, node, key, value, base=base, style=(unit, newline))
        node = member.node
    if node.value == value and isinstance(node.value, bool) == isinstance(value, bool):
        return text
    one_line = "\n" not in text[root.start : root.end]
    return text[: node.start] + _render(value, None if one_line else base, unit, newline) + text[node.end :]


def _insert(text: str, node: Node, key: str, value: Any, *, base: str, style: tuple[str, str]) -> str:
    unit, newline = style
    members = node.members or ()
    if members:
        lead = _lead(text, node, len(members) - 1)
        many_lines = "\n" in lead
        if len(members) == 1 and not many_lines:
            lead = " "  # the first member of a one-line object says nothing about the space after a comma
        inner = lead.rpartition("\n")[2] if many_lines else None
        end = members[-1].node.end
        new = f"{json.dumps(key)}: {_render(value, inner, unit, newline)}"
        return f"{text[:end]},{lead}{new}{text[end:]}"
    inner = base if node.start == 0 or base else ""
    # An empty object at the top: its members are one unit in; deeper: one unit more than its own line.
    inner = inner + unit
    new = f"{json.dumps(key)}: {_render(value, inner, unit, newline)}"
    return f"{text[: node.start]}{{{newline}{inner}{new}{newline}{inner[len(unit) :]}}}{text[node.end :]}"


def delete_member(text: str, path: tuple[str, ...]) -> str:
    """The text without the member at ``path``; unchanged where there is none. Raises JsonError."""
    node = parse(text)
    for key in path[:-1]:
        member = node.get(key)
        if member is None:
            return text
        node = member.node
    members = node.members or ()
    for index, member in enumerate(members):
        if member.key != path[-1]:
            continue
        if index + 1 < len(members):
            return text[: member.start] + text[members[index + 1].start :]
        if index:
            return text[: members[index - 1].node.end] + text[member.node.end :]
        return text[: node.start + 1] + text[node.end - 1 :]
    return text
